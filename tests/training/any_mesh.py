"""What test_any_mesh.py runs in a process with eight virtual devices; prints one JSON line.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.training.any_mesh 1x1 8x1 2x4 4x2,fsdp

Meshes are data x model; the others are compared with the first.
"""

import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.hlo import COLLECTIVES, Program
from eql_jax.class_losses import ClassFrequencies
from eql_jax.models import build_model, init_model, trainable_mask
from eql_jax.models.rpn import RPNHead
from eql_jax.training.mesh import put_batch
from eql_jax.training.optimizer import make_optimizer
from eql_jax.training.sharding import tree_shardings
from eql_jax.training.state import create_state
from eql_jax.training.train_step import make_train_step
from tests.synthetic import synthetic_batch
from tests.training.sharded_classes import drawn, mesh_of, tiny_config

CLASSES = 30  # Seesaw has two more columns, 32


def detector():
    """Config, model and first variables of a detector with live BatchNorm, frozen stages and a loss with a memory."""
    config = tiny_config(1)
    m = config.model
    m.architecture = "c4"
    m.backbone.update(norm="batch_norm", freeze_at=2)
    m.rpn.anchor_sizes = (16, 32)
    m.box_head.update(loss="seesaw", pool_size=4)
    config.train.batch_size = 8
    counts = np.arange(1, CLASSES + 1)
    model = build_model(config, CLASSES, ClassFrequencies(CLASSES, image_counts=counts, instance_counts=counts))
    shapes = jax.eval_shape(lambda: init_model(model, jax.random.key(0)))
    # Statistics as BatchNorm has them at first; no class was seen.
    blank = lambda path, x: np.full(x.shape, float(path[-1].key == "var"), x.dtype)  # noqa: E731
    # On the host, as a step gives up the buffers it is handed.
    params = jax.device_get(drawn(shapes["params"]))
    variables = jax.tree_util.tree_map_with_path(blank, shapes) | {"params": params}
    return config, model, variables


def sizes(text: str) -> dict[str, list[int]]:
    """{kind: elements of each result} of the collectives of a programme."""
    found: dict[str, list[int]] = {}
    for i in Program(text).instructions():
        if i.opcode in COLLECTIVES:
            shapes = re.findall(r"\w+\[([\d,]*)\]", i.type)
            found.setdefault(i.opcode, []).extend(math.prod(int(n) for n in s.split(",") if n) for s in shapes)
    return found


def first_step(config, model, variables, data: int, model_axis: int, fsdp: bool):
    """One step over a mesh: a row of figures, and the state after it (NumPy)."""
    mesh = mesh_of(data, model_axis)
    params = variables["params"]
    optimizer = make_optimizer(config, params, trainable=trainable_mask(params, config)).transform
    start = create_state(variables, optimizer, ema=True)
    shardings = tree_shardings(start, mesh, fsdp=fsdp)
    state = jax.device_put(start, shardings)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    step = make_train_step(model, optimizer, config, mesh, shardings)
    batch = synthetic_batch(
        batch=8, height=64, width=64, num_classes=CLASSES, objects=3, max_objects=4, mask_size=1, seed=0
    )
    batch = put_batch(batch, mesh)
    with jax.set_mesh(mesh):
        compiled = step.jitted.lower(state, batch).compile()
    state, metrics = compiled(state, batch)
    row = {
        "metrics": {k: float(v) for k, v in metrics.items()},
        "held": held,
        "collectives": sizes(compiled.as_text()),
    }
    return row, jax.device_get(state)


def shared_head(dtype) -> dict:
    """An RPN's head on four levels, over 4 x 2 devices: its all-reduces, and its gradient against one device's."""
    head, mesh = RPNHead(3, dtype), mesh_of(4, 2)
    levels = [np.asarray(jax.random.normal(jax.random.key(i), (8, 16 >> i, 16 >> i, 8))) for i in range(4)]
    params = jax.device_get(head.init(jax.random.key(4), levels))

    def loss(params, levels):
        out = head.apply(params, levels)
        return sum(jnp.sum(jnp.square(x - 1)) for x in (*out.logits, *out.deltas))

    expected = jax.jit(jax.grad(loss))(params, levels)
    whole, by_image = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    placed = jax.device_put((params, levels), (whole, by_image))
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss), out_shardings=whole).lower(*placed).compile()
    return {
        "parameters": [x.size for x in jax.tree.leaves(params)],
        "collectives": sizes(compiled.as_text()),
        "error": error(jax.device_get(compiled(*placed)), jax.device_get(expected)),
    }


def largest(tree) -> float:
    """Largest absolute entry."""
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def error(actual, expected) -> float:
    """Largest difference, in units of the largest entry of each array."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(a - e).max() / max(np.abs(e).max(), 1e-6)) for a, e in pairs)


def main(*meshes: str) -> None:
    config, model, variables = detector()
    trainable = trainable_mask(variables["params"], config)
    pairs = zip(jax.tree.leaves(variables["params"]), jax.tree.leaves(trainable), strict=True)
    parts = ("params", "ema_params", "batch_stats", "loss_state")
    rows, one = [], None
    for word in meshes:
        axes, _, fsdp = word.partition(",")
        row, state = first_step(config, model, variables, *map(int, axes.split("x")), fsdp == "fsdp")
        one = one or state
        rows.append(row | {"mesh": word, "errors": {k: error(getattr(state, k), getattr(one, k)) for k in parts}})
    moved = {k: largest(jax.tree.map(np.subtract, getattr(one, k), variables[k])) for k in parts if k in variables}
    norms = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), x.size)
        for path, x in jax.tree_util.tree_leaves_with_path(variables["batch_stats"])
    ]
    found = {
        "rows": rows,
        "moved": moved,
        "trained": [x.size for x, trained in pairs if trained],
        "live": [size for name, size in norms if name.endswith("mean") and not re.search("stem|res2_", name)],
        "memory": [x.size for x in jax.tree.leaves(variables["loss_state"])],
        "shared_head": {dtype: shared_head(jnp.dtype(dtype)) for dtype in ("float32", "bfloat16")},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.device_count()
    main(*sys.argv[1:])
