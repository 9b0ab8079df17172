"""Narrow models, made-up weight files of them, and their conversion, for the tests."""

import jax
import numpy as np

from configs import base
from eql_jax.convert.run import Options, convert
from eql_jax.convert.table import detectron2_table, to_detectron2
from eql_jax.models import build_model, init_model
from eql_jax.training.compatibility import Classes, flatten

B = "backbone.bottom_up."
P = "roi_heads.box_predictor."


def classes_of(count):
    ids = tuple(range(1, count + 1))
    return Classes(ids, tuple(f"class {i}" for i in ids), ("f",) * count)


def narrow_config(**fields):
    """The widths of the golden model, without its config.yaml."""
    config = base.get_config()
    m = config.model
    m.backbone.width, m.fpn.channels, m.box_head.fc_dim, m.mask_head.channels = 8, 32, 64, 16
    for key, value in fields.items():
        config.update_from_flattened_dict({key: value})
    return config


def run(path, count=60, config=None, source="detectron2", source_config=None, overridden=(), **options):
    return convert(
        source,
        path,
        config or narrow_config(),
        classes_of(count),
        options=Options(**options),
        source_config=source_config,
        overridden=overridden,
    )


def tensors_of(config, count=3):
    """Made-up tensors of the model of `config`, by detectron2's names."""
    model = build_model(config, count)
    shapes = jax.eval_shape(lambda: init_model(model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    arrays = {k: rng.random(v.shape, np.float32) for k, v in flatten(shapes).items()}
    return to_detectron2(arrays, detectron2_table(config, channels="bgr")), arrays


def narrow_variant(**fields):
    return narrow_config(
        **{
            "model.backbone.width": 4,
            "model.fpn.channels": 8,
            "model.box_head.fc_dim": 8,
            "model.mask_head.channels": 4,
        },
        **fields,
    )
