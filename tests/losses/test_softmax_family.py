"""Softmax equalization loss and balanced softmax: golden numbers, hand-worked cases, background and the draw."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import losses
from tests.losses.golden import assert_equals_golden, long_tail

PARTS = pytest.mark.parametrize("part", ["main", "extreme"])


def weighted_cross_entropy(logits, labels, weight):
    """-z_y + log sum_k w_k exp z_k in float64, mean over the rows with a label."""
    z, rows = np.asarray(logits, np.float64), np.flatnonzero(np.asarray(labels) >= 0)
    total = 0.0
    for r in rows:
        total += -z[r, labels[r]] + np.log(np.sum(weight[r] * np.exp(z[r])))
    return total / rows.size


@PARTS
@pytest.mark.parametrize("gamma", ["0.9", "0.95", "1"])
@pytest.mark.parametrize("as_float", [False, True])
def test_seql_of_the_equation(part, gamma, as_float):
    golden = long_tail()
    tail = golden[f"{part}/eql_lambda_0.0011/tail_mask"]
    beta = np.unpackbits(golden[f"{part}/seql_gamma_{gamma}/beta"], axis=-1)[:, : tail.size]
    beta, tail = (beta.astype(np.float32), tail.astype(np.float32)) if as_float else (beta.astype(bool), tail)
    labels = golden[f"{part}/in/labels_fg_only"]
    assert_equals_golden(
        lambda z: losses.softmax_equalization_loss(z, labels, tail, beta=beta),
        golden[f"{part}/in/logits"],
        f"{part}/seql_gamma_{gamma}",
    )


@PARTS
@pytest.mark.parametrize("counts", ["image_count", "instance_count"])
def test_balanced_softmax_of_the_equation(part, counts):
    golden = long_tail()
    labels = golden[f"{part}/in/labels_fg_only"]
    assert_equals_golden(
        lambda z: losses.balanced_softmax_loss(z, labels, golden[counts]),
        golden[f"{part}/in/logits"],
        f"{part}/balanced_softmax_{counts}",
    )


def test_seql_by_hand():
    # Classes 0 and 2 are the tail, all betas 1. Weighted sums: row 0 (label 1) 0 + 1 + 0; row 1 (label 2) 0 + 1 + 3.
    logits = jnp.log(jnp.array([[2.0, 1.0, 3.0], [2.0, 1.0, 3.0], [5.0, 5.0, 5.0]]))
    labels, tail = jnp.array([1, 2, -1]), jnp.array([True, False, True])
    loss, grad = jax.value_and_grad(losses.softmax_equalization_loss)(logits, labels, tail, beta=jnp.ones(3, bool))
    assert float(loss) == pytest.approx(math.log(4 / 3) / 2)
    np.testing.assert_allclose(grad, [[0, 0, 0], [0, 1 / 8, -1 / 8], [0, 0, 0]], atol=1e-7)
    # T = .5 and beta 1: half of class 0 and of class 2 stays in the first row.
    loss = losses.softmax_equalization_loss(logits[:1], labels[:1], 0.5 * tail, beta=jnp.ones(3))
    assert float(loss) == pytest.approx(math.log(1 + 1 + 1.5))


def test_seql_in_a_detector():
    # Background has a column that no draw takes away, and its rows keep every class: EQL's E(r).
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 4)).astype(np.float32), np.array([0, 1, 3, 2, -1])
    tail, beta = np.array([True, False, True]), np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1]], bool)
    weight = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    loss, grad = jax.value_and_grad(losses.softmax_equalization_loss)(logits, labels, tail, beta=beta)
    np.testing.assert_allclose(loss, weighted_cross_entropy(logits, labels, weight), rtol=1e-6)
    np.testing.assert_array_equal(grad != 0, weight.astype(bool))


def test_seql_leaves_out_classes_that_are_not_annotated():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 3, 4)).astype(np.float32)
    labels, tail = np.array([[0, 1, 3], [2, 3, 0]]), np.array([True, False, False])
    annotated = np.array([[[True, True, False]], [[False, False, True]]])
    weight = np.array([[[1, 1, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1]], [[0, 0, 1, 1], [0, 0, 1, 1], [1, 0, 1, 1]]])
    loss = losses.softmax_equalization_loss(logits, labels, tail, beta=np.ones(3, bool), annotated_classes=annotated)
    flat = weighted_cross_entropy(logits.reshape(6, 4), labels.ravel(), weight.reshape(6, 4))
    np.testing.assert_allclose(loss, flat, rtol=1e-6)
    counts = np.array([5, 1, 3])
    loss = losses.balanced_softmax_loss(logits, labels, counts, annotated_classes=annotated)
    in_it = np.where(tail & (labels != 0)[..., None], 1, weight[..., :3])
    in_it[1, :2, 0] = 0  # put back above, but not annotated
    prior = np.append(counts / counts.mean(), 1)
    shifted = logits + np.log(prior)
    weight = np.concatenate([in_it, np.ones((2, 3, 1))], axis=-1)
    flat = weighted_cross_entropy(shifted.reshape(6, 4), labels.ravel(), weight.reshape(6, 4))
    np.testing.assert_allclose(loss, flat, rtol=1e-6)


def test_gamma_is_the_share_of_draws():
    # All logits 0, all classes tail: the loss of a row is log(1 + kept), kept ~ Binomial(K - 1, 1 - gamma).
    rows, k, gamma = 4000, 11, 0.9
    draw = jax.jit(losses.softmax_equalization_loss)
    args = (jnp.zeros((rows, k)), jnp.zeros(rows, jnp.int32), jnp.ones(k, bool))
    terms = np.log1p(np.arange(k))
    chance = np.array([math.comb(k - 1, i) * (1 - gamma) ** i * gamma ** (k - 1 - i) for i in range(k)])
    mean = chance @ terms
    error = math.sqrt(chance @ (terms - mean) ** 2 / rows)
    found = [float(draw(*args, key=jax.random.key(seed), gamma=gamma)) for seed in range(3)]
    np.testing.assert_allclose(found, mean, atol=4 * error)
    assert len(set(found)) == 3
    # The two ends need no luck: softmax cross-entropy, and the tail left out altogether.
    assert float(draw(*args, key=jax.random.key(0), gamma=0.0)) == pytest.approx(math.log(k))
    assert float(draw(*args, key=jax.random.key(0), gamma=1.0)) == 0


def test_tau_scales_the_prior():
    rng = np.random.default_rng(2)
    logits, labels, counts = rng.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 2, 3, 1, 0]), [900, 30, 5, 1]
    balanced = jax.jit(losses.balanced_softmax_loss)
    plain = losses.softmax_cross_entropy_loss(logits, labels)
    np.testing.assert_allclose(balanced(logits, labels, counts, tau=0.0), plain, rtol=1e-6)
    # tau log n is log n^tau, and a constant factor of the counts is none of the loss.
    squared = balanced(logits, labels, np.square(counts))
    np.testing.assert_allclose(balanced(logits, labels, counts, tau=2.0), squared, rtol=1e-6)
    np.testing.assert_allclose(balanced(logits, labels, 1000 * np.square(counts)), squared, rtol=1e-6)


def test_background_keeps_its_odds_in_balanced_softmax():
    # With all logits 0 the objects' share of the denominator is K / (K + 1), as in plain softmax.
    counts = np.array([900, 30, 5, 1])
    labels = np.array([4, 4])
    loss = losses.balanced_softmax_loss(np.zeros((2, 5), np.float32), labels, counts)
    assert float(loss) == pytest.approx(math.log(5))
    loss = losses.balanced_softmax_loss(np.zeros((1, 5), np.float32), labels[:1] * 0 + 1, counts)
    assert float(loss) == pytest.approx(math.log(5 * counts.mean() / 30))


Z, Y, TAIL = np.zeros((2, 5), np.float32), np.array([0, 4]), np.zeros(4, bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.softmax_equalization_loss(Z, Y, TAIL), "nothing given; expected beta, or key and gamma"),
        (
            lambda: losses.softmax_equalization_loss(Z, Y, TAIL, beta=TAIL, gamma=0.9),
            "beta, gamma given; expected beta, or key and gamma",
        ),
        (lambda: losses.softmax_equalization_loss(Z, Y, TAIL, key=jax.random.key(0)), "key given; expected beta, or"),
        (
            lambda: losses.softmax_equalization_loss(Z, Y, TAIL, key=jax.random.key(0), gamma=1.1),
            "gamma is 1.1; expected at least 0 and at most 1",
        ),
        (
            lambda: losses.softmax_equalization_loss(Z, Y, TAIL, beta=np.full(4, 2)),
            r"beta\[0\] is 2; expected at least 0 and at most 1 \(beta has shape \(4,\)\)",
        ),
        (
            lambda: losses.softmax_equalization_loss(Z, Y, TAIL, beta=np.zeros((3, 4))),
            r"beta has shape \(3, 4\); expected one that broadcasts to \(2, 4\), the rows of logits \(2, 5\)",
        ),
        (
            lambda: losses.softmax_equalization_loss(Z, Y, np.zeros(3, bool), beta=TAIL),
            r"tail_mask has shape \(3,\); expected \(5,\) .*not \(4,\) either; logits has shape \(2, 5\)",
        ),
        (lambda: losses.softmax_equalization_loss(Z, Y, np.zeros(4, int), beta=TAIL), "tail_mask has dtype int32"),
        (
            lambda: losses.balanced_softmax_loss(Z, Y, np.ones(7)),
            r"counts has shape \(7,\); expected \(5,\) .*logits has shape \(2, 5\)",
        ),
        (lambda: losses.balanced_softmax_loss(Z, Y, [3, 0, 1, 1]), r"counts\[1\] is 0; expected more than 0"),
        (lambda: losses.balanced_softmax_loss(Z, Y, [3, 1, 1, 1], tau=-1), "tau is -1; expected at least 0"),
    ],
)
def test_errors_say_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()
