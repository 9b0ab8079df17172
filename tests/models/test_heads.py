"""Box and mask heads with convolutions and norms against NumPy, C4's shared features, masks of given boxes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.class_losses import ClassFrequencies
from eql_jax.class_losses.sigmoid import Sigmoid
from eql_jax.models import init_model
from eql_jax.models.box_head import BoxHead, CosineClassifier
from eql_jax.models.mask_head import MaskHead
from eql_jax.models.mask_rcnn import MaskRCNN
from eql_jax.models.structures import ClassRules
from eql_jax.models.targets import GroundTruth, rematched_targets
from tests.models.test_mask_rcnn import C4, CASCADE, K, tiny_batch, tiny_model

ROWS, SIDE, CHANNELS = 5, 4, 6


def drawn(module, *args):
    """Variables of a module with every entry drawn, statistics of norms positive."""
    rng = np.random.default_rng(0)
    variables = module.init(jax.random.key(0), *args)
    draw = lambda path, x: jnp.asarray(  # noqa: E731
        rng.uniform(0.5, 2, x.shape) if path[-1].key == "var" else rng.normal(size=x.shape) * 0.5, jnp.float32
    )
    return jax.tree_util.tree_map_with_path(draw, variables)


def numpy_conv(x, kernel):
    """3x3, stride 1, padding 1, NHWC, by the definition."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i in range(3):
        for j in range(3):
            out += padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j]
    return out


def numpy_group_norm(x, scale, bias, groups):
    """Per row and group of neighbouring channels over the whole map, as PyTorch's GroupNorm."""
    parts = x.reshape(*x.shape[:3], groups, -1)
    mean = parts.mean(axis=(1, 2, 4), keepdims=True)
    var = parts.var(axis=(1, 2, 4), keepdims=True)
    return ((parts - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias


def layer(x, p, statistics=None):
    """Convolution, its norm or bias, ReLU."""
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), p)
    x = numpy_conv(x, p["kernel"])
    if "bias" in p:
        x = x + p["bias"]
    elif statistics is None:
        x = numpy_group_norm(x, p["norm"]["scale"], p["norm"]["bias"], 32 if x.shape[-1] % 32 == 0 else 8)
    else:
        scale = p["norm"]["scale"] / np.sqrt(np.asarray(statistics["var"], np.float64) + 1e-5)
        x = (x - np.asarray(statistics["mean"], np.float64)) * scale + p["norm"]["bias"]
    return np.maximum(x, 0)


