"""Mapping a function of one image over a batch, image by image and device by device."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P


def map_images(fn: Callable) -> Callable:
    """`jax.vmap(fn)` whose work stays on the device that holds the image.

    Under a mesh (jax.set_mesh) with more than one device on its 'data' axis the mapped function runs in a shard_map:
    sorting, top-k, gathers and loops of proposals, sampling and RoIAlign then need no communication, which the
    partitioner does not find out by itself (it gathers the whole batch for lax.top_k). All arguments and results have
    the images on axis 0; anything shared by the images must be closed over as a constant.
    """
    mapped = jax.vmap(fn)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "data" not in mesh.axis_names or mesh.shape["data"] == 1:
        return mapped
    return jax.shard_map(
        mapped, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}, check_vma=False
    )
