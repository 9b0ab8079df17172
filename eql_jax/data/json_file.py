"""Reading an annotation JSON: errors that say what is wrong with the file, and little memory while parsing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from eql_jax.data.validation import AnnotationError

# What the first bytes of a file that is no JSON tell.
_MAGIC = {
    b"PK": "it is a zip archive: unpack it first",
    b"\x1f\x8b": "it is gzip-compressed: unpack it first",
    b"<": "it looks like a web page: the download failed, download it again",
}


def read_annotation_json(path: str | Path) -> dict:
    """Reads an LVIS or COCO JSON to a dict; polygons become float64 arrays while parsing.

    The lists of Python floats that `json` would make of the polygons of LVIS v1 take several gigabytes. Each polygon is
    packed as soon as its annotation is parsed, and "segmentation" is then a list of 1-D arrays. Anything that is not a
    list of lists of numbers is left as it is, for the validation to name.

    Raises:
      FileNotFoundError: there is no such file.
      AnnotationError: it is empty, cut off, not JSON, or its top level is not an object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    raw = path.read_bytes()
    for magic, hint in _MAGIC.items():
        if raw.startswith(magic):
            raise AnnotationError(f"{path} is not JSON: {hint}")
    if not raw.strip():
        raise AnnotationError(f"{path} is empty ({len(raw)} bytes): download it again")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"{path} is not JSON: byte {error.start} of {len(raw)} is not UTF-8 text. Download it again"
        ) from error
    size = len(raw)
    del raw
    try:
        content = json.loads(text, object_hook=_pack_polygons)
    except json.JSONDecodeError as error:
        position = len(text[: error.pos].encode())
        # A parser that stops in the last bytes, or in a string that nothing closes, ran out of file.
        cut = position >= size - 16 or error.msg.startswith("Unterminated string")
        what = "is cut off" if cut else "is not valid JSON"
        raise AnnotationError(
            f"{path} {what}: {error.msg} at byte {position} of {size}. "
            "Download it again and compare its size or checksum"
        ) from error
    if not isinstance(content, dict):
        hint = "; a list of detections (a results file) is no annotation file" if isinstance(content, list) else ""
        expected = "expected an object with images, annotations and categories"
        raise AnnotationError(f"{path} holds a JSON {type(content).__name__}, {expected}{hint}")
    return content


def _pack_polygons(record: dict) -> dict:
    """json object_hook: packs the polygons of an annotation into arrays, where they are lists of numbers."""
    parts = record.get("segmentation")
    if isinstance(parts, list):
        try:
            record["segmentation"] = [np.asarray(part, np.float64) for part in parts]
        except (TypeError, ValueError):
            pass  # left for the validation, which names the annotation
    return record
