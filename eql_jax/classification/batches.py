"""Batches of labelled images, as dicts of NumPy arrays.

B rows (images) of a batch on this host, S side.

| key | type | what |
| --- | --- | --- |
| image | uint8 [B, S, S, 3] | RGB, augmented in training |
| label | int32 [B] | class 0..K-1; -1 for a row without an image |
| image_id | int64 [B] | position in the set; -1 for a row without an image |

A training batch depends on the config, the set and the step only: not on the step the iterator started at, nor on the
number of hosts, each of which makes its own rows of the same global batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from eql_jax.classification.augment import Recipe, eval_image, train_image
from eql_jax.classification.image_set import ImageSet
from eql_jax.data.engines import batch_engine, rows_per_host
from eql_jax.data.epochs import EpochStream
from eql_jax.data.images import ImageError
from eql_jax.data.parallel import Batch, Row, available_cores
from eql_jax.data.records import evenly_spaced
from eql_jax.data.transforms import random_stream
from eql_jax.data.validation import AnnotationError, FaultReport

_AUGMENTATION = 13  # keeps these draws apart from those of other purposes


class TrainBatches(Iterator[Batch]):
    """Endless training batches: every image once in an epoch, in an order that the seed and the epoch fix.

    What is drawn for an image hangs on the seed, the step and the image's id alone.

    Attributes:
      report: faults of image files met so far; an image that cannot be read is replaced by the next one of its class.
    """

    def __init__(self, images: ImageSet, config: ConfigDict, *, start_step: int = 0, host: int = 0, num_hosts: int = 1):
        """Begins with the batch of start_step. Reads seed, data and train.batch_size of the config.

        Raises:
          ValueError: the batch does not divide among the hosts.
        """
        self.report = FaultReport()
        self._images, self._seed = images, config.seed
        self._recipe = Recipe.of(config)
        self._batch_size = config.train.batch_size
        self._rows = rows_per_host(config.train.batch_size, host, num_hosts, "train.batch_size")
        self._first_row = host * self._rows
        self._epochs = EpochStream(np.arange(len(images)), factors=None, seed=config.seed, bucket=0)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self._ids: dict[int, np.ndarray] = {}  # of the batches under way, by step
        self._lock = threading.Lock()
        self._bad: set[int] = set()
        self._batches = batch_engine(config.data.engine)(
            self._new_batch,
            self._fill_row,
            first=start_step,
            count=None,
            rows_per_batch=self._rows,
            workers=config.data.workers or available_cores(),
            prefetch=config.data.prefetch,
        )

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Stops the workers."""
        self._batches.close()

    def image_ids(self, step: int) -> np.ndarray:
        """int64 [rows of this host] positions in the set."""
        start = step * self._batch_size + self._first_row
        ids = np.empty(self._rows, np.int64)
        for row in range(self._rows):
            epoch, place = self._epochs.locate(start + row)
            if self._order[0] != epoch:
                self._order = (epoch, self._epochs.order(epoch))
            ids[row] = self._order[1][place]
        return ids

    def _new_batch(self, step: int) -> Batch:
        return _empty_batch(self._rows, self._recipe.size)

    def _fill_row(self, position: int, out: Row) -> None:
        step, row = divmod(position, self._rows)
        i = self._id_of(step, row)
        label = self._images.labels[i]
        same_class = None
        while True:
            if i not in self._bad:
                try:
                    image = self._images.read(i)
                    break
                except ImageError as error:
                    with self._lock:
                        if i not in self._bad:
                            self._bad.add(i)
                            self.report.add(error.kind, file=error.file, record_id=i, message=str(error))
            if same_class is None:
                same_class = np.flatnonzero(self._images.labels == label)
            if self._bad.issuperset(same_class.tolist()):
                raise AnnotationError(
                    f"{self._images.where}: none of the {same_class.size} images of class "
                    f"{self._images.class_names[label]!r} can be read\n{self.report.summary()}"
                )
            i = int(same_class[(np.searchsorted(same_class, i) + 1) % same_class.size])
        stream = random_stream(self._seed, _AUGMENTATION, step, i)
        out["image"][...] = train_image(image, self._recipe, stream)
        out["label"][...], out["image_id"][...] = label, i

    def _id_of(self, step: int, row: int) -> int:
        with self._lock:
            if step not in self._ids:
                self._ids = {s: ids for s, ids in self._ids.items() if s > step - 64}
                self._ids[step] = self.image_ids(step)
            return int(self._ids[step][row])


def eval_batches(images: ImageSet, config: ConfigDict, *, host: int = 0, num_hosts: int = 1) -> Iterator[Batch]:
    """This host's batches over the set, each image once; the last has rows without an image at its end.

    Images host, host + num_hosts, ... are this host's; all hosts make as many batches. Reads data, eval.batch_size and
    eval.max_images of the config. An image that cannot be read raises ImageError: an accuracy without it would be
    another.
    """
    recipe = Recipe.of(config)
    rows = rows_per_host(config.eval.batch_size, host, num_hosts, "eval.batch_size")
    chosen = np.array(evenly_spaced(range(len(images)), config.eval.max_images or len(images)))
    count = -(-chosen.size // (rows * num_hosts))
    mine = chosen[host::num_hosts]

    def fill_row(position: int, out: Row) -> None:
        if position >= mine.size:
            return
        i = int(mine[position])
        out["image"][...] = eval_image(images.read(i), recipe)
        out["label"][...], out["image_id"][...] = images.labels[i], i

    return batch_engine(config.data.engine)(
        lambda number: _empty_batch(rows, recipe.size),
        fill_row,
        first=0,
        count=count,
        rows_per_batch=rows,
        workers=config.data.workers or available_cores(),
        prefetch=config.data.prefetch,
    )


def _empty_batch(rows: int, size: int) -> Batch:
    return {
        "image": np.zeros((rows, size, size, 3), np.uint8),
        "label": np.full(rows, -1, np.int32),
        "image_id": np.full(rows, -1, np.int64),
    }
