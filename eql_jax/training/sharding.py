"""Which parameters are spread over the mesh's 'model' axis, and where a training state lies on the devices.

Classifiers are, by class: with large vocabularies kernel, logits and their gradients are most of the memory of the
heads. Everything else is on every device.
"""

import re
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


def partition_spec(path: str, rules: tuple[tuple[str, P], ...] = RULES) -> P:
    """The sharding of the parameter at a '/'-joined path."""
    return next((spec for pattern, spec in rules if re.fullmatch(pattern, path)), P())


def tree_shardings(tree: Any, mesh: Mesh, rules: tuple[tuple[str, P], ...] = RULES) -> Any:
    """A tree like `tree` of NamedShardings.

    Args:
        tree: of arrays or shapes, such as a whole TrainState.
        mesh: axes 'data' and 'model'. With one device on 'model' everything is on every device.
        rules: as RULES.

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
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def gathered(tree: Any) -> Any:
    """`tree` with each array whole on every device of its mesh; those that are already stay as they are."""

    def whole(x):
        if not isinstance(x, jax.Array) or x.is_fully_replicated:
            return x
        return jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, P()))(x)

    return jax.tree.map(whole, tree)
