"""Odd inputs of every classification loss without memory: no rows, padding, NaN, huge logits, half precision, vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.every_loss import compiled, every_loss, value_and_grad

K = 4
CASES = every_loss(K)
each_loss = pytest.mark.parametrize("name", CASES)


def example(name, *rows, scale=1.0, seed=0):
    """Logits [*rows, C] and labels of all kinds, padding among them."""
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(*rows, CASES[name].columns))).astype(np.float32)
    return logits, rng.integers(-1, CASES[name].last_label + 1, rows)


@each_loss
def test_no_rows_and_only_padding_give_zero(name):
    loss, columns, _ = CASES[name]
    assert float(jax.jit(loss)(jnp.zeros((0, columns)), jnp.zeros(0, jnp.int32))) == 0
    value, grad = value_and_grad(name, K, np.full((7, columns), np.nan, np.float32), np.full(7, -1))
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


@each_loss
def test_padding_changes_nothing_and_the_normalizer_divides(name):
    logits, labels = example(name, 7)
    labels[:] = [0, 1, 3, -1, CASES[name].last_label, 2, -1]
    logits[labels < 0] = np.nan
    kept = labels >= 0
    value, grad = value_and_grad(name, K, logits, labels)
    expected, expected_grad = value_and_grad(name, K, logits[kept], labels[kept])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grad[kept], expected_grad, rtol=1e-6)
    np.testing.assert_array_equal(grad[~kept], 0)
    with_normalizer = jax.jit(CASES[name].loss)
    np.testing.assert_allclose(with_normalizer(logits, labels, 10.0), value / 2, rtol=1e-6)
    assert float(with_normalizer(logits, labels, 0.0)) == 0


@each_loss
def test_a_nan_in_a_counted_row_is_not_hidden(name):
    logits, labels = example(name, 7)
    labels[0] = 1
    logits[0, 1] = np.nan  # the column of class 1; in group softmax one of the same group
    assert np.isnan(value_and_grad(name, K, logits, labels)[0])


@each_loss
def test_huge_logits_stay_finite(name):
    _, columns, last = CASES[name]
    pattern = np.array([[-80, 80, 80, -80], [1e4, -1e4, 0, 0], [0, 0, 0, 0], [80, 80, 80, 80], [-80, -80, -80, -80]])
    logits = np.resize(pattern, (7, columns)).astype(np.float32)
    logits[:5] = np.tile(pattern, 3)[:, :columns]
    for label in range(last + 1):
        value, grad = value_and_grad(name, K, logits, np.full(7, label))
        assert np.isfinite(value) and np.all(np.isfinite(grad))
    logits[1] = np.tile([3e38, -3e38], columns)[:columns]  # the loss itself may overflow here
    assert np.all(np.isfinite(value_and_grad(name, K, logits, np.full(7, 1))[1]))


@pytest.mark.parametrize("name", every_loss(8))
def test_half_precision_is_accumulated_in_float32(name):
    _, columns, last = every_loss(8)[name]
    rng = np.random.default_rng(4)
    logits = jnp.asarray(rng.normal(size=(300, columns)) * 3, jnp.bfloat16)
    labels = rng.integers(-1, last + 1, 300)
    value, grad = compiled(name, 8)(logits, labels)
    expected, expected_grad = compiled(name, 8)(logits.astype(jnp.float32), labels)
    assert value.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(grad, expected_grad.astype(jnp.bfloat16))


@each_loss
def test_vmap_is_a_loop_over_images(name):
    logits, labels = example(name, 3, 7, seed=5)
    one = compiled(name, K)
    together, grads = jax.jit(jax.vmap(one))(logits, labels)
    apart = [one(z, y) for z, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(together, [value for value, _ in apart], rtol=1e-6)
    np.testing.assert_allclose(grads, [grad for _, grad in apart], rtol=1e-5, atol=1e-8)


@each_loss
def test_parts_of_a_batch_add_up(name):
    # A shared divisor makes the parts add up to the loss of the whole batch, which is what data parallelism needs.
    logits, labels = example(name, 3, 7, seed=6)
    count = float(np.sum(labels >= 0))
    loss = jax.jit(CASES[name].loss)
    parts = [loss(z, y, count) for z, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(sum(parts), loss(logits, labels, count), rtol=1e-6)
    if name != "group_softmax":  # each group has its own divisor there
        np.testing.assert_allclose(sum(parts), loss(logits, labels), rtol=1e-6)
