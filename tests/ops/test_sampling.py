"""Sampling of anchors and RoIs: exact numbers, uniform draws, and detectron2's results under the spread rule."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.ops.matching import match_boxes
from eql_jax.ops.sampling import sample_anchors, sample_rois
from eql_jax.ops.topk import top_k

TESTDATA = Path(__file__).parents[1] / "testdata"
N, NUM, FRACTION = 40, 16, 0.25

draw_anchors = jax.jit(lambda labels, key: sample_anchors(labels, num=NUM, positive_fraction=FRACTION, key=key))
draw_rois = jax.jit(lambda labels, key: sample_rois(labels, num=NUM, positive_fraction=FRACTION, key=key))


def shuffled_labels(positives, negatives, seed=0):
    labels = np.full(N, -1, np.int32)
    labels[: positives + negatives] = 0
    labels[:positives] = 1
    return np.random.default_rng(seed).permutation(labels)


@pytest.mark.parametrize(
    ("positives", "negatives", "k_pos", "k_neg"),
    [
        (10, 30, 4, 12),
        (2, 30, 2, 14),
        (0, 40, 0, 16),
        (10, 5, 4, 5),
        (1, 0, 1, 0),
        (0, 0, 0, 0),
        (40, 0, 4, 0),
        (0, 3, 0, 3),
    ],
)
def test_numbers_and_order(positives, negatives, k_pos, k_neg):
    labels, key = shuffled_labels(positives, negatives), jax.random.key(1)
    kept = np.asarray(draw_anchors(labels, key))
    assert (np.sum(kept == 1), np.sum(kept == 0)) == (k_pos, k_neg)
    np.testing.assert_array_equal(kept[kept >= 0], labels[kept >= 0])

    rois = draw_rois(labels, key)
    np.testing.assert_array_equal(rois.foreground, np.arange(NUM) < k_pos)
    np.testing.assert_array_equal(rois.valid, np.arange(NUM) < k_pos + k_neg)
    chosen = np.asarray(rois.indices)[: k_pos + k_neg]
    assert len(set(chosen.tolist())) == k_pos + k_neg
    np.testing.assert_array_equal(labels[chosen], [1] * k_pos + [0] * k_neg)
    assert not np.any(np.asarray(rois.indices)[k_pos + k_neg :])


def test_fewer_candidates_than_slots():
    for rule in ("random", "spread"):
        options = dict(num=NUM, positive_fraction=0.5, key=jax.random.key(0), rule=rule)
        rois = sample_rois(jnp.array([0, 1, -1]), **options)
        np.testing.assert_array_equal(rois.indices[:2], [1, 0])
        assert int(rois.valid.sum()) == 2
        np.testing.assert_array_equal(sample_anchors(jnp.array([0, 1, -1]), **options), [0, 1, -1])


def test_draws_are_uniform_and_differ_by_key():
    labels = shuffled_labels(10, 30)
    keys = jax.random.split(jax.random.key(3), 2000)
    kept = np.asarray(jax.jit(jax.vmap(draw_anchors, in_axes=(None, 0)))(labels, keys))
    assert not np.array_equal(kept[0], kept[1])
    # 4 of 10 and 12 of 30: a share of 0.4 for each. 5 standard deviations of a binomial share.
    share = (kept >= 0).mean(0)
    assert np.abs(share - 0.4).max() < 5 * np.sqrt(0.4 * 0.6 / 2000)
    np.testing.assert_array_equal(draw_anchors(labels, keys[7]), kept[7])


def test_spread_rule_by_hand():
    # Positives at 0, 2, 4, 6, 8, 10; negatives at the odd places. 2 of 6 -> numbers 0, 3; 6 of 6 -> all.
    labels = jnp.array([1, 0] * 6)
    rois = sample_rois(labels, num=8, positive_fraction=0.25, rule="spread")
    np.testing.assert_array_equal(rois.indices, [0, 6, 1, 3, 5, 7, 9, 11])
    # 1 of 6 and 4 of 6: numbers floor(i * 6 / 4) = 0, 1, 3, 4.
    rois = sample_rois(labels, num=5, positive_fraction=0.25, rule="spread")
    np.testing.assert_array_equal(rois.indices, [0, 1, 3, 7, 9])


def test_anchors_equal_detectron2():
    golden, rpn = np.load(TESTDATA / "ops_training.npz"), np.load(TESTDATA / "ops_rpn.npz")
    gt = golden["gt_boxes"]
    valid = np.ones(len(gt), bool)

    @jax.jit
    def match_and_sample(anchors):
        matches = match_boxes(anchors, gt, gt_valid=valid, positive_iou=0.7, negative_iou=0.3, low_quality=True)
        return sample_anchors(matches.labels, num=256, positive_fraction=0.5, rule="spread")

    labels = match_and_sample(rpn["anchors"])
    np.testing.assert_array_equal(labels, golden["rpn_labels"])


def test_bad_arguments():
    labels = jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match="PRNG key"):
        sample_rois(labels, num=2, positive_fraction=0.5)
    with pytest.raises(ValueError, match="'best'"):
        sample_anchors(labels, num=2, positive_fraction=0.5, rule="best")


def test_top_k_order_and_gradient():
    values = jnp.array([1.0, 3.0, 3.0, -jnp.inf, 2.0, 3.0])
    best = top_k(values, 4)
    np.testing.assert_array_equal(best.values, [3, 3, 3, 2])
    np.testing.assert_array_equal(best.indices, [1, 2, 5, 4])
    assert top_k(values, 100).indices.shape == (6,)
    assert not np.any(jax.grad(lambda v: jnp.sum(top_k(v, 3).values))(values))
    # Ties over a long array, and a batch.
    best = jax.jit(jax.vmap(lambda v: top_k(v, 50)))(jnp.stack([jnp.zeros(5000), jnp.arange(5000.0)]))
    np.testing.assert_array_equal(best.indices, [np.arange(50), 4999 - np.arange(50)])
