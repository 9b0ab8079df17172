"""Counts of the long-tailed sets, and groups of classes, against published numbers and hand-worked cases."""

import numpy as np
import pytest

from eql_jax.classification.long_tail import GroupBorders, class_groups, exponential_counts, long_tailed_subset


@pytest.mark.parametrize(
    ("num_classes", "largest", "imbalance", "total"),
    [
        (100, 500, 200, 9502),  # the paper's CIFAR-100-LT; the totals are those of Cui et al. 2019
        (100, 500, 100, 10847),
        (100, 500, 50, 12608),
        (100, 500, 20, 15907),
        (100, 500, 10, 19573),
        (10, 5000, 200, 11203),
        (10, 5000, 100, 12406),
        (10, 5000, 50, 13996),
        (10, 5000, 10, 20431),
    ],
)
def test_counts_of_cifar(num_classes, largest, imbalance, total):
    counts = exponential_counts(num_classes=num_classes, largest=largest, imbalance=imbalance)
    assert counts.sum() == total and counts[0] == largest and (np.diff(counts) <= 0).all()
    assert counts[-1] == largest // imbalance


def test_counts_by_hand():
    """mu = 1/2; and the last count, 24.999999999999996 in floating point, is 25."""
    assert exponential_counts(num_classes=4, largest=80, imbalance=8).tolist() == [80, 40, 20, 10]
    assert exponential_counts(num_classes=10, largest=5000, imbalance=200)[-1] == 25
    assert exponential_counts(num_classes=1, largest=7, imbalance=1).tolist() == [7]
    assert exponential_counts(num_classes=3, largest=7, imbalance=1).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_classes=10, largest=5, imbalance=50), "leaves 6 of 10 classes without an image; expected at most 5"),
        (dict(num_classes=10, largest=5, imbalance=0.5), "imbalance 0.5; expected at least 1 each"),
        (dict(num_classes=0, largest=5, imbalance=1), "num_classes 0"),
        (dict(num_classes=3, largest=5, imbalance=float("nan")), "imbalance nan"),
    ],
)
def test_counts_that_make_no_set(arguments, message):
    with pytest.raises(ValueError, match=message):
        exponential_counts(**arguments)


def test_subset():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 50))
    counts = np.array([50, 20, 5, 1])
    kept = long_tailed_subset(labels, counts, seed=0)
    assert (np.diff(kept) > 0).all() and np.bincount(labels[kept]).tolist() == counts.tolist()
    assert (kept == long_tailed_subset(labels, counts, seed=0)).all()
    assert (kept != long_tailed_subset(labels, counts, seed=1)).any()
    smaller = long_tailed_subset(labels, counts // 2 + 1, seed=0)
    assert set(smaller) <= set(kept) | set(np.flatnonzero(labels == 3))
    with pytest.raises(ValueError, match="class 2 has 50 images; 51 of it were asked for"):
        long_tailed_subset(labels, np.array([1, 1, 51, 1]), seed=0)


def test_groups_at_their_borders():
    counts = [101, 100, 20, 19, 1, 5000]
    assert class_groups(counts).tolist() == [0, 1, 1, 2, 2, 0]
    assert class_groups(counts, GroupBorders(many=19, few=0)).tolist() == [0, 0, 0, 1, 1, 0]
