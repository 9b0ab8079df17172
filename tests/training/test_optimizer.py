"""Optimizers against NumPy re-implementations of torch.optim, schedules against hand-worked values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from eql_jax.training.optimizer import make_optimizer, parameter_factors, summarize, update_ema
from eql_jax.training.schedules import make_schedule
from eql_jax.training.state import create_state


def make_config(**fields):
    config = base.get_config()
    config.train.steps = 100
    config.optimizer.update(dict(learning_rate=0.1, warmup_steps=0, decay_at=(), weight_decay=0.0, groups=()) | fields)
    return config


def make_params():
    rng = np.random.default_rng(0)
    return {
        "backbone": {"conv1": {"kernel": rng.normal(size=(3, 4))}, "norm1": {"scale": rng.normal(size=4)}},
        "head": {"kernel": rng.normal(size=(4, 2)), "bias": rng.normal(size=2)},
    }


def run(config, gradients, *, trainable=None):
    """Parameters after one update per entry of `gradients`, and the optax state."""
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), make_params())
    optimizer = make_optimizer(config, params, trainable=trainable).transform
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for grads in gradients:
        params, state = step(params, state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grads))
    return params, state


def make_gradients(count):
    rng = np.random.default_rng(1)
    return [jax.tree.map(lambda p: rng.normal(size=p.shape), make_params()) for _ in range(count)]


def torch_sgd(p, grads, *, rate, momentum, decay, nesterov):
    """torch.optim.SGD with dampening 0: the pseudo-code of its documentation."""
    v = None
    for g in grads:
        g = g + decay * p
        v = g.copy() if v is None else momentum * v + g
        p = p - rate * (g + momentum * v if nesterov else v)
    return p


def torch_adamw(p, grads, *, rate, betas, decay, eps=1e-8):
    """torch.optim.AdamW: the pseudo-code of its documentation."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        p = p * (1 - rate * decay)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p - rate * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def leaf(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


PATHS = ("backbone/conv1/kernel", "backbone/norm1/scale", "head/kernel", "head/bias")
# (rate factor, decay factor) of each path under GROUPS; the first match counts, no match is (1, 1).
GROUPS = ((r".*/norm\d+/.*", 1.0, 0.0), (r"head/.*", 3.0, 1.0), (r".*/bias", 1.0, 0.0))
FACTORS = ((1.0, 1.0), (1.0, 0.0), (3.0, 1.0), (3.0, 1.0))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_torch_sgd_with_groups(momentum, nesterov):
    config = make_config(weight_decay=0.02, momentum=momentum, nesterov=nesterov, groups=GROUPS)
    gradients = make_gradients(5)
    params, _ = run(config, gradients)
    for path, (rate, decay) in zip(PATHS, FACTORS, strict=True):
        grads = [leaf(g, path) for g in gradients]
        expected = torch_sgd(
            leaf(make_params(), path), grads, rate=0.1 * rate, momentum=momentum, decay=0.02 * decay, nesterov=nesterov
        )
        np.testing.assert_allclose(leaf(params, path), expected, rtol=2e-5, atol=2e-6, err_msg=path)


def test_adamw_is_torch_adamw_with_groups():
    config = make_config(name="adamw", learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.99), groups=GROUPS)
    gradients = make_gradients(5)
    params, _ = run(config, gradients)
    for path, (rate, decay) in zip(PATHS, FACTORS, strict=True):
        grads = [leaf(g, path) for g in gradients]
        expected = torch_adamw(leaf(make_params(), path), grads, rate=0.01 * rate, betas=(0.8, 0.99), decay=0.1 * decay)
        np.testing.assert_allclose(leaf(params, path), expected, rtol=2e-5, atol=2e-6, err_msg=path)


def test_clipping_scales_by_the_global_norm_before_decay():
    gradients = make_gradients(3)
    config = make_config(weight_decay=0.02, momentum=0.9, clip_norm=0.5)
    params, _ = run(config, gradients)
    clipped = []
    for g in gradients:
        norm = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(g)))
        assert norm > 0.5
        clipped.append(jax.tree.map(lambda x, norm=norm: x * 0.5 / norm, g))
    for path in PATHS:
        grads = [leaf(g, path) for g in clipped]
        expected = torch_sgd(leaf(make_params(), path), grads, rate=0.1, momentum=0.9, decay=0.02, nesterov=False)
        np.testing.assert_allclose(leaf(params, path), expected, rtol=2e-5, atol=2e-6)


