"""detectron2's recorded numbers: how they are stored, and how a model here is compared with them.

Arrays of detectron2 are NCHW and its images BGR; `Golden` hands them out as this package has them (NHWC, RGB).
"""

import json
import pickle
import tempfile
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import base
from eql_jax.convert.run import convert
from eql_jax.convert.source_config import read_source_config
from eql_jax.models import MaskRCNN, build_model
from eql_jax.training.compatibility import Classes

TESTDATA = Path(__file__).parents[1] / "testdata"
WEIGHTS = TESTDATA / "detectron2_mask_rcnn_r50_eql.pkl"
CONFIG = TESTDATA / "detectron2_mask_rcnn_r50_eql.yaml"
VARIANTS = TESTDATA / "detectron2_variants"

# Tolerances of float32, relative to the largest value of an array or absolute (pixels, probabilities).
RELATIVE = 5e-5
BOXES = 0.01
SCORES = 1e-4


class Golden(NamedTuple):
    """A model with detectron2's weights, and the arrays that detectron2 made with them.

    variables: for `model.apply`. config: the whole config, as eql_jax.convert fills it in. arrays: by detectron2's key.
    """

    model: MaskRCNN
    variables: dict
    config: ConfigDict
    arrays: dict[str, np.ndarray]

    def nhwc(self, key: str) -> jax.Array:
        """A feature map [N,C,H,W] as [N,H,W,C]."""
        return jnp.asarray(self.arrays[key].transpose(0, 2, 3, 1))

    @property
    def is_c4(self) -> bool:
        return self.config.model.architecture == "c4"

    @property
    def num_stages(self) -> int:
        """Stages of a cascade, 0 for other models."""
        return len(self.config.model.cascade.ious)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the maps that RPN and heads work on."""
        return ("res4",) if self.is_c4 else ("p2", "p3", "p4", "p5", "p6")

    @property
    def pyramid(self) -> list[jax.Array]:
        """The recorded p2..p6, or res4."""
        return [self.nhwc(level) for level in self.levels]

    @property
    def image_size(self) -> jax.Array:
        """[1,2] (height, width)."""
        return jnp.asarray(self.arrays["image_size"][None], jnp.int32)

    def padded_image(self, key: str = "image_bgr_hwc") -> np.ndarray:
        """The input as RGB, padded with zeros to a multiple of 32 (C4: not at all): uint8 [1,H,W,3]."""
        image = self.arrays[key][..., ::-1]
        unit = 1 if self.is_c4 else 32
        height, width = (-(-side // unit) * unit for side in image.shape[:2])
        padded = np.zeros((1, height, width, 3), np.uint8)
        padded[0, : image.shape[0], : image.shape[1]] = image
        return padded

    def from_res2(self):
        """A context in which the recorded res2 replaces what the model's stem and res2 make of an image."""

        def replace(next_fun, args, kwargs, context):
            found = next_fun(*args, **kwargs)
            last = context.module.name == "res2_2" and context.method_name == "__call__"
            return self.nhwc("res2") if last else found

        return nn.intercept_methods(replace)

    def apply(self, method, *args, **kwargs):
        """Runs a method of the model under jit; keyword arguments are static."""
        run = jax.jit(lambda variables, *xs: self.model.apply(variables, *xs, **kwargs, method=method))
        return run(self.variables, *args)


def load_golden(weights: Path, source_config: Path, arrays: Path | dict[str, np.ndarray]) -> Golden:
    """Converts the weights and loads the arrays of one recorded run (a .npz, or what was read of one)."""
    source = read_source_config(source_config)
    ids = tuple(range(1, source.num_classes + 1))
    classes = Classes(ids, tuple(f"class {i}" for i in ids), ("f",) * len(ids))
    converted = convert("detectron2", weights, base.get_config(), classes, source_config=source)
    if isinstance(arrays, Path):
        with np.load(arrays) as data:
            arrays = dict(data)
    model = build_model(converted.config, len(ids))
    return Golden(model, jax.device_put(dict(converted.variables)), converted.config, arrays)


def read_group(path: Path, group: str) -> dict[str, np.ndarray]:
    """One of the groups of a .npz of tests/testdata/detectron2_variants: groups share arrays that are the same; 'index'
    is JSON {group: {key: entry}}."""
    with np.load(path) as data:
        return {key: data[entry] for key, entry in json.loads(str(data["index"]))[group].items()}


def load_variant(name: str, run: str = "inference", suffix: str = "") -> Golden:
    """A model of tests/testdata/detectron2_variants with its arrays of 'inference' or 'training'."""
    weights = read_group(VARIANTS / "weights.npz", name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pkl"
        path.write_bytes(pickle.dumps({"model": weights, "__author__": "test"}))
        return load_golden(path, VARIANTS / f"{name}.yaml", read_group(VARIANTS / f"{run}.npz", name + suffix))


def relative_difference(found, expected) -> float:
    """The largest difference over the largest expected value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def parse_polygons(text) -> list[tuple[np.ndarray, ...]]:
    """The JSON of a run's ground-truth polygons: for each object its parts, float [P,2]."""
    return [tuple(np.array(part).reshape(-1, 2) for part in parts) for parts in json.loads(str(text))]
