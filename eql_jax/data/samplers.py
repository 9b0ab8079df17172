"""Which images are in the batch of a step: a function of (seed, step), so a run resumes anywhere without replaying.

Images are divided among buckets (static padded sizes) and a batch comes from one bucket. Each bucket has an endless
stream of images, one epoch after the other; within an epoch every image comes once (repeat-factor sampling: once or
more), in an order drawn for that epoch. The bucket of each step follows a low-discrepancy sequence, so that after any
number of steps each bucket has had its share, to within a few batches.

Class-aware sampling has no epochs: the images of a step are drawn by their probabilities, independently.
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
_ORDER, _ROUNDING, _SCHEDULE, _DRAWS = 1, 2, 3, 4


class BatchPlan(NamedTuple):
    """The global batch of a step.

    Attributes:
      bucket: index of the bucket.
      indices: int64 [B], positions in the list of images the sampler was made for.
    """

    bucket: int
    indices: np.ndarray


class Sampler:
    """Plans batches. Thread-safe; the same on every host.

    With factors r_i, image i comes floor(r_i) times in an epoch, and once more with probability r_i - floor(r_i), drawn
    for each epoch anew. Factors of 1 are uniform sampling: each epoch of a bucket is a permutation of its images.

    With probabilities p_i there are no epochs: a bucket's share of the steps is its total probability, and each row of
    a batch is drawn from the bucket's images in proportion to p_i, with replacement. Image i is then any row of any
    step with probability p_i.
    """

    def __init__(
        self,
        *,
        buckets: Sequence[int],
        batch_size: int,
        seed: int,
        factors: np.ndarray | None = None,
        probabilities: np.ndarray | None = None,
    ):
        """Args:
          buckets: bucket index of each image.
          batch_size: images of the global batch, B.
          seed: fixes all draws, with the step.
          factors: float [number of images] repeat factors, each >= 1.
          probabilities: float [number of images], not negative, of any sum above 0; excludes `factors`. Without either,
            sampling is uniform.

        Raises:
          ValueError: there are no images, a factor is below 1, a probability is negative, all are 0, or both are given.
        """
        buckets = np.asarray(buckets, np.int64)
        if buckets.size == 0:
            raise ValueError("the sampler got no images")
        self._factors = np.ones(buckets.size) if factors is None else np.asarray(factors, np.float64)
        if self._factors.shape != buckets.shape or self._factors.min() < 1:
            raise ValueError(f"need one repeat factor >= 1 for each of {buckets.size} images, got {self._factors!r}")
        if probabilities is not None:
            if factors is not None:
                raise ValueError("factors and probabilities were both given, expected one of them at most")
            probabilities = np.asarray(probabilities, np.float64)
            if probabilities.shape != buckets.shape or not (probabilities >= 0).all() or not probabilities.sum() > 0:
                raise ValueError(
                    f"need one probability >= 0 for each of {buckets.size} images, one above 0, got {probabilities!r}"
                )
        if batch_size < 1:
            raise ValueError(f"batch size must be positive, got {batch_size}")
        self.batch_size = batch_size
        self._seed = seed
        self._uniform = factors is None
        self._members = {int(b): np.flatnonzero(buckets == b) for b in np.unique(buckets)}
        weight_of = self._factors if probabilities is None else probabilities
        totals = {bucket: weight_of[members].sum() for bucket, members in self._members.items()}
        self._names = np.array([bucket for bucket, total in totals.items() if total > 0])  # buckets that get steps
        weights = np.array([totals[int(bucket)] for bucket in self._names])
        # Running sums of the probabilities of a bucket's images; None: epochs.
        self._cumulative = None
        if probabilities is not None:
            self._cumulative = {int(b): np.cumsum(probabilities[self._members[int(b)]]) for b in self._names}
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
            if self._cumulative is not None:
                return BatchPlan(bucket, self._draw(bucket, step))
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

    def _draw(self, bucket: int, step: int) -> np.ndarray:
        """Returns the images of a step, drawn by their probabilities."""
        cumulative = self._cumulative[bucket]
        points = random_stream(self._seed, _DRAWS, step).random(self.batch_size) * cumulative[-1]
        # side="right": a point belongs to the first image whose sum exceeds it, so never to one of probability 0. The
        # product may round up to the whole sum; the last image of probability above 0 is then the one.
        last = np.searchsorted(cumulative, cumulative[-1], side="left")
        return self._members[bucket][np.minimum(np.searchsorted(cumulative, points, side="right"), last)]

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
