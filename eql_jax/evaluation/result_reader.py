"""Reading a results file piece by piece, so that memory does not grow with it.

A results file is a JSON list of dicts: one to a line as `ResultWriter` writes it, or all on one line of gigabytes, as
other tools do. A window slides over its text, and `json.JSONDecoder.raw_decode`, the scanner of `json.load` in C, takes
one result after the other from it.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator
from typing import Any

_WINDOW = 1 << 22  # bytes
_SPACE = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")


def read_results(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yields the results of a file in its order.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not JSON, or not a list of dicts; the message names the file and the place.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")()
    parse = json.JSONDecoder().raw_decode
    text, at, passed, ended, number = "", 0, 0, False, 0

    def damaged(reason: str) -> ValueError:
        return ValueError(
            f"{path}: not a JSON file, or cut short ({reason} near byte {passed} of {os.path.getsize(path)}, after "
            f"{number} results); write the results again"
        )

    with open(path, "rb") as file:

        def read_on() -> None:
            """Lets go of what is parsed and reads on; the more the longer the value is that did not fit."""
            nonlocal text, at, passed, ended
            chunk = file.read(max(_WINDOW, len(text) - at))
            passed, ended = file.tell() - len(chunk), not chunk
            try:
                text, at = text[at:] + decode.decode(chunk, final=ended), 0
            except UnicodeDecodeError as error:
                raise damaged(str(error)) from error

        def next_character() -> str:
            nonlocal at
            while True:
                at = _SPACE.match(text, at).end()
                if at < len(text) or ended:
                    return text[at : at + 1]
                read_on()

        start = next_character()
        if start != "[":
            if start != "{":
                raise damaged(f"expected '[', found {start!r}")
            raise ValueError(f"{path}: expected a list of results, found a JSON dict")
        at += 1
        closed = next_character() == "]"
        at += closed
        while not closed:
            try:
                result, end = parse(text, at)
            except json.JSONDecodeError as error:
                if ended:
                    raise damaged(error.msg) from error
                read_on()
                continue
            if not isinstance(result, dict):
                raise ValueError(f"{path}: expected result {number} to be a dict, found {str(result)[:60]}")
            yield result
            number += 1
            comma = _COMMA.match(text, end)  # most often the next result follows in the window
            if comma is not None and comma.end() < len(text):
                at = comma.end()
                continue
            at = end
            found = next_character()
            if found not in ("]", ","):
                raise damaged(f"expected ',' or ']', found {found!r}")
            at += 1
            closed = found == "]"
            next_character()
        if next_character():
            raise damaged("more text after the list")
