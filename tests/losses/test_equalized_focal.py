"""Equalized focal loss against a float64 NumPy transcription of the paper's equation 4 (no golden numbers)."""

import jax
import numpy as np
import pytest

from eql_jax import losses
from tests.losses.numpy_steps import STEPS, K, derivative, steps


@jax.jit
def step_of(logits, labels, state):
    return jax.value_and_grad(losses.equalized_focal_loss, has_aux=True)(logits, labels, state)


def transcription(logits, labels, positive, negative, *, gamma=2.0, scale=8.0, alpha=0.25):
    """Equations 2 to 4: loss, gradient, and the gradients accumulated after it."""
    seen = positive + negative > 0
    g = np.where(seen, np.clip(positive / (negative + 1e-10), 0, 1), 1)
    gamma_j = gamma + scale * (1 - g)
    valid = labels >= 0
    y = labels[:, None] == np.arange(K)

    def elements(z):
        log_p = -np.logaddexp(0, np.where(y, -z, z))  # log p_t
        log_rest = -np.logaddexp(0, np.where(y, z, -z))  # log(1 - p_t)
        a = np.where(y, alpha, 1 - alpha)
        return -a * (gamma_j / gamma) * np.exp(gamma_j * log_rest) * log_p * valid[:, None]

    z = logits.astype(np.float64)
    grad = derivative(elements, z)
    positive = positive + (np.abs(grad) * y).sum(0)
    negative = negative + (np.abs(grad) * ~y).sum(0)
    return elements(z).sum() / valid.sum(), grad / valid.sum(), positive, negative


@pytest.mark.parametrize("scale", [1.0, 3.0, 80])
def test_against_the_equations(scale):
    logits, labels = steps(K, scale=scale)
    state = losses.equalized_focal_init(K)
    positive = negative = np.zeros(K)
    for step in range(STEPS):
        value, grad, positive, negative = transcription(logits[step], labels[step], positive, negative)
        (loss, state), actual = step_of(logits[step], labels[step], state)
        np.testing.assert_allclose(loss, value, rtol=1e-5)
        np.testing.assert_allclose(actual, grad, rtol=0, atol=5e-6 * np.abs(grad).max())
        np.testing.assert_allclose(state.positive, positive, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.negative, negative, rtol=1e-5, atol=1e-6)
    assert np.all(losses.equalized_focal_focusing(state) >= 2)


def test_first_step_is_focal_loss():
    logits, labels = steps(K)
    loss, _ = losses.equalized_focal_loss(logits[0], labels[0], losses.equalized_focal_init(K))
    np.testing.assert_allclose(loss, losses.focal_loss(logits[0], labels[0]), rtol=1e-6)


def test_a_class_with_negatives_only_focuses_most():
    state = losses.GradientMemory(np.array([1.0, 0.0, 9.0], "f"), np.array([2.0, 3.0, 3.0], "f"))
    np.testing.assert_allclose(losses.equalized_focal_focusing(state), [6, 10, 2], rtol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("gamma", 0.0), ("scale", -1.0), ("alpha", 1.5)])
def test_hyper_parameters_out_of_range(name, value):
    logits, labels = steps(K)
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        losses.equalized_focal_loss(logits[0], labels[0], losses.equalized_focal_init(K), **{name: value})
