"""What holds for every loss with memory: padding, precision, transforms, extremes, states and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.numpy_steps import K
from tests.losses.stateful_cases import batch, cases, compiled, warm_state

CASES = cases()
NAMES = pytest.mark.parametrize("name", CASES)
FEW = pytest.mark.parametrize("name", ["eqlv2", "seesaw", "ecm_counting", "efl"])  # where options make no difference


def assert_same(actual, expected, rtol=1e-6, atol=1e-7):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol), actual, expected)


@NAMES
def test_padding_rows_change_nothing(name):
    """Neither the loss, nor its gradient, nor the state, even where their logits are NaN or infinite."""
    logits, labels = batch(CASES[name])
    state = warm_state(name)
    for value in (np.nan, np.inf, -np.inf):
        broken = logits.copy()
        broken[labels < 0] = value
        (loss, after), grad = compiled(name)(broken, labels, state)
        kept = labels >= 0
        (expected, expected_after), expected_grad = compiled(name)(logits, labels, state)
        assert loss == expected
        assert_same(after, expected_after, rtol=0, atol=0)
        np.testing.assert_array_equal(grad[kept], expected_grad[kept])
        np.testing.assert_array_equal(grad[~kept], 0)


@FEW
def test_without_padding_it_is_the_same(name):
    logits, labels = batch(CASES[name])
    kept = labels >= 0
    state = warm_state(name)
    padded, _ = compiled(name)(logits, labels, state)
    plain, _ = compiled(name)(logits[kept], labels[kept], state)
    assert_same(padded, plain, rtol=2e-6)


@NAMES
def test_only_padding_is_nothing(name):
    case = CASES[name]
    logits, _ = batch(case)
    for state in (case.state, warm_state(name)):
        (loss, after), grad = compiled(name)(logits * np.nan, np.full(16, -1), state)
        assert loss == 0 and not np.any(grad)
        assert_same(after, state, rtol=0, atol=0)


@NAMES
def test_extreme_logits_are_finite(name):
    state = warm_state(name)
    logits, labels = batch(CASES[name])
    logits = 80 * np.sign(logits)
    logits[4], logits[5], logits[6] = 80, -80, 0
    for _ in range(2):
        (loss, state), grad = compiled(name)(logits, labels, state)
        assert np.isfinite(loss) and np.all(np.isfinite(grad))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


@FEW
def test_half_precision_is_widened_first(name):
    logits, labels = batch(CASES[name])
    narrow = jnp.asarray(logits, jnp.bfloat16)
    state = warm_state(name)
    (loss, after), grad = compiled(name)(narrow, labels, state)
    wide, expected_grad = compiled(name)(narrow.astype(jnp.float32), labels, state)
    assert loss.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(after))
    assert_same((loss, after), wide)
    np.testing.assert_allclose(np.asarray(grad, np.float32), expected_grad, rtol=2**-8, atol=1e-7)


@FEW
def test_vmap_over_batches_and_states(name):
    """Three models with states of their own, as separate calls give."""
    case = CASES[name]
    logits, labels = batch(case, shape=(3, 16), seed=4)
    states = [case.state, warm_state(name), case.state]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    mapped = jax.jit(jax.vmap(jax.value_and_grad(case.loss, has_aux=True)))(logits, labels, stacked)
    for i, state in enumerate(states):
        expected = compiled(name)(logits[i], labels[i], state)
        assert_same(jax.tree.map(lambda x, i=i: x[i], mapped), expected, rtol=2e-6)


@FEW
def test_leading_axes_are_rows(name):
    case = CASES[name]
    logits, labels = batch(case, shape=(2, 8))
    state = warm_state(name)
    loss, after = jax.jit(case.loss)(logits, labels, state)
    (expected, expected_after), _ = compiled(name)(logits.reshape(16, -1), labels.reshape(16), state)
    assert_same((loss, after), (expected, expected_after), rtol=2e-6)


@FEW
def test_no_gradient_into_the_state(name):
    case = CASES[name]
    logits, labels = batch(case)
    state = warm_state(name)
    into = jax.jit(jax.grad(lambda s: case.loss(logits, labels, s)[0]))(state)
    out_of = jax.jit(jax.grad(lambda z: sum(jnp.sum(x) for x in jax.tree.leaves(case.loss(z, labels, state)[1]))))
    assert not any(np.any(x) for x in jax.tree.leaves(into))
    assert not np.any(out_of(logits))


@NAMES
def test_normalizer(name):
    logits, labels = batch(CASES[name])
    if name == "seesaw_mean":
        pytest.skip("its class term has a divisor of its own")
    state = warm_state(name)
    (loss, after), grad = compiled(name)(logits, labels, state)
    (halved, same), half_grad = compiled(name)(logits, labels, state, normalizer=2.0 * np.sum(labels >= 0))
    assert_same((halved, same), (loss / 2, after))
    np.testing.assert_allclose(half_grad, grad / 2, rtol=1e-6)


@FEW
def test_permuting_classes_permutes_the_gradient_and_the_state(name):
    case = CASES[name]
    logits, labels = batch(case)
    order = np.random.default_rng(5).permutation(K)
    columns = np.append(order, np.arange(K, case.columns))
    place = np.append(np.argsort(order), [K, -1])  # of label K, and of -1 by Python's index
    (loss, after), grad = compiled(name)(logits, labels, warm_state(name))

    def permuted(state):
        return jax.tree.map(lambda x: x[np.append(order, np.arange(K, x.size))], state)

    (same, permuted_after), permuted_grad = compiled(name)(
        logits[:, columns], place[labels], permuted(warm_state(name))
    )
    np.testing.assert_allclose(same, loss, rtol=2e-6)
    np.testing.assert_allclose(permuted_grad, grad[:, columns], rtol=1e-5, atol=1e-7)
    assert_same(permuted_after, permuted(after), rtol=1e-5)


@FEW
def test_classes_not_annotated_give_no_negatives(name):
    """Loss, gradient and state do not know the logits of a class that nobody looked for, except of its own objects."""
    case = CASES[name]
    logits, labels = batch(case)
    annotated = np.random.default_rng(6).random((16, K)) > 0.5
    state = warm_state(name)
    hidden = np.zeros(logits.shape, bool)
    hidden[..., :K] = ~annotated & (labels[..., None] != np.arange(K))
    broken = np.where(hidden, np.nan, logits)
    step = compiled(name)
    (loss, after), grad = step(logits, labels, state, annotated_classes=annotated)
    (same, same_after), same_grad = step(broken, labels, state, annotated_classes=annotated)
    assert loss == same
    assert_same(after, same_after, rtol=0, atol=0)
    np.testing.assert_array_equal(grad, same_grad)
    assert not np.any(grad[hidden])
    everything, plain = step(logits, labels, state, annotated_classes=annotated | True), step(logits, labels, state)
    assert_same(everything, plain)


@NAMES
def test_errors_outside_jit_say_what_was_found(name):
    case = CASES[name]
    logits, labels = batch(case)
    with pytest.raises(ValueError, match=rf"logits has shape \(16, {case.columns + 1}\).*the state has"):
        case.loss(np.zeros((16, case.columns + 1), "f"), labels, case.state)
    with pytest.raises(ValueError, match=r"labels has shape \(15,\).*\(16, "):
        case.loss(logits, labels[:15], case.state)
    with pytest.raises(ValueError, match="labels have dtype float"):
        case.loss(logits, labels.astype("f"), case.state)
    for wrong in (case.last_label + 1, -2):
        bad = labels.copy()
        bad[3] = wrong
        with pytest.raises(ValueError, match=rf"labels\[3\] is {wrong}; expected 0..{case.last_label}"):
            case.loss(logits, bad, case.state)
    broken = logits.copy()
    broken[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"logits\[1, 2\] is nan"):
        case.loss(broken, labels, case.state)
    negative = jax.tree.map(lambda x: x - 1e6, case.state)
    with pytest.raises(ValueError, match=r"state\.\w+\[0\] is -"):
        case.loss(logits, labels, negative)
