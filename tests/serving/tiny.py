"""A detector small enough to compile in seconds, with detections of all sorts: for the tests of serving."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from eql_jax.models import build_model
from eql_jax.training.compatibility import Classes

CLASSES = Classes(ids=(3, 5, 9), names=("cat", "dog", "emu"), letters=("f", "c", "r"))
SIZE = (64, 64)
CANVAS = (76, 90)  # no side divides by 8
FILES = ((76, 90), (37, 51))  # an image that fills the canvas, one that grows to fit the size


def tiny_config(**changes):
    c = base.get_config()
    c.data.update(eval_shorter_side=48, longest_side=64, buckets=(SIZE,))
    m = c.model
    m.backbone.update(depth=18, width=4)
    m.fpn.channels = 8
    m.rpn.update(anchor_sizes=(8, 12, 24, 48, 64), pre_nms_test=20, post_nms_test=16)
    m.roi.canonical_size = 56
    m.box_head.update(loss="sigmoid", fc_dim=16)
    m.mask_head.update(num_convs=1, channels=8)
    m.test.update(detections_per_image=10, candidates=48)
    c.update_from_flattened_dict(changes)
    return c


def tiny_model(config):
    """The model and random variables, made without compiling anything."""
    model = build_model(config, len(CLASSES))
    inputs = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        names = [p.key for p in path]
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if names[-1] in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        if names[-1] != "kernel":
            return np.float32(0.1) * noise
        gain = 2 if names[-2] in ("cls_score", "predictor") else 0.8
        return np.float32(gain / np.sqrt(np.prod(leaf.shape[:-1]))) * noise

    return model, jax.tree_util.tree_map_with_path(draw, dict(shapes))


def tiny_images():
    """Blocks of colours, so that one grey level more or less matters little, with noise of a level."""
    rng = np.random.default_rng(1)
    return [
        np.kron(rng.integers(0, 250, (10, 12, 3)), np.ones((8, 8, 1)))[: size[0], : size[1]].astype(np.uint8)
        + rng.integers(0, 2, (*size, 3), np.uint8)
        for size in FILES
    ]
