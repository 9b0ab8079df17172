"""What test_sharded_classes.py runs in a process with eight virtual devices; prints one JSON line.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.training.sharded_classes loss 50000 200000
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

from configs import base
from eql_jax.class_losses import ClassFrequencies
from eql_jax.losses import equalization_loss, pad_classes, pad_per_class, padded_count
from eql_jax.models import build_model, init_model, trainable_mask
from eql_jax.training.mesh import make_mesh, put_batch
from eql_jax.training.optimizer import make_optimizer
from eql_jax.training.sharding import tree_shardings
from eql_jax.training.state import create_state
from eql_jax.training.train_step import make_train_step
from tests.synthetic import synthetic_batch

ROWS, UNITS = 64, 16
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def mesh_of(data: int, model: int):
    config = base.get_config()
    config.mesh.update(data=data, model=model)
    return make_mesh(config, jax.devices()[: data * model])


def collectives(text: str) -> dict[str, int]:
    """{operation: elements of its largest result} of a compiled programme."""
    found: dict[str, int] = {}
    for results, name in COLLECTIVE.findall(text):
        for shape in re.findall(r"\w+\[([\d,]*)\]", results):
            size = math.prod(int(n) for n in shape.split(",")) if shape else 1
            found[name] = max(found.get(name, 0), size)
    return found


def classifier_step(classes: int, data: int, model: int, values: bool) -> dict:
    """Loss and gradients of a linear classifier with EQL over a mesh: numbers, memory and collectives."""
    mesh = mesh_of(data, model)
    columns = padded_count(classes, model)
    rng = np.random.default_rng(0)
    # Drawn for the classes alone, so that they are the same whatever is added.
    kernel = (0.1 * rng.normal(size=(UNITS, classes))).astype(np.float32)
    bias = np.full(classes, -4, np.float32)
    tail = pad_per_class(rng.random(classes) < 0.5, columns, False)
    hidden = rng.normal(size=(ROWS, UNITS)).astype(np.float32)
    labels = np.where(rng.random(ROWS) < 0.5, classes, rng.integers(0, classes, ROWS))
    labels[:3] = [classes - 1, 0, -1]
    place = lambda *spec: NamedSharding(mesh, P(*spec))  # noqa: E731
    params = {"cls_score": {"kernel": pad_per_class(kernel, columns, 0.3), "bias": pad_per_class(bias, columns, 0.3)}}
    shardings = tree_shardings(params, mesh)

    def loss(params, hidden, labels):
        logits = hidden @ params["cls_score"]["kernel"] + params["cls_score"]["bias"]
        logits = jax.lax.with_sharding_constraint(logits, place("data", "model"))
        return equalization_loss(*pad_classes(logits, labels, classes), tail)

    step = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1)),
        in_shardings=(shardings, place("data"), place("data")),
        out_shardings=(place(), (shardings, place("data"))),
    )
    compiled = step.lower(params, hidden, labels).compile()
    memory = compiled.memory_analysis()
    row = {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "collectives": collectives(compiled.as_text()),
        "columns": columns,
    }
    if values:
        args = jax.device_put((params, hidden, labels), (shardings, place("data"), place("data")))
        value, (grads, hidden_grad) = compiled(*args)
        held = [s.data.size for s in grads["cls_score"]["kernel"].addressable_shards]
        row |= {"loss": float(value), "held": max(held)}
        row["arrays"] = [np.asarray(x) for x in (*jax.tree.leaves(grads), hidden_grad)]
    return row


def compare_losses(classes: int, data: int, model: int) -> dict:
    """The sharded classifier beside the same one on one device."""
    one, many = (classifier_step(classes, *axes, values=True) for axes in ((1, 1), (data, model)))
    errors, added = [], 0.0
    for whole, spread in zip(one.pop("arrays"), many.pop("arrays"), strict=True):
        if spread.shape[-1] == many["columns"]:
            added = max(added, float(np.abs(spread[..., classes:]).max(initial=0)))
            spread = spread[..., :classes]
        errors.append(float(np.abs(whole - spread).max() / np.abs(whole).max()))
    return {"classes": classes, "mesh": [data, model], "one": one, "many": many, "errors": errors, "added": added}


# ---------------------------------------------------------------- the whole detector


def tiny_config(classes_multiple: int):
    c = base.get_config()
    m = c.model
    m.backbone.update(depth=18, width=8, freeze_at=0, norm="group_norm")
    m.fpn.channels = 16
    m.rpn.update(batch_per_image=16, pre_nms_train=20, post_nms_train=10)
    m.roi.batch_per_image = 8
    m.box_head.update(fc_dim=12, class_agnostic_boxes=True, class_multiple=classes_multiple)
    m.with_mask = False
    c.optimizer.update(warmup_steps=0, learning_rate=0.02, schedule="constant", ema_decay=0.9)
    c.train.batch_size = 4
    return c


def drawn(shapes):
    """Parameters of a network whose layers keep the size of their input; no compilation, unlike `init_model`."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key == "kernel":
            return jnp.asarray(rng.normal(size=x.shape) / math.sqrt(x.size / x.shape[-1]), jnp.float32)
        return jnp.full(x.shape, float(path[-1].key == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def detector_steps(data: int, model_axis: int, classes: int = 31, steps: int = 2) -> dict:
    """Two steps of a tiny Faster R-CNN with EQL: metrics, where the classifier lies, and its values."""
    config, mesh = tiny_config(2), mesh_of(data, model_axis)
    model = build_model(config, classes, ClassFrequencies(classes, tail=np.arange(classes) > 10))
    shapes = jax.eval_shape(lambda: init_model(model, jax.random.key(0)))["params"]
    optimizer = make_optimizer(config, shapes, trainable=trainable_mask(shapes, config)).transform
    start = create_state({"params": drawn(shapes)}, optimizer, ema=True)
    shardings = tree_shardings(start, mesh)
    state = jax.device_put(start, shardings)
    step = make_train_step(model, optimizer, config, mesh, shardings)
    metrics, compiled = [], None
    for seed in range(steps):
        batch = synthetic_batch(
            batch=4, height=64, width=64, num_classes=classes, objects=3, max_objects=4, mask_size=1, seed=seed
        )
        batch = put_batch(batch, mesh)
        if compiled is None:
            with jax.set_mesh(mesh):
                compiled = step.jitted.lower(state, batch).compile()
        state, found = compiled(state, batch)
        metrics.append({k: float(v) for k, v in found.items()})
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "cls_score" in jax.tree_util.keystr(path) and leaf.ndim == 2
    ]
    kernels = [state.params["box_head"]["cls_score"]["kernel"], state.ema_params["box_head"]["cls_score"]["kernel"]]
    assert len(moments) == 1
    return {
        "metrics": metrics,
        "held": [x.addressable_shards[0].data.shape for x in (*kernels, *moments)],
        "others_whole": all(
            x.is_fully_replicated
            for path, x in jax.tree_util.tree_leaves_with_path(state)
            if "cls_score" not in jax.tree_util.keystr(path)
        ),
        "kernel": np.asarray(kernels[0]),
        "collectives": collectives(compiled.as_text()),
    }


def compare_detectors() -> dict:
    one, many = detector_steps(1, 1), detector_steps(4, 2)
    kernels = [run.pop("kernel") for run in (one, many)]
    error = float(np.abs(kernels[0] - kernels[1]).max() / np.abs(kernels[0]).max())
    return {"one": one, "many": many, "kernel_error": error, "columns": kernels[0].shape[1]}


def main(what: str, *classes: str) -> None:
    if what == "loss":
        rows = [compare_losses(int(k), *axes) for k in classes for axes in ((1, 8), (2, 4))]
        print(json.dumps(rows))
    else:
        print(json.dumps(compare_detectors()))


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.device_count()
    main(*sys.argv[1:])
