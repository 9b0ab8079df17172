"""Confusion between frequency groups, by hand."""

import numpy as np
import pytest

from eql_jax.analysis.groups import empty_confusion, group_confusion

LETTERS = ("f", "r", "c", "r")


def test_by_hand():
    scores = np.array(
        [
            [0.9, 0.1, 0.1, 0.1],  # class 0 as class 0: frequent, right
            [0.1, 0.2, 0.1, 0.6],  # class 1 as class 3: rare, but the wrong class
            [0.8, 0.7, 0.1, 0.1],  # class 1 as class 0: frequent
            [0.2, 0.1, 0.25, 0.1],  # class 2: below the threshold, background
            [0.1, 0.1, 0.1, 0.1],  # background as such
            [0.1, 0.1, 0.3, 0.1],  # background as class 2, at the threshold: common
            [0.9, 0.9, 0.9, 0.9],  # no row
        ]
    )
    found = group_confusion(scores, np.array([0, 1, 1, 2, 4, 4, -1]), LETTERS, score_threshold=0.3)
    np.testing.assert_array_equal(found.counts, [[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]])
    np.testing.assert_array_equal(found.right, [0, 0, 1, 1])
    np.testing.assert_allclose(found.shares[0], [0.5, 0, 0.5, 0])
    np.testing.assert_allclose(found.right_shares, [0, 0, 1, 0.5])
    twice = found + found
    np.testing.assert_array_equal(twice.counts, 2 * found.counts)
    np.testing.assert_allclose(twice.shares, found.shares)


def test_no_rows():
    found = group_confusion(np.zeros((0, 4)), np.zeros(0, int), LETTERS, score_threshold=0.3)
    assert not found.counts.any() and np.isnan(found.shares).all() and np.isnan(empty_confusion().right_shares).all()


def test_wrong_input():
    with pytest.raises(ValueError, match=r"scores is \(2, 3\); expected \(2, 4\)"):
        group_confusion(np.zeros((2, 3)), np.zeros(2, int), LETTERS, score_threshold=0.3)
    with pytest.raises(ValueError, match=r"letters holds \['x'\]"):
        group_confusion(np.zeros((2, 1)), np.zeros(2, int), ("x",), score_threshold=0.3)
