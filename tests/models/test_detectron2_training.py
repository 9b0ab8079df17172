"""Training with detectron2's weights follows detectron2: labels, samples, losses, gradients and three steps of SGD.

Two images of 160 x 192 with eight objects each. The network is frozen up to res2 (FREEZE_AT 2), so res2 determines
everything that is trained: the recorded res2 of both images stands in for them (one is a photograph and is not kept
here; the other one is, and its res2 is compared). Strict tests take detectron2's samples, since the exchange of two
proposals moves the picks of the fixed sampling rule; the loose ones sample for themselves.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eql_jax.convert.table import detectron2_table, find_rule
from eql_jax.data.polygons import crop_mask
from eql_jax.losses import tail_mask_from_threshold
from eql_jax.models import trainable_mask
from eql_jax.models.mask_rcnn import BOX_WEIGHTS
from eql_jax.models.structures import ClassRules
from eql_jax.models.targets import GroundTruth, roi_targets, rpn_targets
from eql_jax.ops import crop_and_resize_masks, encode_boxes
from eql_jax.training.compatibility import flatten
from eql_jax.training.optimizer import make_optimizer
from tests.models import training_checks
from tests.models.golden import CONFIG, RELATIVE, TESTDATA, WEIGHTS, load_golden, parse_polygons, relative_difference
from tests.models.training_checks import TERMS, with_tail

RECORD = json.loads((TESTDATA / "detectron2_training.json").read_text())
SLOTS = 128  # foreground slots of 512 RoIs


@pytest.fixture(scope="module")
def golden():
    return load_golden(WEIGHTS, CONFIG, TESTDATA / "detectron2_training.npz")


@pytest.fixture(scope="module")
def truth(golden):
    """The objects of both images; masks cropped to their boxes at 112 x 112, as the input pipeline makes them."""
    a = golden.arrays
    masks = [
        [crop_mask(parts, box, mask_size=112) for parts, box in zip(polygons(a, i), a[f"gt_boxes{i}"], strict=True)]
        for i in range(2)
    ]
    boxes, classes = (np.stack([a[f"gt_{k}{i}"] for i in range(2)]) for k in ("boxes", "classes"))
    return GroundTruth(jnp.asarray(boxes), jnp.asarray(classes, jnp.int32), jnp.zeros((2, 8), bool), np.array(masks))


@pytest.fixture(scope="module")
def tail_mask(golden):
    mask = tail_mask_from_threshold(golden.arrays["freq"], golden.config.model.eql.threshold)
    assert 0 < mask.sum() < 60
    return mask


@pytest.fixture(scope="module")
def samples(golden, truth):
    """detectron2's samples as this model's targets."""
    return training_checks.samples(golden, truth)


@pytest.fixture(scope="module")
def rasterised(golden, samples):
    """Mask targets of the foreground slots as detectron2 makes them."""
    return training_checks.rasterised(golden, samples[1])


def polygons(arrays, image):
    return parse_polygons(arrays[f"polys{image}"])


def fake_pyramid():
    """Feature maps of the right sizes, for the anchors."""
    return [np.zeros((2, h, w, 1)) for h, w in ((40, 48), (20, 24), (10, 12), (5, 6), (3, 3))]


def foreground(golden, array):
    """[2, slots or more, ..] -> the foreground RoIs of image 0, then of image 1."""
    return np.concatenate([np.asarray(array)[i, :n] for i, n in enumerate(golden.arrays["num_fg"])])


def images():
    return jnp.zeros((2, 160, 192, 3), jnp.uint8), jnp.full((2, 2), 160, jnp.int32).at[:, 1].set(192)


def fixed_losses(golden, samples, truth, tail_mask, mask_targets):
    """params -> the five losses on detectron2's samples."""

    def losses(model):
        pyramid = model.features(*images(), train=True)
        terms = model.rpn_losses(model.rpn(pyramid), samples[0])
        return terms | model.roi_losses(pyramid, images()[1], samples[1], truth, ClassRules(), mask_targets)

    def run(params):
        variables = {**golden.variables, "params": params}
        model = with_tail(golden.model, tail_mask)
        with golden.from_res2():
            terms = model.apply(variables, method=losses)
        return sum(terms[k] for k in TERMS), terms

    return run


