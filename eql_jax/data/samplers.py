"""Which images are in the batch of a step: a function of (seed, step), so a run resumes anywhere without replaying.

Images are divided among buckets (static padded sizes) and a batch comes from one bucket. Each bucket has an endless
stream of images, one epoch after the other (`epochs`); within an epoch every image comes once (repeat-factor sampling:
once or more), in an order drawn for that epoch. The bucket of each step follows a low-discrepancy sequence
(`bucket_schedule`), so that after any number of steps each bucket has had its share, to within a few batches.

Class-aware sampling has no epochs: the images of a step are drawn by their probabilities, independently.

Several data sets have streams of their own (`image_streams`), and a batch has rows of each. With p_s the share of set s
and w_sb that of bucket b in its epoch, b gets sum_s p_s w_sb of the steps, and within b's batches set s the part
p_s w_sb / sum_t p_t w_tb of the rows (`row_shares`). So set s has the share p_s of all rows and p_s w_sb of them are in
bucket b, as many as its own epochs ask for: where it has few images of a bucket it has few rows, instead of the same
few images over and over, and all its buckets go through their epochs together. Rows are given out of a stream in
order, those of the next batch where this one's end, so that no image of an epoch is lost or comes twice.

Time and memory do not grow with the step: apart from the order of an epoch, O(images) once for each epoch and kept
while it is used, a step takes some microseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eql_jax.data.bucket_schedule import BucketSchedule
from eql_jax.data.image_streams import ImageStreams
from eql_jax.data.row_shares import RowShares
from eql_jax.data.transforms import random_stream

# Words that keep the random streams of different purposes apart, from those of `epochs` and `image_streams`, too.
_SCHEDULE, _ROWS, _ROUNDING = 3, 6, 7

_PLANS_KEPT = 8  # each row of a batch asks for its plan


class BatchPlan(NamedTuple):
    """The global batch of a step.

    Attributes:
      bucket: index of the bucket.
      indices: int64 [B], positions in the list of images the sampler was made for.
    """

    bucket: int
    indices: np.ndarray


class BucketProgress(NamedTuple):
    """What a bucket has given before a step, of one set.

    Attributes:
      batches: number of batches.
      epoch: number of the set's epochs it has given whole, 0 for class-aware sampling.
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

    Of several sets, all this holds for each among the rows it has; probabilities count within a set.

    Attributes:
      batch_size: images of the global batch, B.
      epoch_size: images of an epoch, of all buckets: the number of images, under repeat factors their sum. Class-aware
        sampling, without epochs, counts as many images as there are as one. Of several sets, the images of all that
        are given while the first has an epoch; inf where its share is 0.
    """

    def __init__(
        self,
        *,
        buckets: Sequence[int],
        batch_size: int,
        seed: int,
        factors: np.ndarray | None = None,
        probabilities: np.ndarray | None = None,
        sets: Sequence[int] | None = None,
        shares: Sequence[float] = (1.0,),
    ):
        """Args:
          buckets: bucket index of each image.
          batch_size: images of the global batch, B.
          seed: fixes all draws, with the step.
          factors: float [number of images] repeat factors, each >= 1; they are rounded to 2**-32.
          probabilities: float [number of images], not negative, of any sum above 0; excludes `factors`. Without either,
            sampling is uniform.
          sets: data set of each image, 0, 1, ..; None: all are of set 0.
          shares: of each set in the rows, not negative, sum 1.

        Raises:
          ValueError: there are no images, a factor is below 1, the factors sum up to 2**30 or more, a probability is
            negative, all of a set are 0, or both are given; shares do not sum up to 1, or one above 0 is of no image.
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
        sets = np.zeros(buckets.size, np.int64) if sets is None else np.asarray(sets, np.int64)
        _check_sets(sets, shares, buckets.size)
        self.batch_size = batch_size
        self._seed = seed
        self._images = buckets.size
        self._buckets = np.unique(buckets).tolist()
        self._shares = np.asarray(shares, np.float64)
        self.streams: list[ImageStreams] = []
        for number, share in enumerate(self._shares.tolist()):
            images = np.flatnonzero(sets == number)
            if share > 0 and (not images.size or probabilities is not None and not probabilities[images].any()):
                raise ValueError(f"set {number} has the share {share} and no image that can be drawn")
            self.streams.append(
                ImageStreams(
                    images,
                    buckets[images],
                    seed=seed,
                    number=number,
                    factors=None if factors is None else factors[images],
                    probabilities=None if probabilities is None else probabilities[images],
                )
            )
        weights = {bucket: self._weights_of(bucket) for bucket in self._buckets}
        self._names = [bucket for bucket in self._buckets if sum(weights[bucket]) > 0]  # those that get steps
        offset = int(random_stream(seed, _SCHEDULE).integers(2**64, dtype=np.uint64))
        self._schedule = BucketSchedule([sum(weights[bucket]) for bucket in self._names], offset=offset)
        self._rows = {
            bucket: RowShares(
                weights[bucket],
                batch_size=batch_size,
                offset=int(random_stream(seed, _ROUNDING, bucket).integers(2**64, dtype=np.uint64)),
            )
            for bucket in self._names
        }
        self._plans: dict[int, BatchPlan] = {}
        self._lock = threading.Lock()

    def _weights_of(self, bucket: int) -> list[float]:
        """How much of all rows are in a bucket and of each set; of a single set not scaled to a sum of 1."""
        if len(self.streams) == 1:
            return [self.streams[0].weights.get(bucket, 0)]
        return [
            share * streams.weights.get(bucket, 0) / sum(streams.weights.values()) if share else 0.0
            for share, streams in zip(self._shares.tolist(), self.streams, strict=True)
        ]

    @property
    def epoch_size(self) -> float:
        size, share = self.streams[0].epoch_size, self._shares[0]
        return size / share if share else np.inf

    def members(self, bucket: int, of_set: int = 0) -> np.ndarray:
        """Returns the indices of a bucket's images, of one set, int64, rising."""
        return self.streams[of_set].members(bucket)

    def batch(self, step: int) -> BatchPlan:
        """Returns the global batch of a step (0, 1, ...); its indices are read-only."""
        _check(step)
        with self._lock:
            plan = self._plans.get(step)
            if plan is None:
                while len(self._plans) >= _PLANS_KEPT:
                    del self._plans[next(iter(self._plans))]
                plan = self._plans[step] = self._plan(step)
                plan.indices.flags.writeable = False
        return plan

    def _plan(self, step: int) -> BatchPlan:
        which, earlier = self._schedule.locate(step)
        bucket = self._names[which]
        starts, ends = (self._rows[bucket].starts(batch) for batch in (earlier, earlier + 1))
        parts = [
            streams.take(bucket, start, end - start, step)
            for streams, start, end in zip(self.streams, starts, ends, strict=True)
            if end > start
        ]
        if len(parts) == 1:
            return BatchPlan(bucket, parts[0])
        # Mixed, so that every host and every part of an accumulated batch has rows of all sets.
        return BatchPlan(bucket, random_stream(self._seed, _ROWS, step).permutation(np.concatenate(parts)))

    def epoch(self, step: int) -> float:
        """Returns how many epochs of the data (of the first set) are given before a step: images given / epoch_size."""
        _check(step)
        return step * self.batch_size / self.epoch_size

    def progress(self, step: int, of_set: int = 0) -> dict[int, BucketProgress]:
        """Returns what each bucket has given before a step, of one set. Exact; the batches of all buckets sum up to
        `step`, and the images of all sets to those of the batches."""
        _check(step)
        found = dict.fromkeys(self._buckets, BucketProgress(0, 0, 0))
        for bucket, batches in zip(self._names, self._schedule.counts(step), strict=True):
            images = self._rows[bucket].starts(batches)[of_set]
            place = self.streams[of_set].locate(bucket, images) if images else (0, 0)
            found[bucket] = BucketProgress(batches, *place)
        return found

    def image_rates(self) -> np.ndarray:
        """Returns the share of all rows that are image i, in expectation: float64 [number of images], sums to 1."""
        rates = np.zeros(self._images)
        for bucket, share in zip(self._names, self._schedule.shares, strict=True):
            for streams, of_set in zip(self.streams, self._rows[bucket].shares, strict=True):
                if of_set > 0:
                    rates[streams.members(bucket)] = share * of_set * streams.rates(bucket)
        return rates

    def describe(self) -> str:
        """Returns one line for logs: images, buckets, the length of an epoch and how unevenly images are drawn."""
        rates = self.image_rates() * self._images
        epochs = []
        for number, (share, streams) in enumerate(zip(self._shares, self.streams, strict=True)):
            text = f"{streams.epoch_size:.1f} images an epoch" if streams.has_epochs else "no epochs"
            epochs.append(text if len(self.streams) == 1 else f"{share:.2%} of set {number} with {text}")
        return (
            f"{self._images} images in {len(self._buckets)} buckets, {', '.join(epochs)}, "
            f"an image drawn {rates.min():.2f} to {rates.max():.2f} times as often as under uniform sampling"
        )


def _check_sets(sets: np.ndarray, shares: Sequence[float], images: int) -> None:
    given = np.asarray(shares, np.float64)
    if not (given >= 0).all() or not abs(given.sum() - 1) < 1e-9:
        raise ValueError(f"the shares of the sets must not be negative and sum up to 1, got {shares!r}")
    if sets.shape != (images,) or sets.min() < 0 or sets.max() >= given.size:
        raise ValueError(f"need one set of 0 .. {given.size - 1} for each of {images} images, got {sets!r}")


def _check(step: int) -> None:
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
