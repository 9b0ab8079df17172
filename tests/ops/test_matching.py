"""Labels of anchors and proposals against a dense NumPy matcher, hand-worked cases and detectron2's stored labels."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.ops.matching import Matches, match_boxes
from tests.ops import numpy_boxes

TESTDATA = Path(__file__).parents[1] / "testdata"
ANCHORS = dict(positive_iou=0.7, negative_iou=0.3, low_quality=True)
ROIS = dict(positive_iou=0.5, negative_iou=0.5)


@partial(jax.jit, static_argnames=("positive_iou", "negative_iou", "low_quality"))
def match(boxes, gt, **options):
    """Compiled once per set of options; op-by-op execution compiles every operation on its own."""
    return match_boxes(boxes, gt, **options)


match_anchors = jax.jit(
    lambda boxes, gt, valid, ignore: match_boxes(boxes, gt, gt_valid=valid, gt_ignore=ignore, **ANCHORS)
)
match_rois = jax.jit(lambda boxes, gt, valid, ignore: match_boxes(boxes, gt, gt_valid=valid, gt_ignore=ignore, **ROIS))


def dense_matches(boxes, gt, valid, ignore, *, positive_iou, negative_iou, low_quality=False):
    """The whole N x G matrix."""
    table = numpy_boxes.iou(boxes, gt)
    table[:, ~valid | ignore] = -1
    best, index = table.max(1), table.argmax(1)
    labels = np.where(best >= np.float32(positive_iou), 1, np.where(best < np.float32(negative_iou), 0, -1))
    if low_quality:
        highest = table.max(0)
        labels[((table == highest) & (highest > 0)).any(1)] = 1
    for region in gt[valid & ignore]:
        w = np.clip(np.minimum(boxes[:, 2], region[2]) - np.maximum(boxes[:, 0], region[0]), 0, None)
        h = np.clip(np.minimum(boxes[:, 3], region[3]) - np.maximum(boxes[:, 1], region[1]), 0, None)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        labels[(labels == 0) & (w * h >= 0.5 * area) & (w * h > 0)] = -1
    return labels, index, np.maximum(best, 0)


def assert_equals_dense(matches: Matches, dense):
    labels, index, best = dense
    np.testing.assert_array_equal(matches.labels, labels)
    np.testing.assert_array_equal(matches.iou, best)
    met = best > 0
    np.testing.assert_array_equal(np.asarray(matches.matched_index)[met], index[met])


@pytest.fixture(scope="module")
def grid_anchors():
    """Anchors on a grid: many share their IoU with a small box exactly."""
    y, x = np.mgrid[0:100:4, 0:100:4].reshape(2, -1, 1)
    sides = np.array([[8, 8], [16, 16], [32, 16], [32, 32]]) / 2
    boxes = np.stack([x - sides[:, 0], y - sides[:, 1], x + sides[:, 0], y + sides[:, 1]], -1)
    return boxes.reshape(-1, 4).astype(np.float32)


@pytest.mark.parametrize("number", [0, 1, 3, 4, 17, 30])
def test_equals_dense_matcher(grid_anchors, number):
    rng = np.random.default_rng(number)
    gt = np.round(numpy_boxes.random_boxes(rng, 30) * 2) / 2  # half pixels: ties happen
    valid, ignore = np.arange(30) < number, rng.random(30) < 0.2
    args = grid_anchors, gt.astype(np.float32), valid, ignore
    assert_equals_dense(match_anchors(*args), dense_matches(*args, **ANCHORS))
    assert_equals_dense(match_rois(*args), dense_matches(*args, **ROIS))
    if number == 30:
        assert np.sum(np.asarray(match_anchors(*args).labels) == 1) > 30  # ties were among them


def test_more_than_300_objects_with_holes_in_the_padding(grid_anchors):
    rng = np.random.default_rng(5)
    args = grid_anchors, numpy_boxes.random_boxes(rng, 330), rng.random(330) < 0.95, rng.random(330) < 0.02
    assert_equals_dense(match_anchors(*args), dense_matches(*args, **ANCHORS))


def test_batch_of_unequal_images_equals_single_images(grid_anchors):
    rng = np.random.default_rng(6)
    gt = np.stack([numpy_boxes.random_boxes(rng, 30) for _ in range(3)])
    valid = np.arange(30) < np.array([[0], [7], [30]])
    ignore = rng.random((3, 30)) < 0.1
    batch = jax.jit(
        jax.vmap(lambda g, v, i: match_boxes(jnp.asarray(grid_anchors), g, gt_valid=v, gt_ignore=i, **ANCHORS))
    )
    together = batch(gt, valid, ignore)
    for i in range(3):
        assert_equals_dense(
            Matches(*(x[i] for x in together)), dense_matches(grid_anchors, gt[i], valid[i], ignore[i], **ANCHORS)
        )


def test_ties_take_the_first_ground_truth_and_all_best_anchors():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 20], [50, 50, 60, 60], [0, 10, 10, 30], [70, 70, 90, 90]], np.float32)
    # gt 0 and 1 are the same box; gt 2 meets only boxes 1 and 3, with the same IoU of 1/5 each.
    gt = np.array([[50, 50, 60, 58], [50, 50, 60, 58], [0, 12, 10, 18], [71, 71, 79, 79]], np.float32)
    out = match(boxes, gt, gt_valid=np.array([1, 1, 1, 0], bool), **ANCHORS)
    np.testing.assert_array_equal(out.labels, [0, 1, 1, 1, 0])
    assert out.matched_index[2] == 0
    np.testing.assert_array_equal(out.matched_index[jnp.array([1, 3])], [2, 2])
    np.testing.assert_allclose(out.iou, [0, 0.3, 0.8, 0.3, 0], rtol=1e-6)


def test_low_quality_positive_keeps_its_own_best():
    boxes = np.array([[0, 0, 10, 10]], np.float32)
    gt = np.array([[0, 0, 2, 2], [0, 0, 10, 9]], np.float32)  # the only anchor is the best of both
    out = match(boxes, gt, gt_valid=np.ones(2, bool), **ANCHORS)
    assert (int(out.labels[0]), int(out.matched_index[0])) == (1, 1)


def test_ignore_regions_and_padded_boxes():
    boxes = np.array([[0, 0, 10, 10], [6, 0, 16, 10], [5, 0, 15, 10], [30, 30, 40, 40], [0, 0, 0, 0]], np.float32)
    gt = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    ignore = np.array([True, False])
    # Without an object: fully inside and half inside are left out, 4 tenths are not. The region is nobody's match.
    out = match(boxes, gt, gt_valid=np.array([True, False]), gt_ignore=ignore, **ROIS)
    np.testing.assert_array_equal(out.labels, [-1, 0, -1, 0, 0])
    np.testing.assert_array_equal(out.iou, 0)
    # A positive inside the region stays positive; invalid boxes take no part.
    boxes_valid = np.array([1, 1, 1, 1, 0], bool)
    out = match(boxes, gt, gt_valid=np.ones(2, bool), gt_ignore=ignore, boxes_valid=boxes_valid, **ROIS)
    np.testing.assert_array_equal(out.labels, [1, 0, -1, 0, -1])
    assert out.matched_index[0] == 1


def test_invalid_box_is_nobodys_best():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 30]], np.float32)
    gt = np.array([[0, 0, 10, 10]], np.float32)
    out = match(boxes, gt, gt_valid=np.ones(1, bool), boxes_valid=np.array([False, True]), **ANCHORS)
    np.testing.assert_array_equal(out.labels, [-1, 1])


def test_no_ground_truth_no_boxes_and_bad_thresholds():
    boxes = np.array([[0, 0, 10, 10]], np.float32)
    none = np.zeros((0, 4), np.float32)
    np.testing.assert_array_equal(match_boxes(boxes, none, gt_valid=np.zeros(0, bool), **ANCHORS).labels, [0])
    assert match_boxes(none, boxes, gt_valid=np.ones(1, bool), **ANCHORS).labels.shape == (0,)
    with pytest.raises(ValueError, match="0.7 and 0.5"):
        match_boxes(boxes, boxes, gt_valid=np.ones(1, bool), positive_iou=0.5, negative_iou=0.7)


def test_no_gradient_reaches_the_boxes():
    def value(boxes, gt):
        out = match_boxes(boxes, gt, gt_valid=jnp.ones(3, bool), **ANCHORS)
        return jnp.sum(out.iou) + jnp.sum(gt[out.matched_index] * 2)

    rng = np.random.default_rng(0)
    boxes, gt = jnp.asarray(numpy_boxes.random_boxes(rng, 20)), jnp.asarray(numpy_boxes.random_boxes(rng, 3))
    by_boxes, by_gt = jax.jit(jax.grad(value, argnums=(0, 1)))(boxes, gt)
    assert not np.any(by_boxes)
    assert float(jnp.sum(by_gt)) == 20 * 4 * 2  # through the gather alone


def test_anchors_equal_detectron2():
    golden, rpn = np.load(TESTDATA / "ops_training.npz"), np.load(TESTDATA / "ops_rpn.npz")
    gt = golden["gt_boxes"]
    out = match(rpn["anchors"], gt, gt_valid=np.ones(len(gt), bool), **ANCHORS)
    np.testing.assert_array_equal(out.matched_index, golden["rpn_matched_index"])
    kept = golden["rpn_labels"] >= 0
    np.testing.assert_array_equal(np.asarray(out.labels)[kept], golden["rpn_labels"][kept])
    assert np.sum(np.asarray(out.labels) == 1) == np.sum(golden["rpn_labels"] == 1) == 29


def test_rois_equal_detectron2():
    golden = np.load(TESTDATA / "ops_training.npz")
    gt = golden["gt_boxes"]
    out = match(golden["roi_boxes"], gt, gt_valid=np.ones(len(gt), bool), **ROIS)
    foreground = golden["roi_gt_classes"] < 60
    np.testing.assert_array_equal(np.asarray(out.labels) == 1, foreground)
    np.testing.assert_array_equal(gt[np.asarray(out.matched_index)][foreground], golden["roi_gt_boxes"][foreground])
