"""The images of one data set as endless streams, one a bucket: any place in them is found in constant time.

Under uniform and repeat-factor sampling a stream is one epoch after the other (`epochs`); under class-aware sampling
every entry is a draw of its own, by the images' probabilities.
"""

from __future__ import annotations

import numpy as np

from eql_jax.data.epochs import EpochStream
from eql_jax.data.transforms import random_stream

# Keeps the random streams of draws apart from those of `epochs` and `samplers`.
_DRAWS = 4


class ImageStreams:
    """What comes next of a set's images, bucket by bucket: a pure function of (seed, number).

    Not thread-safe: the order of an epoch is kept while it is used.

    Attributes:
      weights: bucket -> how much of the set is in it: the length of its epoch, or its probability; only above 0.
      streams: bucket -> `EpochStream`; empty for class-aware sampling.
      epoch_size: images of an epoch, of all buckets: the number of images, under repeat factors their sum. Class-aware
        sampling, without epochs, counts as many images as there are as one.
    """

    def __init__(
        self,
        images: np.ndarray,
        buckets: np.ndarray,
        *,
        seed: int,
        number: int = 0,
        factors: np.ndarray | None = None,
        probabilities: np.ndarray | None = None,
    ):
        """Args:
        images: int64 [n], rising: positions in the sampler's list of images.
        buckets: int64 [n].
        seed: fixes all draws, with the number.
        number: of the set among those of a run, 0, 1, ..
        factors: float64 [n] repeat factors, each >= 1; None: uniform.
        probabilities: float64 [n], not negative, some above 0; None: epochs.
        """
        self._seed, self._number = seed, number
        self._members = {int(b): images[buckets == b] for b in np.unique(buckets)}
        self.streams: dict[int, EpochStream] = {}
        self._cumulative: dict[int, np.ndarray] = {}  # running sums of a bucket's probabilities
        if probabilities is None:
            for bucket, members in self._members.items():
                of_members = None if factors is None else factors[buckets == bucket]
                # The words of set 0 are those of a run of one set.
                self.streams[bucket] = EpochStream(
                    members, factors=of_members, seed=seed, bucket=bucket + (number << 32)
                )
            self.weights = {bucket: stream.epoch_size for bucket, stream in self.streams.items()}
            self.epoch_size = float(sum(self.weights.values()))
        else:
            found = {bucket: float(probabilities[buckets == bucket].sum()) for bucket in self._members}
            self.weights = {bucket: weight for bucket, weight in found.items() if weight > 0}
            self._cumulative = {b: np.cumsum(probabilities[buckets == b]) for b in self.weights}
            self.epoch_size = float(images.size)
        self._orders: dict[tuple[int, int], np.ndarray] = {}  # of epochs, the least recently used first

    @property
    def has_epochs(self) -> bool:
        return bool(self.streams)

    def members(self, bucket: int) -> np.ndarray:
        """The images of a bucket, int64, rising; none where it has none."""
        return self._members.get(bucket, np.zeros(0, np.int64))

    def rates(self, bucket: int) -> np.ndarray:
        """How often each image of a bucket comes among its entries, in expectation: float64, sums to 1."""
        weights = self.streams[bucket].rates if self.has_epochs else np.diff(self._cumulative[bucket], prepend=0)
        return weights / weights.sum()

    def locate(self, bucket: int, entry: int) -> tuple[int, int]:
        """The epoch of an entry of a bucket's stream, and its place in it; without epochs (0, entry)."""
        return self.streams[bucket].locate(entry) if self.has_epochs else (0, entry)

    def take(self, bucket: int, start: int, count: int, step: int) -> np.ndarray:
        """Entries start .. start + count of a bucket's stream, int64 [count], which step `step` is to have."""
        return self._entries(bucket, start, count) if self.has_epochs else self._draw(bucket, count, step)

    def _draw(self, bucket: int, count: int, step: int) -> np.ndarray:
        cumulative = self._cumulative[bucket]
        words = (self._number,) if self._number else ()
        points = random_stream(self._seed, _DRAWS, step, *words).random(count) * cumulative[-1]
        # side="right": a point belongs to the first image whose sum exceeds it, so never to one of probability 0. The
        # product may round up to the whole sum; the last image of probability above 0 is then the one.
        last = np.searchsorted(cumulative, cumulative[-1], side="left")
        return self._members[bucket][np.minimum(np.searchsorted(cumulative, points, side="right"), last)]

    def _entries(self, bucket: int, start: int, count: int) -> np.ndarray:
        epoch, first = self.streams[bucket].locate(start)
        parts = []
        while count > 0:
            part = self._order(bucket, epoch)[first : first + count]
            parts.append(part)
            epoch, first, count = epoch + 1, 0, count - part.size
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _order(self, bucket: int, epoch: int) -> np.ndarray:
        key = (bucket, epoch)
        order = self._orders.pop(key, None)
        if order is None:
            # Steps in flight straddle the end of an epoch: two for each bucket are in use at a time.
            while len(self._orders) >= 2 * len(self.weights):
                del self._orders[next(iter(self._orders))]
            order = self.streams[bucket].order(epoch)
        self._orders[key] = order
        return order
