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
| gt_masks | uint8 [B, G, M, M] | 0/1, the mask cropped to its box; M is 0 for models without masks |
| verified_classes | bool [B, K] | annotated or verified absent in the image |
| annotated_classes | bool [B, K] | gives negatives in the image; only of mixed data sets (`mixed`) |
| gt_has_mask | bool [B, G] | gt_masks is the object's mask; only of mixed data sets, for models with masks |

Evaluation and prediction batches have the first four. A training batch depends on the config, the annotations and the
step only: not on the step the iterator started at, nor on the number of hosts, each of which makes its own rows of the
same global batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from eql_jax.data.augment import COLOURS, draw_view, read_recipe
from eql_jax.data.buckets import assign_buckets, parse_buckets
from eql_jax.data.engines import batch_engine, rows_per_host
from eql_jax.data.examples import ExampleShape, Row, empty_batch, fill_train_row
from eql_jax.data.images import ImageError
from eql_jax.data.parallel import Batch, available_cores
from eql_jax.data.paste_draws import PasteDraws
from eql_jax.data.photometric import draw_photometric
from eql_jax.data.records import Annotations, ImageIndex
from eql_jax.data.samplers import Sampler
from eql_jax.data.sampling_weights import class_aware_probabilities, repeat_factors
from eql_jax.data.tf_data import tf_dataset
from eql_jax.data.transforms import Size, random_stream
from eql_jax.data.validation import AnnotationError, FaultReport


def make_train_iterator(
    annotations: Annotations, config: ConfigDict, *, start_step: int = 0, host: int = 0, num_hosts: int = 1
) -> TrainIterator:
    """Returns the endless iterator of training batches, beginning with that of start_step.

    Args:
      annotations: the training set.
      config: reads seed, data.*, model.with_mask and train.batch_size.
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
      sets: int64, the number of the set in `Annotations.sets` that each of them is of, 0 where there is one.
      index: `ImageIndex` of these.
      sampler: which of these are in the batch of a step.
    """

    def __init__(self, annotations: Annotations, config: ConfigDict, *, start_step: int, host: int, num_hosts: int):
        data = config.data
        self.step = start_step
        self.report = FaultReport(strict=data.strict)
        self._rows = rows_per_host(config.train.batch_size, host, num_hosts, "train.batch_size")
        self._first_row = host * self._rows
        self._seed = config.seed
        self._recipe = read_recipe(data)
        mask_size = data.mask_size if config.model.with_mask else 0
        self._shape = ExampleShape(data.max_objects, mask_size, annotations.num_classes, mixed=bool(annotations.sets))
        # Large-scale jitter cuts every image to one canvas.
        self._buckets = parse_buckets([data.crop_size] if data.scale_jitter else data.buckets)
        self._annotations = annotations
        self.images = self._select(annotations, drop_empty=data.drop_empty_images)
        self.index = annotations.index.select(self.images)
        self.sets = np.searchsorted([one.start for one in annotations.sets][1:], self.images, side="right")
        self.sampler = Sampler(
            buckets=self._assign_buckets(),
            batch_size=config.train.batch_size,
            seed=config.seed,
            sets=self.sets,
            shares=[one.share for one in annotations.sets] or [1.0],
            **self._weights(data.sampler, data.repeat_threshold),
        )
        self._pastes = PasteDraws(annotations, self.images, self._pasted_index(), recipe=self._recipe, seed=config.seed)
        self._bad: set[int] = set()
        self._bad_lock = threading.Lock()
        self._options = {
            "first": start_step,
            "count": None,
            "rows_per_batch": self._rows,
            "workers": data.workers or available_cores(),
            "prefetch": data.prefetch,
        }
        self._batches = batch_engine(data.engine)(self._new_batch, self._fill_row, **self._options)

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.step += 1
        return batch

    def as_tf_dataset(self):
        """Returns a `tf.data.Dataset` of the batches from `step` on, with workers of its own.

        Raises:
          ImportError: TensorFlow is not installed.
        """
        return tf_dataset(self._new_batch, self._fill_row, **self._options | {"first": self.step})

    def close(self) -> None:
        """Stops the workers. The iterator gives no more batches."""
        self._batches.close()

    def _select(self, annotations: Annotations, *, drop_empty: bool) -> np.ndarray:
        index = annotations.index
        usable = index.usable_counts() > 0 if drop_empty else np.ones(index.ids.size, bool)
        if not usable.all():
            self.report.note("image without a usable object left out", int((~usable).sum()))
        parts = [(one.name, one.start, one.stop, one.share) for one in annotations.sets]
        for name, start, stop, share in parts or [(str(annotations.raw), 0, index.ids.size, 1.0)]:
            if not share:
                usable[start:stop] = False
                self.report.note(f"image of {name}, whose share is 0, left out", stop - start)
            elif not usable[start:stop].any():
                raise AnnotationError(
                    f"{name}: none of {stop - start} images has a usable object to train on\n"
                    f"{annotations.report.summary()}"
                )
        images = np.flatnonzero(usable)
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
        return assign_buckets(self.index, self._buckets, max(sides), self._recipe.longest_side, self.report)

    def _weights(self, name: str, threshold: float) -> dict[str, np.ndarray]:
        """The argument of `Sampler` that weighs the images within their sets, by config.data.sampler."""
        if name == "uniform":
            return {}
        if name not in ("repeat_factor", "class_aware"):
            raise ValueError(f"data.sampler is {name!r}, expected 'uniform', 'repeat_factor' or 'class_aware'")
        num_classes = self._shape.num_classes
        weights = np.zeros(self.images.size)
        for number in np.unique(self.sets):
            mine = np.flatnonzero(self.sets == number)
            if name == "repeat_factor":
                of_set = self.index.select(mine)
                weights[mine] = repeat_factors(
                    of_set.classes, of_set.offsets, num_classes=num_classes, threshold=threshold
                )
            else:  # crowds are no examples of their class
                of_set = self.index.select(mine, usable_only=True)
                weights[mine] = class_aware_probabilities(of_set.classes, of_set.offsets, num_classes=num_classes)
        return {"factors" if name == "repeat_factor" else "probabilities": weights}

    def _pasted_index(self) -> ImageIndex:
        """The index, with objects that have no mask taken for ignore regions: they are never pasted."""
        without = [number for number, one in enumerate(self._annotations.sets) if not one.has_masks]
        if not without:
            return self.index
        no_mask = np.repeat(np.isin(self.sets, without), self.index.object_counts())
        return self.index._replace(ignore=self.index.ignore | no_mask)

    def _new_batch(self, step: int) -> Batch:
        bucket = self._buckets[self.sampler.batch(step).bucket]
        return empty_batch(self._rows, bucket=bucket, shape=self._shape)

    def _fill_row(self, position: int, out: Row) -> None:
        """Makes row position % B of the batch of step position // B."""
        step, row = divmod(position, self._rows)
        plan = self.sampler.batch(step)
        row += self._first_row
        members = self.sampler.members(plan.bucket, int(self.sets[plan.indices[row]]))
        start = int(np.searchsorted(members, plan.indices[row]))
        # The image itself, then for an unusable one the next of its bucket and set, whatever came before on this host.
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
