"""Which bucket the batch of a step comes from, and how many of the earlier steps had the same: constant in the step.

The bucket of step i is the one whose part of [0, 2**64) has the point offset + i * G modulo 2**64, G = 2**64 / golden
ratio: a low-discrepancy sequence, so that after any number of steps each bucket has had its share of them, to within 5
up to 10**9 steps and 32 at any (both measured). How many of the first n points lie in an interval is a difference of
two sums of floors, which takes a number of operations that grows with log n only, as Euclid's algorithm does; all of it
in integers, so exact.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_CIRCLE = 2**64
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: its multiples are spread most evenly
_STEPS_PER_BLOCK = 256
_BLOCKS_KEPT = 8


def floor_sum(n: int, divisor: int, factor: int, constant: int) -> int:
    """Sum of floor((factor * i + constant) / divisor) over i = 0 .. n - 1; none is negative, divisor > 0.

    Counts the lattice points below a line, with axes swapped until none is left: O(log) steps, exact. (The floor_sum of
    the AtCoder Library.)
    """
    total = 0
    while True:
        whole, factor = divmod(factor, divisor)
        total += whole * (n * (n - 1) // 2)
        whole, constant = divmod(constant, divisor)
        total += whole * n
        rows, rest = divmod(factor * n + constant, divisor)
        if rows == 0:
            return total
        n, divisor, factor, constant = rows, factor, divisor, rest


class _Block(NamedTuple):
    """The steps of a block: position of each one's bucket, and the number of earlier steps with it."""

    which: list[int]
    before: list[int]


class BucketSchedule:
    """Assigns steps to buckets in proportion to weights. Not thread-safe: blocks of steps are kept.

    Attributes:
      shares: float64 [number of buckets], each one's part of the steps.
    """

    def __init__(self, weights: Sequence[float], *, offset: int):
        """Args:
        weights: of the buckets, each above 0.
        offset: 0 .. 2**64 - 1, where on the circle step 0 lies.
        """
        shares = np.cumsum(weights)[:-1] / np.sum(weights)
        inner = [min(int(share * _CIRCLE), _CIRCLE - 1) for share in shares]
        self._borders = [0, *inner, _CIRCLE]  # bucket k has borders[k] <= point < borders[k + 1]
        self._offset = offset
        self._blocks: dict[int, _Block] = {}
        self.shares = np.diff(np.array(self._borders, object)).astype(np.float64) / _CIRCLE

    def counts(self, steps: int) -> list[int]:
        """How many of the steps 0 .. steps - 1 each bucket has."""
        # x mod M >= h where floor((x + M - h) / M) exceeds floor(x / M), 0 <= h <= M, so that the difference of these
        # for two h counts the points between them.
        above = [floor_sum(steps, _CIRCLE, _GOLDEN, self._offset + _CIRCLE - border) for border in self._borders[1:-1]]
        base = floor_sum(steps, _CIRCLE, _GOLDEN, self._offset)
        above = [base + steps, *above, base]
        return [a - b for a, b in zip(above[:-1], above[1:], strict=True)]

    def locate(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many earlier steps had it."""
        number, within = divmod(step, _STEPS_PER_BLOCK)
        block = self._blocks.get(number)
        if block is None:
            while len(self._blocks) >= _BLOCKS_KEPT:
                del self._blocks[next(iter(self._blocks))]
            block = self._blocks[number] = self._block(number * _STEPS_PER_BLOCK)
        return block.which[within], block.before[within]

    def _block(self, first: int) -> _Block:
        counts = self.counts(first)
        block = _Block([], [])
        for step in range(first, first + _STEPS_PER_BLOCK):
            which = bisect_right(self._borders, (self._offset + step * _GOLDEN) % _CIRCLE) - 1
            block.which.append(which)
            block.before.append(counts[which])
            counts[which] += 1
        return block