def test_res2_of_the_drawn_image(golden):
    """The frozen stages, from the pixels to the recorded res2."""
    size = jnp.array([[160, 192]], jnp.int32)

    def run(model, image, size):
        return model.backbone(model.normalize(image, size), train=True)[0]

    found = golden.apply(run, golden.padded_image("image1"), size)
    assert relative_difference(found, golden.nhwc("res2")[1:]) <= RELATIVE


def test_anchor_labels_and_matches(golden, truth):
    """Labels after sampling by the fixed rule, and the deltas to the matched objects: every anchor."""
    anchors = np.concatenate(golden.model.bind(golden.variables).anchors(fake_pyramid()))
    for i in range(2):
        gt = jax.tree.map(lambda x, i=i: x[i], truth)
        found = rpn_targets(jnp.asarray(anchors), gt, None, golden.config.model.rpn, rule="spread")
        labels = golden.arrays[f"rpn_labels{i}"]
        np.testing.assert_array_equal(found.labels, labels)
        assert (labels >= 0).sum() == 256 and (labels == 1).sum() == len(golden.arrays[f"rpn_matched_gt_pos{i}"])
        matched = golden.arrays[f"rpn_matched_gt_pos{i}"]
        expected = encode_boxes(matched, anchors[labels == 1], weights=(1, 1, 1, 1))
        np.testing.assert_allclose(found.deltas[labels == 1], expected, atol=1e-6)


def test_roi_sampling(golden, truth):
    """The recorded RoIs as proposals: matching and the fixed rule give their recorded classes and objects back."""
    for i in range(2):
        gt = jax.tree.map(lambda x, i=i: x[i], truth)
        rois = jnp.asarray(golden.arrays[f"roi_boxes{i}"])
        config = golden.config.model.roi
        found = roi_targets(
            rois, jnp.ones(512, bool), gt, None, config, num_classes=60, box_weights=BOX_WEIGHTS, rule="spread"
        )
        recorded = golden.arrays[f"roi_gt_classes{i}"]
        n = int(golden.arrays["num_fg"][i])
        # All foreground RoIs are taken, then the objects themselves, appended as proposals; background is spread.
        np.testing.assert_array_equal(found.classes[:n], recorded[:n])
        np.testing.assert_array_equal(found.boxes[:n], rois[:n])
        np.testing.assert_array_equal(found.classes[n : n + 8], gt.classes)
        np.testing.assert_array_equal(found.classes[n + 8 :], np.full(512 - n - 8, 60))
        np.testing.assert_array_equal(gt.boxes[found.matched[:n]], golden.arrays[f"roi_gt_boxes{i}"])


def test_mask_targets_both_ways(golden, samples, truth, rasterised):
    """Rasterised polygons equal detectron2's in every cell; the crops of 112 x 112 masks in 98.5 %."""
    recorded = np.unpackbits(golden.arrays["mask_targets_packed"], axis=-1)[..., :28].astype(bool)
    np.testing.assert_array_equal(foreground(golden, rasterised), recorded)
    cropped = jax.vmap(crop_and_resize_masks)(truth.masks, truth.boxes, samples[1].boxes, samples[1].matched)
    assert (foreground(golden, cropped) == recorded).mean() >= 0.985


@pytest.fixture(scope="module")
def step(golden, samples, truth, tail_mask, rasterised):
    """(params, mask targets) -> ((total, losses), gradients), compiled once."""

    def run(params, targets):
        losses = fixed_losses(golden, samples, truth, tail_mask, targets)
        return jax.value_and_grad(losses, has_aux=True)(params)

    return jax.jit(run)


def test_losses_from_the_recorded_samples(golden, step, rasterised, samples, truth):
    """1e-5 with detectron2's mask targets; the mask loss within 2 % with the cropped ones."""
    (_, terms), _ = step(golden.variables["params"], rasterised)
    for name, theirs in TERMS.items():
        assert float(terms[name]) == pytest.approx(float(golden.arrays[f"loss/{theirs}"]), rel=1e-5), name
    assert terms["num_foreground"] == 54 and terms["num_positive_anchors"] == 73
    cropped = jax.vmap(crop_and_resize_masks)(
        truth.masks, truth.boxes, samples[1].boxes[:, :SLOTS], samples[1].matched[:, :SLOTS]
    )
    (_, fast), _ = step(golden.variables["params"], np.asarray(cropped))
    assert float(fast["mask"]) == pytest.approx(float(terms["mask"]), rel=0.02) and fast["cls"] == terms["cls"]


