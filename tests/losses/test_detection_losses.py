"""RPN, box and mask losses against detectron2's numbers (tests/testdata/README.md), by hand, and on odd inputs."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.losses import box_regression_loss, mask_loss, rpn_box_loss, rpn_objectness_loss, smooth_l1

TESTDATA = Path(__file__).parents[1] / "testdata"
LOG2 = math.log(2)


@pytest.fixture(scope="module")
def boxes():
    with np.load(TESTDATA / "losses_boxes.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def detectron2():
    with np.load(TESTDATA / "losses_mask_rcnn_r50_eql.npz") as arrays:
        return dict(arrays)


def value_and_grad(loss):
    """jax.value_and_grad in one compilation instead of one for each operation."""
    return jax.jit(jax.value_and_grad(loss))


def assert_matches(result, golden_loss, golden_grad):
    loss, grad = result
    np.testing.assert_allclose(loss, golden_loss, rtol=1e-5)
    np.testing.assert_allclose(grad, golden_grad, rtol=0, atol=5e-6 * np.abs(golden_grad).max())


# ---------------------------------------------------------------- golden numbers


@pytest.mark.parametrize(("name", "beta"), [("l1", 0.0), ("smooth_l1_beta_0.5", 0.5), ("smooth_l1_beta_0.1111", 1 / 9)])
def test_smooth_l1(boxes, name, beta):
    deltas, targets = boxes["in/deltas"], boxes["in/targets"]
    elements = smooth_l1(deltas, targets, beta=beta)
    np.testing.assert_allclose(elements, boxes[f"{name}/elem"], rtol=1e-5, atol=2e-6)
    total = value_and_grad(lambda d: smooth_l1(d, targets, beta=beta).sum())(deltas)
    assert_matches(total, boxes[f"{name}/sum"], boxes[f"{name}/grad_of_sum"])


@pytest.mark.parametrize(("name", "beta"), [("l1", 0.0), ("smooth_l1_beta_0.5", 0.5)])
def test_roi_box_loss(boxes, name, beta):
    labels, num_classes = boxes["in/roi_gt_classes"], 5
    foreground = labels < num_classes

    def class_specific(deltas):
        own = deltas.reshape(-1, num_classes, 4)[np.arange(len(labels)), np.where(foreground, labels, 0)]
        return box_regression_loss(own, boxes["in/targets"], foreground, beta=beta)

    def class_agnostic(deltas):
        return box_regression_loss(deltas, boxes["in/targets"], foreground, beta=beta)

    key = f"roi_box_loss_{name}_class_specific"
    result = value_and_grad(class_specific)(boxes["in/roi_deltas_class_specific"])
    assert_matches(result, boxes[f"{key}/loss"], boxes[f"{key}/grad"])
    key = f"roi_box_loss_{name}_class_agnostic"
    assert_matches(value_and_grad(class_agnostic)(boxes["in/deltas"]), boxes[f"{key}/loss"], boxes[f"{key}/grad"])


def test_box_loss_on_a_detectron2_training_step(detectron2):
    deltas, targets = detectron2["box_deltas_fg"], detectron2["box_targets_fg"]
    golden = detectron2["box_loss"], detectron2["box_grad_fg"]
    # The foreground rows alone, and the divisor told.
    every = np.ones(len(deltas), bool)
    assert_matches(value_and_grad(box_regression_loss)(deltas, targets, every, normalizer=1024), *golden)

    # All 1024 RoIs as [2, 512] and 100 rows of padding each, with rubbish where there is no foreground.
    foreground = np.pad((detectron2["labels"] < 60).reshape(2, 512), [(0, 0), (0, 100)])
    valid = np.pad(np.ones((2, 512), bool), [(0, 0), (0, 100)])
    spread_deltas = np.full((2, 612, 4), np.inf, np.float32)
    spread_targets = np.full((2, 612, 4), np.nan, np.float32)
    spread_deltas[foreground], spread_targets[foreground] = deltas, targets
    loss, grad = value_and_grad(box_regression_loss)(spread_deltas, spread_targets, foreground, valid=valid)
    assert_matches((loss, grad[foreground]), *golden)
    np.testing.assert_array_equal(grad[~foreground], 0)


def test_mask_loss_on_a_detectron2_training_step(detectron2):
    logits, rows = detectron2["mask_logits"], detectron2["mask_rows"]
    targets = np.unpackbits(detectron2["mask_targets_packed"], axis=-1)[..., :28]
    every = np.ones(len(logits), bool)
    for as_type in (bool, np.uint8, np.float32):
        loss, grad = value_and_grad(mask_loss)(logits, targets.astype(as_type), every)
        assert_matches((loss, grad[rows]), detectron2["mask_loss"], detectron2["mask_grad_rows"])


def test_rpn_losses_on_a_detectron2_training_step(detectron2):
    labels = detectron2["rpn_labels"]  # [2, N]
    logits = np.full(labels.shape, np.nan, np.float32)
    logits[labels >= 0] = detectron2["rpn_logits_sampled"]
    deltas, targets = (np.full((*labels.shape, 4), np.nan, np.float32) for _ in range(2))
    deltas[labels == 1] = detectron2["rpn_deltas_positive"]
    targets[labels == 1] = detectron2["rpn_targets_positive"]

    # The gradient of the head's biases is the sum over the anchors of each aspect ratio (innermost of three).
    loss, grad = value_and_grad(rpn_objectness_loss)(logits, labels, normalizer=256 * 2)
    by_ratio = np.asarray(grad).reshape(-1, 3).sum(axis=0)
    assert_matches((loss, by_ratio), detectron2["rpn_cls_loss"], detectron2["rpn_logits_bias_grad"])
    np.testing.assert_array_equal(grad[labels < 0], 0)
    np.testing.assert_allclose(rpn_objectness_loss(logits, labels), loss, rtol=1e-6)  # 512 were sampled

    loss, grad = value_and_grad(rpn_box_loss)(deltas, targets, labels, normalizer=256 * 2)
    by_ratio = np.asarray(grad).reshape(-1, 12).sum(axis=0)
    assert_matches((loss, by_ratio), detectron2["rpn_box_loss"], detectron2["rpn_deltas_bias_grad"])
    np.testing.assert_array_equal(grad[labels != 1], 0)
    np.testing.assert_allclose(rpn_box_loss(deltas, targets, labels), loss, rtol=1e-6)


# ---------------------------------------------------------------- by hand


def test_smooth_l1_by_hand():
    difference = jnp.array([-2.0, -0.5, 0.0, 0.25, 0.5, 3.0])
    zero = jnp.zeros(6)
    np.testing.assert_allclose(smooth_l1(difference, zero), [2, 0.5, 0, 0.25, 0.5, 3])
    np.testing.assert_allclose(smooth_l1(difference, zero, beta=0.5), [1.75, 0.25, 0, 0.0625, 0.25, 2.75])
    grad = jax.jit(jax.grad(lambda d, beta: smooth_l1(d, zero, beta=beta).sum()), static_argnums=1)
    np.testing.assert_allclose(grad(difference, 0), [-1, -1, 0, 1, 1, 1])
    np.testing.assert_allclose(grad(difference, 0.5), [-1, -1, 0, 0.5, 1, 1])


def test_rpn_by_hand():
    logits, labels = jnp.array([[0.0, 0.0, 5.0], [math.log(3), 7.0, 7.0]]), jnp.array([[1, 0, -1], [0, -1, -1]])
    loss, grad = value_and_grad(rpn_objectness_loss)(logits, labels)
    assert float(loss) == pytest.approx((2 * LOG2 + math.log(4)) / 3)
    np.testing.assert_allclose(grad, np.array([[-0.5, 0.5, 0], [0.75, 0, 0]]) / 3, rtol=1e-6)
    deltas, targets = jnp.ones((2, 3, 4)), jnp.zeros((2, 3, 4))
    assert float(rpn_box_loss(deltas, targets, labels)) == pytest.approx(4 / 3)  # one positive, three sampled
    assert float(rpn_box_loss(deltas, targets, labels, normalizer=512)) == pytest.approx(4 / 512)
    assert float(rpn_box_loss(deltas, targets, labels, beta=2.0)) == pytest.approx(1 / 3)


def test_box_and_mask_by_hand():
    deltas, targets = jnp.zeros((4, 4)), jnp.full((4, 4), 0.5)
    foreground = jnp.array([True, True, False, True])
    valid = jnp.array([True, True, True, False])  # a padding row is no foreground, whatever it says
    assert float(box_regression_loss(deltas, targets, foreground)) == pytest.approx(3 * 4 * 0.5 / 4)
    assert float(box_regression_loss(deltas, targets, foreground, valid=valid)) == pytest.approx(2 * 4 * 0.5 / 3)
    assert float(box_regression_loss(deltas, targets, foreground, normalizer=12)) == pytest.approx(0.5)

    # Two masks of 2 x 2: logits 0 cost log 2 each; the first mask has one cell at probability 3/4 of the right value.
    logits = jnp.zeros((3, 2, 2)).at[0, 0, 0].set(math.log(3)).at[2].set(9.0)
    truth = jnp.zeros((3, 2, 2), bool).at[0, 0, 0].set(True)
    foreground = jnp.array([True, True, False])
    loss, grad = value_and_grad(mask_loss)(logits, truth, foreground)
    assert float(loss) == pytest.approx((7 * LOG2 - math.log(0.75)) / 8)
    expected = np.full((3, 2, 2), 0.5)
    expected[0, 0, 0], expected[2] = -0.25, 0
    np.testing.assert_allclose(grad, expected / 8, rtol=1e-6)
    assert float(mask_loss(logits, truth, foreground, normalizer=4)) == pytest.approx(float(loss) / 2)
    # A target probability: BCE(0, t) is log 2 for every t, with gradient .5 - t.
    soft = jnp.full((1, 2, 2), 0.25)
    loss, grad = value_and_grad(mask_loss)(jnp.zeros((1, 2, 2)), soft, jnp.array([True]))
    assert float(loss) == pytest.approx(LOG2)
    np.testing.assert_allclose(grad, 0.25 / 4, rtol=1e-6)


# ---------------------------------------------------------------- odd inputs


def test_nothing_to_learn_from_gives_zero():
    nan = jnp.nan
    cases = [
        (lambda z: rpn_objectness_loss(z, -jnp.ones(3, jnp.int32)), jnp.full(3, nan)),
        (lambda z: rpn_box_loss(z, z, -jnp.ones(3, jnp.int32)), jnp.full((3, 4), nan)),
        (lambda z: rpn_box_loss(z, z, jnp.zeros(3, jnp.int32)), jnp.full((3, 4), nan)),  # negatives only
        (lambda z: box_regression_loss(z, z, jnp.zeros(3, bool)), jnp.full((3, 4), nan)),
        (lambda z: box_regression_loss(z, z, jnp.ones(3, bool), valid=jnp.zeros(3, bool)), jnp.full((3, 4), nan)),
        (lambda z: mask_loss(z, jnp.full((3, 2, 2), nan), jnp.zeros(3, bool)), jnp.full((3, 2, 2), nan)),
        (lambda z: mask_loss(z, z > 0, jnp.zeros(3, bool)), jnp.full((3, 2, 2), nan)),
        (lambda z: mask_loss(z, z, jnp.zeros(0, bool)), jnp.zeros((0, 2, 2))),
        (lambda z: box_regression_loss(z, z, jnp.zeros(0, bool)), jnp.zeros((0, 4))),
        (lambda z: rpn_objectness_loss(z, jnp.zeros(0, jnp.int32)), jnp.zeros(0)),
    ]
    for loss, x in cases:
        value, grad = value_and_grad(loss)(x)
        assert float(value) == 0
        np.testing.assert_array_equal(grad, 0)


def test_extreme_logits():
    logits, labels = jnp.array([-80.0, 80.0, -80.0, 80.0, 3e38]), jnp.array([0, 1, 1, 0, 1])
    loss, grad = value_and_grad(rpn_objectness_loss)(logits, labels)
    assert float(loss) == pytest.approx(160 / 5)
    np.testing.assert_allclose(grad, np.array([0, 0, -1, 1, 0]) / 5, atol=1e-7)
    masks = jnp.array([[[-80.0, 80.0], [80.0, -80.0]]])
    for as_type in (bool, jnp.float32):
        loss, grad = value_and_grad(mask_loss)(masks, (masks > 0).astype(as_type), jnp.array([True]))
        np.testing.assert_allclose(loss, 0, atol=1e-30)
        np.testing.assert_allclose(grad, 0, atol=1e-30)


def test_bfloat16_is_accumulated_in_float32():
    rng = np.random.default_rng(0)
    deltas = jnp.asarray(rng.normal(size=(2000, 4)), jnp.bfloat16)
    foreground = jnp.ones(2000, bool)
    loss = box_regression_loss(deltas, jnp.zeros((2000, 4)), foreground)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.abs(np.asarray(deltas, np.float64)).sum() / 2000, rtol=1e-6)
    logits, labels = deltas[:, 0], jnp.asarray(rng.integers(-1, 2, 2000))
    loss, grad = value_and_grad(rpn_objectness_loss)(logits, labels)
    assert loss.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, rpn_objectness_loss(logits.astype(jnp.float32), labels), rtol=1e-6)


def test_jit_and_vmap():
    rng = np.random.default_rng(1)
    logits, labels = jnp.asarray(rng.normal(size=(3, 50)), jnp.float32), jnp.asarray(rng.integers(-1, 2, (3, 50)))
    per_image = jax.jit(jax.vmap(lambda z, y: rpn_objectness_loss(z, y, normalizer=jnp.sum(labels >= 0))))
    np.testing.assert_allclose(jnp.sum(per_image(logits, labels)), rpn_objectness_loss(logits, labels), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smooth_l1(np.zeros(2), np.zeros(2), beta=-1.0), "beta is -1.0"),
        (lambda: smooth_l1(np.zeros((2, 4)), np.zeros(4)), r"targets has shape \(4,\); expected \(2, 4\)"),
        (lambda: rpn_objectness_loss(np.zeros((2, 3)), np.zeros((2, 4), int)), r"labels has shape \(2, 4\)"),
        (lambda: rpn_objectness_loss(np.zeros(3), np.zeros(3)), "labels have dtype float32"),
        (lambda: rpn_box_loss(np.zeros((3, 5)), np.zeros((3, 5)), np.zeros(3, int)), r"deltas has shape \(3, 5\)"),
        (
            lambda: box_regression_loss(np.zeros((3, 4)), np.zeros((3, 4)), np.zeros(3, int)),
            "foreground has dtype int32; expected bool",
        ),
        (
            lambda: box_regression_loss(
                np.zeros((3, 4)), np.zeros((3, 4)), np.ones(3, bool), valid=np.ones(3, bool), normalizer=3
            ),
            "valid and normalizer both given",
        ),
        (lambda: mask_loss(np.zeros((3, 2, 2)), np.zeros((3, 2)), np.ones(3, bool)), r"targets has shape \(3, 2\)"),
        (lambda: mask_loss(np.zeros((3, 2, 2)), np.zeros((3, 2, 2)), np.ones(2, bool)), r"foreground has shape \(2,\)"),
    ],
)
def test_errors_say_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()