def test_small_gradients_are_not_clipped():
    gradients = [jax.tree.map(lambda x: x * 1e-3, g) for g in make_gradients(2)]
    with_clip, _ = run(make_config(clip_norm=1.0), gradients)
    without, _ = run(make_config(), gradients)
    jax.tree.map(np.testing.assert_array_equal, with_clip, without)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_parameters_stay_and_have_no_memory(name):
    trainable = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != "backbone", make_params())
    gradients = make_gradients(2)
    params, state = run(make_config(name=name, weight_decay=0.1, clip_norm=0.5), gradients, trainable=trainable)
    start = jax.tree.map(lambda x: np.asarray(x, np.float32), make_params())
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], start["backbone"])
    assert not np.array_equal(params["head"]["kernel"], start["head"]["kernel"])
    shapes = {x.shape for x in jax.tree.leaves(state)}
    assert (4, 2) in shapes and (3, 4) not in shapes
    # The frozen part's gradients count nothing in the clipping norm either.
    zeroed = [{"backbone": jax.tree.map(np.zeros_like, g["backbone"]), "head": g["head"]} for g in gradients]
    again, _ = run(make_config(name=name, weight_decay=0.1, clip_norm=0.5), zeroed, trainable=trainable)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_groups_match_whole_paths_and_the_first_counts():
    factors = parameter_factors(make_params(), GROUPS)
    for path, (rate, decay) in zip(PATHS, FACTORS, strict=True):
        assert (leaf(factors.learning_rate, path), leaf(factors.weight_decay, path)) == (rate, decay)
    text = summarize(make_params(), make_config(groups=GROUPS))
    assert text.startswith("26 parameters trained") and "4 with rate x1 decay x0" in text and "0 frozen" in text


@pytest.mark.parametrize("group", [("(", 1.0, 1.0), (".*", 1.0), "bias"])
def test_faulty_groups_are_named(group):
    with pytest.raises(ValueError, match=r"optimizer\.groups\[0\] is .*expected \(regex"):
        parameter_factors(make_params(), (group,))


def test_unknown_names_raise():
    with pytest.raises(ValueError, match=r"optimizer\.name is 'lion'; expected one of sgd, adamw"):
        make_optimizer(make_config(name="lion"), make_params())
    with pytest.raises(ValueError, match=r"optimizer\.schedule is 'poly'"):
        make_schedule(make_config(schedule="poly").optimizer, total_steps=3)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # warm-up from a tenth: 0.1 * (0.1 + 0.9 * step / 4)
        (dict(schedule="constant", warmup_steps=4, warmup_factor=0.1), {0: 0.01, 2: 0.055, 4: 0.1, 99: 0.1}),
        (dict(schedule="steps", decay_at=(10, 20), decay_factor=0.1), {0: 0.1, 9: 0.1, 10: 0.01, 19: 0.01, 20: 0.001}),
        (dict(schedule="cosine"), {0: 0.1, 25: 0.1 * (0.5 + 0.5**1.5), 50: 0.05, 100: 0.0, 120: 0.0}),
        (dict(schedule="cosine", warmup_steps=50, warmup_factor=0.0), {0: 0.0, 25: 0.05 * (0.5 + 0.5**1.5), 50: 0.05}),
    ],
)
def test_schedules(fields, expected):
    schedule = make_schedule(make_config(**fields).optimizer, total_steps=100)
    for step, rate in expected.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-8, err_msg=str(step))
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(2)), schedule(2), rtol=1e-6)


def test_the_schedule_is_followed_by_the_updates():
    config = make_config(schedule="steps", decay_at=(2,), momentum=0.0, decay_factor=0.5)
    gradients = make_gradients(4)
    params, _ = run(config, gradients)
    rates = (0.1, 0.1, 0.05, 0.05)
    moved = sum(r * leaf(g, "head/bias") for r, g in zip(rates, gradients, strict=True))
    np.testing.assert_allclose(params["head"]["bias"], make_params()["head"]["bias"] - moved, rtol=2e-5, atol=2e-6)


def test_ema():
    ema = update_ema({"w": jnp.float32(1.0)}, {"w": jnp.float32(2.0)}, decay=0.9)
    np.testing.assert_allclose(ema["w"], 1.1, rtol=1e-6)
    assert update_ema(None, {"w": 1.0}, decay=0.9) is None
    params = {"w": jnp.ones(3)}
    state = create_state({"params": params}, optax.sgd(0.1), ema=True)
    assert state.eval_params is state.ema_params
    # Not the same buffer: a step donates both.
    assert state.ema_params["w"].unsafe_buffer_pointer() != state.params["w"].unsafe_buffer_pointer()
    assert create_state({"params": params}, optax.sgd(0.1), ema=False).eval_params is params
