"""Averages of masks in run lengths, against sums on full canvases."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from eql_jax.ensemble.masks import average_masks, encode_runs
from eql_jax.evaluation.run_lengths import PackedMasks, decode_text
from tests.ensemble.reference import average, encoded


def runs_of(masks):
    return PackedMasks.from_rles([encoded(mask) for mask in masks]).decode(np.arange(len(masks)))


def averaged(masks, weights, sizes):
    height, width = masks[0].shape
    runs = average_masks(runs_of(masks), np.array(weights, float), np.array(sizes), height * width)
    return [
        mask_utils.decode({"size": [height, width], "counts": string.encode()})
        for string in encode_runs(runs).strings()
    ]


@pytest.mark.parametrize("seed", range(40))
def test_against_canvases(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 14, 2)
    sizes = rng.integers(1, 6, rng.integers(1, 6))
    density = rng.choice([0, 0.1, 0.5, 0.9, 1], (sizes.sum(), 1, 1))
    masks = (rng.random((sizes.sum(), height, width)) < density).astype(np.uint8)
    weights = rng.integers(0, 5, sizes.sum()) / 4 if seed % 2 else rng.random(sizes.sum())
    runs = average_masks(runs_of(masks), weights, sizes, int(height * width))
    ends = np.cumsum(sizes)
    expected = [
        encoded(average(masks[start:end], weights[start:end].tolist()))["counts"]
        for start, end in zip(ends - sizes, ends, strict=True)
    ]
    assert encode_runs(runs).strings() == expected


def test_by_hand():
    a, b, c = (np.array([row], np.uint8) for row in ([1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]))
    np.testing.assert_array_equal(averaged([a, b, c], [1, 1, 1], [3])[0], [[0, 1, 1, 1, 0, 0]])  # two of three
    np.testing.assert_array_equal(averaged([a, b], [0.9, 0.3], [2])[0], a)  # of two, the heavier one
    np.testing.assert_array_equal(averaged([a, b], [0.5, 0.5], [2])[0], a | b)  # a half is enough
    np.testing.assert_array_equal(averaged([a, b, c], [0.6, 0.4, 0.2], [3])[0], [[1, 1, 1, 1, 0, 0]])  # .6 = .4 + .2


def test_disjoint_masks():
    three = [np.eye(3, dtype=np.uint8)[[row]] for row in range(3)]
    # No pixel has half of the weight: the first, which is the best, stands.
    np.testing.assert_array_equal(averaged(three, [0.3, 0.3, 0.3], [3])[0], three[0])
    np.testing.assert_array_equal(averaged(three[:2], [0.3, 0.3], [2])[0], three[0] | three[1])


def test_weights_of_zero_and_of_different_size():
    a, b = np.array([[1, 0]], np.uint8), np.array([[0, 1]], np.uint8)
    np.testing.assert_array_equal(averaged([a, b, b], [0, 0, 0], [3])[0], b)
    np.testing.assert_array_equal(averaged([a, b, b], [1, 1e-30, 1e-30], [3])[0], a)
    np.testing.assert_array_equal(averaged([a, b, b], [1e-30, 1e-30, 1e-30], [3])[0], b)


def test_order_does_not_matter():
    rng = np.random.default_rng(0)
    masks = (rng.random((9, 8, 8)) < 0.5).astype(np.uint8)
    weights = rng.random(9)
    order = rng.permutation(9)
    np.testing.assert_array_equal(averaged(masks, weights, [9])[0], averaged(masks[order], weights[order], [9])[0])


def test_encoding_is_the_inverse_of_decoding():
    rng = np.random.default_rng(0)
    shapes = rng.integers(1, 300, (30, 2))
    masks = [rng.random(shape) < density for shape, density in zip(shapes, rng.random(30), strict=True)]
    masks += [np.zeros((700, 900)), np.ones((700, 900)), np.pad(np.ones((5, 5)), ((600, 95), (800, 95)))]
    for mask in masks:
        string = encoded(mask)["counts"].encode()
        runs = decode_text(np.frombuffer(string, np.uint8), np.array([0, len(string)]))
        assert encode_runs(runs).strings() == [string.decode()]
