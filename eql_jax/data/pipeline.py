"""Batches for training, evaluation and prediction, as dicts of NumPy arrays.

B rows (images) of a batch on this host, H W bucket size, G padded objects, K classes, M side of the cropped masks.

| key | type | what |
| --- | --- | --- |
| image | uint8 [B, H, W, 3] | RGB, resized, zeros at the right and bottom |
| image_size | int32 [B, 2] | height, width of the valid part |
| original_size | int32 [B, 2] | height, width of the file |
| image_id | int64 [B] | -1 for a row without an image |
| gt_boxes | float32 [B, G, 4] | XYXY, pixels of the resized image |
| gt_classes | int32 [B, G] | -1 padding |
| gt_ignore | bool [B, G] | crowd or ignore region |
| gt_masks | uint8 [B, G, M, M] | 0/1, the mask cropped to its box |
| verified_classes | bool [B, K] | annotated or verified absent in the image |

Evaluation and prediction batches have the first four. A training batch depends on the config, the annotations and the
step only: not on the step the iterator started at, nor on the number of hosts, each of which makes its own rows of the
same global batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from eql_jax.data.augment import COLOURS, draw_view, read_recipe
from eql_jax.data.buckets import BucketChoice, choose_bucket, parse_buckets
from eql_jax.data.examples import ExampleShape, Row, empty_batch, fill_eval_row, fill_padding_row, fill_train_row
from eql_jax.data.images import ImageError, read_size
from eql_jax.data.parallel import available_cores, filled_batches
from eql_jax.data.paste_draws import PasteDraws
from eql_jax.data.photometric import draw_photometric
from eql_jax.data.records import Annotations, ImageIndex, ImageRecord, RecordsById, empty_objects, evenly_spaced
from eql_jax.data.samplers import Sampler
from eql_jax.data.sampling_weights import class_aware_probabilities, repeat_factors
from eql_jax.data.transforms import Size, random_stream
from eql_jax.data.validation import AnnotationError, FaultReport

Batch = dict[str, np.ndarray]


class SkippedImage(NamedTuple):
    """An image that could not be used, and why."""

    path: Path
    reason: str


def make_train_iterator(
    annotations: Annotations, config: ConfigDict, *, start_step: int = 0, host: int = 0, num_hosts: int = 1
) -> TrainIterator:
    """Returns the endless iterator of training batches, beginning with that of start_step.

    Args:
      annotations: the training set.
      config: reads seed, data.* and train.batch_size.
      start_step: the first step to make a batch for; nothing before it is read.
      host, num_hosts: makes rows host * B .. (host + 1) * B of the global batch, B = train.batch_size / num_hosts.

    Raises:
      ValueError: the batch does not divide among the hosts, a config value is out of range.
      AnnotationError: no image is left to train on.
    """
    return TrainIterator(annotations, config, start_step=start_step, host=host, num_hosts=num_hosts)


class TrainIterator(Iterator[Batch]):
    """Endless training batches. Made by `make_train_iterator`.

    Attributes:
      step: the step of the batch that `next` returns.
      report: faults of image files met so far (an image that cannot be read is replaced by the next one of its bucket),
        and notes: images left out or scaled down, objects beyond the padding.
      images: int64, the images trained on, as positions in `Annotations.images`.
      index: `ImageIndex` of these.
      sampler: which of these are in the batch of a step.
    """

    def __init__(self, annotations: Annotations, config: ConfigDict, *, start_step: int, host: int, num_hosts: int):
        data = config.data
        self.step = start_step
        self.report = FaultReport(strict=data.strict)
        self._rows = _rows_per_host(config.train.batch_size, host, num_hosts, "train.batch_size")
        self._first_row = host * self._rows
        self._seed = config.seed
        self._recipe = read_recipe(data)
        self._shape = ExampleShape(data.max_objects, data.mask_size, annotations.num_classes)
        # Large-scale jitter cuts every image to one canvas.
        self._buckets = parse_buckets([data.crop_size] if data.scale_jitter else data.buckets)
        self._annotations = annotations
        self.images = self._select(annotations, drop_empty=data.drop_empty_images)
        self.index = annotations.index.select(self.images)
        self.sampler = Sampler(
            buckets=self._assign_buckets(),
            batch_size=config.train.batch_size,
            seed=config.seed,
            **self._weights(data.sampler, data.repeat_threshold),
        )
        self._pastes = PasteDraws(annotations, self.images, self.index, recipe=self._recipe, seed=config.seed)
        self._bad: set[int] = set()
        self._bad_lock = threading.Lock()
        self._batches = filled_batches(
            self._new_batch,
            self._fill_row,
            first=start_step,
            count=None,
            rows_per_batch=self._rows,
            workers=data.workers or available_cores(),
            prefetch=data.prefetch,
        )

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.step += 1
        return batch

    def close(self) -> None:
        """Stops the workers. The iterator gives no more batches."""
        self._batches.close()

    def _select(self, annotations: Annotations, *, drop_empty: bool) -> np.ndarray:
        index = annotations.index
        images = np.flatnonzero(index.usable_counts()) if drop_empty else np.arange(index.ids.size)
        if images.size < index.ids.size:
            self.report.note("image without a usable object left out", index.ids.size - images.size)
        if not images.size:
            raise AnnotationError(
                f"{annotations.raw}: none of {index.ids.size} images has a usable object to train on\n"
                f"{annotations.report.summary()}"
            )
        surplus = int(np.maximum(index.object_counts()[images] - self._shape.max_objects, 0).sum())
        if surplus:
            text = (
                f"object beyond data.max_objects = {self._shape.max_objects} of its image left out, the smallest first"
            )
            self.report.note(text, surplus)
        return images

    def _assign_buckets(self) -> list[int]:
        if self._recipe.scale_jitter:
            return [0] * self.images.size
        sides = self._recipe.shorter_sides
        return _assign_buckets(self.index, self._buckets, max(sides), self._recipe.longest_side, self.report)

    def _weights(self, name: str, threshold: float) -> dict[str, np.ndarray]:
        """The argument of `Sampler` that weighs the images, by config.data.sampler."""
        num_classes = self._shape.num_classes
        if name == "uniform":
            return {}
        if name == "repeat_factor":
            classes, offsets = self.index.classes, self.index.offsets
            return {"factors": repeat_factors(classes, offsets, num_classes=num_classes, threshold=threshold)}
        if name == "class_aware":
            # Crowds are no examples of their class.
            usable = self._annotations.index.select(self.images, usable_only=True)
            classes, offsets = usable.classes, usable.offsets
            return {"probabilities": class_aware_probabilities(classes, offsets, num_classes=num_classes)}
        raise ValueError(f"data.sampler is {name!r}, expected 'uniform', 'repeat_factor' or 'class_aware'")

    def _new_batch(self, step: int) -> Batch:
        bucket = self._buckets[self.sampler.batch(step).bucket]
        return empty_batch(self._rows, bucket=bucket, shape=self._shape)

    def _fill_row(self, position: int, out: Row) -> None:
        """Makes row position % B of the batch of step position // B."""
        step, row = divmod(position, self._rows)
        plan = self.sampler.batch(step)
        row += self._first_row
        members = self.sampler.members(plan.bucket)
        start = int(np.searchsorted(members, plan.indices[row]))
        # The image itself, then for an unusable one the next of its bucket, whatever came before on this host.
        for offset in range(members.size):
            index = int(members[(start + offset) % members.size])
            if index in self._bad:
                continue
            try:
                record = self._annotations.images[self.images[index]]
            except ImageError as error:  # a damaged record of a prepared data set
                self._mark_bad(index, error)
                continue
            draws = (self._seed, step, row, record.id)
            view = draw_view(
                random_stream(*draws), self._recipe, Size(record.height, record.width), self._buckets[plan.bucket]
            )
            colours = ()
            if any(self._recipe.colours):
                colours = draw_photometric(random_stream(*draws, COLOURS), self._recipe.colours)
            pastes = self._pastes.draw(
                step=step, row=row, image_id=record.id, view=view, batch=plan.indices, on_error=self._mark_bad
            )
            try:
                fill_train_row(
                    out,
                    record,
                    view=view,
                    fast=self._recipe.fast_pixels,
                    pastes=pastes,
                    on_paste_error=lambda paste, error: self._mark_bad(paste.index, error),
                    colours=colours,
                )
                return
            except ImageError as error:
                self._mark_bad(index, error)
        raise AnnotationError(
            f"none of the {members.size} images of bucket {tuple(self._buckets[plan.bucket])} can be read\n"
            f"{self.report.summary()}"
        )

    def _mark_bad(self, index: int, error: ImageError) -> None:
        with self._bad_lock:
            if index in self._bad:
                return  # another thread met it at the same time
            self._bad.add(index)
        self.report.add(error.kind, file=error.file, record_id=int(self.index.ids[index]), message=str(error))


