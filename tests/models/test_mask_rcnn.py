"""Mask R-CNN as a whole: heads that compute one class only, frozen parts, odd batches, and 1 against 4 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from eql_jax.class_losses import ClassFrequencies
from eql_jax.class_losses.sigmoid import Sigmoid
from eql_jax.models import build_model, init_model, trainable_mask
from eql_jax.models.box_head import BoxHead
from eql_jax.models.mask_head import MaskHead
from eql_jax.models.structures import ClassRules
from eql_jax.training.eval_step import make_detector
from eql_jax.training.mesh import make_mesh
from eql_jax.training.optimizer import make_optimizer
from eql_jax.training.state import create_state
from eql_jax.training.train_step import LOSS_TERMS, image_keys, make_train_step
from tests.synthetic import synthetic_batch

K = 7


CASCADE = {"cascade.ious": (0.5, 0.6, 0.7), "box_head.class_agnostic_boxes": True}
C4 = {"architecture": "c4", "box_head.pool_size": 8, "mask_head.num_convs": 0, "rpn.anchor_sizes": (12, 24, 48, 96)}


def tiny_config(**changes):
    c = base.get_config()
    m = c.model
    m.backbone.update(depth=18, width=8, norm="batch_norm", freeze_at=0)
    m.fpn.channels = 16
    m.rpn.update(anchor_sizes=(12, 24, 48, 96, 128), batch_per_image=32, pre_nms_train=50, post_nms_train=40)
    m.rpn.update(pre_nms_test=50, post_nms_test=40)
    m.roi.update(batch_per_image=16, canonical_size=56)
    m.box_head.fc_dim = 32
    m.mask_head.update(num_convs=1, channels=16)
    m.test.update(detections_per_image=20, candidates=200)
    c.train.batch_size = 4
    c.optimizer.update(learning_rate=0.01, warmup_steps=1)
    for key, value in changes.items():
        c.update_from_flattened_dict({key: value})
    return c


def tiny_model(changes):
    """The model of tiny_config with `changes` to config.model."""
    frequencies = ClassFrequencies(K, tail=np.zeros(K, bool))
    return build_model(tiny_config(**{f"model.{k}": v for k, v in changes.items()}), K, frequencies)


def tiny_batch(objects=5, batch=4, seed=0, max_objects=12):
    return synthetic_batch(
        batch=batch,
        height=64,
        width=96,
        num_classes=K,
        objects=objects,
        max_objects=max_objects,
        mask_size=28,
        seed=seed,
    )


@functools.cache
def loss_and_gradient(freeze_at=2):
    """config, variables and a jitted (params, batch) -> ((sum of losses, terms), gradient)."""
    config = tiny_config(**{"model.backbone.freeze_at": freeze_at})
    model = build_model(config, K, ClassFrequencies(K, tail=np.zeros(K, bool)))
    variables = init_model(model, jax.random.key(0))

    def total(params, batch):
        keys = image_keys(0, jnp.int32(0), batch["image_id"])
        everything = variables | {"params": params}
        terms, _ = model.apply(everything, batch, keys, method="losses", mutable=["batch_stats"])
        return sum(terms[t] for t in LOSS_TERMS), terms

    return config, variables, jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_deltas_of_one_class_are_rows_of_all_deltas(class_agnostic):
    head = BoxHead(Sigmoid(ClassFrequencies(K)), fc_dim=8, class_agnostic_boxes=class_agnostic)
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(10, 3, 3, 4)).astype(np.float32)
    params = head.init(jax.random.key(0), pooled)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    classes = rng.integers(0, K, 10)
    _, all_deltas = head.apply(params, pooled)
    hidden = head.apply(params, pooled, method="hidden")
    one = head.apply(params, hidden, jnp.asarray(classes), method="deltas_of")
    expected = np.asarray(all_deltas)[np.arange(10), 0 if class_agnostic else classes]
    np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5)


def test_initial_scores_are_the_prior():
    head = BoxHead(Sigmoid(ClassFrequencies(K)), fc_dim=8, prior=0.001)
    pooled = np.zeros((2, 3, 3, 4), np.float32)
    logits, _ = head.apply(head.init(jax.random.key(0), pooled), pooled)
    np.testing.assert_allclose(jax.nn.sigmoid(logits), 0.001, rtol=1e-4)


def test_mask_logits_equal_the_predictor_over_all_classes():
    head = MaskHead(num_classes=K, num_convs=1, channels=6)
    rng = np.random.default_rng(1)
    pooled = rng.normal(size=(5, 4, 4, 6)).astype(np.float32)
    classes = np.array([0, 3, 3, K - 1, 2])
    params = head.init(jax.random.key(0), pooled, jnp.asarray(classes))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    got, intermediates = head.apply(params, pooled, jnp.asarray(classes), capture_intermediates=True)
    upsampled = np.maximum(np.asarray(intermediates["intermediates"]["deconv"]["__call__"][0]), 0)
    p = params["params"]
    everything = upsampled @ np.asarray(p["predictor"]["kernel"]) + np.asarray(p["predictor"]["bias"])
    np.testing.assert_allclose(got, everything[np.arange(5), :, :, classes], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_frozen_stages_get_no_gradient_and_are_masked():
    config, variables, run = loss_and_gradient()
    _, grads = run(variables["params"], tiny_batch(batch=1))
    mask = trainable_mask(grads, config)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        names = [p.key for p in path]
        frozen = names[0] == "backbone" and (names[1] == "stem" or names[1].startswith("res2_"))
        trainable = functools.reduce(lambda tree, name: tree[name], names, mask)
        assert trainable == (not frozen), names
        if frozen:
            assert not np.any(np.asarray(grad)), names
    assert np.any(np.asarray(grads["backbone"]["res3_0"]["conv1"]["kernel"]))


@pytest.mark.slow
@pytest.mark.parametrize("objects", [0, 1, 12])
def test_losses_are_finite_for_any_number_of_objects(objects):
    """None, one, and as many as the padding holds (300 and more are tested on the operations)."""
    _, variables, run = loss_and_gradient()
    (_, terms), grads = run(variables["params"], tiny_batch(objects=objects, batch=1))
    assert all(np.isfinite(v) for v in terms.values()), terms
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    if objects == 0:
        assert terms["num_foreground"] == 0 and terms["mask"] == 0 and terms["box"] == 0
    else:
        assert terms["num_foreground"] > 0


def test_the_classification_loss_is_that_of_the_config():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 6, K + 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(-1, K + 1, (2, 6)))
    frequencies = ClassFrequencies(K, tail=np.ones(K, bool))

    def loss(exempt=None, columns=K, **changes):
        config = tiny_config(**{f"model.{k.replace('__', '.')}": v for k, v in changes.items()})
        model = build_model(config, K, frequencies)
        of_head = lambda m: m.classification_loss(m.box_head, logits[..., :columns], labels, ClassRules(exempt))  # noqa: E731
        return float(model.apply({}, method=of_head))

    rows = np.asarray(labels).reshape(-1)
    z = np.asarray(logits, np.float64).reshape(-1, K + 1)[rows >= 0]
    rows = rows[rows >= 0]
    one_hot = np.eye(K + 1)[rows]
    softmax = np.mean(np.log(np.exp(z).sum(1)) - (z * one_hot).sum(1))
    bce = np.logaddexp(0, z[:, :K]) - z[:, :K] * one_hot[:, :K]
    sigmoid = bce.sum() / len(rows)
    # All classes in the tail: foreground rows keep their positive alone, background rows keep all negatives.
    keep = np.where(rows[:, None] == K, 1, one_hot[:, :K])
    np.testing.assert_allclose(loss(box_head__loss="softmax", columns=K + 1), softmax, rtol=1e-5)
    np.testing.assert_allclose(loss(box_head__loss="sigmoid"), sigmoid, rtol=1e-5)
    np.testing.assert_allclose(loss(), (keep * bce).sum() / len(rows), rtol=1e-5)
    no_background = one_hot[:, :K]
    expected = (no_background * bce).sum() / len(rows)
    np.testing.assert_allclose(loss(eql__background_keeps_negatives=False), expected, rtol=1e-5)
    # Verified classes keep the weight 1: with all of them verified EQL is plain sigmoid.
    np.testing.assert_allclose(loss(exempt=jnp.ones((2, K), bool)), sigmoid, rtol=1e-5)


def test_padding_of_the_image_does_not_change_normalisation():
    config = tiny_config()
    model = build_model(config, K)
    image = np.full((1, 64, 64, 3), 200, np.uint8)
    x = model.apply({}, image, jnp.array([[40, 50]]), method="normalize")
    expected = (200 - np.array(config.model.pixel_mean)) / np.array(config.model.pixel_std)
    np.testing.assert_allclose(x[0, 39, 49], expected, rtol=1e-5)
    assert not np.any(x[0, 40:]) and not np.any(x[0, :, 50:])


def test_detections_are_inside_the_image_and_sorted():
    config = tiny_config()
    model = build_model(config, K)
    variables = init_model(model, jax.random.key(0))
    batch = tiny_batch(batch=2)
    batch["image_size"] = np.array([[50, 80], [64, 96]], np.int32)
    found = make_detector(model, config)(variables, batch)
    assert found["boxes"].shape == (2, 20, 4) and found["masks"].shape == (2, 20, 28, 28)
    assert found["exact"].all()
    assert np.all(np.diff(found["scores"]) <= 0)
    assert np.all(found["boxes"] >= 0)
    assert np.all(found["boxes"][0] <= [80, 50, 80, 50])


def run_steps(config, batches, devices):
    """Trains from scratch on `batches`; returns the metrics of each step, and the compiled step as text."""
    mesh = make_mesh(config, devices=jax.devices()[:devices])
    model = build_model(config, K, ClassFrequencies(K, tail=np.zeros(K, np.float32)))
    variables = init_model(model, jax.random.key(0, impl="rbg"))  # compiles in a fifth of the time
    params = variables["params"]
    optimizer = make_optimizer(config, params, trainable=trainable_mask(params, config)).transform
    state = create_state(variables, optimizer, ema=False)
    step = make_train_step(model, optimizer, config, mesh)
    with jax.set_mesh(mesh):
        compiled = step.jitted.lower(state, batches[0]).compile()
    values = []
    for batch in batches:
        state, metrics = compiled(state, batch)
        values.append({k: float(v) for k, v in metrics.items()})
    return values, compiled.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, CASCADE, C4], ids=["fpn", "cascade", "c4"])
def test_four_devices_give_the_losses_of_one_by_all_reduce_alone(changes):
    """Same global batch. Summation orders differ by device, and a swap of two proposals whose scores agree to the last
    bits is legitimate, so after the first step only 1e-3 is asked for. Live BatchNorm is part of it.

    The images stay on their devices: sums are all that goes between them."""
    config = tiny_config(**{f"model.{k}": v for k, v in changes.items()})
    batches = [tiny_batch(seed=i) for i in range(1 if changes else 5)]
    one, _ = run_steps(config, batches, 1)
    four, text = run_steps(config, batches, 4)
    for term in ("loss", *(f"loss_{t}" for t in LOSS_TERMS)):
        np.testing.assert_allclose(four[0][term], one[0][term], rtol=1e-5, err_msg=term)
    np.testing.assert_allclose([m["loss"] for m in four], [m["loss"] for m in one], rtol=1e-3)
    for collective in ("all-gather(", "all-to-all(", "collective-permute("):
        assert collective not in text, collective
    assert "all-reduce(" in text


@pytest.mark.slow
def test_accumulation_averages_the_parts():
    """With the same image in both parts and GroupNorm, two parts give the gradient of the whole batch."""
    batch = tiny_batch(batch=1)
    twins = {k: np.concatenate([v, v]) for k, v in batch.items()}
    changes = {"model.backbone.norm": "group_norm", "train.batch_size": 2}
    (whole,), _ = run_steps(tiny_config(**changes), [twins], 1)
    (parts,), _ = run_steps(tiny_config(**changes, **{"train.gradient_accumulation": 2}), [twins], 1)
    np.testing.assert_allclose(parts["grad_norm"], whole["grad_norm"], rtol=1e-4)
    np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "eql"])
def test_calibrated_scores(loss):
    """NorCal by hand: p / n^gamma over its sum with background, of one class over its own complement for sigmoids."""
    counts = np.array([1, 4, 9, 16, 25, 36, 49])
    config = tiny_config(**{"model.box_head.loss": loss, "model.test.norcal_gamma": 0.5})
    model = build_model(config, K, ClassFrequencies(K, image_counts=counts))
    p = np.random.default_rng(0).dirichlet(np.ones(K + 1), (2, 3))
    found = model.apply({}, jnp.asarray(p[..., :K], jnp.float32), method="calibrated")
    divided = p[..., :K] / np.sqrt(counts)
    rest = p[..., K:] + divided.sum(-1, keepdims=True) if loss == "softmax" else divided + 1 - p[..., :K]
    np.testing.assert_allclose(found, divided / rest, rtol=1e-5)
    off = tiny_config(**{"model.box_head.loss": loss})
    same = build_model(off, K).apply({}, jnp.asarray(p[..., :K]), method="calibrated")
    np.testing.assert_array_equal(same, jnp.asarray(p[..., :K]))
