"""What training carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Everything a checkpoint must hold to go on bit for bit; random numbers derive from the seed and `step`.

    Attributes:
        step: int32 scalar, the number of updates done; the batch of the next update is batch `step`.
        params: nested dict of float32 arrays.
        batch_stats: nested dict of BatchNorm statistics, empty without BatchNorm.
        opt_state: optax state; frozen parameters have no memory in it.
        ema_params: like `params`, their exponential moving average, or None when it is off.
        loss_state: memory of classification losses that have one, else empty.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any
    loss_state: Any = flax.struct.field(default_factory=dict)

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate with: the moving average when there is one."""
        return self.params if self.ema_params is None else self.ema_params


def create_state(variables: Any, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """State at step 0 of `variables` ({'params': .., 'batch_stats': .., 'loss_state': ..}). Traceable by jit.

    batch_stats and loss_state may be missing.
    The moving average starts as a copy of the parameters, not the same buffers: the step donates both.
    """
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        loss_state=variables.get("loss_state", {}),
    )
