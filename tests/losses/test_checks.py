"""Wrong arguments of the losses: a ValueError names the argument and the shapes, where values can be seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import losses
from eql_jax.losses import checks
from tests.losses.every_loss import every_loss

R, K = 5, 4
LABELS = np.array([0, 3, 1, -1, 2])
TAIL = np.array([False, True, False, True])

LOSSES = every_loss(K)
each_loss = pytest.mark.parametrize("name", LOSSES)


def logits_of(name):
    return np.random.default_rng(0).normal(size=(R, LOSSES[name].columns)).astype(np.float32)


@each_loss
def test_labels_out_of_range(name):
    loss, columns, last = LOSSES[name]
    for wrong in (last + 1, -2):
        labels = LABELS.copy()
        labels[2] = wrong
        expected = (
            rf"labels\[2\] is {wrong}; expected 0..{last}, or -1 .*labels has shape \(5,\), logits \(5, {columns}\)"
        )
        with pytest.raises(ValueError, match=expected):
            loss(logits_of(name), labels)
    labels = LABELS.copy()
    labels[2] = last
    assert np.isfinite(loss(logits_of(name), labels))


@each_loss
def test_nan_is_found_outside_jit_and_under_grad_but_not_in_padding(name):
    loss, columns, _ = LOSSES[name]
    logits = logits_of(name)
    logits[3] = np.nan  # padding
    assert np.isfinite(loss(logits, LABELS))
    logits[4] = np.nan
    expected = rf"logits\[4, 0\] is nan, in a row with label 2.*logits has shape \(5, {columns}\), labels \(5,\)"
    for call in (loss, jax.grad(loss)):
        with pytest.raises(ValueError, match=expected):
            call(logits, LABELS)
    assert np.isnan(jax.jit(loss)(logits, LABELS))


def test_nan_in_an_element_without_weight():
    """Told outside jit all the same; inside it counts as little as any other number there."""
    logits = np.zeros((2, 3), np.float32)
    logits[0, 0] = np.nan  # a tail class in the row of another class's object
    loss = functools.partial(losses.equalization_loss, labels=np.array([1, 3]), tail_mask=np.array([True, False, True]))
    with pytest.raises(ValueError, match=r"logits\[0, 0\] is nan, in a row with label 1"):
        loss(logits)
    assert jax.jit(loss)(logits) == loss(np.zeros((2, 3), np.float32))


@each_loss
def test_shapes_and_dtypes_are_checked_inside_jit_too(name):
    loss = jax.jit(LOSSES[name][0])
    logits = logits_of(name)
    with pytest.raises(ValueError, match=r"labels has shape \(4,\); expected \(5,\).*logits, which has shape \(5, "):
        loss(logits, LABELS[:4])
    with pytest.raises(ValueError, match="labels have dtype float32"):
        loss(logits, LABELS.astype(np.float32))
    with pytest.raises(ValueError, match="logits has dtype int32"):
        loss(logits.astype(np.int32), LABELS)
    with pytest.raises(ValueError, match=r"logits has shape \(4,\); expected \[..., rows, classes\]"):
        loss(logits[0, :4], LABELS[0])


def test_wrong_width_names_both_shapes():
    with pytest.raises(ValueError, match=r"tail_mask has shape \(4,\); expected \(3,\).*logits has shape \(5, 3\)"):
        losses.equalization_loss(np.zeros((5, 3)), LABELS % 3, TAIL)


def test_thresholds_are_shares():
    for wrong in (-0.1, 1.5, np.nan):
        threshold = np.array([0, 1, wrong, 0.5], np.float32)
        with pytest.raises(ValueError, match=r"tail_mask\[2\] is .*expected at least 0 and at most 1 .*shape \(4,\)"):
            losses.equalization_loss(np.zeros((R, K)), LABELS, threshold)


def test_range_of_numbers_and_arrays():
    checks.check_range("gamma", 0, 0)
    checks.check_range("counts", np.zeros(0), 0)
    with pytest.raises(ValueError, match="gamma is 0; expected more than 0$"):
        checks.check_range("gamma", 0, 0, above=True)
    with pytest.raises(ValueError, match=r"counts\[1, 0\] is -1; expected at least 0 \(counts has shape \(2, 1\)\)"):
        checks.check_range("counts", jnp.array([[1], [-1]]), 0)
    with pytest.raises(ValueError, match="beta is nan"):
        checks.check_range("beta", np.nan, 0)


def test_values_are_seen_where_they_are_known():
    seen = []

    def look(x):
        seen.append(checks.values_of(x) is not None)
        return jnp.sum(x)

    x = np.ones((2, 3), np.float32)
    look(x)
    jax.grad(look)(x)
    jax.jvp(look, (x,), (x,))
    assert seen == [True] * 3
    seen.clear()
    jax.jit(look)(x)
    jax.vmap(look)(x)
    assert seen == [False] * 2
