"""Batches for evaluation and prediction, every image once: the first four arrays of `pipeline`'s, or, for test-time
augmentation, several views of every image (`tta_views`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from eql_jax.data.buckets import assign_buckets, parse_buckets
from eql_jax.data.engines import batch_engine, rows_per_host
from eql_jax.data.examples import Row, empty_batch, fill_eval_row, fill_padding_row
from eql_jax.data.images import ImageError, read_size
from eql_jax.data.parallel import Batch, available_cores
from eql_jax.data.records import Annotations, ImageIndex, ImageRecord, RecordsById, empty_objects, evenly_spaced
from eql_jax.data.tta_views import ViewsLayout
from eql_jax.data.validation import FaultReport


class SkippedImage(NamedTuple):
    """An image that could not be used, and why."""

    path: Path
    reason: str


class Layout(Protocol):
    """What a row of a batch holds. Images of one group have arrays of the same shapes."""

    @property
    def num_groups(self) -> int: ...

    def assign(self, index: ImageIndex, report: FaultReport) -> np.ndarray:
        """The group of each image, int64."""

    def new_batch(self, rows: int, group: int) -> Batch:
        """The arrays of a batch before anything is in them."""

    def fill_row(self, row: Row, record: ImageRecord) -> None:
        """Raises ImageError, before anything is written, when the file cannot be used."""

    def fill_padding_row(self, row: Row) -> None:
        """A row without an image: image_id -1, sizes above 0."""

    def describe(self, assigned: np.ndarray) -> str:
        """A line for the log, "" where there is nothing to say."""


class PlainLayout:
    """One image a row, resized to data.eval_shorter_side; the groups are data.buckets."""

    def __init__(self, config: ConfigDict):
        self._shorter_side, self._longest_side = config.data.eval_shorter_side, config.data.longest_side
        self._buckets = parse_buckets(config.data.buckets)

    @property
    def num_groups(self) -> int:
        return len(self._buckets)

    def assign(self, index: ImageIndex, report: FaultReport) -> np.ndarray:
        """Notes images that have to be scaled down to fit in the report."""
        return np.array(assign_buckets(index, self._buckets, self._shorter_side, self._longest_side, report), np.int64)

    def new_batch(self, rows: int, group: int) -> Batch:
        return empty_batch(rows, bucket=self._buckets[group])

    def fill_row(self, row: Row, record: ImageRecord) -> None:
        fill_eval_row(row, record, shorter_side=self._shorter_side, longest_side=self._longest_side)

    def fill_padding_row(self, row: Row) -> None:
        fill_padding_row(row)

    def describe(self, assigned: np.ndarray) -> str:
        return ""


def make_layout(config: ConfigDict, *, augmented: bool) -> Layout:
    """The layout of batches. augmented: that of test-time augmentation, where eval.tta.shorter_sides has any."""
    return ViewsLayout(config) if augmented and config.eval.tta.shorter_sides else PlainLayout(config)


def make_eval_batches(
    annotations: Annotations, config: ConfigDict, *, host: int = 0, num_hosts: int = 1, augmented: bool = False
) -> EvalBatches:
    """Returns the evaluation batches of this host; every host has as many, of the same shapes.

    Args:
      annotations: the evaluation set, with images without objects.
      config: reads data.*, eval.batch_size (of all hosts) and eval.max_images (evenly spaced images; 0 takes all).
      host, num_hosts: this host's rows of each global batch.
      augmented: batches for test-time augmentation where config.eval.tta asks for it (see `make_layout`).

    Raises:
      ValueError: the batch does not divide among the hosts, a config value is out of range.
    """
    positions = np.arange(len(annotations.images))
    if config.eval.max_images:
        positions = np.array(evenly_spaced(positions, config.eval.max_images))
    return EvalBatches(
        annotations.images,
        positions,
        annotations.index.select(positions),
        config,
        batch_size=config.eval.batch_size,
        host=host,
        num_hosts=num_hosts,
        report=FaultReport(strict=config.data.strict),
        engine=config.data.engine,
        layout=make_layout(config, augmented=augmented),
    )


def make_prediction_batches(
    images: Sequence[str | Path | ImageRecord], config: ConfigDict, *, batch_size: int, augmented: bool = False
) -> EvalBatches:
    """Returns batches to predict on, without TensorFlow. Unreadable images are skipped: see `EvalBatches.skipped`.

    Args:
      images: paths (their image ids are 1, 2, ... in order), or records, such as those of
        `load_annotations(..., require_annotations=False).images`, whose stated sizes are checked.
      config: reads data.buckets, eval_shorter_side, longest_side, workers and prefetch.
      batch_size: images of a batch.
      augmented: see `make_eval_batches`.

    Raises:
      ValueError: `images` is empty.
    """
    if not images:
        raise ValueError("there are no images to predict on (an empty list of paths)")
    none = np.zeros(0, np.int32)
    report = FaultReport()
    skipped = []
    records = []
    for i, image in enumerate(images, start=1):
        if isinstance(image, ImageRecord):
            records.append(image)
            continue
        try:
            height, width = read_size(image)
        except ImageError as error:
            skipped.append(SkippedImage(Path(image), f"{error.kind}: {error}"))
            report.add(error.kind, file=image, record_id=i, message=str(error))
        else:
            records.append(ImageRecord(i, Path(image), width, height, none, none, empty_objects()))
    batches = EvalBatches(
        records,
        np.arange(len(records)),
        ImageIndex.of(records),
        config,
        batch_size=batch_size,
        host=0,
        num_hosts=1,
        report=report,
        engine="threads",
        layout=make_layout(config, augmented=augmented),
    )
    batches.skipped += skipped
    return batches


class EvalBatches:
    """Evaluation or prediction batches; can be iterated again. Made by the functions above.

    Images are grouped as the layout says, by bucket, in the given order within one; the last batch of a group is padded
    with rows of image_id -1. A row whose file cannot be used becomes such a row, too.

    Attributes:
      records: image id -> `ImageRecord`, of all images of all hosts that may come.
      report: faults of image files met so far, and notes.
      skipped: list of `SkippedImage`: images of this host that were met and cannot be used, each once.
      description: what the layout has to say for the log, "" if nothing.
    """

    def __init__(
        self,
        images: Sequence[ImageRecord],
        positions: np.ndarray,
        index: ImageIndex,
        config: ConfigDict,
        *,
        batch_size: int,
        host: int,
        num_hosts: int,
        report: FaultReport,
        engine: str,
        layout: Layout,
    ):
        data = config.data
        self.report = report
        self.skipped: list[SkippedImage] = []
        self._skipped_ids: set[int] = set()
        self._lock = threading.Lock()
        self._rows = rows_per_host(batch_size, host, num_hosts, "eval.batch_size")
        self._layout = layout
        self._workers = data.workers or available_cores()
        self._prefetch = data.prefetch
        self._make = batch_engine(engine)
        self._images = images
        self._positions = positions
        self._ids = index.ids
        self.records = RecordsById(images, positions, index.ids)
        assigned = layout.assign(index, report)
        self.description = layout.describe(assigned)
        self._batch_groups: list[int] = []
        self._batch_rows: list[np.ndarray] = []  # this host's rows of each batch, -1 without an image
        for group in range(layout.num_groups):
            members = np.flatnonzero(assigned == group)
            for start in range(0, members.size, batch_size):
                rows = np.full(batch_size, -1, np.int64)
                rows[: min(batch_size, members.size - start)] = members[start : start + batch_size]
                self._batch_groups.append(group)
                self._batch_rows.append(rows[host * self._rows : (host + 1) * self._rows])

    def __len__(self) -> int:
        """Number of batches, the same on every host."""
        return len(self._batch_rows)

    def __iter__(self) -> Iterator[Batch]:
        return self._make(
            self._new_batch,
            self._fill_row,
            first=0,
            count=len(self),
            rows_per_batch=self._rows,
            workers=self._workers,
            prefetch=self._prefetch,
        )

    def _skip(self, image_id: int, error: ImageError) -> None:
        with self._lock:
            if image_id in self._skipped_ids:
                return
            self._skipped_ids.add(image_id)
            self.skipped.append(SkippedImage(error.file, f"{error.kind}: {error}"))
        self.report.add(error.kind, file=error.file, record_id=image_id, message=str(error))

    def _new_batch(self, number: int) -> Batch:
        return self._layout.new_batch(self._rows, self._batch_groups[number])

    def _fill_row(self, position: int, out: Row) -> None:
        batch, row = divmod(position, self._rows)
        index = int(self._batch_rows[batch][row])
        if index >= 0:
            try:
                self._layout.fill_row(out, self._images[self._positions[index]])
                return
            except ImageError as error:
                self._skip(int(self._ids[index]), error)
        self._layout.fill_padding_row(out)
