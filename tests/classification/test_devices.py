"""A step is the same on one device and on four: BatchNorm's statistics and SEQL's draws are of the whole batch.

Gradients that are summed in bfloat16 are within its rounding; that a TPU sums them so is tested where libtpu is.
"""

import importlib.util
import os
import re

import jax
import numpy as np
import pytest

from configs.classification import base
from eql_jax.class_losses import ClassFrequencies, make_class_loss
from eql_jax.classification.evaluation import make_predictor
from eql_jax.classification.models import build_classifier, init_classifier
from eql_jax.ops.conv import conv_implementation
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.optimizer import make_optimizer
from eql_jax.training.state import create_state
from eql_jax.training.train_step import make_train_step


def tiny(reduce_dtype="compute"):
    """Config, model and variables."""
    config = base.get_config()
    config.update_from_flattened_dict(
        {"model.depth": 8, "model.width": 4, "train.batch_size": 8, "optimizer.warmup_steps": 0}
    )
    config.train.reduce_dtype = reduce_dtype
    frequencies = ClassFrequencies(5, tail=np.array([False, False, True, True, True]))
    loss = make_class_loss("seql", frequencies, background=False, options={"gamma": 0.5})
    return config, build_classifier(config, loss)


@pytest.fixture(scope="module")
def runs():
    """{(devices, reduce_dtype): (first parameters, those after each of two steps, and what else there is then)}."""
    rng = np.random.default_rng(0)
    batches = [
        {
            "image": rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8),
            "label": rng.integers(0, 5, 8).astype(np.int32),
            "image_id": np.arange(8) + 8 * step,
        }
        for step in range(2)
    ]
    # On the host, as the first run's steps give up the buffers they are handed.
    variables = jax.device_get(init_classifier(tiny()[1], jax.random.key(0), image_size=16))
    found = {}
    for count, reduce_dtype in ((1, "compute"), (4, "compute"), (4, "bfloat16")):
        config, model = tiny(reduce_dtype)
        optimizer = make_optimizer(config, variables["params"])
        mesh = mesh_lib.make_mesh(config, jax.devices()[:count])
        state = jax.device_put(create_state(variables, optimizer.transform, ema=False), mesh_lib.replicated(mesh))
        step = make_train_step(model, optimizer.transform, config, mesh)
        params = [variables["params"]]
        for batch in batches:
            state, metrics = step(state, mesh_lib.put_batch(batch, mesh))
            params.append(jax.device_get(state.params))
        rest = [jax.device_get(state.batch_stats), jax.device_get(metrics)]
        if reduce_dtype == "compute":
            variables_now = {"params": state.params, "batch_stats": state.batch_stats}
            rest.append(make_predictor(model, mesh)(variables_now, batches[0]["image"]))
        found[count, reduce_dtype] = params, rest
    return found


@pytest.mark.slow
def test_one_and_four_devices(runs):
    one, four = runs[1, "compute"], runs[4, "compute"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), one, four)
    stats = one[1][0]["backbone"]["stem"]["norm"]
    assert np.abs(stats["mean"]).max() > 1e-3 and not np.allclose(stats["var"], 1)


@pytest.mark.slow
def test_gradients_summed_in_bfloat16(runs):
    """The first update is off by the rounding to 8 bits, entry by entry, and by that alone."""
    (start, exact, _), _ = runs[4, "compute"]
    (_, rounded, _), _ = runs[4, "bfloat16"]
    updates = jax.tree.map(lambda new, old: np.abs(new - old), exact, start)
    errors = jax.tree.map(lambda a, b: np.abs(a - b), exact, rounded)
    for error, update in zip(jax.tree.leaves(errors), jax.tree.leaves(updates), strict=True):
        assert np.all(error <= update / 256 + 1e-6), (error - update / 256).max()
    assert max(e.max() for e in jax.tree.leaves(errors)) > 1e-6


@pytest.mark.libtpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "jax[tpu]"')
@pytest.mark.parametrize("reduce_dtype", ["compute", "bfloat16"])
def test_what_a_tpu_sums_gradients_in(reduce_dtype, monkeypatch):
    """The step compiled for eight chips sums every kernel's gradient in the type that was asked for."""
    from jax.experimental import topologies

    monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    config, model = tiny(reduce_dtype)
    mesh = mesh_lib.make_mesh(config, topologies.get_topology_desc("v5e:2x4", platform="tpu").devices)
    variables = jax.eval_shape(lambda: init_classifier(model, jax.random.key(0), image_size=16))
    optimizer = make_optimizer(config, variables["params"]).transform
    state = jax.eval_shape(lambda v: create_state(v, optimizer, ema=False), variables)
    step = make_train_step(model, optimizer, config, mesh)
    shapes = {"image": ((8, 16, 16, 3), np.uint8), "label": ((8,), np.int32), "image_id": ((8,), np.uint32)}
    batch = {k: jax.ShapeDtypeStruct(*v) for k, v in shapes.items()}
    with conv_implementation("xla"), jax.set_mesh(mesh):
        text = step.jitted.trace(state, batch).lower(lowering_platforms=("tpu",)).compile().as_text()
    sums = " ".join(re.findall(r"= (.*?) all-reduce\(", text))
    kernels = re.findall(r"(\w+)\[\d+,\d+,\d+,\d+\]", sums)
    expected = "f32" if reduce_dtype == "compute" else "bf16"
    assert kernels == [expected] * sum(x.ndim == 4 for x in jax.tree.leaves(variables["params"])), sums
