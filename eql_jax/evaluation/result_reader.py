"""Reading a results file piece by piece, so that memory does not grow with it.

A results file is a JSON list of dicts: one to a line as `ResultWriter` writes it, or all on one line of gigabytes, as
other tools do. It may be gzip-compressed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from eql_jax.data.json_file import stream_list
from eql_jax.data.validation import AnnotationError


def read_results(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yields the results of a file in its order.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not JSON, or not a list of dicts; the message names the file and where in it the fault is.
    """
    number = 0
    try:
        for result in stream_list(path, kind="results file", advice="Write the results again"):
            if not isinstance(result, dict):
                raise ValueError(f"{path}: expected result {number} to be a dict, found {str(result)[:60]}")
            yield result
            number += 1
    except AnnotationError as error:
        raise ValueError(f"{error}. The fault is at result {number}" if number else str(error)) from error
