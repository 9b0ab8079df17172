"""Every option of config.model that shapes the network or its losses does so. Traced only, nothing is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from eql_jax import losses
from eql_jax.class_losses import ClassFrequencies
from eql_jax.models import build_model, init_model
from eql_jax.training.train_step import LOSS_TERMS, image_keys
from tests.synthetic import synthetic_batch

K = 5
CASCADE = {"cascade.ious": (0.5, 0.6, 0.7), "box_head.class_agnostic_boxes": True}
C4 = {"architecture": "c4", "box_head.pool_size": 14, "mask_head.num_convs": 0}


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


def trace(changes, *, mask_size=14, **more):
    """Model, abstract variables, and the abstract losses of two 64 x 96 images with `more` keys."""
    model = build_model(make_config(changes), K, ClassFrequencies(K, tail=np.zeros(K, bool)))
    variables = jax.eval_shape(lambda: init_model(model, jax.random.key(0)))
    batch = synthetic_batch(
        batch=2, height=64, width=96, num_classes=K, objects=2, max_objects=3, mask_size=max(mask_size, 1)
    )
    if not mask_size:
        batch["gt_masks"] = batch["gt_masks"][:, :, :0, :0]
    batch |= more

    def run(variables):
        keys = image_keys(0, jnp.int32(0), batch["image_id"])
        return model.apply(variables, batch, keys, method="losses", mutable=["batch_stats"])[0]

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
        ({"mask_head.norm": "group_norm"}, "mask_head/conv1/norm/scale", (16,)),
        ({"box_head.num_convs": 2, "box_head.conv_dim": 6}, "box_head/conv2/kernel", (3, 3, 6, 6)),
        ({"box_head.num_convs": 1, "box_head.conv_dim": 6}, "box_head/fc1/kernel", (7 * 7 * 6, 12)),
        ({"box_head.num_convs": 1, "box_head.norm": "group_norm"}, "box_head/conv1/norm/bias", (256,)),
        (CASCADE, "box_head_2/bbox_pred/kernel", (12, 4)),
        (CASCADE | {"box_head.loss": "softmax"}, "box_head_1/cls_score/kernel", (12, K + 1)),
        (CASCADE | {"box_head.num_convs": 1, "box_head.conv_dim": 6}, "box_head_0/conv1/kernel", (3, 3, 16, 6)),
        (C4, "res5/res5_0/conv1/kernel", (3, 3, 32, 64)),
        (C4 | {"backbone.depth": 50}, "res5/res5_2/conv3/kernel", (1, 1, 64, 256)),
        (C4 | {"backbone.norm": "batch_norm"}, "res5/res5_1/conv2/norm/scale", (64,)),
        (C4, "rpn_head/conv/kernel", (3, 3, 32, 32)),
        (C4, "rpn_head/anchor_deltas/kernel", (1, 1, 32, 4 * 3 * 5)),
        (C4, "box_head/cls_score/kernel", (64, K)),
        (C4, "mask_head/deconv/kernel", (2, 2, 64, 16)),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) or "base" if isinstance(value, dict) else "",
)
def test_architecture(changes, path, shape):
    model, variables, terms = trace(changes)
    assert shapes(variables)[path] == shape
    assert all(terms[name].shape == () and terms[name].dtype == jnp.float32 for name in LOSS_TERMS)
    if changes.get("fpn.min_level") == 3:
        assert "fpn/output2/kernel" not in shapes(variables) and model.strides == (8, 16, 32, 64)


@pytest.mark.parametrize("changes", [{}, CASCADE, C4], ids=["fpn", "cascade", "c4"])
def test_without_masks(changes):
    """No mask head, no mask loss, empty masks; ground truth needs none either."""
    model, variables, terms = trace(changes | {"with_mask": False}, mask_size=0)
    assert not any(path.startswith("mask_head") for path in shapes(variables))
    assert "mask" not in terms and {"rpn_cls", "rpn_box", "cls", "box"} < set(terms)
    images, sizes = np.zeros((2, 64, 96, 3), np.uint8), np.full((2, 2), 64, np.int32)
    found = jax.eval_shape(lambda v: model.apply(v, images, sizes, method="detect"), variables)
    assert found.boxes.shape == (2, 6, 4) and found.masks.shape == (2, 6, 0, 0)
    with pytest.raises(ValueError, match="no mask head"):
        model.apply({}, images, sizes, found.boxes, found.classes, method="masks_of_boxes")


def test_modules_of_each_architecture():
    tops = lambda changes: {path.split("/")[0] for path in shapes(trace(changes)[1])}  # noqa: E731
    assert tops({}) == {"backbone", "fpn", "rpn_head", "box_head", "mask_head"}
    assert tops(CASCADE) == {"backbone", "fpn", "rpn_head", *(f"box_head_{i}" for i in range(3)), "mask_head"}
    assert tops(C4) == {"backbone", "rpn_head", "res5", "box_head", "mask_head"}
    assert not any(path.startswith(("backbone/res5", "box_head/fc")) for path in shapes(trace(C4)[1]))


def test_stages_of_a_cascade_are_as_many_as_its_ious():
    changes = CASCADE | {"cascade.ious": (0.5, 0.65), "cascade.box_weights": (10.0, 15.0)}
    model, variables, terms = trace(changes)
    assert "box_head_1/fc1/kernel" in shapes(variables) and "box_head_2/fc1/kernel" not in shapes(variables)
    assert {"cls_stage1", "box_stage1"} < set(terms) and "cls_stage2" not in terms
    assert model.output_weights == (15.0, 15.0, 7.5, 7.5)


def test_convolutions_with_a_norm_have_no_bias():
    norms = {"box_head.num_convs": 1, "box_head.norm": "batch_norm", "mask_head.norm": "batch_norm"}
    _, variables, _ = trace(norms)
    found = shapes(variables)
    for head in ("box_head", "mask_head"):
        assert f"{head}/conv1/bias" not in found and f"{head}/conv1/norm/scale" in found
        assert f"{head}/conv1/norm/mean" in shapes(variables, "batch_stats")
    assert "mask_head/deconv/bias" in found
    _, variables, _ = trace({"box_head.num_convs": 1})
    assert "box_head/conv1/bias" in shapes(variables) and "mask_head/conv1/bias" in shapes(variables)


@pytest.mark.parametrize("norm", ["none", "group_norm", "batch_norm"])
def test_live_norms_of_heads_learn_their_statistics(norm):
    """losses(mutable) gives new statistics for 'batch_norm' alone, of both heads."""
    config = make_config({"box_head.num_convs": 1, "box_head.norm": norm, "mask_head.norm": norm})
    model = build_model(config, K, ClassFrequencies(K, tail=np.zeros(K, bool)))
    variables = jax.eval_shape(lambda: init_model(model, jax.random.key(0)))
    batch = synthetic_batch(batch=1, height=64, width=64, num_classes=K, objects=2, max_objects=3, mask_size=14)

    def run(variables):
        keys = image_keys(0, jnp.int32(0), batch["image_id"])
        return model.apply(variables, batch, keys, method="losses", mutable=["batch_stats"])[1]

    updated = jax.eval_shape(run, variables).get("batch_stats", {})
    for head in ("box_head", "mask_head"):
        assert (head in updated) == (norm == "batch_norm")


@pytest.mark.parametrize(("changes", "side"), [({}, 28), (CASCADE, 28), (C4, 14)], ids=["fpn", "cascade", "c4"])
def test_masks_of_given_boxes(changes, side):
    model, variables, _ = trace(changes)
    images, sizes = np.zeros((2, 64, 96, 3), np.uint8), np.full((2, 2), 64, np.int32)
    boxes, classes = np.ones((2, 9, 4), np.float32), np.full((2, 9), -1, np.int32)
    run = lambda v: model.apply(v, images, sizes, boxes, classes, method="masks_of_boxes")  # noqa: E731
    found = jax.eval_shape(run, variables)
    assert found.shape == (2, 9, side, side) and found.dtype == jnp.float32


@pytest.mark.parametrize(("height", "width"), [(153, 171), (64, 96), (33, 250)])
def test_c4_takes_images_of_any_size(height, width):
    model, variables, _ = trace(C4)
    images, sizes = np.zeros((1, height, width, 3), np.uint8), np.array([[height, width]], np.int32)
    (res4,) = jax.eval_shape(lambda v: model.apply(v, images, sizes, method="features"), variables)
    assert res4.shape == (1, -(-height // 16), -(-width // 16), 32)
    found = jax.eval_shape(lambda v: model.apply(v, images, sizes, method="detect"), variables)
    assert found.masks.shape == (1, 6, 14, 14)


def test_a_pyramid_takes_multiples_of_32_only():
    model, variables, _ = trace({})
    with pytest.raises(ValueError, match="image is padded to 153x160; both sides must be multiples of 32"):
        jax.eval_shape(
            lambda v: model.apply(
                v, np.zeros((1, 153, 160, 3), np.uint8), np.ones((1, 2), np.int32), method="features"
            ),
            variables,
        )


def test_anchors_of_c4_are_all_sizes_on_one_level():
    """Sizes outermost, ratios within, at every cell of stride 16."""
    model, _, _ = trace(C4 | {"rpn.anchor_sizes": (32, 64), "rpn.aspect_ratios": (0.5, 2.0)})
    (anchors,) = model.apply({}, [jnp.zeros((1, 2, 3, 1))], method="anchors")
    assert anchors.shape == (2 * 3 * 4, 4) and model.strides == (16,)
    size = anchors[:, 2:] - anchors[:, :2]
    np.testing.assert_allclose(np.sqrt(size.prod(1))[:4], [32, 32, 64, 64], rtol=1e-5)
    np.testing.assert_allclose((size[:, 1] / size[:, 0])[:4], [0.5, 2, 0.5, 2], rtol=1e-5)
    np.testing.assert_allclose(
        (anchors[:, :2] + anchors[:, 2:])[::4] / 2, [[x, y] for y in (0, 16) for x in (0, 16, 32)]
    )


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


@pytest.mark.parametrize("changes", [{}, CASCADE, C4], ids=["fpn", "cascade", "c4"])
@pytest.mark.parametrize("loss", ["equalization", "sigmoid_cross_entropy", "softmax_cross_entropy"])
def test_annotated_classes_reach_the_loss(monkeypatch, changes, loss):
    """Of each stage, as [B,1,K]; and None where the batch has none."""
    calls = []
    real = getattr(losses, f"{loss}_loss")

    def spy(*args, annotated_classes, **options):
        calls.append(None if annotated_classes is None else annotated_classes.shape)
        return real(*args, annotated_classes=annotated_classes, **options)

    monkeypatch.setattr(losses, f"{loss}_loss", spy)
    name = {"equalization": "eql"}.get(loss, loss.partition("_")[0])
    stages = 3 if changes is CASCADE else 1
    trace(changes | {"box_head.loss": name})
    assert calls == [None] * stages
    trace(changes | {"box_head.loss": name}, annotated_classes=np.ones((2, K), bool))
    assert calls[stages:] == [(2, 1, K)] * stages


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
