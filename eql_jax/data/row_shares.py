"""How many rows of a batch come from each of several data sets: constant in the batch's number, exact.

Of n batches of B rows, floor(n B (1 - r_0) + u) rows are for the sets after the first, r_0 the share of the first and u
in [0, 1) one number for all; of these in turn a part is for the sets after the second, and so on. Each count grows with
n, by no more than the one before it, so that a set's rows never go back, and those of all sets make up the batch. After
any number of batches each of two sets is at most one row from n B r, and each batch has floor(B r) or ceil(B r) of its
rows. With S sets that have rows it may be S - 1 rows from n B r, and one beyond in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BITS = 64


class RowShares:
    """Divides the rows of a bucket's batches among sets. Shares are rounded to 2**-53 of themselves.

    Attributes:
      shares: float64 [sets], each one's part of the rows.
    """

    def __init__(self, weights: Sequence[float], *, batch_size: int, offset: int):
        """Args:
        weights: of the sets, none negative, of any sum above 0.
        batch_size: B.
        offset: u in units of 2**-64, 0 .. 2**64 - 1.
        """
        left = np.cumsum(np.asarray(weights, np.float64)[::-1])[::-1].tolist()  # of a set and those after it
        # The part of the rows that goes on to later sets: exactly all past a set of weight 0, none past the last.
        self._onward = [
            round(after / here * 2**_BITS) if here else 0 for here, after in zip(left, [*left[1:], 0.0], strict=True)
        ]
        self._batch_size, self._offset = batch_size, offset
        self.shares = np.asarray(weights, np.float64) / left[0]

    def starts(self, batch: int) -> list[int]:
        """How many rows each set has had in the batches 0 .. batch - 1."""
        rows = batch * self._batch_size
        counts = []
        for part in self._onward:
            onward = (rows * part + self._offset) >> _BITS
            counts.append(rows - onward)
            rows = onward
        return counts
