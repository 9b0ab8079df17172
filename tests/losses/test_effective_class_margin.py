"""Effective class-margin loss against a float64 NumPy transcription of the paper's equations (no golden numbers)."""

import functools

import jax
import numpy as np
import pytest

from eql_jax import losses
from tests.losses.numpy_steps import STEPS, K, derivative, steps

COUNTS = np.array([5000, 2000, 900, 400, 200, 100, 50, 20, 10, 5, 2, 1])


@functools.partial(jax.jit, static_argnames=("background", "count_samples"))
def step_of(logits, labels, state, background=True, count_samples=False):
    loss = functools.partial(losses.effective_class_margin_loss, background=background, count_samples=count_samples)
    return jax.value_and_grad(loss, has_aux=True)(logits, labels, state)


def transcription(logits, labels, samples):
    """Theorem 2, equations 8, 10 and 11: the loss and its gradient, from the counts of all columns."""
    n = samples.astype(np.float64)
    not_n = n.sum() - n
    n, not_n = np.maximum(n, 1), np.maximum(not_n, 1)
    alpha = not_n / n
    m = alpha * np.log((1 + alpha) / alpha)
    margin_positive = not_n**0.25 / (n**0.25 + not_n**0.25)
    margin_negative = n**0.25 / (n**0.25 + not_n**0.25)
    valid = labels >= 0
    y = labels[:, None] == np.arange(len(n))

    def elements(z):
        log_positive, log_negative = np.log(1 / margin_positive) + z, np.log(1 / margin_negative) - z
        log_sum = np.logaddexp(log_positive, log_negative)
        return -m * np.where(y, log_positive - log_sum, log_negative - log_sum) * valid[:, None]

    z = logits.astype(np.float64)
    return elements(z).sum() / valid.sum(), derivative(elements, z) / valid.sum()


@pytest.mark.parametrize("count_samples", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("scale", [3.0, 80])
def test_against_the_equations(scale, background, count_samples):
    logits, labels = steps(K + background, scale=scale, labels_to=K if background else K - 1)
    ratio = losses.effective_class_margin.BACKGROUND_RATIO if background else None
    state = losses.effective_class_margin_init(np.zeros(K) if count_samples else COUNTS, background_ratio=ratio)
    samples = np.zeros(K + background) if count_samples else np.append(COUNTS, [COUNTS.sum() * 6.3313] * background)
    np.testing.assert_allclose(state.samples, samples, rtol=1e-6)
    for step in range(STEPS):
        if count_samples:
            samples = samples + [(labels[step] == j).sum() for j in range(K + background)]
        value, grad = transcription(logits[step], labels[step], samples)
        (loss, state), actual = step_of(logits[step], labels[step], state, background, count_samples)
        np.testing.assert_allclose(loss, value, rtol=1e-5)
        np.testing.assert_allclose(actual, grad, rtol=0, atol=5e-6 * np.abs(grad).max())
        np.testing.assert_allclose(state.samples, samples, rtol=1e-6)


def test_rare_classes_weigh_most_and_are_shifted_down():
    state = losses.effective_class_margin_init(COUNTS)
    weight, shift = losses.effective_class_margins(state)
    assert np.all(np.diff(weight[:-1]) >= 0) and np.all(np.diff(shift[:-1]) < 0)
    # Background, with 6.3 positives for each negative: a log(1 + 1 / a) and log(1 / a) / 4 of a = 1 / 6.3313
    np.testing.assert_allclose(weight[-1], np.log(1 + 6.3313) / 6.3313, rtol=1e-5)
    np.testing.assert_allclose(shift[-1], np.log(6.3313) / 4, rtol=1e-5)


def test_even_classes_are_a_sigmoid_of_twice_the_logit():
    """Two classes of equal counts, no background: a = 1, no shift, weight log 2."""
    state = losses.effective_class_margin_init([7, 7], background_ratio=None)
    loss, _ = losses.effective_class_margin_loss(np.array([[1.5, -0.5]]), np.array([0]), state, background=False)
    np.testing.assert_allclose(loss, np.log(2) * (np.log1p(np.exp(-3.0)) + np.log1p(np.exp(-1.0))), rtol=1e-6)


def test_init_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"image_counts has shape \(1, 2\); expected \[K\]"):
        losses.effective_class_margin_init([[1, 2]])
    with pytest.raises(ValueError, match=r"image_counts\[1\] is -2"):
        losses.effective_class_margin_init([1, -2])
    with pytest.raises(ValueError, match="background_ratio is 0"):
        losses.effective_class_margin_init([1, 2], background_ratio=0)
