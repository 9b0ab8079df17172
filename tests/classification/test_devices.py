"""A step is the same on one device and on four: BatchNorm's statistics and SEQL's draws are of the whole batch."""

import jax
import numpy as np
import pytest

from configs.classification import base
from eql_jax.class_losses import ClassFrequencies, make_class_loss
from eql_jax.classification.evaluation import make_predictor
from eql_jax.classification.models import build_classifier, init_classifier
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.optimizer import make_optimizer
from eql_jax.training.state import create_state
from eql_jax.training.train_step import make_train_step


@pytest.mark.slow
def test_one_and_four_devices():
    config = base.get_config()
    config.update_from_flattened_dict(
        {"model.depth": 8, "model.width": 4, "train.batch_size": 8, "optimizer.warmup_steps": 0}
    )
    frequencies = ClassFrequencies(5, tail=np.array([False, False, True, True, True]))
    model = build_classifier(config, make_class_loss("seql", frequencies, background=False, options={"gamma": 0.5}))
    # On the host, as the first run's steps give up the buffers they are handed.
    variables = jax.device_get(init_classifier(model, jax.random.key(0), image_size=16))
    optimizer = make_optimizer(config, variables["params"])
    rng = np.random.default_rng(0)
    batches = [
        {
            "image": rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8),
            "label": rng.integers(0, 5, 8).astype(np.int32),
            "image_id": np.arange(8) + 8 * step,
        }
        for step in range(2)
    ]
    found = []
    for count in (1, 4):
        mesh = mesh_lib.make_mesh(config, jax.devices()[:count])
        state = jax.device_put(create_state(variables, optimizer.transform, ema=False), mesh_lib.replicated(mesh))
        step = make_train_step(model, optimizer.transform, config, mesh)
        for batch in batches:
            state, metrics = step(state, mesh_lib.put_batch(batch, mesh))
        predicted = make_predictor(model, mesh)(
            {"params": state.params, "batch_stats": state.batch_stats}, batches[0]["image"]
        )
        found.append(jax.device_get((state.params, state.batch_stats, metrics)) + (predicted,))
    one, four = found
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), one, four)
    stats = one[1]["backbone"]["stem"]["norm"]
    assert np.abs(stats["mean"]).max() > 1e-3 and not np.allclose(stats["var"], 1)
