"""Which images are in the batch of a step: a function of (seed, step), so a run resumes anywhere without replaying.

Images are divided among buckets (static padded sizes) and a batch comes from one bucket. Each bucket has an endless
stream of images, one epoch after the other; within an epoch every image comes once (repeat-factor sampling: once or
more), in an order drawn for that epoch. The bucket of each step follows a low-discrepancy sequence, so that after any
number of steps each bucket has had its share, to within a few batches.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eql_jax.data.transforms import random_stream

# 2**64 / golden ratio: multiples of it modulo 2**64 are spread most evenly over [0, 2**64).
_GOLDEN = 0x9E3779B97F4A7C15
_STEPS_PER_BLOCK = 4096

# Words that keep the random streams of different purposes apart.
_ORDER, _ROUNDING, _SCHEDULE = 1, 2, 3


class BatchPlan(NamedTuple):
    """The global batch of a step.

    Attributes:
      bucket: index of the bucket.
      indices: int64 [B], positions in the list of images the sampler was made for.
    """

    bucket: int
    indices: np.ndarray


def repeat_factors(classes: Sequence[np.ndarray], *, num_classes: int, threshold: float) -> np.ndarray:
    """Repeat factor of each image (Gupta, Dollar, Girshick 2019; detectron2's RepeatFactorTrainingSampler).

    f_c is the share of the given images that contain class c, r_c = max(1, sqrt(threshold / f_c)), and an image's
    factor is the largest r_c of its classes, 1 for an image without.

    Args:
      classes: for each image, its classes in any order, repeats allowed.
      num_classes: K.
      threshold: share of images below which a class is repeated.

    Returns:
      float64 [number of images], each >= 1.
    """
    present = [np.unique(of_image) for of_image in classes]
    counts = np.zeros(num_classes, np.int64)
    for of_image in present:
        counts[of_image] += 1
    share = np.maximum(counts, 1) / max(len(present), 1)
    factors = np.maximum(1.0, np.sqrt(threshold / share))
    return np.array([factors[of_image].max(initial=1.0) for of_image in present])


class Sampler:
    """Plans batches. Thread-safe; the same on every host.

    With factors r_i, image i comes floor(r_i) times in an epoch, and once more with probability r_i - floor(r_i), drawn
    for each epoch anew. Factors of 1 are uniform sampling: each epoch of a bucket is a permutation of its images.
    """

    def __init__(self, *, buckets: Sequence[int], batch_size: int, seed: int, factors: np.ndarray | None = None):
        """Args:
          buckets: bucket index of each image.
          batch_size: images of the global batch, B.
          seed: fixes all draws, with the step.
          factors: float [number of images] repeat factors, each >= 1; None is uniform sampling.

        Raises:
          ValueError: there are no images, or a factor is below 1.
        """
        buckets = np.asarray(buckets, np.int64)
        if buckets.size == 0:
            raise ValueError("the sampler got no images")
        self._factors = np.ones(buckets.size) if factors is None else np.asarray(factors, np.float64)
        if self._factors.shape != buckets.shape or self._factors.min() < 1:
            raise ValueError(f"need one repeat factor >= 1 for each of {buckets.size} images, got {self._factors!r}")
        if batch_size < 1:
            raise ValueError(f"batch size must be positive, got {batch_size}")
        self.batch_size = batch_size
        self._seed = seed
        self._uniform = factors is None
        self._names = np.unique(buckets)  # buckets that have images
        self._members = {int(b): np.flatnonzero(buckets == b) for b in self._names}
        weights = np.array([self._factors[self._members[int(b)]].sum() for b in self._names])
        # Upper ends of the buckets' shares of [0, 2**64), but for the last, whose end is 2**64 itself.
        shares = np.cumsum(weights)[:-1] / weights.sum()
        self._ends = np.array([min(int(share * 2**64), 2**64 - 1) for share in shares], np.uint64)
        self._offset = random_stream(seed, _SCHEDULE).integers(2**64, dtype=np.uint64)
        self._block_starts = [np.zeros(self._names.size, np.int64)]  # batches per bucket before each block of steps
        self._epoch_ends: dict[int, list[int]] = {int(b): [] for b in self._names}  # repeat factors: in images
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def members(self, bucket: int) -> np.ndarray:
        """Returns the indices of a bucket's images, int64, rising."""
        return self._members[bucket]

    def batch(self, step: int) -> BatchPlan:
        """Returns the global batch of a step (0, 1, ...)."""
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        with self._lock:
            which, done = self._schedule(step)
            bucket = int(self._names[which])
            return BatchPlan(bucket, self._stream(bucket, done * self.batch_size, self.batch_size))

    def _choices(self, first: int, count: int) -> np.ndarray:
        """Returns which bucket (position in _names) each of the steps has, int64 [count]."""
        steps = np.arange(first, first + count, dtype=np.uint64)
        points = steps * np.uint64(_GOLDEN) + self._offset  # modulo 2**64
        return np.searchsorted(self._ends, points, side="right")

    def _schedule(self, step: int) -> tuple[int, int]:
        """Returns the bucket of the step and how many batches it has given before."""
        block, within = divmod(step, _STEPS_PER_BLOCK)
        while len(self._block_starts) <= block:
            choices = self._choices((len(self._block_starts) - 1) * _STEPS_PER_BLOCK, _STEPS_PER_BLOCK)
            self._block_starts.append(self._block_starts[-1] + np.bincount(choices, minlength=self._names.size))
        choices = self._choices(block * _STEPS_PER_BLOCK, within + 1)
        which = int(choices[-1])
        return which, int(self._block_starts[block][which] + np.count_nonzero(choices[:-1] == which))

    def _stream(self, bucket: int, start: int, count: int) -> np.ndarray:
        """Returns entries start .. start + count of a bucket's endless stream of images."""
        parts = []
        while count > 0:
            epoch, first = self._locate(bucket, start)
            part = self._order(bucket, epoch)[first : first + count]
            parts.append(part)
            start, count = start + part.size, count - part.size
        return np.concatenate(parts)

    def _locate(self, bucket: int, position: int) -> tuple[int, int]:
        """Returns the epoch of a position in the stream and the position within that epoch."""
        if self._uniform:
            return divmod(position, self._members[bucket].size)
        ends = self._epoch_ends[bucket]
        while not ends or ends[-1] <= position:  # the rounding draws of earlier epochs, some 1 ms for 100,000 images
            ends.append((ends[-1] if ends else 0) + int(self._repeats(bucket, len(ends)).sum()))
        epoch = int(np.searchsorted(ends, position, side="right"))
        return epoch, position - (ends[epoch - 1] if epoch else 0)

    def _repeats(self, bucket: int, epoch: int) -> np.ndarray:
        """Returns how often each image of the bucket comes in an epoch, int64."""
        factors = self._factors[self._members[bucket]]
        whole = np.floor(factors)
        draws = random_stream(self._seed, _ROUNDING, bucket, epoch).random(factors.size)
        return (whole + (draws < factors - whole)).astype(np.int64)

    def _order(self, bucket: int, epoch: int) -> np.ndarray:
        key = (bucket, epoch)
        if key not in self._orders:
            images = self._members[bucket]
            if not self._uniform:
                images = np.repeat(images, self._repeats(bucket, epoch))
            while len(self._orders) >= 2 * self._names.size + 2:
                del self._orders[next(iter(self._orders))]
            self._orders[key] = random_stream(self._seed, _ORDER, bucket, epoch).permutation(images)
        return self._orders[key]
