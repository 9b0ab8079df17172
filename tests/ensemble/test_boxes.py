"""Suppression and fusion of boxes: hand-worked cases and properties. Against plain loops: test_fuse.py."""

from pathlib import Path

import numpy as np
import pytest

from eql_jax.ensemble.boxes import box_iou, fuse_boxes, suppress

GOLDEN = np.load(Path(__file__).parents[1] / "testdata" / "ensemble_wbf.npz")


def fuse(boxes, scores, *, classes=None, files=2, weights=None, iou=0.55):
    count = len(boxes)
    weights = [1.0] * files if weights is None else weights
    return fuse_boxes(
        np.array(boxes, float).reshape(-1, 4),
        np.zeros(count, np.int64) if classes is None else np.array(classes),
        np.array(scores, float),
        np.full(count, float(sum(weights))),
        np.full(count, sum(w > 0 for w in weights)),
        iou=iou,
    )


def test_iou():
    a = np.array([[0, 0, 2, 2], [0, 0, 0, 0], [1e-9, 0, 3, 3]])
    np.testing.assert_allclose(box_iou(a, np.array([1, 0, 3, 2])), [1 / 3, 0, 4 / 9], rtol=1e-6)
    assert box_iou(np.zeros(4), np.zeros(4)) == 0


def test_suppression_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6], [20, 0, 30, 10]], float)
    classes, scores = np.zeros(4, np.int64), np.array([0.6, 0.9, 0.7, 0.1])
    # The second is the best; its IoU is .8 with the first and .75 with the third.
    found = suppress(boxes, classes, scores, iou=0.5)
    assert found.best.tolist() == [1, 3] and found.members.tolist() == [1, 3]
    assert found.scores.tolist() == [0.9, 0.1]
    found = suppress(boxes, classes, scores, iou=0.5, members_iou=0.5)
    assert found.members.tolist() == [1, 2, 0, 3] and found.offsets.tolist() == [0, 3, 4]
    found = suppress(boxes, classes, scores, iou=0.5, members_iou=0.77)
    assert found.members.tolist() == [1, 0, 3], "a member overlaps the best by more than that; others go all the same"
    assert suppress(boxes, classes, scores, iou=0.77).best.tolist() == [1, 2, 3], "a kept one suppresses no other"
    assert suppress(boxes, np.array([0, 1, 2, 0]), scores, iou=0.5).best.tolist() == [0, 3, 1, 2], "class by class"


def test_a_suppressed_box_suppresses_nothing():
    boxes = np.array([[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]], float)  # neighbours overlap by 7/13
    found = suppress(boxes, np.zeros(3, np.int64), np.array([0.9, 0.8, 0.7]), iou=0.5)
    assert found.best.tolist() == [0, 2]


def test_identical_boxes():
    boxes = np.tile([0.0, 0, 5, 5], (3, 1))
    classes, scores = np.zeros(3, np.int64), np.full(3, 0.5)
    assert suppress(boxes, classes, scores, iou=1).best.tolist() == [0, 1, 2], "with 1 nothing goes"
    assert suppress(boxes, classes, scores, iou=0.99).best.tolist() == [0], "of equal scores the first"
    assert fuse(boxes, scores, files=3).members.tolist() == [0, 1, 2]
    assert len(fuse(boxes, scores, files=3, iou=1).scores) == 3


@pytest.mark.parametrize("empty", [True, False])
def test_no_detections_and_no_area(empty):
    boxes = np.zeros((0, 4)) if empty else np.zeros((2, 4))
    count = len(boxes)
    for found in (
        suppress(boxes, np.zeros(count, np.int64), np.zeros(count), iou=0.5),
        fuse(boxes, np.zeros(count)),
    ):
        assert found.members.tolist() == list(range(count)) and found.boxes.shape == (count, 4)
        assert found.select(np.arange(count)[::-1]).members.tolist() == list(range(count))[::-1]


def test_fusion_by_hand():
    # .9 * [0, 0, 10, 10] and .3 * [0, 0, 10, 8]: y2 = (9 + 2.4) / 1.2; two files of two agree: the mean score.
    found = fuse([[0, 0, 10, 10], [0, 0, 10, 8]], [0.9, 0.3])
    np.testing.assert_allclose(found.boxes, [[0, 0, 10, 9.5]])
    np.testing.assert_allclose(found.scores, [0.6])
    # One of two files: half the score; of three files two: two thirds of the mean.
    np.testing.assert_allclose(fuse([[0, 0, 10, 10]], [0.9]).scores, [0.45])
    np.testing.assert_allclose(fuse([[0, 0, 10, 10], [0, 0, 10, 8]], [0.9, 0.3], files=3).scores, [0.4])
    # Three members of two files count as two.
    found = fuse([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8]], [0.9, 0.6, 0.3])
    np.testing.assert_allclose(found.scores, [0.6])


def test_fusion_with_weights():
    # Scores .8 and .4, weights 3 and 1: weighted scores 2.4 and .4; their mean times 2 / 4.
    found = fuse([[0, 0, 10, 10], [0, 0, 10, 8]], [2.4, 0.4], weights=[3, 1])
    np.testing.assert_allclose(found.scores, [0.7])
    np.testing.assert_allclose(found.boxes[0, 3], (24 + 3.2) / 2.8)
    # Alone, the file of weight 3 of 4 keeps three quarters of its score.
    np.testing.assert_allclose(fuse([[0, 0, 10, 10]], [2.4], weights=[3, 1]).scores, [0.6])


def test_the_moved_box_decides():
    # IoU of the third box with the first is .5, below .55; with the box fused of the first two it is 1/1.5 .. .6.
    found = fuse([[0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 5]], [0.5, 0.5, 0.4], iou=0.55)
    assert found.members.tolist() == [0, 1, 2]
    assert fuse([[0, 0, 10, 10], [0, 0, 10, 5]], [0.5, 0.4], iou=0.55).offsets.tolist() == [0, 1, 2]


def test_the_best_cluster_is_chosen():
    boxes = [[0, 0, 10, 10], [5, 0, 15, 10], [4, 0, 14, 10]]
    found = fuse(boxes, [0.9, 0.8, 0.7], iou=0.4)
    assert [found.members[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)] == [
        [0],
        [1, 2],
    ]


def test_classes_stay_apart():
    found = fuse([[0, 0, 10, 10]] * 3, [0.9, 0.8, 0.7], classes=[5, 2, 5])
    assert [found.members[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)] == [
        [1],
        [0, 2],
    ]


@pytest.mark.parametrize("case", range(24))
def test_fusion_equals_the_authors_code(case):
    """Recorded outputs of `ensemble-boxes` 1.0.9, one to four files with and without weights."""
    given = {name.split("/")[1]: GOLDEN[name] for name in GOLDEN.files if name.startswith(f"{case}/")}
    files = len(given["scores"])
    found = fuse(
        given["boxes"].astype(float).reshape(-1, 4),
        (given["scores"] * given["weights"][:, None]).ravel(),
        classes=np.tile(given["classes"], files),
        weights=given["weights"].tolist(),
        iou=float(given["iou"]),
    )
    classes = np.tile(given["classes"], files)[found.best]
    ours, theirs = (
        np.column_stack([c, s, b])[np.lexsort((s.round(6), c))]
        for c, s, b in (
            (classes, found.scores, found.boxes),
            (given["out_classes"], given["out_scores"], given["out_boxes"]),
        )
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