@pytest.mark.parametrize(("norm", "width"), [("none", 8), ("group_norm", 8), ("group_norm", 64), ("batch_norm", 8)])
def test_four_convolutions_and_one_layer(norm, width):
    """'4conv1fc': convolutions with norm or bias, ReLU after each; a layer on the flattened map; two linear outputs."""
    head = BoxHead(Sigmoid(ClassFrequencies(K)), num_fc=1, fc_dim=10, num_convs=4, conv_dim=width, norm=norm)
    pooled = np.random.default_rng(1).normal(size=(ROWS, SIDE, SIDE, CHANNELS)).astype(np.float32)
    variables = drawn(head, pooled)
    hidden = head.apply(variables, pooled, method="hidden")
    logits, deltas = head.apply(variables, pooled)

    p, stats = variables["params"], variables.get("batch_stats", {})
    assert set(p) == {"conv1", "conv2", "conv3", "conv4", "fc1", "cls_score", "bbox_pred"}
    x = pooled.astype(np.float64)
    for i in range(1, 5):
        x = layer(x, p[f"conv{i}"], stats[f"conv{i}"]["norm"] if stats else None)
    linear = lambda x, p: x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)  # noqa: E731
    x = np.maximum(linear(x.reshape(ROWS, -1), p["fc1"]), 0)
    assert (x > 0).any()
    for found, expected in (
        (hidden, x),
        (logits, linear(x, p["cls_score"])),
        (deltas, linear(x, p["bbox_pred"]).reshape(ROWS, K, 4)),
    ):
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("norm", ["none", "group_norm", "batch_norm"])
def test_mask_head_with_norms(norm):
    head = MaskHead(K, num_convs=2, channels=8, norm=norm)
    pooled = np.random.default_rng(1).normal(size=(ROWS, SIDE, SIDE, CHANNELS)).astype(np.float32)
    classes = np.array([0, 3, 3, K - 1, 2])
    variables = drawn(head, pooled, classes)
    found = head.apply(variables, pooled, classes)

    p, stats = variables["params"], variables.get("batch_stats", {})
    x = pooled.astype(np.float64)
    for i in (1, 2):
        x = layer(x, p[f"conv{i}"], stats[f"conv{i}"]["norm"] if stats else None)
    up = np.zeros((ROWS, 2 * SIDE, 2 * SIDE, 8))
    kernel = np.asarray(p["deconv"]["kernel"], np.float64)
    for i in range(2):
        for j in range(2):
            up[:, i::2, j::2] = x @ kernel[i, j]
    up = np.maximum(up + np.asarray(p["deconv"]["bias"], np.float64), 0)
    kernel, bias = (np.asarray(p["predictor"][k], np.float64) for k in ("kernel", "bias"))
    expected = np.stack([up[r] @ kernel[:, c] + bias[c] for r, c in enumerate(classes)])
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_cosine_classifier_by_hand():
    """Temperature times the cosine, plus bias; a row of zeros has the bias alone, and finite gradients."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5)).astype(np.float32)
    x[1] = 0
    layer = CosineClassifier(4, 20.0, jnp.float32, nn.initializers.normal(1.0), nn.initializers.normal(1.0))
    params = layer.init(jax.random.key(0), x)
    kernel, bias = (np.asarray(params["params"][k], np.float64) for k in ("kernel", "bias"))
    norms = np.linalg.norm(x, axis=1, keepdims=True) * np.linalg.norm(kernel, axis=0)
    cosines = np.divide(x @ kernel, norms, out=np.zeros((3, 4)), where=norms > 0)
    np.testing.assert_allclose(layer.apply(params, x), 20 * cosines + bias, atol=1e-4)
    grads = jax.grad(lambda p, x: jnp.sum(layer.apply(p, x) ** 2), argnums=(0, 1))(params, x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.slow
def test_c4_shares_the_features_of_foreground_between_boxes_and_masks():
    """The losses, and gradients of res5, are those of pooling and running res5 a second time for the masks."""
    model = tiny_model(C4 | {"backbone.norm": "group_norm"})
    variables = init_model(model, jax.random.key(0))
    rng = np.random.default_rng(0)
    res4 = jnp.asarray(rng.normal(size=(2, 4, 6, 32)), jnp.float32)
    objects = np.array([[[4, 4, 40, 40], [30, 20, 90, 60]]] * 2, np.float32)
    masks = jnp.asarray(rng.random((2, 2, 14, 14)) < 0.5)
    gt = GroundTruth(jnp.asarray(objects), jnp.array([[1, 0], [3, 2]]), jnp.zeros((2, 2), bool), masks)
    rois = np.concatenate([objects + 1, objects - 1, rng.uniform([0, 0, 30, 30], [20, 20, 60, 60], (2, 12, 4))], axis=1)
    match = lambda b, g: rematched_targets(  # noqa: E731
        b, jnp.ones(16, bool), g, iou=0.8, num_classes=K, box_weights=(10.0, 10.0, 5.0, 5.0)
    )
    sample = jax.vmap(match)(jnp.asarray(rois, jnp.float32), gt).targets
    assert (np.asarray(sample.classes) < K).sum(1).tolist() == [4, 4]  # as many as there are slots
    size = jnp.array([[64, 96]] * 2)

    def total(params, losses):
        args = ([res4], size, sample, gt, ClassRules())
        terms = model.apply({"params": params}, method=lambda m: losses(m, *args))
        return terms["cls"] + terms["box"] + terms["mask"], terms

    run = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)
    (_, shared), grad = run(variables["params"], type(model).roi_losses)
    (_, separate), expected = run(variables["params"], MaskRCNN.roi_losses)
    for name in separate:
        np.testing.assert_allclose(shared[name], separate[name], rtol=1e-5, err_msg=name)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected["res5"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), grad["res5"], expected["res5"])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, CASCADE, C4], ids=["fpn", "cascade", "c4"])
def test_masks_of_the_detected_boxes_are_those_of_the_detections(changes):
    model = tiny_model(changes)
    variables = init_model(model, jax.random.key(0))
    batch = tiny_batch(batch=1)

    @jax.jit
    def run(variables):
        found = model.apply(variables, batch["image"], batch["image_size"], method="detect")
        args = (batch["image"], batch["image_size"], found.boxes, found.classes)
        return found, model.apply(variables, *args, method="masks_of_boxes")

    found, masks = run(variables)
    assert (found.classes >= 0).any() and np.ptp(masks) > 1e-4
    np.testing.assert_allclose(masks, found.masks, atol=1e-6)
