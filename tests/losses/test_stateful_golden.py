"""EQL v2 and Seesaw, five consecutive steps against the authors' code and mmdetection (tests/testdata/README.md)."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import losses

TESTDATA = Path(__file__).parents[1] / "testdata"
K, STEPS = 40, 5


@pytest.fixture(scope="module")
def golden():
    with np.load(TESTDATA / "losses_stateful.npz") as arrays:
        return dict(arrays)


@functools.partial(jax.jit, static_argnames="mean_over_foreground")
def seesaw_step(logits, labels, state, mean_over_foreground=False):
    loss = functools.partial(losses.seesaw_loss, mean_over_foreground=mean_over_foreground)
    return jax.value_and_grad(loss, has_aux=True)(logits, labels, state)


@jax.jit
def eqlv2_step(logits, labels, state):
    return jax.value_and_grad(losses.eqlv2_loss, has_aux=True)(logits, labels, state)


def assert_step(loss, grad, golden_loss, golden_grad):
    np.testing.assert_allclose(loss, golden_loss, rtol=1e-5)
    np.testing.assert_allclose(grad, golden_grad, rtol=0, atol=5e-6 * np.abs(golden_grad).max())
    assert np.all(np.isfinite(grad))


def side_by_side(golden, part, *names):
    return np.concatenate([golden[f"{part}/steps/{name}"] for name in names], axis=-1)


@pytest.mark.parametrize("part", ["main", "extreme"])
def test_eqlv2_step_by_step(golden, part):
    logits, labels = side_by_side(golden, part, "logits_classes", "logit_background"), golden[f"{part}/steps/labels"]
    want = {key: golden[f"{part}/eqlv2/{key}"] for key in ("loss", "grad", "pos_grad", "neg_grad", "pos_neg")}
    state = losses.eqlv2_init(K)
    for step in range(STEPS):
        positive, negative = losses.eqlv2_weights(state)
        np.testing.assert_allclose(positive, golden[f"{part}/eqlv2/pos_weight"][step, :K], rtol=1e-5)
        # What 12 (g - .8) loses in float32 is relative to 12 * .8, and the sigmoid of a large negative number shows it.
        np.testing.assert_allclose(negative, golden[f"{part}/eqlv2/neg_weight"][step, :K], rtol=2e-5)
        (loss, state), grad = eqlv2_step(logits[step], labels[step], state)
        assert_step(loss, grad, want["loss"][step], want["grad"][step])
        # The reference takes p - 1 of a probability near 1, which float64 itself rounds by 1e-16.
        np.testing.assert_allclose(state.positive, want["pos_grad"][step], rtol=1e-5, atol=1e-15)
        np.testing.assert_allclose(state.negative, want["neg_grad"][step], rtol=1e-5, atol=1e-15)
        ratio = state.positive / (state.negative + 1e-10)
        np.testing.assert_allclose(ratio, want["pos_neg"][step], rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize("part", ["main", "extreme"])
@pytest.mark.parametrize("mean_over_foreground", [False, True])
def test_seesaw_step_by_step(golden, part, mean_over_foreground):
    logits, labels = side_by_side(golden, part, "logits_classes", "logits_objectness"), golden[f"{part}/steps/labels"]
    name = "seesaw" if mean_over_foreground else "seesaw_avg_factor_N"
    want = golden[f"{part}/{name}/loss_classes"] + golden[f"{part}/{name}/loss_objectness"]
    state = losses.seesaw_init(K)
    for step in range(STEPS):
        (loss, state), grad = seesaw_step(logits[step], labels[step], state, mean_over_foreground)
        np.testing.assert_allclose(loss, want[step], rtol=1e-5)
        np.testing.assert_array_equal(state.samples, golden[f"{part}/seesaw/cum_samples"][step])
        if not mean_over_foreground:
            assert_step(loss, grad, want[step], golden[f"{part}/seesaw_avg_factor_N/grad"][step])
    if mean_over_foreground:
        assert_step(loss, grad, want[-1], golden[f"{part}/seesaw/grad_last_step"])


@pytest.mark.parametrize("part", ["main", "extreme"])
def test_parts_of_seesaw(golden, part):
    """Each part by itself: the other is constant where its logits are."""
    logits, labels = side_by_side(golden, part, "logits_classes", "logits_objectness"), golden[f"{part}/steps/labels"]
    objectness = np.concatenate([np.zeros_like(logits[0, :, :K]), logits[0, :, K:]], axis=-1)
    loss = jax.jit(losses.seesaw_loss, static_argnames=("p", "q"))
    alone, _ = loss(objectness, labels[0], losses.seesaw_init(K), p=0.0, q=0.0)
    share = np.mean(labels[0] < K)
    want = golden[f"{part}/seesaw/loss_objectness"][0] + share * np.log(K)
    np.testing.assert_allclose(alone, want, rtol=1e-5)


@pytest.mark.parametrize("part", ["main", "extreme"])
def test_scores(golden, part):
    logits = side_by_side(golden, part, "logits_classes", "logit_background")[0]
    np.testing.assert_allclose(losses.eqlv2_scores(logits), golden[f"{part}/eqlv2/scores"], rtol=1e-5, atol=1e-15)
    logits = side_by_side(golden, part, "logits_classes", "logits_objectness")[0]
    scores = losses.seesaw_scores(logits)
    np.testing.assert_allclose(scores, golden[f"{part}/seesaw/scores"], rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(jnp.sum(scores, axis=-1), 1, rtol=1e-5)
