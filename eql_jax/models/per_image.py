"""Mapping a function of one image over a batch, image by image and device by device."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P


def map_images(fn: Callable) -> Callable:
    """`jax.vmap(fn)` whose work stays on the device that holds the image.

    Under a mesh (jax.set_mesh) with more than one device on its 'data' axis the mapped function runs in a shard_map:
    sorting, top-k, gathers and loops of proposals, sampling and RoIAlign then need no communication, which the
    partitioner does not find out by itself (it gathers the whole batch for lax.top_k). All arguments and results have
    the images on axis 0; anything shared by the images must be closed over as a constant.
    """
    mapped, mesh = jax.vmap(fn), _mesh_of_data()
    if mesh is None:
        return mapped
    return jax.shard_map(
        mapped, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}, check_vma=False
    )


def sum_gradients_once(fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`fn(params, batch)` whose gradient to the parameters is summed over devices once, however often fn uses them.

    By itself the partitioner sums over devices behind every use, since there it meets the sum over images: of a head
    that is shared by five levels the gradient travels five times. In a shard_map each device adds up its own first.
    What is summed has the type of the parameters as they are handed over.

    Every result of fn, and every array of `batch`, has the images on axis 0, and no image may depend on another.
    """
    mesh = _mesh_of_data()
    if mesh is None:
        return fn

    def on_each_device(params, batch):
        # The gradient of this cast is the sum over devices. Without it there is one at every use.
        return fn(jax.tree.map(lambda p: jax.lax.pcast(p, "data", to="varying"), params), batch)

    # Manual over all axes: sums in bfloat16 over one of several end XLA's compiler for CPUs ("opcode copy", 0.10.2).
    return jax.shard_map(on_each_device, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))


def _mesh_of_data() -> jax.sharding.AbstractMesh | None:
    """The mesh of the moment if it has several devices on its 'data' axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or "data" not in mesh.axis_names or mesh.shape["data"] == 1 else mesh
