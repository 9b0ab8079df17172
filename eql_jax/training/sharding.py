"""Where a training state lies on the devices: what is spread over the mesh's axes, by rules over parameter names.

Classifiers are spread over 'model', by class: with large vocabularies kernel, logits and their gradients are most of
the memory of the heads. With config.mesh.fsdp parameters, their moments and averages are spread over 'data' as well
(fully sharded data parallel): every device keeps a part, and the step puts the parameters together. Everything else is
on every device.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from eql_jax.training.errors import ConfigError
from eql_jax.training.optimizer import parameter_path

# (regex over the path, sharding); the first match counts, none means on every device. Paths end alike in params, in
# optimizer moments and in averages: 'opt_state/../trace/box_head/cls_score/kernel'.
RULES: tuple[tuple[str, P], ...] = (
    (r"(.*/)?cls_score/kernel", P(None, "model")),
    (r"(.*/)?cls_score/bias", P("model")),
)

# With fsdp: (regex over the path, whether it is spread over 'data'); the first match counts, none means yes.
FSDP_RULES: tuple[tuple[str, bool], ...] = (
    (r"(batch_stats|loss_state)/.*", False),  # all of it is needed everywhere, and it is moved on everywhere alike
    (r"(.*/)?norm/.*", False),
)
FSDP_SMALLEST = 4096  # elements of the smallest array that is worth a message of its own


def partition_spec(path: str, rules: tuple[tuple[str, P], ...] = RULES) -> P:
    """The sharding of the parameter at a '/'-joined path."""
    return next((spec for pattern, spec in rules if re.fullmatch(pattern, path)), P())


def with_fsdp(path: str, shape: tuple[int, ...], spec: P, devices: int) -> P:
    """`spec` of the array at `path`, spread over the `devices` of 'data' as well along its largest dimension that is
    whole and divides; as it is where there is none, where FSDP_RULES say so and where the array is small."""
    chosen = next((spread for pattern, spread in FSDP_RULES if re.fullmatch(pattern, path)), True)
    if not chosen or devices == 1 or math.prod(shape) < FSDP_SMALLEST:
        return spec
    axes = [*spec, *[None] * (len(shape) - len(spec))]
    free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % devices == 0]
    if not free:
        return spec
    axes[max(free, key=lambda i: shape[i])] = "data"
    return P(*axes)


def tree_shardings(tree: Any, mesh: Mesh, rules: tuple[tuple[str, P], ...] = RULES, *, fsdp: bool = False) -> Any:
    """A tree like `tree` of NamedShardings.

    Args:
        tree: of arrays or shapes, such as a whole TrainState.
        mesh: axes 'data' and 'model'. With one device on 'model' no rule counts.
        rules: as RULES.
        fsdp: spread over 'data' as well what FSDP_RULES let.

    Raises:
        ConfigError: an array does not divide over the devices of 'model'.
    """

    def place(path, leaf):
        name = parameter_path(path)
        spec = partition_spec(name, rules) if mesh.shape["model"] > 1 else P()
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise ConfigError(
                    f"{name} has shape {leaf.shape}, whose {size} columns do not divide by config.mesh.{axis} "
                    f"{mesh.shape[axis]}. Take a config.mesh.model that divides; or, for a detector whose loss has a "
                    f"sigmoid per class, set config.model.box_head.class_multiple to {mesh.shape[axis]}, which adds "
                    "columns"
                )
        return NamedSharding(mesh, with_fsdp(name, leaf.shape, spec, mesh.shape["data"]) if fsdp else spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def whole_over_data(shardings: Any) -> Any:
    """A tree of NamedShardings without 'data': what fsdp spread is put together, the parts by 'model' stay parts."""
    return jax.tree.map(lambda s: NamedSharding(s.mesh, P(*(None if a == "data" else a for a in s.spec))), shardings)


def gathered(tree: Any) -> Any:
    """`tree` with each array whole on every device of its mesh; those that are already stay as they are."""

    def whole(x):
        if not isinstance(x, jax.Array) or x.is_fully_replicated:
            return x
        return _copy_to(NamedSharding(x.sharding.mesh, P()))(x)

    return jax.tree.map(whole, tree)


@functools.cache  # and so compiled once, not at every evaluation
def _copy_to(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=sharding)
