"""What an annotation file says about results: which images and classes there are; and lists of classes.

A class is named by its id, its name, or together with all others of a frequency by a letter: 'r' rare, 'c' common,
'f' frequent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eql_jax.data.json_file import stream_json
from eql_jax.data.validation import AnnotationError
from eql_jax.ensemble.errors import EnsembleError

LETTERS = ("r", "c", "f")


class Known(NamedTuple):
    """Images and classes of an annotation file.

    Attributes:
      source: its path.
      image_ids: int64 [I], rising.
      sizes: int64 [I, 2], height and width.
      names: class names by category id.
      letters: frequency letters by category id, as far as the file has them.
    """

    source: str
    image_ids: np.ndarray
    sizes: np.ndarray
    names: Mapping[int, str]
    letters: Mapping[int, str]


def read_known(path: str | os.PathLike[str]) -> Known:
    """Reads images and categories of an LVIS or COCO JSON; its annotations pass by.

    Raises:
      FileNotFoundError: there is no such file.
      AnnotationError: it is no annotation file, or an image or category has no usable id.
    """
    content = stream_json(path, {"annotations": lambda annotation: None})
    for key in ("images", "categories"):
        if not isinstance(content.get(key), list) or not content[key]:
            raise AnnotationError(f"{path}: expected a list of {key}, found keys {sorted(content)}")
    sizes = {}
    for image in content["images"]:
        values = [image.get(key) for key in ("id", "height", "width")] if isinstance(image, dict) else [None]
        if not all(type(value) is int for value in values):
            raise AnnotationError(f"{path}: expected images with integers id, height and width, found {_short(image)}")
        sizes[values[0]] = values[1:]
    names, letters = {}, {}
    for category in content["categories"]:
        if not isinstance(category, dict) or type(category.get("id")) is not int:
            raise AnnotationError(f"{path}: expected categories with an integer id, found {_short(category)}")
        names[category["id"]] = str(category.get("name", ""))
        if category.get("frequency") in LETTERS:
            letters[category["id"]] = category["frequency"]
    ids = np.array(sorted(sizes), np.int64)
    return Known(str(path), ids, np.array([sizes[i] for i in ids.tolist()], np.int64), names, letters)


def parse_classes(entries: Iterable[str], known: Known | None, *, where: str) -> list[int]:
    """Category ids, rising, of classes named by letter, id or name.

    Args:
      entries: such as 'r', '17', 'aerosol_can'.
      known: the classes there are; None: only ids can be resolved.
      where: what named them, for messages.

    Raises:
      EnsembleError: there is none, an entry is unknown, or it takes an annotation file to resolve it.
    """
    ids: set[int] = set()
    for entry in entries:
        ids.update(_resolve(entry.strip(), known, where))
    if not ids:
        raise EnsembleError(f"{where}: expected at least one class, found none")
    return sorted(ids)


def _resolve(entry: str, known: Known | None, where: str) -> list[int]:
    if entry.isascii() and entry.isdigit():
        if known is not None and int(entry) not in known.names:
            raise EnsembleError(
                f"{where}: class {entry} is none of the {len(known.names)} categories of {known.source}"
            )
        return [int(entry)]
    if known is None:
        raise EnsembleError(
            f"{where}: {entry!r} is no category id; names and frequency letters need --annotations, which lists them"
        )
    if entry in LETTERS:
        found = [i for i, letter in known.letters.items() if letter == entry]
        if not found:
            raise EnsembleError(
                f"{where}: no category of {known.source} has the 'frequency' {entry!r}, found "
                f"{sorted(set(known.letters.values())) or 'no letters at all'}; list ids or names"
            )
        return found
    found = [i for i, name in known.names.items() if name == entry]
    if len(found) != 1:
        raise EnsembleError(
            f"{where}: expected a frequency letter, an id or the name of a category of {known.source}, found {entry!r}"
            + (f", which {len(found)} categories have: give its id" if found else "")
        )
    return found


def read_class_list(text: str, known: Known | None, *, where: str) -> list[int]:
    """Category ids of a list of classes: 'r,c' or '3,17', or '@FILE' with an entry a line and comments after '#'.

    Raises:
      EnsembleError: see `parse_classes`.
      OSError: the file cannot be read.
    """
    if not text.startswith("@"):
        return parse_classes(filter(None, text.split(",")), known, where=where)
    lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
    entries = [line.split("#")[0].strip() for line in lines]
    return parse_classes(filter(None, entries), known, where=text[1:])


def read_class_factors(path: str | os.PathLike[str], known: Known | None) -> dict[int, float]:
    """Factors by category id, of a JSON object {class: factor}; what names one class goes before a letter.

    Raises:
      EnsembleError: it is no such object, a class is unknown, or a factor is not finite or below 0.
      OSError: the file cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise EnsembleError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise EnsembleError(f"{path}: expected a JSON object of classes and factors, found {_short(content)}")
    factors: dict[int, float] = {}
    for entry in sorted(content, key=lambda entry: entry not in LETTERS):
        factor = content[entry]
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < float("inf"):
            raise EnsembleError(f"{path}: expected a factor of at least 0 for {entry!r}, found {_short(factor)}")
        factors |= dict.fromkeys(parse_classes([entry], known, where=str(path)), float(factor))
    return factors


def _short(value: object) -> str:
    return repr(value)[:80]
