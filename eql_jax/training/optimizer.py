"""optax optimizers from `config.optimizer`, with PyTorch's update order, per-group factors and frozen parameters."""

import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from eql_jax.training.errors import ConfigError
from eql_jax.training.schedules import Schedule, make_schedule

OPTIMIZERS = ("sgd", "adamw")


class Optimizer(NamedTuple):
    """transform: the optax transformation (init, update); schedule: updates done -> learning rate, for the logs."""

    transform: optax.GradientTransformation
    schedule: Schedule


class ParameterFactors(NamedTuple):
    """Two trees of Python floats like the parameters: factors of the learning rate and of the weight decay."""

    learning_rate: Any
    weight_decay: Any


def parameter_path(path: tuple) -> str:
    """'backbone/res2_0/conv1/kernel' of a `jax.tree_util` key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_factors(params: Any, groups: tuple) -> ParameterFactors:
    """Factors of every parameter by the first group whose regex matches its whole path; (1, 1) where none does.

    Args:
        params: nested dict of arrays or shapes.
        groups: of (regex over the '/'-joined path, factor of learning rate, factor of weight decay).

    Raises:
        ConfigError: a group that is not such a triple, or a regex that does not compile.
    """
    compiled = []
    for i, group in enumerate(groups):
        try:
            pattern, rate, decay = group
            compiled.append((re.compile(pattern), float(rate), float(decay)))
        except (TypeError, ValueError, re.error) as e:
            raise ConfigError(
                f"optimizer.groups[{i}] is {group!r}; expected (regex over the parameter's path, factor of learning "
                f"rate, factor of weight decay): {e}"
            ) from e

    def find(path, _):
        name = parameter_path(path)
        return next(((rate, decay) for regex, rate, decay in compiled if regex.fullmatch(name)), (1.0, 1.0))

    found = jax.tree_util.tree_map_with_path(find, params)
    pick = lambda i: jax.tree.map(lambda _, pair: pair[i], params, found)  # noqa: E731
    return ParameterFactors(learning_rate=pick(0), weight_decay=pick(1))


def make_optimizer(config: ConfigDict, params: Any, *, trainable: Any = None) -> Optimizer:
    """The optimizer of `config.optimizer` for parameters like `params`.

    SGD updates as torch.optim.SGD (which detectron2 uses): g += decay * p; v = momentum * v + g;
    p -= rate * v, or p -= rate * (g + momentum * v) with Nesterov. AdamW decays decoupled from the moments, as
    torch.optim.AdamW. Clipping comes first, over the trainable parameters only.

    Args:
        config: the whole config; `optimizer` and `train.steps` are read.
        params: nested dict of arrays or shapes (only the structure is read).
        trainable: tree of bools like `params`; False gets no update, no decay and no optimizer memory. None: all True.

    Returns:
        The optax transformation and its learning-rate schedule.

    Raises:
        ValueError: an unknown optimizer, schedule or a faulty group.
    """
    o = config.optimizer
    if o.name not in OPTIMIZERS:
        raise ValueError(f"optimizer.name is {o.name!r}; expected one of {', '.join(OPTIMIZERS)}")
    schedule = make_schedule(o, total_steps=config.train.steps)
    factors = parameter_factors(params, tuple(o.groups))
    decay = _decay_weights(jax.tree.map(lambda f: f * o.weight_decay, factors.weight_decay))
    rate = _scale_by_rate(schedule, factors.learning_rate)
    clip = [optax.clip_by_global_norm(o.clip_norm)] if o.clip_norm > 0 else []
    if o.name == "sgd":
        memory = [optax.trace(decay=o.momentum, nesterov=o.nesterov)] if o.momentum > 0 else []
        steps = [*clip, decay, *memory, rate]
    else:
        steps = [*clip, optax.scale_by_adam(b1=o.betas[0], b2=o.betas[1]), decay, rate]
    if trainable is None:
        trainable = jax.tree.map(lambda _: True, params)
    labels = jax.tree.map(lambda t: "trained" if t else "frozen", trainable)
    transform = optax.partition({"trained": optax.chain(*steps), "frozen": optax.set_to_zero()}, labels)
    return Optimizer(transform, schedule)


def update_ema(ema_params: Any, params: Any, *, decay: float) -> Any:
    """decay * ema + (1 - decay) * params, leaf by leaf; None stays None (the average is off)."""
    if ema_params is None:
        return None
    return jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema_params, params)


def summarize(params: Any, config: ConfigDict, *, trainable: Any = None) -> str:
    """One line for the log: how many parameters are trained, frozen, and under which factors."""
    if trainable is None:
        trainable = jax.tree.map(lambda _: True, params)
    factors = parameter_factors(params, tuple(config.optimizer.groups))
    sizes = Counter()
    leaves = (jax.tree.leaves(t) for t in (params, trainable, factors.learning_rate, factors.weight_decay))
    for leaf, trained, rate, decay in zip(*leaves, strict=True):
        sizes[(rate, decay) if trained else "frozen"] += leaf.size
    frozen = sizes.pop("frozen", 0)
    groups = ", ".join(f"{n:,} with rate x{rate:g} decay x{decay:g}" for (rate, decay), n in sorted(sizes.items()))
    return f"{sum(sizes.values()):,} parameters trained ({groups}), {frozen:,} frozen"


def _decay_weights(coefficients: Any) -> optax.GradientTransformation:
    """g + coefficient * p with one Python float per parameter (optax.add_decayed_weights has one for all)."""

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("weight decay needs the parameters: call update(gradients, state, params)")
        return _map(lambda g, c, p: g + c * p if c else g, updates, coefficients, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scale_by_rate(schedule: Schedule, factors: Any) -> optax.GradientTransformation:
    """-rate(count) * factor * update; counts the updates itself, like optax.scale_by_learning_rate."""

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        rate = schedule(state.count)
        scaled = _map(lambda u, f: (-rate * f).astype(u.dtype) * u, updates, factors)
        return scaled, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def _map(function, updates: Any, *trees: Any) -> Any:
    """jax.tree.map over `updates` that leaves out the nodes optax.partition masks (frozen parameters)."""
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda u, *rest: u if masked(u) else function(u, *rest), updates, *trees, is_leaf=masked)
