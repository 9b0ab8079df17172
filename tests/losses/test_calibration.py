"""NorCal, LogN and logit adjustment against float64 NumPy transcriptions of their equations (no golden numbers)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import losses

R, K = 50, 8
COUNTS = np.array([9000, 3000, 700, 150, 40, 12, 3, 1])


def logits_of(columns, scale=4.0):
    return (scale * np.random.default_rng(0).normal(size=(R, columns))).astype(np.float32)


def softmax(z):
    e = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("scale", [4.0, 30.0])
def test_norcal_of_a_softmax(gamma, scale):
    """The paper's equation on exponentials of logits, against ours on probabilities."""
    logits = logits_of(K + 1, scale).astype(np.float64)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    e[:, :K] /= COUNTS**gamma
    expected = e / e.sum(-1, keepdims=True)
    scores = softmax(logits)
    actual = jax.jit(losses.norcal)(scores[:, :K], COUNTS, gamma=gamma, background=scores[:, K])
    np.testing.assert_allclose(actual, expected[:, :K], rtol=2e-5, atol=1e-30)
    without = losses.norcal(scores[:, :K], COUNTS, gamma=gamma)  # background from the scores' sum
    np.testing.assert_allclose(without, expected[:, :K], atol=2e-7 * COUNTS.max() ** gamma)
    if gamma == 0:
        np.testing.assert_allclose(actual, scores[:, :K], rtol=1e-5, atol=1e-30)


def test_norcal_of_sigmoids():
    logits = logits_of(K).astype(np.float64)
    e = np.exp(logits) / COUNTS**0.6
    scores = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(losses.norcal(scores, COUNTS, sigmoid=True), e / (e + 1), rtol=1e-4)


def test_norcal_without_background():
    scores = softmax(logits_of(K))
    actual = losses.norcal(scores, COUNTS, gamma=0.5, background=0.0)
    expected = scores / COUNTS**0.5
    np.testing.assert_allclose(actual, expected / expected.sum(-1, keepdims=True), rtol=1e-5)


def test_norcal_of_certain_rows():
    """All background, all one class, and a row that is zero throughout."""
    scores = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]], np.float32)
    background = np.array([1.0, 0.0, 0.0], np.float32)
    actual = losses.norcal(scores, [100, 10], background=background)
    np.testing.assert_array_equal(actual, [[0, 0], [0, 1], [0, 0]])


def test_norcal_counts_zero_as_one():
    scores = softmax(logits_of(3))[:, :2]
    np.testing.assert_array_equal(losses.norcal(scores, [5, 0]), losses.norcal(scores, [5, 1]))


def test_logn_against_the_equation():
    logits = logits_of(K + 1) + np.arange(K + 1)
    z = logits.astype(np.float64)
    mean, deviation = z.mean(0), z.std(0)
    expected = (z - (mean - mean[:K].min())) / deviation
    expected[:, K] = z[:, K]
    statistics = losses.logn_statistics(logits)
    np.testing.assert_allclose(statistics.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, deviation**2, rtol=1e-5)
    actual = jax.jit(losses.logn)(logits, statistics.mean, statistics.variance)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    without = losses.logn(logits[:, :K], statistics.mean[:K], statistics.variance[:K], background=False)
    np.testing.assert_allclose(without, expected[:, :K], rtol=1e-4, atol=1e-5)


def test_logn_statistics_batch_by_batch():
    """Batches of different sizes, rows that do not count, and a mean far from 0 against two passes in float64."""
    logits = logits_of(K) + 300
    valid = np.arange(R) % 3 > 0
    logits[~valid] = np.nan
    update, statistics = jax.jit(losses.logn_statistics), None
    for rows in (slice(0, 10), slice(10, 11), slice(11, 50)):
        statistics = update(logits[rows], valid[rows], statistics)
    empty = update(logits[:2], np.zeros(2, bool), statistics)
    z = logits[valid].astype(np.float64)
    for found in (statistics, empty):
        assert found.count == valid.sum()
        np.testing.assert_allclose(found.mean, z.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.variance, z.var(0), rtol=1e-4)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_logit_adjustment_against_the_equation(tau):
    logits = logits_of(K)
    expected = logits - tau * np.log(COUNTS / COUNTS.sum())
    np.testing.assert_allclose(jax.jit(losses.adjust_logits)(logits, COUNTS, tau=tau), expected, rtol=1e-5, atol=1e-6)


