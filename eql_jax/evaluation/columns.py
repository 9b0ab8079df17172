"""Results as columns: what an evaluation holds of millions of detections.

N results, N' of which have a mask. A Python dict of one detection with box and mask takes about 1 KB; here it takes
about 80 bytes and its run lengths.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eql_jax.evaluation.result_reader import read_results
from eql_jax.evaluation.run_lengths import PackedMasks

Result = dict[str, Any]

_BLOCK = 4096  # results turned into arrays at a time
_LARGEST_ID, _LARGEST_SIDE = 2**63 - 1, 2**31 - 1
_BOOLEANS = frozenset({bool, np.bool_})
_FAULTS = (KeyError, TypeError, ValueError, OverflowError)  # what comes of a result that is none
NO_MASK, RUN_LENGTHS, OTHER_MASK = 0, 1, 2


class ResultTable(NamedTuple):
    """LVIS results as columns, in the order they came in.

    Attributes:
      image_ids, category_ids: int64 [N].
      scores: float64 [N].
      boxes: float64 [N, 4], x, y, width, height in pixels; NaN where a result has none.
      has_box: bool [N].
      mask_kind: uint8 [N]: NO_MASK, RUN_LENGTHS, or OTHER_MASK for a segmentation that is no run lengths.
      masks: of N masks, empty strings but for RUN_LENGTHS.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    has_box: np.ndarray
    mask_kind: np.ndarray
    masks: PackedMasks

    @classmethod
    def from_results(cls, results: Iterable[Mapping[str, Any]]) -> ResultTable:
        """Makes columns of LVIS result dicts. Raises ValueError, naming the result by its number, as `add` does."""
        builder = TableBuilder()
        builder.add(results)
        return builder.table()

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ResultTable:
        """Reads a results file without ever holding its dicts. Raises as `read_results` and `from_results` do."""
        builder = TableBuilder()
        builder.add(read_results(path), source=f"{path}: ")
        return builder.table()

    @property
    def size(self) -> int:
        return len(self.image_ids)

    def result(self, row: int) -> Result:
        """One result as a dict, with those of `bbox` and `segmentation` that it has."""
        result: Result = {
            "image_id": int(self.image_ids[row]),
            "category_id": int(self.category_ids[row]),
            "score": float(self.scores[row]),
        }
        if self.has_box[row]:
            result["bbox"] = self.boxes[row].tolist()
        if self.mask_kind[row] == RUN_LENGTHS:
            (rle,) = self.masks.rles(np.array([row]))
            result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        return result

    def of_images(self, image_ids: Sequence[int]) -> dict[int, list[Result]]:
        """The results of some images as dicts, by image id; an empty list where an image has none."""
        found: dict[int, list[Result]] = {image_id: [] for image_id in image_ids}
        for row in np.flatnonzero(np.isin(self.image_ids, np.array(image_ids, np.int64))).tolist():
            found[int(self.image_ids[row])].append(self.result(row))
        return found


class TableBuilder:
    """Makes a `ResultTable` of results that come in pieces.

    The columns grow in place as bytes do, so that the table is never there twice.
    """

    _COLUMNS = ("image_ids", "category_ids", "scores", "boxes", "has_box", "mask_kind", "sizes", "text", "lengths")
    _DTYPES = (np.int64, np.int64, np.float64, np.float64, np.bool_, np.uint8, np.int32, np.uint8, np.int64)

    def __init__(self) -> None:
        self._columns = {name: bytearray() for name in self._COLUMNS}
        self.size = 0

    def add(self, results: Iterable[Mapping[str, Any]], *, source: str = "", first: int = 0) -> None:
        """Appends results.

        Args:
          results: LVIS result dicts; keys other than image_id, category_id, score, bbox and segmentation are left.
          source: goes before the number of a result in messages.
          first: the number of the first of them there.

        Raises:
          ValueError: an image_id, category_id or score is missing or no number, an id is not whole or beyond int64, a
            box is not four numbers, or the size of a mask is not two integers. Strings and booleans are no numbers.
        """
        results = iter(results)
        first -= self.size
        while block := list(itertools.islice(results, _BLOCK)):
            try:
                arrays = _to_arrays(block)
            except _FAULTS:
                _find_fault(block, f"{source}result {{}}", self.size + first)
                raise
            for name, values in arrays.items():
                self._columns[name] += values.data.cast("B") if values.size else b""
            self.size += len(block)

    def table(self) -> ResultTable:
        """The table of all that was added; add no more."""
        columns = {
            name: np.frombuffer(self._columns[name], dtype)
            for name, dtype in zip(self._COLUMNS, self._DTYPES, strict=True)
        }
        offsets = np.zeros(self.size + 1, np.int64)
        np.cumsum(columns.pop("lengths"), out=offsets[1:])
        masks = PackedMasks(columns.pop("text"), offsets, columns.pop("sizes").reshape(-1, 2))
        columns["boxes"] = columns["boxes"].reshape(-1, 4)
        return ResultTable(**columns, masks=masks)


