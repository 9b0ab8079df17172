"""Final detections against detectron2's and a NumPy selection over all pairs."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.ops import boxes as box_ops
from eql_jax.ops.detections import select_detections
from tests.ops import numpy_boxes

TESTDATA = Path(__file__).parents[1] / "testdata"
HEAD = (10.0, 10.0, 5.0, 5.0)
SIZE = (80, 100)


@pytest.fixture(scope="module")
def golden():
    """detectron2's box head outputs; deltas are stored for the 3000 best pairs alone, far more than NMS looks at."""
    golden = dict(np.load(TESTDATA / "ops_detections.npz"))
    deltas = np.zeros((1000 * 60, 4), np.float32)
    deltas[golden["top_pairs"]] = golden["top_deltas"]
    golden["deltas"] = deltas.reshape(1000, 60, 4)
    golden["scores"] = jax.nn.sigmoid(golden["logits"])
    return golden


@partial(jax.jit, static_argnames="candidates")
def run_golden(golden, candidates):
    return select_detections(
        golden["scores"],
        golden["deltas"],
        golden["proposal_boxes"],
        golden["image_size"],
        score_threshold=1e-4,
        iou_threshold=0.5,
        max_detections=300,
        candidates=candidates,
    )


def test_equals_detectron2(golden):
    out = run_golden(golden, 3000)
    assert bool(out.exact)
    mine = {
        (int(p), int(c)): (b, s)
        for p, c, b, s in zip(*map(np.asarray, (out.proposal_index, out.classes, out.boxes, out.scores)), strict=True)
    }
    stored = [golden[k] for k in ("det_proposal_index", "det_classes", "det_boxes", "det_scores")]
    theirs = {(int(p), int(c)): (b, s) for p, c, b, s in zip(*stored, strict=True)}
    assert len(mine) == 300 and mine.keys() == theirs.keys()
    for pair, (box, score) in theirs.items():
        np.testing.assert_allclose(mine[pair][0], box, atol=0.01)
        np.testing.assert_allclose(mine[pair][1], score, atol=1e-4)


def test_too_few_candidates_are_reported(golden):
    few = run_golden(golden, 310)
    assert not bool(few.exact)
    number = int(np.sum(np.asarray(few.classes) >= 0))
    assert number < 300
    # What there is, is right: a prefix of the full result.
    np.testing.assert_array_equal(few.proposal_index[:number], run_golden(golden, 3000).proposal_index[:number])


def numpy_selection(scores, deltas, proposals, *, valid, score_threshold, iou_threshold, max_detections):
    boxes = np.array(box_ops.clip_boxes(box_ops.decode_boxes(deltas, proposals, weights=HEAD), SIZE))
    boxes = np.broadcast_to(boxes, scores.shape + (4,)).reshape(-1, 4)
    keep = ((scores > np.float32(score_threshold)) & valid[:, None]).reshape(-1)
    classes = np.broadcast_to(np.arange(scores.shape[1]), scores.shape).reshape(-1)
    kept = numpy_boxes.greedy_nms(
        boxes, scores.reshape(-1), iou_threshold=iou_threshold, max_output=max_detections, valid=keep, groups=classes
    )
    return kept, boxes[kept], classes[kept]


@partial(jax.jit, static_argnames=("score_threshold", "max_detections", "candidates"))
def run(scores, deltas, proposals, valid, *, score_threshold, max_detections, candidates):
    return select_detections(
        scores,
        deltas,
        proposals,
        jnp.array(SIZE),
        proposals_valid=valid,
        score_threshold=score_threshold,
        iou_threshold=0.5,
        max_detections=max_detections,
        candidates=candidates,
    )


