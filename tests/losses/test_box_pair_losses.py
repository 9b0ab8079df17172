"""GIoU, DIoU and CIoU against numbers of fvcore and detectron2 (tests/testdata/README.md), by hand, on odd boxes."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.losses import box_pair_regression_loss, ciou_loss, diou_loss, giou_loss
from eql_jax.ops.boxes import decode_boxes

TESTDATA = Path(__file__).parents[1] / "testdata"
LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@pytest.fixture(scope="module")
def golden():
    with np.load(TESTDATA / "losses_box_pairs.npz") as arrays:
        return dict(arrays)


@functools.cache
def compiled(name):
    """Losses of pairs, and the gradients of their sum with respect to both arguments."""

    def total(boxes, targets):
        each = LOSSES[name](boxes, targets)
        return jnp.sum(each), each

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def pairs(name, boxes, targets):
    (_, each), (grad, target_grad) = compiled(name)(np.asarray(boxes, np.float32), np.asarray(targets, np.float32))
    return np.asarray(each), np.asarray(grad), np.asarray(target_grad)


# ---------------------------------------------------------------- golden numbers


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_of_fvcore(golden, name):
    """Identical, disjoint, nested, touching boxes and boxes with an equal edge are the first rows."""
    each, grad, _ = pairs(name, golden["in/pred_boxes"], golden["in/gt_boxes"])
    np.testing.assert_allclose(each, golden[f"{name}/elem"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(each.sum(), golden[f"{name}/sum"], rtol=1e-5)
    expected = golden[f"{name}/grad_of_sum"]
    np.testing.assert_allclose(grad, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["giou", "diou"])
def test_boxes_without_area(golden, name):
    each, grad, _ = pairs(name, golden["in/degenerate_pred"], golden["in/degenerate_gt"])
    # The last pair is 1e-3 wide, of which eps is a tenth of the area: float32 coordinates of 10 are not finer.
    np.testing.assert_allclose(each, golden[f"degenerate_{name}/elem"], rtol=1e-5)
    expected = golden[f"degenerate_{name}/grad_of_sum"]
    np.testing.assert_allclose(grad[:4], expected[:4], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(grad[4], expected[4], rtol=1e-5)


@pytest.mark.parametrize("form", ["class_specific", "class_agnostic"])
def test_giou_of_detectron2s_box_head(golden, form):
    """Deltas are decoded on the proposals; the gradient reaches the deltas of the foreground's own classes alone."""
    labels, num_classes = golden["in/roi_gt_classes"], 5
    foreground = labels < num_classes

    def loss(deltas):
        if form == "class_specific":
            own = np.where(foreground, labels, 0)
            deltas = deltas.reshape(-1, num_classes, 4)[np.arange(len(labels)), own]
        boxes = decode_boxes(deltas, jnp.asarray(golden["in/proposals"]), weights=WEIGHTS)
        return box_pair_regression_loss(boxes, golden["in/gt_boxes"], foreground, kind="giou")

    deltas = golden["in/roi_deltas_class_specific" if form == "class_specific" else "in/deltas"]
    value, grad = jax.jit(jax.value_and_grad(loss))(deltas)
    np.testing.assert_allclose(value, golden[f"roi_box_loss_giou_{form}/loss"], rtol=1e-5)
    expected = golden[f"roi_box_loss_giou_{form}/grad"]
    np.testing.assert_allclose(grad, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


# ---------------------------------------------------------------- by hand


def test_by_hand():
    # Squares of side 2, one shifted by (1, 1): intersection 1, union 7, enclosing square of side 3.
    boxes, targets = [[0, 0, 2, 2]], [[1, 1, 3, 3]]
    assert pairs("giou", boxes, targets)[0][0] == pytest.approx(1 - 1 / 7 + 2 / 9)
    assert pairs("diou", boxes, targets)[0][0] == pytest.approx(1 - 1 / 7 + 2 / 18)
    assert pairs("ciou", boxes, targets)[0][0] == pytest.approx(1 - 1 / 7 + 2 / 18)  # the same shape
    # 4 x 1 against 1 x 4 around one centre: IoU 1/7, no distance, angles atan(4) and atan(1/4).
    boxes, targets = [[0, 1.5, 4, 2.5]], [[1.5, 0, 2.5, 4]]
    v = 4 / math.pi**2 * (math.atan(4) - math.atan(0.25)) ** 2
    each, grad, _ = pairs("ciou", boxes, targets)
    assert each[0] == pytest.approx(1 - 1 / 7 + v * v / (1 - 1 / 7 + v))
    assert pairs("diou", boxes, targets)[0][0] == pytest.approx(1 - 1 / 7)
    assert pairs("giou", boxes, targets)[0][0] == pytest.approx(1 - 1 / 7 + 9 / 16)
    # Moving the right edge out, alpha fixed: the intersection stays 1, the union grows by 1, and the centre leaves a
    # distance of 0, which is no change of first order.
    slope = 1 / 49 - v / (1 - 1 / 7 + v) * 8 / math.pi**2 * (math.atan(0.25) - math.atan(4)) * (1 / 17)
    assert grad[0, 2] == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_limits(name):
    """0 for a perfect box; up to 2 far away, where IoU has no gradient and the penalty still pulls."""
    each, grad, _ = pairs(name, [[3, 4, 30, 50]], [[3, 4, 30, 50]])
    assert abs(each[0]) < 1e-6 and np.abs(grad).max() < 1e-6
    each, grad, _ = pairs(name, [[0, 0, 1, 1]], [[1e4, 1e4, 1e4 + 1, 1e4 + 1]])
    assert 1.9 < each[0] <= 2
    assert (grad[0] < 0).any() or (grad[0] > 0).any()


@pytest.mark.parametrize("name", LOSSES)
def test_symmetries(name):
    """Swapping the arguments swaps the gradients (CIoU's too: alpha and v are symmetric); scale changes nothing."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 100, (2, 64, 2))
    boxes, targets = np.concatenate([low, low + rng.uniform(1, 80, (2, 64, 2))], axis=-1).astype(np.float32)
    each, grad, target_grad = pairs(name, boxes, targets)
    swapped, swapped_grad, swapped_target_grad = pairs(name, targets, boxes)
    np.testing.assert_allclose(each, swapped, rtol=1e-6)
    np.testing.assert_allclose(grad, swapped_target_grad, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(target_grad, swapped_grad, rtol=1e-4, atol=1e-7)
    larger, larger_grad, _ = pairs(name, 8 * boxes, 8 * targets)
    np.testing.assert_allclose(each, larger, rtol=1e-5)
    np.testing.assert_allclose(grad, 8 * larger_grad, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- odd boxes and inputs


@pytest.mark.parametrize("name", LOSSES)
def test_every_kind_of_empty_box_is_finite(name):
    shapes = [(0, 0), (0, 5), (5, 0), (5, 5), (1e-4, 1e4), (1e4, 1e-4), (1e-20, 1e-20)]
    boxes = np.array([[x, x, x + w, x + h] for x in (0.0, 3.0) for w, h in shapes], np.float32)
    first, second = (i.ravel() for i in np.meshgrid(np.arange(len(boxes)), np.arange(len(boxes))))
    each, grad, target_grad = pairs(name, boxes[first], boxes[second])
    assert np.isfinite(each).all() and np.isfinite(grad).all() and np.isfinite(target_grad).all()
    assert (each >= -1e-6).all() and (each <= 3).all()


@pytest.mark.parametrize("name", LOSSES)
def test_types_and_axes(name):
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 9, (2, 3, 2))
    boxes = np.concatenate([low, low + 4], axis=-1).astype(np.float32)
    targets = boxes + 1
    batched = LOSSES[name](boxes, targets)
    assert batched.shape == (2, 3) and batched.dtype == jnp.float32
    np.testing.assert_allclose(jax.vmap(LOSSES[name])(boxes, targets), batched, rtol=1e-6)
    narrow = jnp.asarray(boxes, jnp.bfloat16)
    found = LOSSES[name](narrow, targets)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, LOSSES[name](narrow.astype(jnp.float32), targets), rtol=1e-6)
    assert LOSSES[name](boxes[:0], targets[:0]).shape == (0, 3)


def test_rows_that_do_not_count():
    """Rubbish in background and padding reaches neither the loss nor a gradient; the divisor counts what it should."""
    boxes = np.array([[0, 0, 2, 2], [0, 0, 4, 4], [np.nan] * 4, [np.inf] * 4], np.float32)
    targets = np.array([[1, 1, 3, 3], [0, 0, 4, 4], [np.inf] * 4, [np.nan] * 4], np.float32)
    foreground = np.array([True, True, False, True])
    valid = np.array([True, True, True, False])
    giou = 1 - 1 / 7 + 2 / 9
    grad = jax.jit(jax.value_and_grad(box_pair_regression_loss), static_argnames="kind")
    value, slope = grad(boxes, targets, foreground, valid=valid)
    assert float(value) == pytest.approx(giou / 3)
    assert np.isfinite(slope).all() and not np.asarray(slope)[2:].any()
    one = np.array([True, False, False, False])
    assert float(grad(boxes, targets, one)[0]) == pytest.approx(giou / 4)
    assert float(grad(boxes, targets, one, normalizer=10)[0]) == pytest.approx(giou / 10)
    assert float(grad(boxes, targets, one, kind="diou")[0]) == pytest.approx((1 - 1 / 7 + 1 / 9) / 4)
    assert float(box_pair_regression_loss(boxes, targets, foreground, valid=valid)) == pytest.approx(giou / 3)
    for none in (np.zeros((3, 0), bool), np.zeros((2, 4), bool)):
        empty = np.zeros((*none.shape, 4), np.float32)
        value, slope = grad(empty, empty, none)
        assert value == 0 and not np.asarray(slope).any()


@pytest.mark.parametrize("name", LOSSES)
def test_errors_say_what_was_found(name):
    loss, good = LOSSES[name], np.array([[0, 0, 2, 2], [0, 0, 3, 3]], np.float32)
    with pytest.raises(ValueError, match=r"targets has shape \(1, 4\); expected \(2, 4\)"):
        loss(good, good[:1])
    with pytest.raises(ValueError, match=r"boxes has shape \(2, 3\); expected \[..., 4\]"):
        loss(good[:, :3], good[:, :3])
    with pytest.raises(ValueError, match="boxes has dtype int32; expected floating point"):
        loss(good.astype(np.int32), good)
    inverted = good[:, [2, 1, 0, 3]]
    with pytest.raises(ValueError, match=r"targets of shape \(2, 4\) has \[2.0, 0.0, 0.0, 2.0\] in row 0 of 2"):
        loss(good, inverted)
    with pytest.raises(ValueError, match=r"boxes of shape \(2, 4\) has .*nan.* in row 1"):
        loss(np.where(np.arange(2)[:, None] == 1, np.nan, good).astype(np.float32), good)
    assert jax.jit(loss)(inverted, good).shape == (2,)  # values cannot be seen inside jit


def test_errors_of_the_regression_loss():
    boxes, rows = np.ones((2, 4), np.float32), np.ones(2, bool)
    with pytest.raises(ValueError, match="kind is 'iou'; expected one of giou, diou, ciou"):
        box_pair_regression_loss(boxes, boxes, rows, kind="iou")
    with pytest.raises(ValueError, match="foreground has dtype int"):
        box_pair_regression_loss(boxes, boxes, rows.astype(np.int32))
    with pytest.raises(ValueError, match=r"boxes has shape \(2, 4\); expected \(3, 4\)"):
        box_pair_regression_loss(boxes, boxes, np.ones(3, bool))
    with pytest.raises(ValueError, match="valid and normalizer both given"):
        box_pair_regression_loss(boxes, boxes, rows, valid=rows, normalizer=2)