def _numbers(values: list[Any]) -> np.ndarray:
    """Integers or floats, nested as they come; raises ValueError for all else: strings of digits, booleans."""
    array = np.array(values)
    # Beside numbers, NumPy takes a boolean for one.
    flat = itertools.chain.from_iterable(values) if array.ndim > 1 else values
    if array.dtype.kind not in "iuf" or not _BOOLEANS.isdisjoint(map(type, flat)):
        raise ValueError("expected numbers")
    return array


def _integers(values: list[Any], largest: int = _LARGEST_ID) -> np.ndarray:
    """Integers from -largest - 1 to largest as int64; floats may stand for them."""
    array = _numbers(values)
    if array.dtype.kind == "f":
        whole = list(map(int, values))  # exact, where a float beside it has made a long integer a float
        if whole != values:
            raise ValueError("expected integers")
        array = np.array(whole)
    if array.dtype.kind not in "iu" or array.min() < -largest - 1 or array.max() > largest:
        raise ValueError("expected smaller integers")
    return array.astype(np.int64)


def _image_ids(block: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {"image_ids": _integers([r["image_id"] for r in block])}


def _category_ids(block: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {"category_ids": _integers([r["category_id"] for r in block])}


def _scores(block: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    scores = _numbers([r["score"] for r in block]).astype(np.float64)
    if np.isnan(scores).any():
        raise ValueError("expected numbers")
    return {"scores": scores}


def _boxes(block: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    boxes = [r.get("bbox") for r in block]
    has_box = np.array([box is not None for box in boxes])
    missing = (np.nan,) * 4
    xywh = _numbers([missing if box is None else box for box in boxes]).astype(np.float64)
    if xywh.shape != (len(block), 4):
        raise ValueError("expected four numbers")
    return {"boxes": xywh.ravel(), "has_box": has_box}


def _masks(block: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    texts, sizes, kinds = zip(*[_mask_of(r.get("segmentation")) for r in block], strict=True)
    return {
        "mask_kind": np.array(kinds, np.uint8),
        "sizes": _integers(list(itertools.chain.from_iterable(sizes)), _LARGEST_SIDE).astype(np.int32),
        "text": np.frombuffer(b"".join(texts), np.uint8),
        "lengths": np.array([len(text) for text in texts], np.int64),
    }


class _Field(NamedTuple):
    """A field of a result: what it must be, and what makes columns of it for a block of results."""

    name: str
    expected: str
    columns: Callable[[list[Mapping[str, Any]]], dict[str, np.ndarray]]


_FIELDS = (
    _Field("image_id", "an integer of 64 bits as its 'image_id'", _image_ids),
    _Field("category_id", "an integer of 64 bits as its 'category_id'", _category_ids),
    _Field("score", "a number as its 'score'", _scores),
    _Field("bbox", "four numbers as its 'bbox'", _boxes),
    _Field("segmentation", "two integers of 32 bits as the 'size' of its 'segmentation'", _masks),
)


def _to_arrays(block: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for field in _FIELDS:
        arrays |= field.columns(block)
    return arrays


def _mask_of(segmentation: Any) -> tuple[bytes, Sequence[int], int]:
    """The string, the size and the kind of a segmentation."""
    if segmentation is None:
        return b"", (0, 0), NO_MASK
    if not isinstance(segmentation, (dict, Mapping)):  # to ask about a dict is quick
        return b"", (0, 0), OTHER_MASK
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if isinstance(counts, str) and counts.isascii():
        counts = counts.encode("ascii")
    if not isinstance(counts, bytes) or not isinstance(size, (list, tuple)) or len(size) != 2:
        return b"", (0, 0), OTHER_MASK
    return counts, size, RUN_LENGTHS


def _find_fault(block: list[Mapping[str, Any]], name: str, first: int) -> None:
    """Raises ValueError for the first result of a block that cannot be used, if it is found."""
    for number, result in enumerate(block, first):
        if not isinstance(result, Mapping):
            raise ValueError(f"{name.format(number)}: expected a dict, found {str(result)[:60]}")
        if "image_id" not in result or "score" not in result or "category_id" not in result:
            raise ValueError(
                f"{name.format(number)}: expected image_id, category_id and score, found keys {sorted(result)}"
            )
        for field in _FIELDS:
            try:
                field.columns([result])
            except _FAULTS as error:
                raise ValueError(
                    f"{name.format(number)}: expected {field.expected}, found {repr(result.get(field.name))[:100]}"
                ) from error