def test_gradients_of_every_parameter(golden, step, rasterised):
    """2e-4 of the largest entry of each of the 84 trained parameters, in the mask head 1e-3; the frozen ones get none.

    There a sum before a ReLU is 0 to the last digits of float32: on one processor (AMD) it falls as in the recorded
    run, all within 1e-4, on another (Intel) it does not: 5e-4 in one layer of the head, 1.4e-4 in one of the backbone.
    """
    _, gradients = step(golden.variables["params"], rasterised)
    table = detectron2_table(golden.config, channels="bgr")
    with np.load(TESTDATA / "detectron2_gradients.npz") as data:
        expected = dict(data)
    worst = {}
    for path, gradient in flatten({"params": gradients}).items():
        rule, name = find_rule(path, table)
        if name in expected:
            theirs = rule.transform.forward(expected.pop(name))
            worst[name] = relative_difference(gradient, theirs)
        else:
            assert path.startswith(("params/backbone/stem/", "params/backbone/res2_")), path
            assert not np.asarray(gradient).any(), path
    assert len(worst) == 84 and not expected
    over = {k: v for k, v in worst.items() if v > (1e-3 if "mask_head" in k else 2e-4)}
    assert not over, over


def make_sgd(golden):
    """The optimizer of the recorded runs."""
    config = golden.config.copy_and_resolve_references()
    with config.unlocked():
        o, recorded = config.optimizer, RECORD["optimizer"]
        o.name, o.schedule, o.warmup_steps, o.clip_norm = "sgd", "constant", 0, 0.0
        o.learning_rate, o.momentum, o.weight_decay = (recorded[k] for k in ("lr", "momentum", "weight_decay"))
    params = golden.variables["params"]
    return make_optimizer(config, params, trainable=trainable_mask(params, config)).transform


def test_three_steps_of_sgd_on_the_recorded_samples(golden, step, rasterised):
    """Losses of every step, and the accumulated updates within 1e-2 of the largest."""
    optimizer, start = make_sgd(golden), golden.variables["params"]
    params, state = start, None
    state = optimizer.init(params)
    for recorded in RECORD["fixed_roi_run"]:
        (_, terms), gradients = step(params, rasterised)
        for name, theirs in TERMS.items():
            assert float(terms[name]) == pytest.approx(recorded[theirs], abs=1e-3), name
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)

    table = detectron2_table(golden.config, channels="bgr")
    with np.load(TESTDATA / "detectron2_three_steps.npz") as data:
        expected = dict(data)
    first, last = flatten({"params": start}), flatten({"params": params})
    worst, largest = 0.0, 0.0
    for path in first:
        rule, name = find_rule(path, table)
        before, after = np.asarray(first[path]), np.asarray(last[path])
        if name not in expected:
            assert before.size >= 10_000 or (before == after).all(), path
            continue
        theirs = rule.transform.forward(expected.pop(name)) - before
        largest = max(largest, np.abs(theirs).max())
        worst = max(worst, np.abs((after - before) - theirs).max())
    assert not expected and largest > 5e-4
    assert worst <= 1e-2 * largest, (worst, largest)


def test_three_steps_end_to_end(golden, truth, tail_mask):
    """Proposals, matching and sampling included. Looser, since equal logits may exchange the samples of the rule."""
    optimizer, params = make_sgd(golden), golden.variables["params"]
    state = optimizer.init(params)
    image, size = images()
    batch = {"image": image, "image_size": size, "gt_masks": truth.masks}
    batch |= {"gt_boxes": truth.boxes, "gt_classes": truth.classes, "gt_ignore": truth.ignore}
    keys = jax.random.split(jax.random.key(0), 2)
    model = with_tail(golden.model, tail_mask)

    @jax.jit
    def gradients(params):
        def losses(params):
            variables = {**golden.variables, "params": params}
            with golden.from_res2():
                terms = model.apply(variables, batch, keys, rule="spread", method="losses")
            return sum(terms[k] for k in TERMS), terms

        return jax.grad(losses, has_aux=True)(params)

    for recorded, tolerance in zip(RECORD["end_to_end_run"], (0.01, 0.1, 0.1), strict=True):
        found, terms = gradients(params)
        for name, theirs in TERMS.items():
            # The mask loss has the cropped targets, which are within 2 % of the rasterised ones.
            allowed = max(tolerance, 0.02 * recorded[theirs]) if name == "mask" else tolerance
            assert float(terms[name]) == pytest.approx(recorded[theirs], abs=allowed), name
        updates, state = optimizer.update(found, state, params)
        params = optax.apply_updates(params, updates)
