"""Learning-rate schedules: a linear warm-up, then steps, a cosine or a constant."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

SCHEDULES = ("steps", "cosine", "constant")

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(config: ConfigDict, *, total_steps: int) -> Schedule:
    """The learning rate as a function of the number of updates done so far.

    The warm-up multiplies the schedule by a factor that rises linearly from `warmup_factor` at step 0 to 1 at
    `warmup_steps`, as detectron2's `WarmupParamScheduler` and `WarmupMultiStepLR` do (the decay is counted from step 0,
    not from the end of the warm-up; a cosine reaches 0 at `total_steps`).

    Args:
        config: `config.optimizer`.
        total_steps: `config.train.steps`; only the cosine reads it.

    Returns:
        step (int or int32 array) -> float32 scalar.

    Raises:
        ValueError: an unknown schedule.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule is {config.schedule!r}; expected one of {', '.join(SCHEDULES)}")
    base, name, factor = config.learning_rate, config.schedule, config.decay_factor
    decay_at, warmup_steps, warmup_factor = tuple(config.decay_at), config.warmup_steps, config.warmup_factor

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rate = jnp.float32(base)
        if name == "steps":
            for boundary in decay_at:
                rate = jnp.where(step >= boundary, rate * factor, rate)
        elif name == "cosine":
            rate = rate * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(step / total_steps, 0.0, 1.0)))
        if warmup_steps > 0:
            progress = jnp.clip(step / warmup_steps, 0.0, 1.0)
            rate = rate * (warmup_factor + (1.0 - warmup_factor) * progress)
        return rate

    return schedule
