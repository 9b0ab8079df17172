"""Columns that are added to a classifier: they change no loss, no gradient, no score and no memory."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eql_jax.losses.padding
from eql_jax.class_losses import REGISTRY, ClassFrequencies, LossInputs, make_class_loss, pad_class_loss
from eql_jax.losses import equalization_loss, pad_classes, pad_per_class, padded_count

B, R, K = 2, 12, 7
COUNTS = np.array([900, 500, 60, 40, 9, 3, 1])
KNOWN = ClassFrequencies(K, tuple("ffccrrr"), COUNTS, 2 * COUNTS, 1000, COUNTS < 50)
CAN_PAD = sorted(name for name, kind in REGISTRY.items() if kind.takes_padding)


def example():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, K + 1, (B, R))
    labels[:, :3] = [0, K, -1]
    return rng.normal(-1, 3, (B, R, K)).astype(np.float32), labels


def test_the_example_of_the_docstring_runs():
    result = doctest.testmod(eql_jax.losses.padding)
    assert result.attempted > 5 and result.failed == 0


def test_helpers_by_hand():
    assert [padded_count(k, 8) for k in (1, 8, 9, 50_000, 50_001)] == [8, 8, 16, 50_000, 50_008]
    np.testing.assert_array_equal(pad_per_class(np.array([True, False]), 4, False), [True, False, False, False])
    np.testing.assert_array_equal(pad_per_class([[1.5], [2.5]], 2, 1), [[1.5, 1], [2.5, 1]])
    logits, labels = pad_classes(jnp.ones((4, 3)), jnp.array([0, 1, 2, -1]), 2)  # label 2 is background
    np.testing.assert_array_equal(logits, [[1, 1, -1e4]] * 4)
    np.testing.assert_array_equal(labels, [0, 1, 3, -1])
    logits, labels = pad_classes(jnp.ones((2, 2), jnp.bfloat16), jnp.array([0, 2]), 2)  # nothing added
    assert logits.dtype == jnp.float32 and labels.tolist() == [0, 2]


@pytest.mark.parametrize("name", CAN_PAD)
@pytest.mark.parametrize("given", [False, True], ids=["plain", "verified_annotated"])
def test_padded_loss_is_the_loss(name, given):
    """Value, gradient, memory and scores; rubbish in the added columns reaches nothing."""
    loss = make_class_loss(name, KNOWN)
    padded = pad_class_loss(loss, 4)
    assert (loss.num_logits, padded.num_logits, padded.num_classes) == (K, 8, K)
    assert padded.takes_annotated == loss.takes_annotated and padded.takes_tail == loss.takes_tail
    logits, labels = example()
    rng = np.random.default_rng(1)
    verified, annotated = rng.random((2, B, 1, K)) < 0.6
    given = given and loss.takes_annotated
    inputs = LossInputs(verified, annotated, jax.random.key(0)) if given else LossInputs(key=jax.random.key(0))

    def run(loss):
        def total(logits, state):
            return loss.loss(logits, labels, state, inputs)

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    state, padded_state = loss.init_state(), padded.init_state()
    wide = np.concatenate([logits, np.full((B, R, 1), np.nan, np.float32)], axis=-1)
    for _ in range(2):  # memory of the first step is used in the second
        (value, state), grad = run(loss)(logits, state)
        (padded_value, padded_state), padded_grad = run(padded)(wide, padded_state)
        np.testing.assert_allclose(padded_value, value, rtol=1e-6)
        np.testing.assert_allclose(padded_grad[..., :K], grad, rtol=1e-5, atol=1e-8)
        assert not np.asarray(padded_grad)[..., K:].any()
    assert jax.tree.structure(state) == jax.tree.structure(padded_state)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(padded_state), strict=True):
        np.testing.assert_allclose(np.asarray(other)[..., :K], np.asarray(one)[..., :K], rtol=1e-5)
    np.testing.assert_allclose(padded.scores(wide), loss.scores(logits), rtol=1e-6)
    np.testing.assert_array_equal(padded.initial_bias(0.01)[:K], loss.initial_bias(0.01))
    assert pad_class_loss(loss, 7) is loss and pad_class_loss(loss, 1) is loss


def test_labels_and_widths_are_checked():
    logits = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"labels\[1\] is 4; expected 0..3"):
        pad_classes(logits, np.array([0, 4]), 3)
    with pytest.raises(ValueError, match=r"logits has shape \(2, 4\); expected \[..., rows, at least 5 classes\]"):
        pad_classes(logits, np.array([0, 1]), 5)
    with pytest.raises(ValueError, match=r"labels has shape \(3,\); expected \(2,\)"):
        pad_classes(logits, np.array([0, 1, 1]), 3)
    with pytest.raises(ValueError, match=r"values has shape \(3,\); expected \[..., at most 2\]"):
        pad_per_class(np.zeros(3), 2, 0)
    with pytest.raises(ValueError, match="num_classes is 5 and multiple 0"):
        padded_count(5, 0)
    with pytest.raises(ValueError, match=r"Softmax with 7 classes and 8 columns cannot be given further columns"):
        pad_class_loss(make_class_loss("softmax", KNOWN), 8)


def test_half_precision_and_no_rows():
    for rows in (0, 3):
        logits = jnp.ones((rows, 8), jnp.bfloat16)
        loss = lambda z: equalization_loss(*pad_classes(z, jnp.full(z.shape[0], K), K), np.zeros(8, bool))  # noqa: E731
        value, grad = jax.jit(jax.value_and_grad(loss))(logits)
        assert value.dtype == jnp.float32 and grad.dtype == jnp.bfloat16 and not np.asarray(grad)[:, K:].any()
        np.testing.assert_allclose(value, K * np.log1p(np.e) if rows else 0, rtol=1e-6)
