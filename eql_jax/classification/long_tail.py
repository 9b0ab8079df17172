"""How many images each class has, and which classes are many, medium or few.

K classes, N images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eql_jax.data.transforms import random_stream

GROUPS = ("many", "medium", "few")
_SUBSET = 11  # keeps these draws apart from those of other purposes


class GroupBorders(NamedTuple):
    """many: classes with more training images than this. few: classes with fewer than this. The rest is medium."""

    many: int = 100
    few: int = 20


def exponential_counts(*, num_classes: int, largest: int, imbalance: float) -> np.ndarray:
    """int64 [K] image counts n_i = largest * mu^i rounded down, mu such that the last is largest / imbalance.

    The long-tailed CIFAR of Cui et al. 2019 (arXiv 1901.05555): class 0 is the most frequent. With 100 classes of up to
    500 images and imbalance 200 they are 9,502 in all.

    Raises:
      ValueError: imbalance below 1, or a class would have no image.
    """
    if num_classes < 1 or largest < 1 or not imbalance >= 1:
        raise ValueError(
            f"exponential_counts: num_classes {num_classes}, largest {largest}, imbalance {imbalance}; expected at "
            "least 1 each"
        )
    share = np.arange(num_classes) / max(1, num_classes - 1)
    # A count that is whole must not be lost to rounding: 5000 * 200 ** -1 = 24.999999999999996.
    counts = np.floor(largest * float(imbalance) ** -share + 1e-9).astype(np.int64)
    if counts[-1] < 1:
        raise ValueError(
            f"imbalance {imbalance:g} with {largest} images of the most frequent class leaves {np.sum(counts < 1)} of "
            f"{num_classes} classes without an image; expected at most {largest}"
        )
    return counts


def long_tailed_subset(labels: np.ndarray, counts: np.ndarray, *, seed: int) -> np.ndarray:
    """int64 [sum of counts], rising: which of N images to keep so that class k has counts[k].

    labels: int [N]. The seed fixes the draw, and a class with a smaller count keeps a part of what a larger one would.

    Raises:
      ValueError: a class has fewer images than its count.
    """
    kept = []
    for k, count in enumerate(counts):
        mine = np.flatnonzero(labels == k)
        if mine.size < count:
            raise ValueError(f"class {k} has {mine.size} images; {count} of it were asked for")
        kept.append(random_stream(seed, _SUBSET, k).permutation(mine)[:count])
    return np.sort(np.concatenate(kept))


def class_groups(counts: np.ndarray, borders: GroupBorders = GroupBorders()) -> np.ndarray:  # noqa: B008 (immutable)
    """int [K], positions in GROUPS: 0 many (more than borders.many training images), 2 few (fewer than borders.few)."""
    counts = np.asarray(counts)
    return np.where(counts > borders.many, 0, np.where(counts < borders.few, 2, 1))
