"""Areas, overlaps, coding and clipping of boxes, against hand-worked numbers, NumPy and detectron2's stored results."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.ops import boxes as box_ops
from tests.ops import numpy_boxes

TESTDATA = Path(__file__).parents[1] / "testdata"
ONES = (1.0, 1.0, 1.0, 1.0)
HEAD = (10.0, 10.0, 5.0, 5.0)


def test_overlaps_by_hand():
    a = jnp.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 20, 30], [5, 5, 5, 5]], jnp.float32)
    b = jnp.array([[5, 0, 15, 10], [10, 0, 20, 10], [0, 0, 10, 10], [20, 20, 20, 30]], jnp.float32)
    np.testing.assert_array_equal(box_ops.area(a), [100, 50, 0, 0])
    # Shares half; touches; identical; an empty box meets nothing, not even itself.
    expected = [[50 / 150, 0, 1, 0], [25 / 125, 0, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(box_ops.pairwise_iou(a, b), expected, rtol=1e-7)
    np.testing.assert_allclose(box_ops.pairwise_ioa(a, b)[:2], [[0.5, 0, 1, 0], [0.5, 0, 1, 0]], rtol=1e-7)
    assert not np.any(box_ops.pairwise_ioa(a, b)[2:])


def test_iou_equals_single_float32_operations_bit_for_bit():
    rng = np.random.default_rng(0)
    a, b = numpy_boxes.random_boxes(rng, 300), numpy_boxes.random_boxes(rng, 200)
    np.testing.assert_array_equal(jax.jit(box_ops.pairwise_iou)(a, b), numpy_boxes.iou(a, b))


def test_encode_by_hand_and_back():
    proposal = jnp.array([[0, 0, 10, 20]], jnp.float32)
    box = jnp.array([[5, 10, 25, 30]], jnp.float32)  # centre (15, 20) against (5, 10), sides (20, 20) against (10, 20)
    np.testing.assert_allclose(
        box_ops.encode_boxes(box, proposal, weights=HEAD), [[10.0, 5.0, 5 * math.log(2), 0.0]], rtol=1e-6
    )
    rng = np.random.default_rng(1)
    a, b = numpy_boxes.random_boxes(rng, 50), numpy_boxes.random_boxes(rng, 50)
    back = box_ops.decode_boxes(box_ops.encode_boxes(a, b, weights=HEAD), b, weights=HEAD)
    np.testing.assert_allclose(back, a, atol=1e-4)


def test_encode_of_padding_is_zero_with_clean_gradients():
    boxes = jnp.array([[0, 0, 0, 0], [1, 1, 5, 5], [3, 3, 2, 9]], jnp.float32)
    proposals = jnp.array([[0, 0, 4, 4], [2, 2, 2, 2], [0, 0, 4, 4]], jnp.float32)
    assert not np.any(box_ops.encode_boxes(boxes, proposals, weights=ONES))
    gradient = jax.grad(lambda b: jnp.sum(jnp.abs(box_ops.encode_boxes(b, proposals, weights=ONES))))(boxes)
    assert np.all(np.isfinite(gradient))


def test_decode_class_specific_agnostic_and_clamped():
    proposals = jnp.array([[0, 0, 16, 16], [10, 10, 20, 30]], jnp.float32)
    deltas = jnp.zeros((2, 3, 4)).at[0, 1].set(jnp.array([1.0, 0, 500.0, 0])).at[1, 2].set(jnp.array([0, 10.0, 0, 0]))
    decoded = np.asarray(box_ops.decode_boxes(deltas, proposals, weights=HEAD))
    np.testing.assert_allclose(decoded[:, 0], proposals, atol=1e-6)
    # dx 1 / 10 of 16 px; dw is clamped: 16 * 1000 / 16 = 1000 px wide.
    np.testing.assert_allclose(decoded[0, 1], [9.6 - 500, 0, 9.6 + 500, 16], rtol=1e-5)
    np.testing.assert_allclose(decoded[1, 2], [10, 30, 20, 50], rtol=1e-6)
    np.testing.assert_array_equal(box_ops.decode_boxes(deltas[:, 1:2], proposals, weights=HEAD)[:, 0], decoded[:, 1])
    np.testing.assert_array_equal(box_ops.decode_boxes(deltas[:, 1], proposals, weights=HEAD), decoded[:, 1])


def test_decode_equals_detectron2():
    golden = np.load(TESTDATA / "ops_detections.npz")
    decoded = box_ops.decode_boxes(golden["decode_deltas"], golden["proposal_boxes"][:16], weights=HEAD)
    np.testing.assert_allclose(decoded, golden["decoded"], atol=1e-3)


def test_clip_and_nonempty():
    boxes = jnp.array([[-5, -5, 50, 50], [3, 4, 5, 6], [45, 2, 60, 8], [2, 2, 2, 9]], jnp.float32)
    clipped = box_ops.clip_boxes(boxes, jnp.array([30, 40], jnp.int32))
    np.testing.assert_array_equal(clipped, [[0, 0, 40, 30], [3, 4, 5, 6], [40, 2, 40, 8], [2, 2, 2, 9]])
    np.testing.assert_array_equal(box_ops.nonempty(clipped), [True, True, False, False])
    np.testing.assert_array_equal(box_ops.nonempty(clipped, min_size=2), [True, False, False, False])
    assert not box_ops.nonempty(jnp.array([0.0, 0.0, jnp.inf, 5.0]))


@pytest.mark.parametrize("value", [0.3, 0.5, 0.6, 0.7, 0.9, 1e-4])
def test_float32_at_most(value):
    below = box_ops.float32_at_most(value)
    assert below.dtype == np.float32
    assert float(below) <= value < float(np.nextafter(below, np.float32(np.inf)))