def check(scores, deltas, proposals, valid, *, score_threshold, max_detections, candidates=10_000):
    out = run(
        scores,
        deltas,
        proposals,
        valid,
        score_threshold=score_threshold,
        max_detections=max_detections,
        candidates=candidates,
    )
    kept, boxes, classes = numpy_selection(
        scores,
        deltas,
        proposals,
        valid=valid,
        score_threshold=score_threshold,
        iou_threshold=0.5,
        max_detections=max_detections,
    )
    n = len(kept)
    np.testing.assert_array_equal(out.classes[:n], classes)
    np.testing.assert_array_equal(out.proposal_index[:n], kept // scores.shape[1])
    np.testing.assert_array_equal(out.scores[:n], scores.reshape(-1)[kept])
    np.testing.assert_allclose(out.boxes[:n], boxes, atol=1e-4)
    assert not np.any(out.boxes[n:]) and not np.any(out.scores[n:])
    assert np.all(out.classes[n:] == -1) and np.all(out.proposal_index[n:] == -1)
    return out, n


@pytest.fixture(scope="module")
def head():
    rng = np.random.default_rng(0)
    proposals = numpy_boxes.random_boxes(rng, 60, clusters=10)
    scores = (rng.integers(0, 200, (60, 5)) / 200).astype(np.float32)  # ties
    deltas = rng.normal(size=(60, 5, 4)).astype(np.float32) * 0.5
    return scores, deltas, proposals, rng.random(60) < 0.9


def test_equals_all_pairs(head):
    out, n = check(*head, score_threshold=0.25, max_detections=40)
    assert n == 40 and bool(out.exact)
    out, n = check(*head, score_threshold=0.25, max_detections=200)
    assert n < 200 and bool(out.exact)


def test_class_agnostic_boxes(head):
    scores, deltas, proposals, valid = head
    out, _ = check(scores, deltas[:, :1], proposals, valid, score_threshold=0.25, max_detections=40)
    assert bool(out.exact)


def test_exact_flag_where_the_threshold_ends_the_list(head):
    scores, deltas, proposals, valid = head
    over = int(np.sum(scores[valid] > 0.25))
    # As many candidates as pairs over the threshold cannot prove that none is missing; one more can.
    few, n = check(*head, score_threshold=0.25, max_detections=200, candidates=over)
    assert not bool(few.exact)
    more, m = check(*head, score_threshold=0.25, max_detections=200, candidates=over + 1)
    assert bool(more.exact) and m == n


def test_threshold_is_strict_and_odd_inputs_give_padding(head):
    scores, deltas, proposals, valid = head
    flat = np.full_like(scores, 0.25)
    out, n = check(flat, deltas, proposals, valid, score_threshold=0.25, max_detections=10)
    assert n == 0 and bool(out.exact)
    out, n = check(scores, deltas, proposals, np.zeros(60, bool), score_threshold=0.0, max_detections=10)
    assert n == 0 and bool(out.exact)
    # NaN scores and infinite boxes take no part.
    bad_scores, bad_deltas = scores.copy(), deltas.copy()
    bad_scores[3], bad_deltas[4, :, 0] = np.nan, np.inf
    options = dict(score_threshold=0.25, max_detections=40, candidates=10_000)
    out = run(bad_scores, bad_deltas, proposals, valid, **options)
    without = valid & ~np.isin(np.arange(60), [3, 4])
    expected = run(scores, deltas, proposals, without, **options)
    jax.tree.map(np.testing.assert_array_equal, out, expected)


def test_boxes_clipped_to_nothing_stay():
    outside = np.array([[200, 10, 220, 20]], np.float32)
    out = select_detections(
        np.array([[0.9]], np.float32),
        np.zeros((1, 1, 4), np.float32),
        outside,
        SIZE,
        score_threshold=0.1,
        iou_threshold=0.5,
        max_detections=2,
        candidates=10,
    )
    np.testing.assert_array_equal(out.boxes, [[100, 10, 100, 20], [0, 0, 0, 0]])
    np.testing.assert_array_equal(out.classes, [0, -1])


def test_batch_and_bad_shapes(head):
    scores, deltas, proposals, valid = head
    options = dict(score_threshold=0.25, iou_threshold=0.5, max_detections=40, candidates=200)
    one = partial(select_detections, **options)
    batch = jax.jit(jax.vmap(lambda s, v: one(s, deltas, proposals, SIZE, proposals_valid=v)))
    out = batch(np.stack([scores, scores[::-1]]), np.stack([valid, ~valid]))
    single = check(scores, deltas, proposals, valid, score_threshold=0.25, max_detections=40)[0]
    for together, alone in zip(out, single, strict=True):
        np.testing.assert_allclose(together[0], alone, atol=1e-4)
    with pytest.raises(ValueError, match=r"\(60, 20\)"):
        one(scores, deltas.reshape(60, 20), proposals, SIZE)


def test_classes_are_no_offsets():
    """Coordinates shifted by class, as detectron2 does, are 1/8 px apart at 1203 classes: an IoU of .505 becomes .5."""
    boxes = np.array([[0, 0, 1.05, 1], [0, 0, 0.53, 1], [0, 0, 1333, 800]], np.float32)
    scores = np.full((3, 1203), 0.0, np.float32)
    scores[:, 1202] = 0.9, 0.8, 0.7
    scores[2, 0] = 0.6
    found = select_detections(
        jnp.asarray(scores),
        jnp.zeros((3, 1, 4)),
        jnp.asarray(boxes),
        jnp.array([800, 1333]),
        score_threshold=0.1,
        iou_threshold=0.5,
        max_detections=4,
        candidates=10,
    )
    kept = list(zip(found.proposal_index.tolist(), found.classes.tolist(), strict=True))
    assert kept == [(0, 1202), (2, 1202), (2, 0), (-1, -1)]
