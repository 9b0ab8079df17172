"""What test_checkpoints.py runs in a process with eight devices: a state spread over 8 is saved, restored over 4, saved
again and restored on 1; prints how many arrays were spread over each.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.training.other_meshes FOLDER
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from eql_jax.training.checkpoints import Checkpoints
from tests.training import toy


def over(count: int, state):
    """`state` over so many devices: whatever divides is spread by its first dimension, the rest is on all."""
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,))

    def place(x):
        spread = x.ndim and x.shape[0] % count == 0
        return jax.device_put(np.asarray(x), NamedSharding(mesh, P("data") if spread else P()))

    return jax.tree.map(place, state)


def main(folder: Path) -> dict[int, int]:
    config = toy.make_config(**{"optimizer.name": "adamw"})
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    blank, _ = toy.fresh_state(config, mesh)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), blank).replace(step=np.int32(7))
    state, spread = over(8, drawn), {}
    for count in (4, 1):
        with Checkpoints(folder / str(count), config, toy.CLASSES) as checkpoints:
            checkpoints.save(state)
            checkpoints.wait()
            spread[max(len(x.sharding.device_set) for x in jax.tree.leaves(state))] = sum(
                not x.is_fully_replicated for x in jax.tree.leaves(state)
            )
            target = over(count, blank)
            state = checkpoints.restore(target)
        for found, wanted, like in zip(*map(jax.tree.leaves, (state, drawn, target)), strict=True):
            assert np.asarray(found).tobytes() == np.asarray(wanted).tobytes() and found.dtype == wanted.dtype
            assert found.sharding == like.sharding
    return spread


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
