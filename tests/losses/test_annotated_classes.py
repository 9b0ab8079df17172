"""Classes that an image has no annotations of give no negatives from it: each loss against plain loops in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import losses

B, R, K = 2, 12, 6
TAIL = np.array([False, True, False, True, True, False])
SMOOTH = np.array([0.0, 0.3, 0.0, 1.0, 0.8, 0.0], np.float32)
EXEMPT = np.array([[[True, False, False, True, False, False]], [[False, True, True, False, False, True]]])
ANNOTATED = np.array([[[True, True, False, False, True, True]], [[False, False, False, True, False, True]]])


def eql(logits, labels, annotated, *, tail=TAIL, exempt=None):
    return losses.equalization_loss(logits, labels, tail, exempt_classes=exempt, annotated_classes=annotated)


def sigmoid(logits, labels, annotated):
    return losses.sigmoid_cross_entropy_loss(logits, labels, annotated_classes=annotated)


def softmax(logits, labels, annotated):
    return losses.softmax_cross_entropy_loss(logits, labels, annotated_classes=annotated)


FLAVOURS = {
    "eql": eql,
    "eql_smooth": functools.partial(eql, tail=SMOOTH),
    "eql_exempt": functools.partial(eql, exempt=EXEMPT),
    "sigmoid": sigmoid,
    "softmax": softmax,
}


@functools.cache
def compiled(flavour):
    return jax.jit(jax.value_and_grad(FLAVOURS[flavour]))


def example(flavour, scale=3.0):
    """Rows of all kinds in both images: objects of classes annotated or not, background, padding."""
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, K + 1, (B, R))
    labels[:, :4] = [[2, 3, K, -1], [0, 4, K, -1]]  # objects of classes that nobody looked for, among others
    columns = K + (flavour == "softmax")
    return (scale * rng.normal(size=(B, R, columns))).astype(np.float32), labels


def log_sigmoid(z):
    return min(z, 0.0) - math.log1p(math.exp(-abs(z)))


def weight(flavour, image, label, j):
    """Weight of logit j in a row of the sigmoid losses."""
    if j == label:
        return 1.0
    if not ANNOTATED[image, 0, j]:
        return 0.0
    if flavour == "sigmoid" or label == K or (flavour == "eql_exempt" and EXEMPT[image, 0, j]):
        return 1.0
    return 1.0 - float((SMOOTH if flavour == "eql_smooth" else TAIL)[j])


def reference(flavour, logits, labels):
    """Loss and gradient by loops in float64."""
    total, grad = 0.0, np.zeros(logits.shape)
    for image, row in np.ndindex(labels.shape):
        label, z = int(labels[image, row]), logits[image, row].astype(np.float64)
        if label < 0:
            continue
        if flavour == "softmax":
            there = [j for j in range(K + 1) if j in (label, K) or ANNOTATED[image, 0, j]]
            top = max(z[there])
            total += top + math.log(sum(math.exp(z[j] - top) for j in there)) - z[label]
            for j in there:
                p = math.exp(z[j] - top) / sum(math.exp(z[i] - top) for i in there)
                grad[image, row, j] = p - (j == label)
            continue
        for j in range(K):
            w = weight(flavour, image, label, j)
            total -= w * log_sigmoid(z[j] if j == label else -z[j])
            grad[image, row, j] = w * (math.exp(log_sigmoid(z[j])) - (j == label))
    valid = (labels >= 0).sum()
    return total / valid, grad / valid


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("scale", [3.0, 80.0])
def test_losses_and_gradients_against_loops(flavour, scale):
    logits, labels = example(flavour, scale)
    if scale == 80:
        logits = np.sign(logits) * 80
    value, grad = compiled(flavour)(logits, labels, ANNOTATED)
    expected, expected_grad = reference(flavour, logits, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, atol=2e-7)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_half_precision_is_widened_first(flavour):
    logits, labels = example(flavour)
    narrow = jnp.asarray(logits, jnp.bfloat16)
    value, grad = jax.value_and_grad(FLAVOURS[flavour])(narrow, labels, ANNOTATED)
    expected, expected_grad = reference(flavour, np.asarray(narrow, np.float32), labels)
    assert value.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(grad, np.float32), expected_grad, rtol=2**-8, atol=1e-7)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_all_annotated_is_the_plain_loss(flavour):
    logits, labels = example(flavour)
    value, grad = compiled(flavour)(logits, labels, np.ones((B, 1, K), bool))
    plain, plain_grad = jax.value_and_grad(lambda z: FLAVOURS[flavour](z, labels, None))(logits)
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    np.testing.assert_allclose(grad, plain_grad, atol=1e-7)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_none_annotated_leaves_the_positives(flavour):
    """Sigmoid losses: the positive alone; softmax: target against background, and nothing in a background row."""
    logits, labels = example(flavour)
    value, _ = compiled(flavour)(logits, labels, np.zeros((B, 1, K), bool))
    rows = [(logits[i, r].astype(np.float64), labels[i, r]) for i, r in np.ndindex(B, R) if 0 <= labels[i, r] < K]
    terms = [-log_sigmoid(z[y] - (z[K] if flavour == "softmax" else 0)) for z, y in rows]
    np.testing.assert_allclose(value, sum(terms) / (labels >= 0).sum(), rtol=1e-5)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_what_is_left_out_reaches_nothing(flavour):
    """Not even a logit that is no number, in a class not annotated or a row of padding."""
    logits, labels = example(flavour)
    broken = logits.copy()
    others = np.arange(logits.shape[-1]) != labels[..., None]
    hidden = np.zeros(logits.shape, bool)
    hidden[..., :K] = ~ANNOTATED & others[..., :K]
    hidden |= (labels < 0)[..., None]
    broken[hidden] = np.nan
    value, grad = compiled(flavour)(broken, labels, ANNOTATED)
    expected, expected_grad = compiled(flavour)(logits, labels, ANNOTATED)
    assert value == expected
    np.testing.assert_array_equal(grad, expected_grad)
    assert not np.asarray(grad)[hidden].any()


@pytest.mark.parametrize("flavour", ["eql", "sigmoid", "softmax"])
def test_errors_say_what_was_found(flavour):
    logits, labels = example(flavour)
    with pytest.raises(ValueError, match=rf"annotated_classes has shape \({K + 2},\); expected one that broadcasts to"):
        FLAVOURS[flavour](logits, labels, np.ones(K + 2, bool))
    with pytest.raises(ValueError, match="annotated_classes has dtype float32; expected bool"):
        FLAVOURS[flavour](logits, labels, np.ones(K, np.float32))