def test_logit_adjustment_leaves_background_or_counts_it():
    logits = logits_of(K + 1)
    left = losses.adjust_logits(logits, COUNTS)
    np.testing.assert_array_equal(left[:, K], logits[:, K])
    np.testing.assert_allclose(left[:, :K], losses.adjust_logits(logits[:, :K], COUNTS), rtol=1e-6)
    counts = np.append(COUNTS, 50_000)
    expected = logits - np.log(counts / counts.sum())
    np.testing.assert_allclose(losses.adjust_logits(logits, counts), expected, rtol=1e-5, atol=1e-6)


def test_logit_adjustment_undoes_balanced_softmax():
    """Training with tau added and inference with tau taken off are one model: minimising either, p ~ exp(z) pi."""
    logits, labels = logits_of(K), np.arange(R) % K
    trained = losses.balanced_softmax_loss(logits, labels, COUNTS)
    plain = losses.softmax_cross_entropy_loss(losses.adjust_logits(logits, COUNTS, tau=-1.0), labels)
    np.testing.assert_allclose(trained, plain, rtol=1e-6)


def test_norcal_is_an_adjustment_by_counts():
    """NorCal of a softmax with background is the softmax of adjusted logits, up to the sum of the counts."""
    logits = logits_of(K + 1)
    scores = jax.nn.softmax(logits)
    adjusted = losses.adjust_logits(logits, COUNTS, tau=0.6)
    adjusted = adjusted.at[:, :K].add(-0.6 * np.log(COUNTS.sum()))
    actual = losses.norcal(scores[:, :K], COUNTS, gamma=0.6, background=scores[:, K])
    np.testing.assert_allclose(actual, jax.nn.softmax(adjusted)[:, :K], rtol=1e-4)


def test_half_precision_is_widened():
    logits = jnp.asarray(logits_of(K + 1), jnp.bfloat16)
    wide = logits.astype(jnp.float32)
    statistics = losses.logn_statistics(wide)
    for f in (
        lambda z: losses.adjust_logits(z, COUNTS),
        lambda z: losses.logn(z, statistics.mean, statistics.variance),
        lambda z: losses.logn_statistics(z).variance,
    ):
        assert f(logits).dtype == jnp.float32
        np.testing.assert_array_equal(f(logits), f(wide))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.norcal(np.ones((2, 3), "f") / 3, [1, 2]),
            r"counts has shape \(2,\); expected \(3,\).*\(2, 3\)",
        ),
        (lambda: losses.norcal(np.ones((2, 2), "f") / 2, [1, -2]), r"counts\[1\] is -2"),
        (lambda: losses.norcal(np.full((2, 2), 3.0, "f"), [1, 2]), r"scores\[0, 0\] is 3.0"),
        (lambda: losses.norcal(np.ones((2, 2), "f") / 2, [1, 2], gamma=-1.0), "gamma is -1.0"),
        (
            lambda: losses.norcal(np.ones((2, 2), "f") / 2, [1, 2], background=np.ones(3)),
            r"background has shape \(3,\)",
        ),
        (lambda: losses.norcal(np.ones((2, 2), "f"), [1, 2], background=0.0, sigmoid=True), "background is given"),
        (lambda: losses.adjust_logits(np.zeros((2, 5), "f"), [1, 2]), r"counts has shape \(2,\), logits \(2, 5\)"),
        (lambda: losses.logn(np.zeros((2, 3), "f"), np.zeros(3), np.zeros(2)), r"variance has shape \(2,\)"),
        (lambda: losses.logn(np.zeros((2, 3), "f"), np.zeros(3), -np.ones(3)), r"variance\[0\] is -1.0"),
        (lambda: losses.logn_statistics(np.zeros((2, 3), "f"), np.ones(3, bool)), r"valid has shape \(3,\)"),
    ],
)
def test_errors_say_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()
