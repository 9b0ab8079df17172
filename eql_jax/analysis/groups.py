"""Which frequency group foreground and background RoIs are taken for, against the group they are of.

R rows, K classes (label K background, -1 no row). Groups: rare, common, frequent, background, in this order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

GROUPS = ("rare", "common", "frequent", "background")
_LETTERS = {"r": 0, "c": 1, "f": 2}


@dataclasses.dataclass(frozen=True)
class Confusion:
    """counts: int [4, 4] rows by true (first axis) and predicted group. right: int [4], rows of each true group that
    got the very class they are of (of background: that are taken for background)."""

    counts: np.ndarray
    right: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """float64 [4, 4]: counts in shares of the true group's rows; NaN for a group without rows."""
        return _divide(self.counts, self.counts.sum(axis=1, keepdims=True))

    @property
    def right_shares(self) -> np.ndarray:
        """float64 [4], NaN for a group without rows."""
        return _divide(self.right, self.counts.sum(axis=1))

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts, self.right + other.right)


def empty_confusion() -> Confusion:
    """Of no rows."""
    return Confusion(np.zeros((4, 4), np.int64), np.zeros(4, np.int64))


def group_numbers(letters: Sequence[str]) -> np.ndarray:
    """int [K + 1]: the group of each class, and of background at the end.

    Raises:
      ValueError: a letter is none of 'r', 'c', 'f'.
    """
    unknown = sorted(set(letters) - _LETTERS.keys())
    if unknown:
        raise ValueError(f"letters holds {unknown}; expected 'r', 'c' and 'f'")
    return np.array([*(_LETTERS[letter] for letter in letters), 3])


def group_confusion(
    scores: np.ndarray, labels: np.ndarray, letters: Sequence[str], *, score_threshold: float
) -> Confusion:
    """Counts rows by group. A row is taken for its best class, or for background if no class has `score_threshold`.

    One rule for all losses, so that runs compare: a sigmoid has no score of background to set against the classes'.

    Args:
      scores: [R, K] probabilities of the classes.
      labels: int [R].
      letters: K of 'r', 'c', 'f'.
      score_threshold: what the best class must reach.

    Raises:
      ValueError: shapes that do not fit, or an unknown letter.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.shape != (len(labels), len(letters)):
        raise ValueError(f"scores is {scores.shape}; expected {(len(labels), len(letters))} of the labels and letters")
    groups = group_numbers(letters)
    scores, labels = scores[labels >= 0], labels[labels >= 0]
    best = np.where(scores.max(axis=1, initial=0) >= score_threshold, scores.argmax(axis=1), len(letters))
    counts = np.zeros((4, 4), np.int64)
    np.add.at(counts, (groups[labels], groups[best]), 1)
    right = np.bincount(groups[labels[best == labels]], minlength=4)
    return Confusion(counts, right)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b > 0)
