"""A results file laid out by image, on disk: what an ensemble needs of millions of detections at random.

n detections of one image. The images of two results files come in different orders, the detections of one image may be
spread over its file, and a gzip-compressed one cannot be read from the middle. So a file is read once, each result is
checked and goes as a record of 68 bytes and the text of its mask into two temporary files, and memory keeps where the
records of each image are: a few bytes an image where they lie together, as in all files of this project.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import tempfile
from typing import IO, NamedTuple

import numpy as np
from tqdm import tqdm

from eql_jax.ensemble.errors import EnsembleError
from eql_jax.ensemble.known import Known
from eql_jax.evaluation.columns import NO_MASK, RUN_LENGTHS, ResultTable, TableBuilder
from eql_jax.evaluation.result_reader import read_results
from eql_jax.evaluation.run_lengths import PackedMasks

_BLOCK = 1 << 14  # results checked and written at a time
_RECORD = np.dtype(
    [
        ("category", np.int64),
        ("score", np.float64),
        ("box", np.float64, 4),
        ("size", np.int32, 2),
        ("start", np.int64),
        ("length", np.int32),
    ]
)


class ImageResults(NamedTuple):
    """What a file has for an image, in the file's order.

    Attributes:
      numbers: int64 [n], the number of each result in its file.
      classes: int64 [n], category ids.
      scores: float64 [n].
      boxes: float64 [n, 4], x, y, width, height.
      masks: of n masks; empty strings where the file has none.
    """

    numbers: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: PackedMasks


class SpooledResults:
    """A results file by image; a context manager, which lets go of the temporary files.

    Attributes:
      path: of the results file.
      size: how many results it has.
      with_masks: whether they have masks, None where there are no results.
      image_ids: int64 [I], rising: the images with results.
    """

    def __init__(self, path: str, records: IO[bytes], text: IO[bytes], with_masks: bool | None, runs: np.ndarray):
        self.path = path
        self.with_masks = with_masks
        self.size = int(runs[:, 2].sum())
        self._records, self._text = records, text
        self._runs = runs[np.lexsort((runs[:, 1], runs[:, 0]))]  # image, first record, records
        self.image_ids = np.unique(self._runs[:, 0])

    def __enter__(self) -> SpooledResults:
        return self

    def __exit__(self, *_: object) -> None:
        self._records.close()
        self._text.close()

    def first_number(self, image_id: int) -> int:
        """The number of the first result of an image that has some."""
        return int(self._runs[np.searchsorted(self._runs[:, 0], image_id), 1])

    def read(self, image_id: int) -> ImageResults:
        """The results of an image; none where it has none."""
        first, last = (int(np.searchsorted(self._runs[:, 0], image_id, side=side)) for side in ("left", "right"))
        parts, texts, numbers = [np.zeros(0, _RECORD)], [], [np.zeros(0, np.int64)]
        for start, count in self._runs[first:last, 1:].tolist():
            self._records.seek(start * _RECORD.itemsize)
            records = np.frombuffer(self._records.read(count * _RECORD.itemsize), _RECORD)
            self._text.seek(records["start"][0])
            texts.append(self._text.read(int(records["start"][-1] + records["length"][-1] - records["start"][0])))
            parts.append(records)
            numbers.append(np.arange(start, start + count))
        records = np.concatenate(parts)
        offsets = np.concatenate([[0], np.cumsum(records["length"], dtype=np.int64)])
        return ImageResults(
            np.concatenate(numbers),
            records["category"],
            records["score"],
            records["box"],
            PackedMasks(np.frombuffer(b"".join(texts), np.uint8), offsets, records["size"]),
        )


def spool(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    known: Known | None = None,
    progress: bool = False,
) -> SpooledResults:
    """Reads a results file, plain or gzip-compressed, and lays it out by image.

    Args:
      path: of the results file; each result needs a box, and all of them or none a mask in compressed run lengths.
      folder: for the temporary files, as large as the results; None: the system's.
      known: images and classes that results may be of, and the sizes of their masks; None: any.
      progress: whether to show a bar.

    Raises:
      FileNotFoundError: there is no such file.
      EnsembleError: it is no results file, or a result cannot be used; the message names file and result.
      OSError: it cannot be read, or there is no space for the temporary files.
    """
    path = str(path)
    records, text = tempfile.TemporaryFile(dir=folder), tempfile.TemporaryFile(dir=folder)
    try:
        runs, with_masks = _lay_out(path, records, text, known, progress)
        records.flush()
        text.flush()
    except BaseException as error:
        with contextlib.suppress(OSError):  # closing writes what is left, too
            records.close()
        with contextlib.suppress(OSError):
            text.close()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            where = folder or tempfile.gettempdir()
            reason = f"{error.strerror} (temporary files, as large as {path} unpacked)"
            raise OSError(error.errno, reason, str(where)) from error
        raise
    return SpooledResults(path, records, text, with_masks, runs)


def _lay_out(
    path: str, records: IO[bytes], text: IO[bytes], known: Known | None, progress: bool
) -> tuple[np.ndarray, bool | None]:
    """Writes the records; returns runs int64 [R, 3] (image, first record, records) and whether there are masks."""
    runs = [np.zeros((0, 3), np.int64)]
    with_masks = None
    size, text_size = 0, 0
    results = read_results(path)
    with tqdm(unit="result", desc=f"read {os.path.basename(path)}", disable=not progress, leave=False) as bar:
        while True:
            builder = TableBuilder()
            try:
                builder.add(itertools.islice(results, _BLOCK), source=f"{path}: ", first=size)
            except ValueError as error:
                raise EnsembleError(str(error)) from error
            if not builder.size:
                return np.concatenate(runs), with_masks
            table = builder.table()
            if with_masks is None:
                with_masks = bool(table.mask_kind[0] != NO_MASK)
            _check(table, f"{path}: result {{}} (image {{}})", size, with_masks, known)
            block = np.zeros(table.size, _RECORD)
            block["category"], block["score"], block["box"] = table.category_ids, table.scores, table.boxes
            block["size"] = table.masks.sizes
            block["start"], block["length"] = table.masks.offsets[:-1] + text_size, np.diff(table.masks.offsets)
            records.write(block.data.cast("B"))
            text.write(table.masks.text.data)
            starts = np.flatnonzero(np.concatenate([[True], np.diff(table.image_ids) != 0]))
            counts = np.diff(starts, append=table.size)
            runs.append(np.stack([table.image_ids[starts], starts + size, counts], axis=1))
            size += table.size
            text_size += len(table.masks.text)
            bar.update(table.size)


def _check(table: ResultTable, name: str, first: int, with_masks: bool, known: Known | None) -> None:
    """Raises EnsembleError for the first result of a block that cannot be used."""
    finite = np.isfinite(table.boxes).all(axis=1) & (table.boxes[:, 2:] >= 0).all(axis=1)
    has_mask = table.mask_kind != NO_MASK
    checks = [
        (~table.has_box, "expected a 'bbox' of x, y, width and height, found none"),
        (~finite, "expected a 'bbox' of finite numbers, width and height at least 0"),
        (~(np.isfinite(table.scores) & (table.scores >= 0)), "expected a finite 'score' of at least 0"),
        (
            has_mask & (table.mask_kind != RUN_LENGTHS),
            "expected run lengths with 'size' and 'counts' (a string) as its 'segmentation', found something else",
        ),
        (has_mask & (table.masks.sizes < 1).any(axis=1), "expected a 'segmentation' of at least one pixel"),
        (
            has_mask != with_masks,
            f"expected {'a' if with_masks else 'no'} 'segmentation', as with the results before it, found "
            f"{'none' if with_masks else 'one'}",
        ),
    ]
    if known is not None:
        place = np.minimum(np.searchsorted(known.image_ids, table.image_ids), len(known.image_ids) - 1)
        sizes = known.sizes[place]
        checks += [
            (
                known.image_ids[place] != table.image_ids,
                f"expected one of the {len(known.image_ids)} images of {known.source}; the results belong to another "
                "data set or split",
            ),
            (
                ~np.isin(table.category_ids, list(known.names)),
                f"expected one of the {len(known.names)} categories of {known.source} as its 'category_id'",
            ),
            (
                has_mask & (table.masks.sizes != sizes).any(axis=1),
                f"expected a mask of the image's height and width in {known.source}",
            ),
        ]
    for faulty, message in checks:
        rows = np.flatnonzero(faulty)
        if len(rows):
            row = int(rows[0])
            found = str(table.result(row))[:200]
            raise EnsembleError(f"{name.format(first + row, table.image_ids[row])}: {message}. It is {found}")
