"""What the losses with memory share: sums over devices in one collective, and the accumulated gradients of a class.

A loss with memory takes a state, a NamedTuple of float32 arrays, and returns the state after the step beside the loss.
No gradient flows into or out of a state. The state is the same on all devices, in one of two ways:

- Under jit over a mesh, with the rows sharded, every sum runs over the global batch already. Nothing is to be done.
- Inside shard_map or pmap each device sees its own rows. With `axis_name` all statistics of a step are summed over
  that axis in one collective. The loss returned there is the device's share: the sum of all shares (`jax.lax.psum`) is
  the loss of the global batch, and the sum of the shares' gradients its gradient (which shard_map's `check_vma`, on by
  default, has taken already for parameters that are the same on all devices). Give a `normalizer` that does not
  depend on the batch, and no gradient waits for the statistics; XLA may then merge both collectives into one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eql_jax.losses.checks import check_per_class, check_range

AxisName = str | tuple[str, ...]


class GradientMemory(NamedTuple):
    """Sums over all steps of |d loss / d logit|, per class and apart for its positive and its negative rows.

    positive, negative: float32 [K]; in units of the loss before it is divided by the number of rows. As float32 sums
    they stop growing where a step adds less than 6e-8 of what is there.
    """

    positive: jax.Array
    negative: jax.Array


def empty_gradient_memory(num_classes: int) -> GradientMemory:
    """The memory before the first step. ValueError unless num_classes is a positive integer."""
    check_num_classes(num_classes)
    return GradientMemory(jnp.zeros(num_classes, jnp.float32), jnp.zeros(num_classes, jnp.float32))


def gradient_ratio(memory: GradientMemory, before: float) -> jax.Array:
    """float32 [K], positive / negative; `before` for a class that no gradient has reached yet."""
    seen = memory.positive + memory.negative > 0
    return jnp.where(seen, memory.positive / (memory.negative + 1e-10), before)


def add_gradients(
    memory: GradientMemory,
    loss_sum: Callable[[jax.Array], jax.Array],
    logits: jax.Array,
    target: jax.Array,
    rows: jax.Array,
    axis_name: AxisName | None,
) -> tuple[GradientMemory, jax.Array]:
    """The memory after a step, and the number of rows of all devices.

    Args:
      memory: before the step.
      loss_sum: the loss as a function of the logits, element by element, summed over this device's rows.
      logits: float32 or float64 [..., R, C]; of C > K columns the first K are counted.
      target: bool [..., R, C], the positives.
      rows: int scalar, rows that count on this device.
      axis_name: of the devices, or None.
    """
    num_classes = memory.positive.shape[0]
    gradient = jnp.abs(jax.grad(loss_sum)(jax.lax.stop_gradient(logits)))
    positive = sum_rows(jnp.where(target, gradient, 0))[:num_classes]
    negative = sum_rows(jnp.where(target, 0, gradient))[:num_classes]
    positive, negative, rows = sum_over_devices((positive, negative, rows.astype(jnp.float32)), axis_name)
    return jax.lax.stop_gradient(GradientMemory(memory.positive + positive, memory.negative + negative)), rows


def sum_over_devices(statistics: Any, axis_name: AxisName | None) -> Any:
    """A pytree of float arrays summed over a mapped axis in one collective; as it is where axis_name is None."""
    if axis_name is None:
        return statistics
    # One vector, because JAX makes an all-reduce of each leaf and not every backend of XLA merges them.
    leaves, structure = jax.tree.flatten(statistics)
    total = jax.lax.psum(jnp.concatenate([leaf.ravel() for leaf in leaves]), axis_name)
    parts = jnp.split(total, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])


def sum_rows(x: jax.Array) -> jax.Array:
    """[..., C], bool or float -> float32 [C], the sum over all leading axes."""
    # Of bools a sum of floats as well: XLA merges collectives of one type only.
    dtype = jnp.float32 if x.dtype == jnp.bool_ else x.dtype
    return jnp.sum(x, axis=tuple(range(x.ndim - 1)), dtype=dtype).astype(jnp.float32)


def check_num_classes(num_classes: int) -> None:
    """Raises ValueError unless num_classes is a positive integer."""
    if not isinstance(num_classes, int | np.integer) or num_classes < 1:
        raise ValueError(f"num_classes is {num_classes!r}; expected a positive integer")


def check_gradient_memory(memory: GradientMemory, num_classes: int, logits_shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the memory is one of num_classes classes, not negative where its values can be seen."""
    for name, x in zip(memory._fields, memory, strict=True):
        check_per_class(f"state.{name}", jnp.asarray(x), num_classes, logits_shape, "one entry per class")
        check_range(f"state.{name}", x, 0)
