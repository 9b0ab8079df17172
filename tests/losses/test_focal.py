"""Focal loss and class-balanced weighting: golden numbers, float64 formulas, hand-worked cases, background."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import losses
from tests.losses.golden import assert_equals_golden, long_tail

PARTS = pytest.mark.parametrize("part", ["main", "extreme"])
BETAS = pytest.mark.parametrize("beta", ["0.999", "0.9999"])
LOG2 = math.log(2)


@PARTS
def test_focal_of_torchvision(part):
    golden = long_tail()
    labels = golden[f"{part}/in/labels"]
    assert_equals_golden(lambda z: losses.focal_loss(z, labels), golden[f"{part}/in/logits"], f"{part}/focal")


@pytest.mark.parametrize("beta", [0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("counts", ["image_count", "instance_count"])
def test_class_balanced_weights_of_the_authors(beta, counts):
    golden = long_tail()
    weights = losses.class_balanced_weights(golden[counts], beta)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, golden[f"class_balanced/weight_sum_to_K_beta_{beta}_{counts}"], rtol=1e-6)
    raw = losses.class_balanced_weights(golden[counts], beta, normalize=False)
    np.testing.assert_allclose(raw, golden[f"class_balanced/weight_raw_beta_{beta}_{counts}"], rtol=1e-6)


@BETAS
@pytest.mark.parametrize(
    ("part", "kind"),
    [("main", "sigmoid"), ("main", "focal"), ("main", "softmax"), ("extreme", "sigmoid"), ("extreme", "focal")],
)
def test_class_balanced_loss_of_the_authors(part, kind, beta):
    golden = long_tail()
    logits, labels = golden[f"{part}/in/logits"], golden[f"{part}/in/labels_fg_only"]
    weights = losses.class_balanced_weights(golden["image_count"], float(beta))
    ours = {"softmax": "softmax_bce"}.get(kind, kind)
    divisor = logits.shape[0] if kind == "focal" else logits.size  # their sigmoid and softmax also divide by K
    assert_equals_golden(
        lambda z: losses.class_balanced_loss(z, labels, weights, kind=ours, normalizer=divisor),
        logits,
        f"{part}/class_balanced/{kind}_beta_{beta}",
    )


def test_focal_by_hand():
    # z = 0: p = 1/2, each element a_t / 4 log 2. Row 0: .25 + .75; row 1, background: 2 * .75; row 2 is padding.
    loss, grad = jax.value_and_grad(losses.focal_loss)(jnp.zeros((3, 2)), jnp.array([0, 2, -1]))
    assert float(loss) == pytest.approx((0.25 + 0.75 + 1.5) / 4 * LOG2 / 2)
    # d/dz of (1 - p_t)^2 BCE at z = 0, negative: 2 (1/2)^2 (1/2) log 2 + (1/2)^3
    slope = (LOG2 / 4 + 1 / 8) / 2
    np.testing.assert_allclose(grad, [[-0.25 * slope, 0.75 * slope], [0.75 * slope, 0.75 * slope], [0, 0]], rtol=1e-6)
    plain = losses.focal_loss(jnp.ones((2, 3)), jnp.array([0, 3]), alpha=None, gamma=0.0)
    np.testing.assert_allclose(plain, losses.sigmoid_cross_entropy_loss(jnp.ones((2, 3)), jnp.array([0, 3])), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 5.0])
def test_focal_gradient_is_finite_for_any_gamma(gamma):
    logits = np.array([[-80, -40, -1, 0, 1, 40, 80]] * 2, np.float32)
    labels = np.array([7, 3])
    grad = jax.jit(jax.grad(lambda z: losses.focal_loss(z, labels, alpha=None, gamma=gamma)))(logits)
    target = labels[:, None] == np.arange(7)
    x = np.where(target, -logits, logits).astype(np.float64)
    log_wrong, cross_entropy = -np.logaddexp(0, -x), np.logaddexp(0, x)
    slope = np.exp(gamma * log_wrong) * (gamma * np.exp(-np.logaddexp(0, x)) * cross_entropy + np.exp(log_wrong))
    np.testing.assert_allclose(grad, np.where(target, -slope, slope) / 2, rtol=2e-6, atol=1e-30)


def test_weights_at_the_ends():
    np.testing.assert_array_equal(losses.class_balanced_weights([1, 10, 1000], 0.0), [1, 1, 1])
    nearly = losses.class_balanced_weights([1, 10, 1000], 1 - 1e-12, normalize=False)
    np.testing.assert_allclose(nearly, [1, 0.1, 0.001], rtol=1e-6)
    # A class that is never seen has no weight and no share in the scale.
    np.testing.assert_allclose(losses.class_balanced_weights([5, 0, 5], 0.9), [1, 0, 1])


@pytest.mark.parametrize(("kind", "columns"), [("sigmoid", 2), ("focal", 2), ("softmax", 3), ("softmax_bce", 3)])
def test_each_row_has_the_weight_of_its_class_and_background_has_1(kind, columns):
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(size=(1, columns)).astype(np.float32), np.array([0.5, 3.0], np.float32)
    weighted = jax.jit(lambda y: losses.class_balanced_loss(logits, y, weights, kind=kind))
    plain = jax.jit(lambda y: losses.class_balanced_loss(logits, y, np.ones(2, np.float32), kind=kind))
    for label, weight in ((0, 0.5), (1, 3.0), (2, 1.0)):
        labels = np.array([label])
        np.testing.assert_allclose(weighted(labels), weight * plain(labels), rtol=1e-6)
    unweighted = {
        "sigmoid": losses.sigmoid_cross_entropy_loss,
        "focal": lambda z, y: losses.focal_loss(z, y, alpha=None),
        "softmax": losses.softmax_cross_entropy_loss,
    }
    if kind in unweighted:
        np.testing.assert_allclose(plain(np.array([1])), unweighted[kind](logits, np.array([1])), rtol=1e-6)


def test_bce_of_a_softmax_in_float64():
    rng = np.random.default_rng(1)
    logits, labels = (6 * rng.normal(size=(5, 6))).astype(np.float32), np.array([0, 5, 2, 2, 1])
    z = logits.astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    target = labels[:, None] == np.arange(6)
    expected = -np.where(target, np.log(p), np.log1p(-p)).sum() / 5
    loss = losses.class_balanced_loss(logits, labels, np.ones(6, np.float32), kind="softmax_bce")
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["focal", "class_balanced_sigmoid", "class_balanced_focal"])
def test_classes_that_are_not_annotated_give_no_negatives(kind):
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(2, 3, 4)).astype(np.float32), np.array([[0, 1, 4], [2, 4, -1]])
    annotated = np.array([[[True, False, True, False]], [[False, False, False, True]]])
    weights = np.array([1, 2, 0.5, 1], np.float32)

    def loss(z, **kwargs):
        if kind == "focal":
            return losses.focal_loss(z, labels, **kwargs)
        return losses.class_balanced_loss(z, labels, weights, kind=kind.split("_")[-1], **kwargs)

    everywhere = jax.jit(jax.grad(loss))(logits)
    grad = jax.jit(jax.grad(lambda z: loss(z, annotated_classes=annotated)))(logits)
    counted = annotated | (labels[..., None] == np.arange(4))
    np.testing.assert_allclose(grad, np.where(counted, everywhere, 0), rtol=1e-6)


Z, Y, W = np.zeros((2, 4), np.float32), np.array([0, 3]), np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.focal_loss(Z, Y, alpha=1.5), "alpha is 1.5; expected at least 0 and at most 1"),
        (lambda: losses.focal_loss(Z, Y, gamma=-1), "gamma is -1; expected at least 0"),
        (lambda: losses.class_balanced_weights([[1]]), r"counts has shape \(1, 1\); expected \[K\]"),
        (lambda: losses.class_balanced_weights([1, -1]), r"counts\[1\] is -1.0; expected at least 0 .*shape \(2,\)"),
        (lambda: losses.class_balanced_weights([0, 0]), r"counts are all 0 \(counts has shape \(2,\)\)"),
        (lambda: losses.class_balanced_weights([1, 2], 1.0), "beta is 1.0; expected at least 0 and less than 1"),
        (
            lambda: losses.class_balanced_loss(Z, Y, W, kind="hinge"),
            "kind is 'hinge'; expected one of 'sigmoid', 'focal'",
        ),
        (
            lambda: losses.class_balanced_loss(Z, Y, W[:3]),
            r"weights has shape \(3,\); expected \(4,\) .*logits has shape \(2, 4\)",
        ),
        (lambda: losses.class_balanced_loss(Z, Y, -W), r"weights\[0\] is -1.0; expected at least 0 .*shape \(4,\)"),
        (
            lambda: losses.class_balanced_loss(Z, Y, W, kind="softmax", annotated_classes=np.ones(4, bool)),
            "annotated_classes given with kind 'softmax'",
        ),
    ],
)
def test_errors_say_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()
