"""Proposals against detectron2's and a NumPy selection level by level."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.ops import boxes as box_ops
from eql_jax.ops.matching import match_boxes
from eql_jax.ops.proposals import RPN_WEIGHTS, select_proposals
from eql_jax.ops.sampling import sample_rois
from tests.ops import numpy_boxes

TESTDATA = Path(__file__).parents[1] / "testdata"


def levels_of(rows, golden):
    counts = [3 * h * w for h, w in golden["feature_shapes"]]
    return np.split(rows, np.cumsum(counts)[:-1])


@partial(jax.jit, static_argnames=("pre_nms", "post_nms", "iou_threshold", "min_size"))
def run(logits, deltas, anchors, image_size, **options):
    return select_proposals(logits, deltas, anchors, image_size, **options)


def test_equals_detectron2_at_inference():
    golden = np.load(TESTDATA / "ops_rpn.npz")
    out = run(
        levels_of(golden["logits"], golden),
        levels_of(golden["deltas"], golden),
        levels_of(golden["anchors"], golden),
        golden["image_size"],
        pre_nms=1000,
        post_nms=1000,
        iou_threshold=0.7,
    )
    assert np.all(out.valid)
    distance = np.abs(np.asarray(out.boxes)[:, None] - golden["proposal_boxes"]).max(-1)
    assert distance.min(0).max() < 0.01 and distance.min(1).max() < 0.01
    np.testing.assert_array_equal(out.logits, golden["proposal_logits"])


def test_proposals_and_sampled_rois_equal_detectron2_in_training():
    golden, rpn = np.load(TESTDATA / "ops_training.npz"), np.load(TESTDATA / "ops_rpn.npz")
    out = run(
        levels_of(golden["logits"], rpn),
        levels_of(golden["deltas"], rpn),
        levels_of(rpn["anchors"], rpn),
        golden["image_size"],
        pre_nms=2000,
        post_nms=1000,
        iou_threshold=0.7,
    )
    gt = jnp.asarray(golden["gt_boxes"])
    gt_valid = jnp.ones(len(gt), bool)
    boxes = jnp.concatenate([out.boxes, gt])
    boxes_valid = jnp.concatenate([out.valid, gt_valid])

    @jax.jit
    def match_and_sample():
        matches = match_boxes(boxes, gt, gt_valid=gt_valid, boxes_valid=boxes_valid, positive_iou=0.5, negative_iou=0.5)
        return matches, sample_rois(matches.labels, num=512, positive_fraction=0.25, rule="spread")

    matches, sample = match_and_sample()
    assert np.all(sample.valid)
    np.testing.assert_allclose(boxes[sample.indices], golden["roi_boxes"], atol=0.01)
    matched = np.asarray(matches.matched_index[sample.indices])
    classes = np.where(sample.foreground, golden["gt_classes"][matched], 60)
    np.testing.assert_array_equal(classes, golden["roi_gt_classes"])
    foreground = classes < 60
    np.testing.assert_array_equal(np.asarray(gt)[matched][foreground], golden["roi_gt_boxes"][foreground])


def numpy_selection(logits, deltas, anchors, image_size, *, pre_nms, post_nms, iou_threshold, min_size):
    """detectron2's order of work: NMS of each level on its own, then the best of all levels."""
    height, width = image_size
    boxes, scores, levels = [], [], []
    for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
        top = np.argsort(-logit, kind="stable")[:pre_nms]
        box = np.array(box_ops.decode_boxes(delta[top], anchor[top], weights=RPN_WEIGHTS))
        box = np.clip(box, 0, np.array([width, height, width, height], np.float32))
        score = logit[top]
        proper = ((box[:, 2:] - box[:, :2]) > min_size).all(1)
        box, score = box[proper], score[proper]
        kept = numpy_boxes.greedy_nms(box, score, iou_threshold=iou_threshold, max_output=len(box))
        boxes.append(box[kept])
        scores.append(score[kept])
        levels.append(np.full(len(kept), level))
    boxes, scores, levels = np.concatenate(boxes), np.concatenate(scores), np.concatenate(levels)
    order = np.argsort(-scores, kind="stable")[:post_nms]
    return boxes[order], scores[order], levels[order]


@pytest.fixture(scope="module")
def random_levels():
    rng = np.random.default_rng(0)
    anchors = [numpy_boxes.random_boxes(rng, n, clusters=n // 4) for n in (120, 40, 8)]
    logits = [rng.normal(size=len(a)).astype(np.float32) for a in anchors]
    deltas = [rng.normal(size=a.shape).astype(np.float32) * 0.2 for a in anchors]
    return logits, deltas, anchors


@pytest.mark.parametrize(("post_nms", "min_size"), [(30, 0.0), (100, 8.0)])
def test_equals_selection_by_level(random_levels, post_nms, min_size):
    options = dict(pre_nms=50, post_nms=post_nms, iou_threshold=0.6, min_size=min_size)
    size = np.array([70, 90])
    out = run(*random_levels, size, **options)
    boxes, scores, levels = numpy_selection(*random_levels, size, **options)
    n = len(boxes)
    assert (n == post_nms) == (post_nms == 30)
    np.testing.assert_array_equal(out.valid, np.arange(post_nms) < n)
    np.testing.assert_allclose(out.boxes[:n], boxes, atol=1e-4)
    np.testing.assert_array_equal(out.logits[:n], scores)
    np.testing.assert_array_equal(out.level[:n], levels)
    assert not np.any(out.boxes[n:]) and np.all(out.level[n:] == -1) and np.all(out.logits[n:] == -np.inf)


def test_boxes_outside_empty_or_not_finite_are_dropped():
    anchors = [np.array([[-50, -50, -10, -10], [0, 0, 10, 10], [5, 5, 5, 5], [2, 2, 8, 8]], np.float32)]
    deltas = [np.zeros((4, 4), np.float32)]
    deltas[0][3, 0] = np.inf
    out = run([np.array([4, 1, 3, 2], np.float32)], deltas, anchors, (20, 20), pre_nms=9, post_nms=6, iou_threshold=0.7)
    np.testing.assert_array_equal(out.valid, [True] + [False] * 5)
    np.testing.assert_array_equal(out.boxes[0], [0, 0, 10, 10])
    assert float(out.logits[0]) == 1


def test_extreme_logits_and_no_gradient(random_levels):
    logits, deltas, anchors = random_levels
    extreme = [np.where(x > 0, np.float32(1e4), np.float32(-1e4)) for x in logits]
    out = run(extreme, deltas, anchors, (70, 90), pre_nms=50, post_nms=200, iou_threshold=0.6)
    assert np.all(np.isfinite(out.boxes)) and int(out.valid.sum()) > 20

    def value(logits, deltas):
        out = select_proposals(logits, deltas, anchors, (70, 90), pre_nms=50, post_nms=30, iou_threshold=0.6)
        return jnp.sum(out.boxes) + jnp.sum(out.logits)

    gradients = jax.jit(jax.grad(value, argnums=(0, 1)))(
        [jnp.asarray(x) for x in logits], [jnp.asarray(x) for x in deltas]
    )
    assert not any(np.any(g) for g in jax.tree.leaves(gradients))


def test_levels_must_agree(random_levels):
    logits, deltas, anchors = random_levels
    with pytest.raises(ValueError, match=r"\[120, 40, 8\].*\[120, 40\]"):
        select_proposals(logits, deltas, anchors[:2], (70, 90), pre_nms=5, post_nms=5, iou_threshold=0.7)
