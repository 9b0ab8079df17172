"""The cascade's stages by hand and in NumPy: boxes handed on, matching, losses, averaged scores, gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from eql_jax.class_losses import ClassFrequencies
from eql_jax.models import build_model, cascade
from eql_jax.models.structures import ClassRules
from eql_jax.models.targets import GroundTruth, RoITargets, rematched_targets

K, B, R = 4, 2, 12
SIZE = np.array([[64, 96], [50, 80]], np.int32)
WEIGHTS = [np.array([w, w, w / 2, w / 2]) for w in (10.0, 20.0, 30.0)]


def make_model(loss="eql", **changes):
    c = base.get_config().model
    c.with_mask = False
    c.fpn.channels = 8
    c.roi.update(batch_per_image=R, canonical_size=56, sampling_ratio=1)
    c.box_head.update(loss=loss, num_fc=1, fc_dim=16, pool_size=3, class_agnostic_boxes=True)
    c.cascade.ious = (0.5, 0.6, 0.7)
    c.update_from_flattened_dict(changes)
    whole = base.get_config()
    whole.model = c
    return build_model(whole, K, ClassFrequencies(K, tail=np.zeros(K, bool)))


def boxes_in(rng, size, count):
    """Boxes of 8 to 40 pixels, some of which reach beyond the image."""
    centre = rng.uniform(0, size[::-1], (count, 2))
    half = rng.uniform(4, 20, (count, 2))
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


@functools.cache
def example(loss="eql"):
    """Model, variables that move boxes by a fair part of their size, pyramid, boxes."""
    model = make_model(loss)
    rng = np.random.default_rng(1)
    pyramid = [jnp.asarray(rng.normal(size=(B, 64 // s, 96 // s, 8)), jnp.float32) for s in (4, 8, 16, 32, 64)]
    boxes = np.stack([boxes_in(rng, size, R) for size in SIZE])
    init = model.init(jax.random.key(0), pyramid, boxes, SIZE, method="box_outputs")
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape) / np.sqrt(x.shape[0]), jnp.float32)  # noqa: E731
    return model, jax.tree.map(draw, init), pyramid, boxes


def truth(rng):
    gt_boxes = np.stack([boxes_in(rng, size, 3) for size in SIZE])
    gt_boxes = np.clip(gt_boxes, 0, SIZE[:, None, [1, 0, 1, 0]]).astype(np.float32)
    classes = np.array([[0, 3, 1], [2, 1, -1]])
    return GroundTruth(jnp.asarray(gt_boxes), jnp.asarray(classes), jnp.zeros((B, 3), bool), jnp.zeros((B, 3, 0, 0)))


def numpy_decode(deltas, boxes, weights):
    deltas, boxes = deltas.astype(np.float64) / weights, boxes.astype(np.float64)
    size = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., 2:] + boxes[..., :2]) / 2 + deltas[..., :2] * size
    size = size * np.exp(np.minimum(deltas[..., 2:], np.log(1000 / 16)))
    return np.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def numpy_clip(boxes):
    return np.clip(boxes, 0, SIZE[:, None, [1, 0, 1, 0]])


def numpy_encode(target, boxes, weights):
    size, target_size = boxes[2:] - boxes[:2], target[2:] - target[:2]
    shift = ((target[2:] + target[:2]) - (boxes[2:] + boxes[:2])) / 2 / size
    return np.concatenate([shift, np.log(target_size / size)]) * weights


def numpy_match(boxes, gt_boxes, gt_classes, iou):
    """Class (K background, None for an empty box) and object of each box."""
    found = []
    for box in boxes.astype(np.float64):
        if not (box[2:] > box[:2]).all():
            found.append((None, None))
            continue
        overlaps = []
        for gt, label in zip(gt_boxes.astype(np.float64), gt_classes, strict=True):
            common = np.prod(np.maximum(np.minimum(box[2:], gt[2:]) - np.maximum(box[:2], gt[:2]), 0))
            union = np.prod(box[2:] - box[:2]) + np.prod(gt[2:] - gt[:2]) - common
            overlaps.append(common / union if label >= 0 else -1)
        best = int(np.argmax(overlaps))
        found.append((int(gt_classes[best]) if overlaps[best] >= iou else K, best))
    return found


# ---------------------------------------------------------------- matching


def test_boxes_are_matched_again_by_hand():
    """Against one 100 x 100 object: boxes of its height have IoU width / 100. Nothing is sampled or appended."""
    widths = [71, 69, 61, 59, 100, 0, 80]
    boxes = jnp.array([[0, 0, w, 100] for w in widths], jnp.float32)
    present = jnp.array([True] * 6 + [False])
    gt = GroundTruth(jnp.array([[0, 0, 100, 100.0]]), jnp.array([2]), jnp.array([False]), jnp.zeros((1, 0, 0)))
    for iou, classes in ((0.6, [2, 2, 2, K, 2, -1, -1]), (0.7, [2, K, K, K, 2, -1, -1])):
        found = rematched_targets(boxes, present, gt, iou=iou, num_classes=K, box_weights=(20.0, 20.0, 10.0, 10.0))
        assert found.targets.classes.tolist() == classes
        assert found.present.tolist() == [True] * 5 + [False, False]  # the empty box is gone for good
    # 71 wide -> 100: centre moves 14.5 of 71, times 20; width by log(100 / 71), times 10.
    np.testing.assert_allclose(found.targets.deltas[0], [20 * 14.5 / 71, 0, 10 * np.log(100 / 71), 0], atol=1e-5)
    np.testing.assert_array_equal(found.targets.deltas[4], 0)
    np.testing.assert_array_equal(found.targets.boxes[:5], boxes[:5])


def test_boxes_that_are_no_numbers_drop_out_and_no_object_leaves_background():
    boxes = jnp.array([[0, 0, 5, 5], [0, 0, jnp.nan, 5], [0, 0, jnp.inf, 5]], jnp.float32)
    gt = GroundTruth(jnp.zeros((1, 4)), jnp.array([-1]), jnp.array([False]), jnp.zeros((1, 0, 0)))
    found = rematched_targets(boxes, jnp.ones(3, bool), gt, iou=0.6, num_classes=K, box_weights=(1.0,) * 4)
    assert found.targets.classes.tolist() == [K, -1, -1] and np.isfinite(found.targets.boxes).all()


def test_ignored_boxes_take_no_part_in_a_stage_but_stay():
    boxes = jnp.array([[0, 0, 10, 10], [50, 50, 60, 60]], jnp.float32)
    gt = GroundTruth(jnp.array([[0, 0, 30, 30.0]]), jnp.array([1]), jnp.array([True]), jnp.zeros((1, 0, 0)))
    found = rematched_targets(boxes, jnp.ones(2, bool), gt, iou=0.6, num_classes=K, box_weights=(1.0,) * 4)
    assert found.targets.classes.tolist() == [-1, K] and found.present.all()


# ---------------------------------------------------------------- the stages


def test_weights_of_the_stages():
    model = make_model()
    assert model.stage_weights == ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
    assert model.sample_weights == (10, 10, 5, 5) and model.output_weights == (30, 30, 15, 15)


def stage_outputs(loss, boxes):
    """Logits and deltas of each stage on the boxes that NumPy makes of the stage before; the boxes of each stage."""
    model, variables, pyramid, _ = example(loss)
    run = jax.jit(lambda v, x, b, k: model.apply(v, k, x, b, method="run_stage"), static_argnums=3)
    outputs = []
    for stage in range(3):
        logits, deltas = (np.asarray(x, np.float64) for x in run(variables, pyramid, jnp.asarray(boxes), stage))
        outputs.append((logits, deltas, boxes))
        boxes = numpy_clip(numpy_decode(deltas, boxes, WEIGHTS[stage])).astype(np.float32)
    return outputs


@pytest.mark.parametrize("loss", ["eql", "softmax"])
def test_scores_are_averaged_and_boxes_are_the_last_ones(loss):
    model, variables, pyramid, boxes = example(loss)
    boxes = numpy_clip(boxes)
    found = jax.jit(functools.partial(model.apply, method="box_outputs"))(variables, pyramid, jnp.asarray(boxes), SIZE)
    stages = stage_outputs(loss, boxes)
    if loss == "softmax":
        exp = [np.exp(z - z.max(-1, keepdims=True)) for z, _, _ in stages]
        scores = [(e / e.sum(-1, keepdims=True))[..., :K] for e in exp]
    else:
        scores = [1 / (1 + np.exp(-z)) for z, _, _ in stages]
    assert np.abs(scores[0] - scores[2]).max() > 0.1  # the stages differ
    np.testing.assert_allclose(found.scores, sum(scores) / 3, atol=1e-5)
    np.testing.assert_allclose(found.boxes, stages[2][2], atol=1e-3)
    assert np.abs(found.boxes - boxes).max() > 1
    final = numpy_decode(np.asarray(found.deltas)[:, :, 0], np.asarray(found.boxes), np.array(model.output_weights))
    np.testing.assert_allclose(final, numpy_decode(stages[2][1], stages[2][2], WEIGHTS[2]), atol=5e-3)


def test_boxes_that_became_empty_stay_at_inference():
    """A box beyond the border is cut to nothing; its row keeps its place and its scores."""
    model, variables, pyramid, boxes = example()
    boxes = boxes.copy()
    boxes[0, 3] = [2000, 2000, 2010, 2010]
    found = model.apply(variables, pyramid, jnp.asarray(boxes), SIZE, method="box_outputs")
    np.testing.assert_array_equal(found.boxes[0, 3], [96, 64, 96, 64])
    assert np.isfinite(found.scores).all() and found.scores.shape == (B, R, K)


def sampled(boxes, gt):
    """All boxes as the sample of the first stage, but for one slot of padding; foreground need not come first."""
    targets = jax.vmap(
        lambda b, p, g: rematched_targets(b, p, g, iou=0.5, num_classes=K, box_weights=tuple(WEIGHTS[0]))
    )(jnp.asarray(boxes), jnp.ones((B, R), bool).at[1, R - 1].set(False), gt)
    return targets.targets


def near(gt, rng):
    """Boxes [B,R,4] near the objects, to have foreground in each stage."""
    objects = np.asarray(gt.boxes)[:, np.arange(R) % 2]
    size = np.concatenate([objects[..., 2:] - objects[..., :2]] * 2, axis=-1)
    return numpy_clip(objects + rng.normal(0, 0.08, objects.shape) * size).astype(np.float32)


@pytest.mark.parametrize("loss", ["eql", "sigmoid", "softmax"])
def test_losses_are_sums_over_stages_of_their_own_rois(loss):
    """Rows that drop out are really taken out here, and each stage divides by what is left."""
    model, variables, pyramid, _ = example(loss)
    tail = np.array([True, False, True, False])
    model = model.clone(frequencies=ClassFrequencies(K, tail=tail))
    rng = np.random.default_rng(5)
    gt = truth(rng)
    boxes = near(gt, rng)
    small = jax.tree.map(lambda x: x * 0.3, variables)
    # `push` carries one box far outside the image in the first stage: it is empty from the second on.
    sample = sampled(boxes, gt)
    rules = ClassRules()

    run = lambda v, k, b: model.apply(v, k, pyramid, b, method="run_stage")  # noqa: E731

    def push(deltas, stage):
        return deltas.at[0, 5].set(jnp.array([1e4, 0, 0, 0])) if stage == 0 else deltas

    def with_push(next_fun, args, kwargs, context):
        found = next_fun(*args, **kwargs)
        return (found[0], push(found[1], args[0])) if context.method_name == "run_stage" else found

    with nn.intercept_methods(with_push):
        terms = model.apply(small, pyramid, jnp.asarray(SIZE), sample, gt, rules, method="roi_losses")

    present = np.ones((B, R), bool)
    present[1, R - 1] = False
    stage_boxes, total = boxes.astype(np.float32), {"cls": 0.0, "box": 0.0}
    for stage, iou in enumerate((0.5, 0.6, 0.7)):
        logits, deltas = run(small, stage, jnp.asarray(np.where(present[..., None], stage_boxes, 0)))
        deltas = push(deltas, stage)
        z, d = np.asarray(logits, np.float64), np.asarray(deltas, np.float64)
        cls = box = 0.0
        count = foreground = 0
        for i in range(B):
            matches = numpy_match(stage_boxes[i], np.asarray(gt.boxes)[i], np.asarray(gt.classes)[i], iou)
            for r, (label, matched) in enumerate(matches):
                present[i, r] &= label is not None
                if not present[i, r]:
                    continue
                count += 1
                row = z[i, r]
                if loss == "softmax":
                    cls += np.log(np.exp(row).sum()) - row[label]
                else:
                    for j in range(K):
                        spared = loss == "eql" and label < K and tail[j] and j != label
                        cls += 0.0 if spared else np.logaddexp(0, -row[j] if j == label else row[j])
                if label < K:
                    foreground += 1
                    target = np.asarray(gt.boxes)[i, matched].astype(np.float64)
                    target = numpy_encode(target, stage_boxes[i, r].astype(np.float64), WEIGHTS[stage])
                    box += np.abs(d[i, r] - target).sum()
        assert count == B * R - 1 - (stage > 0) and foreground > 2
        np.testing.assert_allclose(terms[f"cls_stage{stage}"], cls / count, rtol=1e-4)
        np.testing.assert_allclose(terms[f"box_stage{stage}"], box / count, rtol=1e-3)
        assert terms[f"num_foreground_stage{stage}" if stage else "num_foreground"] == foreground
        total["cls"] += cls / count
        total["box"] += box / count
        stage_boxes = numpy_clip(numpy_decode(d, stage_boxes, WEIGHTS[stage])).astype(np.float32)
    np.testing.assert_allclose(terms["cls"], total["cls"], rtol=1e-4)
    np.testing.assert_allclose(terms["box"], total["box"], rtol=1e-3)


# ---------------------------------------------------------------- gradients


def test_features_get_a_third_of_the_gradient_and_heads_all_of_it(monkeypatch):
    model, variables, pyramid, _ = example()
    rng = np.random.default_rng(5)
    gt = truth(rng)
    sample = sampled(near(gt, rng), gt)

    def gradient():
        def total(variables, pyramid):
            rules = ClassRules()
            terms = model.apply(variables, pyramid, jnp.asarray(SIZE), sample, gt, rules, method="roi_losses")
            return terms["cls"] + terms["box"]

        return jax.jit(jax.grad(total, argnums=(0, 1)))(variables, pyramid)

    heads, features = gradient()
    monkeypatch.setattr(cascade, "scale_gradient", lambda x, factor: x)
    plain_heads, plain_features = gradient()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), heads, plain_heads)
    assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(heads["params"]))
    for a, b in zip(features[:3], plain_features[:3], strict=True):
        np.testing.assert_allclose(a, b / 3, rtol=1e-5, atol=1e-7)
    assert np.abs(features[0]).max() > 1e-4


def test_no_gradient_goes_through_the_boxes_to_the_stage_before():
    """The last stage's losses alone reach the last head and the features, not the heads whose boxes it got."""
    model, variables, pyramid, _ = example()
    rng = np.random.default_rng(5)
    gt = truth(rng)
    sample = sampled(near(gt, rng), gt)

    def last(variables):
        rules = ClassRules()
        terms = model.apply(variables, pyramid, jnp.asarray(SIZE), sample, gt, rules, method="roi_losses")
        return terms["cls_stage2"] + terms["box_stage2"]

    grads = jax.jit(jax.grad(last))(variables)["params"]
    assert not any(np.any(x) for name in ("box_head_0", "box_head_1") for x in jax.tree.leaves(grads[name]))
    assert all(np.any(x) for x in jax.tree.leaves(grads["box_head_2"]))


def test_class_specific_boxes_are_refused():
    with pytest.raises(ValueError, match="class_agnostic_boxes is False"):
        make_model(**{"box_head.class_agnostic_boxes": False}).init(
            jax.random.key(0), np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 2), 64)
        )


def test_padding_slots_of_the_sample_change_nothing():
    """Losses of R RoIs equal those of the same RoIs with empty slots behind them."""
    model, variables, pyramid, _ = example()
    rng = np.random.default_rng(5)
    gt = truth(rng)
    sample = sampled(near(gt, rng), gt)
    pad = lambda x, value: jnp.concatenate([x, jnp.full_like(x[:, :4], value)], axis=1)  # noqa: E731
    padded = RoITargets(*(pad(x, v) for x, v in zip(sample, (0.0, -1, 0, 0.0), strict=True)))
    run = jax.jit(lambda s: model.apply(variables, pyramid, SIZE, s, gt, ClassRules(), method="roi_losses"))
    short, long = run(sample), run(padded)
    for name in short:
        np.testing.assert_allclose(long[name], short[name], rtol=1e-6, err_msg=name)
