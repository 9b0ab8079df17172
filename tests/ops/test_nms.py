"""Exactness of NMS: equal to textbook greedy NMS in NumPy, index by index."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.ops.nms import nms
from tests.ops import numpy_boxes

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@partial(jax.jit, static_argnames=("iou_threshold", "max_output", "block_size"))
def run(boxes, scores, valid, groups, iou_threshold, max_output, block_size=128):
    return nms(
        boxes,
        scores,
        iou_threshold=iou_threshold,
        max_output=max_output,
        valid=valid,
        groups=groups,
        block_size=block_size,
    )


def check(boxes, scores, valid=None, groups=None, *, iou_threshold, max_output, block_size=128):
    n = len(boxes)
    valid = np.ones(n, bool) if valid is None else valid
    groups = np.zeros(n, np.int32) if groups is None else groups
    out = run(boxes, scores, valid, groups, iou_threshold, max_output, block_size)
    options = dict(iou_threshold=iou_threshold, max_output=max_output, valid=valid, groups=groups)
    expected = numpy_boxes.greedy_nms(boxes, scores, **options)
    np.testing.assert_array_equal(np.asarray(out.indices)[: len(expected)], expected)
    np.testing.assert_array_equal(out.valid, np.arange(max_output) < len(expected))
    assert not np.any(np.asarray(out.indices)[len(expected) :])
    return len(expected)


@pytest.mark.parametrize("iou_threshold", THRESHOLDS)
def test_equals_greedy_at_every_threshold(iou_threshold):
    rng = np.random.default_rng(0)
    n = 300
    for clusters in (6, 40, None):
        boxes = numpy_boxes.random_boxes(rng, n, clusters=clusters)
        scores = rng.integers(0, 50, n).astype(np.float32)  # many ties
        groups = rng.integers(0, 3, n).astype(np.int32)
        kept = check(boxes, scores, rng.random(n) < 0.9, groups, iou_threshold=iou_threshold, max_output=300)
        assert 0 < kept < 300


@pytest.mark.parametrize(("block_size", "max_output"), [(1, 5), (7, 20), (7, 400), (64, 5)])
def test_result_does_not_depend_on_the_block(block_size, max_output):
    rng = np.random.default_rng(1)
    boxes, scores = numpy_boxes.random_boxes(rng, 150, clusters=8), rng.normal(size=150).astype(np.float32)
    check(boxes, scores, iou_threshold=0.5, max_output=max_output, block_size=block_size)


def test_more_than_a_thousand_boxes():
    rng = np.random.default_rng(2)
    boxes, scores = (
        numpy_boxes.random_boxes(rng, 1500, size=400, clusters=150),
        rng.normal(size=1500).astype(np.float32),
    )
    groups = rng.integers(0, 1203, 1500).astype(np.int32) // 400
    assert check(boxes, scores, groups=groups, iou_threshold=0.5, max_output=1000) > 150


def test_threshold_is_strict_and_compared_as_a_double():
    # IoU of exactly 1/2, and of float32(0.3) = 0.300000012, which a double threshold of 0.3 is below.
    half = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)
    tenths = np.array([[0, 0, 10, 10], [0, 0, 10, 3]], np.float32)
    scores = np.array([2, 1], np.float32)
    assert check(half, scores, iou_threshold=0.5, max_output=2) == 2
    assert check(tenths, scores, iou_threshold=0.3, max_output=2) == 1


def test_chain_needs_as_many_rounds_as_boxes():
    # Each box suppresses the next alone: every other one stays.
    x = np.arange(64, dtype=np.float32) * 3
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], 1)
    assert check(boxes, -x, iou_threshold=0.5, max_output=64) == 32


def test_empty_identical_and_absent_boxes():
    scores = np.arange(6, dtype=np.float32)
    same = np.tile(np.array([[3, 3, 9, 9]], np.float32), (6, 1))
    assert check(same, scores, iou_threshold=0.5, max_output=6) == 1
    assert check(same, scores, groups=np.arange(6, dtype=np.int32) - 3, iou_threshold=0.5, max_output=6) == 6
    assert check(same * 0, scores, iou_threshold=0.5, max_output=6) == 6  # empty boxes suppress nothing
    assert check(same, scores, np.zeros(6, bool), iou_threshold=0.5, max_output=6) == 0
    assert check(same[:1], scores[:1], iou_threshold=0.5, max_output=3) == 1
    out = nms(jnp.zeros((0, 4)), jnp.zeros(0), iou_threshold=0.5, max_output=3)
    assert out.indices.shape == (3,) and not np.any(out.valid)


def test_groups_are_not_offsets():
    # 1203 classes at 1333 px: coordinates offset to 1.6 million are 1/8 px apart, which makes this IoU of .505 just .5.
    a, b = [0.0, 0.0, 1.05, 1.0], [0.0, 0.0, 0.53, 1.0]
    boxes = np.array([a, b, a, b], np.float32)
    groups = np.array([1202, 1202, 0, 1], np.int32)
    scores = np.array([4, 3, 2, 1], np.float32)
    assert check(boxes, scores, groups=groups, iou_threshold=0.5, max_output=4) == 3
    assert check(boxes, scores, groups=groups, iou_threshold=0.51, max_output=4) == 4


def test_batch_of_unequal_images_and_no_gradient():
    rng = np.random.default_rng(3)
    boxes = np.stack([numpy_boxes.random_boxes(rng, 200, clusters=c) for c in (2, 20, 200)])
    scores = rng.normal(size=(3, 200)).astype(np.float32)
    valid = np.arange(200) < np.array([[200], [0], [150]])
    out = jax.jit(jax.vmap(lambda b, s, v: nms(b, s, iou_threshold=0.6, max_output=60, valid=v, block_size=32)))(
        boxes, scores, valid
    )
    for i in range(3):
        expected = numpy_boxes.greedy_nms(boxes[i], scores[i], iou_threshold=0.6, max_output=60, valid=valid[i])
        np.testing.assert_array_equal(np.asarray(out.indices[i])[np.asarray(out.valid[i])], expected)

    def loss(boxes, scores):
        kept = nms(boxes, scores, iou_threshold=0.6, max_output=10)
        return jnp.sum(boxes[kept.indices] * kept.valid[:, None])

    by_boxes, by_scores = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(boxes[0]), jnp.asarray(scores[0]))
    assert float(by_boxes.sum()) > 0 and not np.any(by_scores)
