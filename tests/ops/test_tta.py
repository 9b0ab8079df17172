"""Geometry of test-time augmentation and the merging of its detections, by hand and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.ops import tta
from tests.ops.numpy_boxes import greedy_nms, random_boxes


def test_mirrored_image():
    """Within the image's width; the padding stays where it is."""
    image = np.zeros((3, 5, 3), np.uint8)
    image[:2, :4] = np.arange(1, 25).reshape(2, 4, 3)
    found = np.asarray(tta.mirror_image(image, jnp.array([2, 4])))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[:2, :4], image[:2, 3::-1])
    assert not found[2:].any() and not found[:, 4:].any()
    np.testing.assert_array_equal(tta.mirror_image(image, jnp.array([3, 5])), image[:, ::-1])


def test_boxes_of_a_view_by_hand():
    """A file of 100 x 50 (height, width), its view of 200 x 75: y doubles, x becomes 1.5 times as much."""
    view, file = np.array([[200, 75]]), np.array([[100, 50]])
    box = np.float32([[[10, 20, 30, 60]]])
    np.testing.assert_allclose(tta.boxes_to_view(box, view, file, False), [[[15, 40, 45, 120]]])
    np.testing.assert_allclose(tta.boxes_to_view(box, view, file, True), [[[30, 40, 60, 120]]])
    np.testing.assert_allclose(tta.boxes_from_view(np.float32([[[30, 40, 60, 120]]]), view, file, True), box)


@pytest.mark.parametrize("mirrored", [False, True])
def test_there_and_back(mirrored):
    rng = np.random.default_rng(0)
    boxes = np.stack([random_boxes(rng, 30), random_boxes(rng, 30)])
    view, file = np.array([[133, 171], [600, 450]]), np.array([[97, 125], [640, 480]])
    there = tta.boxes_to_view(boxes, view, file, mirrored)
    assert np.all(np.asarray(there[..., 2:] > there[..., :2]))
    np.testing.assert_allclose(tta.boxes_from_view(there, view, file, mirrored), boxes, atol=1e-4)


def merge(boxes, scores, classes, size=(100, 100), count=4):
    merged = tta.merge_detections(
        jnp.asarray(boxes, jnp.float32),
        jnp.asarray(scores, jnp.float32),
        jnp.asarray(classes, jnp.int32),
        jnp.asarray(size),
        iou_threshold=0.5,
        max_detections=count,
    )
    return jax.device_get(merged)


def test_merged_by_hand():
    """Of two of a class that overlap the better stays; another class does not matter; boxes are clipped first."""
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 90, 60, 130], [50, 90, 60, 100], [0, 0, 10, 10]]
    found = merge(boxes, [0.3, 0.7, 0.5, 0.2, 0.1, 1e-8], [2, 2, 1, 2, 2, 0])
    np.testing.assert_array_equal(found.proposal_index, [1, 2, 3, -1])
    np.testing.assert_array_equal(found.classes, [2, 1, 2, -1])
    np.testing.assert_allclose(found.scores, [0.7, 0.5, 0.2, 0])
    np.testing.assert_array_equal(found.boxes, [boxes[1], boxes[2], [50, 90, 60, 100], [0, 0, 0, 0]])


def test_equal_scores_keep_the_earlier_view():
    found = merge([[0, 0, 10, 10], [0, 0, 10, 9]], [0.5, 0.5], [3, 3])
    np.testing.assert_array_equal(found.proposal_index, [0, -1, -1, -1])


def test_nothing_found():
    """Padding alone, or what is as good as that: scores of 0, class -1, boxes that are not finite."""
    found = merge([[0, 0, 0, 0]] * 3 + [[0, 0, np.nan, 5]], [0, 0, 0, 0.9], [-1, -1, 4, 4])
    assert (found.classes == -1).all() and not found.scores.any() and not found.boxes.any() and found.exact


def test_best_of_many_against_numpy():
    rng = np.random.default_rng(1)
    boxes, scores, classes = random_boxes(rng, 600, clusters=40), rng.random(600), rng.integers(-1, 6, 600)
    scores = np.float32(scores)
    clipped = np.clip(boxes, 0, [90, 80, 90, 80]).astype(np.float32)
    expected = greedy_nms(clipped, scores, iou_threshold=0.5, max_output=50, valid=classes >= 0, groups=classes)
    found = merge(boxes, scores, classes, size=(80, 90), count=50)
    np.testing.assert_array_equal(found.proposal_index, expected)
    np.testing.assert_array_equal(found.boxes, clipped[expected])
