"""The endless stream of a bucket's images, one epoch after the other; any place in it is found in constant time.

Repeat-factor sampling rounds the factors r_i anew for each epoch, so an epoch's length varies. Drawn for each image on
its own, the lengths would have to be summed to find a far epoch. Here the ends of the epochs are fixed first: with
C = sum of r_i, epoch e ends at entry floor((e + 1) C + u), u in [0, 1) drawn once. An epoch then has floor(C) or
ceil(C) entries, and systematic sampling (Madow 1949) rounds the factors so that just as many come: the images in a
random order, one after the other on a line of length C, each as long as its factor; each comes once for every point of
the grid v, v + 1, v + 2, ... that it covers, v in [0, 1) drawn from those that put the wanted number of points on the
line.

So an image comes floor(r_i) or ceil(r_i) times in every epoch. Over u, v is uniform on [0, 1), so that it comes r_i
times in expectation; and for one u, in E epochs, E r_i times to within 1 in expectation, as the long epochs are E times
the fraction of C to within 1.

Lengths are integers in units of 2**-32, so places are exact at any epoch; a factor is rounded to the nearest unit.
"""

from __future__ import annotations

import numpy as np

from eql_jax.data.transforms import random_stream

_UNIT_BITS = 32
_UNIT = 2**_UNIT_BITS

# Words that keep the random streams of different purposes apart, from those of `samplers`, too.
_ORDER, _ROUNDING, _PHASE = 1, 2, 5


class EpochStream:
    """Endless stream of images, a pure function of (seed, bucket). Holds one number for each image, or none if uniform.

    Attributes:
      rates: float64 [n], how often each image comes in an epoch, in expectation: its factor, rounded to 2**-32.
      epoch_size: mean number of entries of an epoch, the sum of these.
    """

    def __init__(self, images: np.ndarray, *, factors: np.ndarray | None, seed: int, bucket: int):
        """Args:
          images: int64 [n].
          factors: float64 [n] repeat factors, each >= 1; None: all are 1.
          seed, bucket: fix all draws.

        Raises:
          ValueError: the factors sum up to 2**30 or more.
        """
        self._images = images
        self._words = seed, bucket
        self._lengths = None
        self._total = images.size * _UNIT
        self._phase = 0
        if factors is not None:
            if not factors.sum() < 2**30:
                raise ValueError(f"the repeat factors of bucket {bucket} sum up to {factors.sum()}, expected < 2**30")
            self._lengths = np.rint(factors * _UNIT).astype(np.int64)
            self._total = int(self._lengths.sum())
            self._phase = int(random_stream(seed, _PHASE, bucket).integers(_UNIT))

    @property
    def epoch_size(self) -> float:
        return self._total / _UNIT

    @property
    def rates(self) -> np.ndarray:
        return np.ones(self._images.size) if self._lengths is None else self._lengths / _UNIT

    def start(self, epoch: int) -> int:
        """The entry that an epoch (0, 1, ...) begins at."""
        return (epoch * self._total + self._phase) >> _UNIT_BITS

    def locate(self, entry: int) -> tuple[int, int]:
        """The epoch of an entry, and the place of the entry in it."""
        # The largest e with start(e) <= entry, that is e * total + phase < (entry + 1) * unit.
        epoch = ((entry + 1) * _UNIT - self._phase - 1) // self._total
        return epoch, entry - self.start(epoch)

    def order(self, epoch: int) -> np.ndarray:
        """The images of an epoch in their order, int64 [start(epoch + 1) - start(epoch)]. Takes O(n)."""
        images = self._images if self._lengths is None else np.repeat(self._images, self._repeats(epoch))
        return random_stream(self._words[0], _ORDER, self._words[1], epoch).permutation(images)

    def _repeats(self, epoch: int) -> np.ndarray:
        """How often each image comes in an epoch, int64 [n]."""
        stream = random_stream(self._words[0], _ROUNDING, self._words[1], epoch)
        line = stream.permutation(self._images.size)
        # Moved by `shift` to the right, the line's end passes the wanted number of integers; its images pass their own.
        wanted = self.start(epoch + 1) - self.start(epoch)
        fraction = self._total % _UNIT
        is_long = wanted * _UNIT > self._total
        shift = stream.integers(_UNIT - fraction, _UNIT) if is_long else stream.integers(_UNIT - fraction)
        passed = (np.cumsum(self._lengths[line]) + shift) >> _UNIT_BITS
        repeats = np.empty(self._images.size, np.int64)
        repeats[line] = np.diff(passed, prepend=0)
        return repeats
