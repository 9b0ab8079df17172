"""Which images are in the batch of a step: a function of (seed, step), so a run resumes anywhere without replaying.

Images are divided among buckets (static padded sizes) and a batch comes from one bucket. Each bucket has an endless
stream of images, one epoch after the other (`epochs`); within an epoch every image comes once (repeat-factor sampling:
once or more), in an order drawn for that epoch. The bucket of each step follows a low-discrepancy sequence
(`bucket_schedule`), so that after any number of steps each bucket has had its share, to within a few batches.

Class-aware sampling has no epochs: the images of a step are drawn by their probabilities, independently.

Time and memory do not grow with the step: apart from the order of an epoch, O(images) once for each epoch and kept
while it is used, a step takes some microseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eql_jax.data.bucket_schedule import BucketSchedule
from eql_jax.data.epochs import EpochStream
from eql_jax.data.transforms import random_stream

# Words that keep the random streams of different purposes apart, from those of `epochs`, too.
_SCHEDULE, _DRAWS = 3, 4


class BatchPlan(NamedTuple):
    """The global batch of a step.

    Attributes:
      bucket: index of the bucket.
      indices: int64 [B], positions in the list of images the sampler was made for.
    """

    bucket: int
    indices: np.ndarray


class BucketProgress(NamedTuple):
    """What a bucket has given before a step.

    Attributes:
      batches: number of batches.
      epoch: number of epochs it has given whole, 0 for class-aware sampling.
      entry: images it has given of the next one, or of all under class-aware sampling.
    """

    batches: int
    epoch: int
    entry: int


class Sampler:
    """Plans batches. Thread-safe; the same on every host.

    With factors r_i, image i comes floor(r_i) or ceil(r_i) times in an epoch, r_i times in expectation, rounded for
    each epoch anew: see `epochs`. Factors of 1 are uniform sampling: each epoch of a bucket is a permutation of its
    images.

    With probabilities p_i there are no epochs: a bucket's share of the steps is its total probability, and each row of
    a batch is drawn from the bucket's images in proportion to p_i, with replacement. Image i is then any row of any
    step with probability p_i.

    Attributes:
      batch_size: images of the global batch, B.
      epoch_size: images of an epoch, of all buckets: the number of images, under repeat factors their sum. Class-aware
        sampling, without epochs, counts as many images as there are as one.
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
          factors: float [number of images] repeat factors, each >= 1; they are rounded to 2**-32.
          probabilities: float [number of images], not negative, of any sum above 0; excludes `factors`. Without either,
            sampling is uniform.

        Raises:
          ValueError: there are no images, a factor is below 1, the factors sum up to 2**30 or more, a probability is
            negative, all are 0, or both are given.
        """
        buckets = np.asarray(buckets, np.int64)
        if buckets.size == 0:
            raise ValueError("the sampler got no images")
        if factors is not None:
            if probabilities is not None:
                raise ValueError("factors and probabilities were both given, expected one of them at most")
            factors = np.asarray(factors, np.float64)
            if factors.shape != buckets.shape or not (factors >= 1).all():
                raise ValueError(f"need one repeat factor >= 1 for each of {buckets.size} images, got {factors!r}")
        if probabilities is not None:
            probabilities = np.asarray(probabilities, np.float64)
            if probabilities.shape != buckets.shape or not (probabilities >= 0).all() or not probabilities.sum() > 0:
                raise ValueError(
                    f"need one probability >= 0 for each of {buckets.size} images, one above 0, got {probabilities!r}"
                )
        if batch_size < 1:
            raise ValueError(f"batch size must be positive, got {batch_size}")
        self.batch_size = batch_size
        self._seed = seed
        self._images = buckets.size
        self._members = {int(b): np.flatnonzero(buckets == b) for b in np.unique(buckets)}
        self._streams: dict[int, EpochStream] = {}
        self._cumulative: dict[int, np.ndarray] = {}  # class-aware: running sums of a bucket's probabilities
        if probabilities is None:
            for bucket, members in self._members.items():
                of_members = None if factors is None else factors[members]
                self._streams[bucket] = EpochStream(members, factors=of_members, seed=seed, bucket=bucket)
            weights = {bucket: stream.epoch_size for bucket, stream in self._streams.items()}
            self.epoch_size = sum(weights.values())
        else:
            weights = {bucket: probabilities[members].sum() for bucket, members in self._members.items()}
            self._cumulative = {b: np.cumsum(probabilities[m]) for b, m in self._members.items() if weights[b] > 0}
            self.epoch_size = float(buckets.size)
        self._names = [bucket for bucket, weight in weights.items() if weight > 0]  # the buckets that get steps
        offset = int(random_stream(seed, _SCHEDULE).integers(2**64, dtype=np.uint64))
        self._schedule = BucketSchedule([weights[bucket] for bucket in self._names], offset=offset)
        self._orders: dict[tuple[int, int], np.ndarray] = {}  # of epochs, the least recently used first
        self._lock = threading.Lock()

    def members(self, bucket: int) -> np.ndarray:
        """Returns the indices of a bucket's images, int64, rising."""
        return self._members[bucket]

    def batch(self, step: int) -> BatchPlan:
        """Returns the global batch of a step (0, 1, ...)."""
        _check(step)
        with self._lock:
            which, earlier = self._schedule.locate(step)
            bucket = self._names[which]
            if self._cumulative:
                return BatchPlan(bucket, self._draw(bucket, step))
            return BatchPlan(bucket, self._entries(bucket, earlier * self.batch_size, self.batch_size))

    def epoch(self, step: int) -> float:
        """Returns how many epochs of the data are given before a step: images given / epoch_size."""
        _check(step)
        return step * self.batch_size / self.epoch_size

    def progress(self, step: int) -> dict[int, BucketProgress]:
        """Returns what each bucket has given before a step. Exact; the batches of all buckets sum up to `step`."""
        _check(step)
        found = dict.fromkeys(self._members, BucketProgress(0, 0, 0))
        for bucket, batches in zip(self._names, self._schedule.counts(step), strict=True):
            images = batches * self.batch_size
            epoch, entry = (0, images) if self._cumulative else self._streams[bucket].locate(images)
            found[bucket] = BucketProgress(batches, epoch, entry)
        return found

    def image_rates(self) -> np.ndarray:
        """Returns the share of all rows that are image i, in expectation: float64 [number of images], sums to 1."""
        rates = np.zeros(self._images)
        for bucket, share in zip(self._names, self._schedule.shares, strict=True):
            if self._cumulative:
                weights = np.diff(self._cumulative[bucket], prepend=0)
            else:
                weights = self._streams[bucket].rates
            rates[self._members[bucket]] = share * weights / weights.sum()
        return rates

    def describe(self) -> str:
        """Returns one line for logs: images, buckets, the length of an epoch and how unevenly images are drawn."""
        rates = self.image_rates() * self._images
        epoch = "no epochs" if self._cumulative else f"{self.epoch_size:.1f} images an epoch"
        return (
            f"{self._images} images in {len(self._members)} buckets, {epoch}, "
            f"an image drawn {rates.min():.2f} to {rates.max():.2f} times as often as under uniform sampling"
        )

    def _draw(self, bucket: int, step: int) -> np.ndarray:
        """Returns the images of a step, drawn by their probabilities."""
        cumulative = self._cumulative[bucket]
        points = random_stream(self._seed, _DRAWS, step).random(self.batch_size) * cumulative[-1]
        # side="right": a point belongs to the first image whose sum exceeds it, so never to one of probability 0. The
        # product may round up to the whole sum; the last image of probability above 0 is then the one.
        last = np.searchsorted(cumulative, cumulative[-1], side="left")
        return self._members[bucket][np.minimum(np.searchsorted(cumulative, points, side="right"), last)]

    def _entries(self, bucket: int, start: int, count: int) -> np.ndarray:
        """Returns entries start .. start + count of a bucket's endless stream of images."""
        epoch, first = self._streams[bucket].locate(start)
        parts = []
        while count > 0:
            part = self._order(bucket, epoch)[first : first + count]
            parts.append(part)
            epoch, first, count = epoch + 1, 0, count - part.size
        return np.concatenate(parts)

    def _order(self, bucket: int, epoch: int) -> np.ndarray:
        key = (bucket, epoch)
        order = self._orders.pop(key, None)
        if order is None:
            # Steps in flight straddle the end of an epoch: two for each bucket are in use at a time.
            while len(self._orders) >= 2 * len(self._names):
                del self._orders[next(iter(self._orders))]
            order = self._streams[bucket].order(epoch)
        self._orders[key] = order
        return order


def _check(step: int) -> None:
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
