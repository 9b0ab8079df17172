"""Every option of config.model that shapes the network or its losses does so. Traced only, nothing is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common import synthetic_batch
from configs import base
from eql_jax import losses
from eql_jax.models import build_model, init_model
from eql_jax.training.train_step import LOSS_TERMS, image_keys

K = 5


def make_config(changes):
    c = base.get_config()
    m = c.model
    m.backbone.update(depth=18, width=8, freeze_at=0)
    m.fpn.channels = 16
    m.rpn.update(batch_per_image=16, pre_nms_train=20, post_nms_train=10, pre_nms_test=20, post_nms_test=10)
    m.roi.batch_per_image = 8
    m.box_head.fc_dim = 12
    m.mask_head.update(num_convs=1, channels=16)
    m.test.update(detections_per_image=6, candidates=20)
    c.update_from_flattened_dict({f"model.{key}": value for key, value in changes.items()})
    return c


def shapes(variables, collection="params"):
    """{'a/b/c': shape}."""
    leaves = jax.tree_util.tree_leaves_with_path(variables[collection])
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def trace(changes):
    """Model, abstract variables, and the abstract losses of two 64 x 96 images."""
    model = build_model(make_config(changes), K)
    variables = jax.eval_shape(lambda: init_model(model, jax.random.key(0)))
    batch = synthetic_batch(batch=2, height=64, width=96, num_classes=K, objects=2, max_objects=3, mask_size=14)

    def run(variables):
        keys = image_keys(0, jnp.int32(0), batch["image_id"])
        tail = jnp.zeros(K, bool)
        return model.apply(variables, batch, keys, tail, method="losses", mutable=["batch_stats"])[0]

    return model, variables, jax.eval_shape(run, variables)


@pytest.mark.parametrize(
    ("changes", "path", "shape"),
    [
        ({}, "backbone/res3_0/conv1/kernel", (3, 3, 8, 16)),
        ({"backbone.depth": 34}, "backbone/res4_5/conv2/kernel", (3, 3, 32, 32)),
        ({"backbone.depth": 50}, "backbone/res5_2/conv3/kernel", (1, 1, 64, 256)),
        ({"backbone.depth": 101}, "backbone/res4_22/conv3/kernel", (1, 1, 32, 128)),
        ({"backbone.norm": "group_norm"}, "backbone/stem/norm/scale", (8,)),
        ({"backbone.norm": "batch_norm"}, "backbone/stem/norm/scale", (8,)),
        ({"fpn.norm": "group_norm"}, "fpn/lateral3/norm/scale", (16,)),
        ({"fpn.min_level": 3, "rpn.anchor_sizes": (32, 64, 128, 256)}, "fpn/output3/kernel", (3, 3, 16, 16)),
        ({"rpn.aspect_ratios": (1.0, 2.0)}, "rpn_head/anchor_deltas/kernel", (1, 1, 16, 8)),
        ({"box_head.loss": "softmax"}, "box_head/cls_score/kernel", (12, K + 1)),
        ({"box_head.loss": "sigmoid"}, "box_head/cls_score/kernel", (12, K)),
        ({"box_head.num_fc": 3}, "box_head/fc3/kernel", (12, 12)),
        ({"box_head.pool_size": 5}, "box_head/fc1/kernel", (5 * 5 * 16, 12)),
        ({"box_head.class_agnostic_boxes": True}, "box_head/bbox_pred/kernel", (12, 4)),
        ({"mask_head.class_agnostic": True}, "mask_head/predictor/kernel", (16, 1)),
        ({"mask_head.num_convs": 2}, "mask_head/conv2/kernel", (3, 3, 16, 16)),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) or "base" if isinstance(value, dict) else "",
)
def test_architecture(changes, path, shape):
    model, variables, terms = trace(changes)
    assert shapes(variables)[path] == shape
    assert all(terms[name].shape == () and terms[name].dtype == jnp.float32 for name in LOSS_TERMS)
    if changes.get("fpn.min_level") == 3:
        assert "fpn/output2/kernel" not in shapes(variables) and model.strides == (8, 16, 32, 64)


def test_frozen_batch_norm_has_no_parameters():
    _, variables, _ = trace({})
    assert not any("/norm/" in path for path in shapes(variables))
    assert shapes(variables, "batch_stats")["backbone/stem/norm/var"] == (8,)


@pytest.mark.parametrize("pool_size", [14, 7])
def test_detections(pool_size):
    model, variables, _ = trace({"mask_head.pool_size": pool_size})
    images, sizes = np.zeros((2, 64, 96, 3), np.uint8), np.full((2, 2), 64, np.int32)
    found = jax.eval_shape(lambda v: model.apply(v, images, sizes, method="detect"), variables)
    assert found.boxes.shape == (2, 6, 4) and found.masks.shape == (2, 6, 2 * pool_size, 2 * pool_size)
    assert found.masks.dtype == jnp.float32 and found.classes.dtype == jnp.int32


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    """Inputs of convolutions and matmuls are bfloat16; parameters, logits, losses and gradients are float32."""
    model, variables, terms = trace({"dtype": "bfloat16"})
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, terms)))
    images, sizes = np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 2), 64, np.int32)
    pyramid = jax.eval_shape(lambda v: model.apply(v, images, sizes, method="features"), variables)
    assert {level.dtype for level in pyramid} == {jnp.dtype(jnp.bfloat16)}
    rpn = jax.eval_shape(lambda v: model.apply(v, pyramid_of(pyramid), method="rpn"), variables)
    assert {x.dtype for x in jax.tree.leaves(rpn)} == {jnp.dtype(jnp.float32)}


def pyramid_of(shapes):
    return [jnp.zeros(x.shape, x.dtype) for x in shapes]


@pytest.mark.parametrize(
    ("changes", "keeps", "exempt"),
    [
        ({}, True, None),
        ({"eql.background_keeps_negatives": False}, False, None),
        ({"eql.verified_negatives": True}, True, (2, 1, K)),
    ],
    ids=["base", "background", "verified"],
)
def test_options_of_eql_reach_the_loss(monkeypatch, changes, keeps, exempt):
    calls = []
    real = losses.equalization_loss

    def spy(logits, labels, tail_mask, **options):
        calls.append((logits.shape, tail_mask.dtype, options))
        return real(logits, labels, tail_mask, **options)

    monkeypatch.setattr(losses, "equalization_loss", spy)
    trace(changes)
    ((shape, dtype, options),) = calls
    assert shape == (2, 8, K) and dtype == jnp.bool_ and options["background_keeps_negatives"] is keeps
    found = options["exempt_classes"]
    assert (found is None) if exempt is None else (found.shape == exempt and found.dtype == jnp.bool_)