def make_eval_batches(
    annotations: Annotations, config: ConfigDict, *, host: int = 0, num_hosts: int = 1
) -> EvalBatches:
    """Returns the evaluation batches of this host; every host has as many, of the same shapes.

    Args:
      annotations: the evaluation set, with images without objects.
      config: reads data.*, eval.batch_size (of all hosts) and eval.max_images (evenly spaced images; 0 takes all).
      host, num_hosts: this host's rows of each global batch.

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
    )


def make_prediction_batches(
    images: Sequence[str | Path | ImageRecord], config: ConfigDict, *, batch_size: int
) -> EvalBatches:
    """Returns batches to predict on. Unreadable images are skipped: see `EvalBatches.skipped`.

    Args:
      images: paths (their image ids are 1, 2, ... in order), or records, such as those of
        `load_annotations(..., require_annotations=False).images`, whose stated sizes are checked.
      config: reads data.buckets, eval_shorter_side, longest_side, workers and prefetch.
      batch_size: images of a batch.

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
    )
    batches.skipped += skipped
    return batches


class EvalBatches:
    """Evaluation or prediction batches; can be iterated again. Made by the functions above.

    Images are grouped by bucket, in the given order within one; the last batch of a bucket is padded with rows of
    image_id -1. A row whose file cannot be used becomes such a row, too.

    Attributes:
      records: image id -> `ImageRecord`, of all images of all hosts that may come.
      report: faults of image files met so far, and notes.
      skipped: list of `SkippedImage`: images of this host that were met and cannot be used, each once.
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
    ):
        data = config.data
        self.report = report
        self.skipped: list[SkippedImage] = []
        self._skipped_ids: set[int] = set()
        self._lock = threading.Lock()
        self._rows = _rows_per_host(batch_size, host, num_hosts, "eval.batch_size")
        self._shorter_side = data.eval_shorter_side
        self._longest_side = data.longest_side
        self._buckets = parse_buckets(data.buckets)
        self._workers = data.workers or available_cores()
        self._prefetch = data.prefetch
        self._images = images
        self._positions = positions
        self._ids = index.ids
        self.records = RecordsById(images, positions, index.ids)
        assigned = np.array(
            _assign_buckets(index, self._buckets, self._shorter_side, self._longest_side, report), np.int64
        )
        self._batch_buckets: list[int] = []
        self._batch_rows: list[np.ndarray] = []  # this host's rows of each batch, -1 without an image
        for bucket in range(len(self._buckets)):
            members = np.flatnonzero(assigned == bucket)
            for start in range(0, members.size, batch_size):
                rows = np.full(batch_size, -1, np.int64)
                rows[: min(batch_size, members.size - start)] = members[start : start + batch_size]
                self._batch_buckets.append(bucket)
                self._batch_rows.append(rows[host * self._rows : (host + 1) * self._rows])

    def __len__(self) -> int:
        """Number of batches, the same on every host."""
        return len(self._batch_rows)

    def __iter__(self) -> Iterator[Batch]:
        return filled_batches(
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
        return empty_batch(self._rows, bucket=self._buckets[self._batch_buckets[number]])

    def _fill_row(self, position: int, out: Row) -> None:
        batch, row = divmod(position, self._rows)
        index = int(self._batch_rows[batch][row])
        if index >= 0:
            try:
                fill_eval_row(
                    out,
                    self._images[self._positions[index]],
                    shorter_side=self._shorter_side,
                    longest_side=self._longest_side,
                )
                return
            except ImageError as error:
                self._skip(int(self._ids[index]), error)
        fill_padding_row(out)


def _rows_per_host(batch_size: int, host: int, num_hosts: int, name: str) -> int:
    if not 0 <= host < num_hosts:
        raise ValueError(f"host is {host}, expected 0 .. {num_hosts - 1} (num_hosts {num_hosts})")
    if batch_size < 1 or batch_size % num_hosts:
        raise ValueError(f"{name} is {batch_size}, expected a positive multiple of the {num_hosts} hosts")
    return batch_size // num_hosts


def _assign_buckets(
    index: ImageIndex, buckets: tuple[Size, ...], shorter_side: int, longest_side: int, report: FaultReport
) -> list[int]:
    """Returns the bucket of each image; notes those that are scaled down to fit theirs."""
    choices: dict[tuple[int, int], BucketChoice] = {}  # a large data set has few sizes
    assigned = []
    shrunk = 0
    for size in zip(index.heights.tolist(), index.widths.tolist(), strict=True):
        if size not in choices:
            choices[size] = choose_bucket(*size, buckets=buckets, shorter_side=shorter_side, longest_side=longest_side)
        assigned.append(choices[size].index)
        shrunk += not choices[size].fits
    if shrunk:
        report.note("image too large for every bucket of data.buckets at its full size, scaled down to fit", shrunk)
    return assigned
