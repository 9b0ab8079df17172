"""What the losses with memory share: sums over devices in one collective, and the accumulated gradients of a class.

A loss with memory takes a state, a NamedTuple of float32 arrays, and returns the state after the step beside the loss.
No gradient flows into or out of a state. The state is the same on all devices, in one of two ways:

- Under jit over a mesh, with the rows sharded, every sum runs over the global batch already. Nothing is to be done.
- Inside shard_map or pmap each device sees its own rows. With `axis_name` all statistics of a step are summed over
  that axis in one collective. The loss returned there is the device's share: the sum of all shares (`jax.lax.psum`) is
  the loss of the global batch, and the sum of the shares' gradients its gradient. Give a `normalizer` that does not
  depend on the batch, and no gradient waits for the statistics; XLA may then merge both collectives into one.
"""

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
    positive: jax.Array,
    negative: jax.Array,
    count: jax.Array,
    axis_name: AxisName | None,
) -> tuple[GradientMemory, jax.Array]:
    """The memory after a step, and the rows of all devices, from this device's sums [K], [K] and [] (float)."""
    positive, negative, count = sum_over_devices((positive, negative, count), axis_name)
    return GradientMemory(memory.positive + positive, memory.negative + negative), count


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
    """[..., C] -> float32 [C], the sum over all leading axes."""
    return jnp.sum(x, axis=tuple(range(x.ndim - 1))).astype(jnp.float32)


def check_num_classes(num_classes: int) -> None:
    """Raises ValueError unless num_classes is a positive integer."""
    if not isinstance(num_classes, int | np.integer) or num_classes < 1:
        raise ValueError(f"num_classes is {num_classes!r}; expected a positive integer")


def check_gradient_memory(memory: GradientMemory, num_classes: int, logits_shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the memory is one of num_classes classes, not negative where its values can be seen."""
    for name, x in zip(memory._fields, memory, strict=True):
        check_per_class(f"state.{name}", jnp.asarray(x), num_classes, logits_shape, "one entry per class")
        check_range(f"state.{name}", x, 0)
