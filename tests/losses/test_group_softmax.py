"""Group softmax (BAGS): the authors' numbers, the layout of the groups, and the draw of the other rows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import losses
from tests.losses.golden import assert_equals_golden, long_tail

COUNTS = np.array([5, 2000, 50, 7, 300])  # groups by 10, 100, 1000: classes {0, 3}, {2}, {4}, {1}
GROUPS = losses.class_groups(COUNTS)


@pytest.mark.parametrize("part", ["main", "extreme"])
def test_group_softmax_of_the_authors(part):
    golden = long_tail()
    groups = losses.class_groups(golden["instance_count"])
    labels, weight = golden[f"{part}/in/labels"], golden[f"{part}/group_softmax/sample_weight"]
    logits = golden[f"{part}/group_softmax/logits"]
    assert_equals_golden(
        lambda z: losses.group_softmax_loss(z, labels, groups, sample_weight=weight), logits, f"{part}/group_softmax"
    )
    scores = losses.group_softmax_scores(logits, groups)
    np.testing.assert_allclose(scores, golden[f"{part}/group_softmax/scores"], rtol=2e-5, atol=1e-30)
    # How many rows the released sampler took, of those it may take from.
    ratio = float(golden[f"{part}/group_softmax/beta"])
    drawn = np.asarray(losses.group_softmax_weights(jax.random.key(0), labels, groups, others_ratio=ratio))
    np.testing.assert_array_equal(drawn.sum(1), weight.sum(1))
    inside = groups.label_map[:, labels] > 0
    assert drawn[inside].all()


def test_layout_of_the_authors():
    golden = long_tail()
    groups = losses.class_groups(golden["instance_count"], bin_split=golden["group_softmax/bin_split"])
    np.testing.assert_array_equal(groups.group_of_class, golden["group_softmax/group_of_class"])
    np.testing.assert_array_equal(groups.label_map, golden["group_softmax/group_label_map"])
    np.testing.assert_array_equal(groups.sizes - 1, golden["group_softmax/classes_per_group"])
    assert groups.num_logits == 46 and groups.num_classes == 40


def test_layout_by_hand():
    np.testing.assert_array_equal(GROUPS.group_of_class, [0, 3, 1, 0, 2, 4])
    np.testing.assert_array_equal(GROUPS.sizes, [3, 2, 2, 2, 2])
    np.testing.assert_array_equal(GROUPS.starts, [0, 3, 5, 7, 9])
    np.testing.assert_array_equal(GROUPS.label_map[0], [1, 0, 0, 2, 0, 0])
    plain = losses.class_groups(COUNTS, background=False)
    assert plain.num_logits == 5 + 4 and plain.num_classes == 5 and GROUPS.num_logits == 5 + 1 + 5
    # A limit belongs to the upper group; a group may be empty.
    np.testing.assert_array_equal(losses.class_groups([9, 10, 5000], background=False).group_of_class, [0, 1, 3])


def test_loss_and_scores_by_hand():
    # All logits 0: a row costs the log of the columns of its group. Class 3 is of group 0 (3 columns).
    labels = jnp.array([3, 5, -1])
    weight = jnp.zeros((5, 3), bool).at[0, :2].set(True).at[4].set(True)
    logits = jnp.zeros((3, 11))
    loss, grad = jax.value_and_grad(losses.group_softmax_loss)(logits, labels, GROUPS, sample_weight=weight)
    assert float(loss) == pytest.approx(math.log(3) + math.log(2))
    expected = np.zeros((3, 11))
    expected[0, :3], expected[1, :3] = [1 / 6, 1 / 6, -1 / 3], [-1 / 3, 1 / 6, 1 / 6]  # row 1 is one of the others
    expected[0, 9:], expected[1, 9:] = [-1 / 4, 1 / 4], [1 / 4, -1 / 4]
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-8)
    scores = losses.group_softmax_scores(logits[:1], GROUPS)
    np.testing.assert_allclose(scores, [[1 / 6, 1 / 4, 1 / 4, 1 / 6, 1 / 4, 1 / 2]], rtol=1e-6)
    plain = losses.class_groups(COUNTS, background=False)
    np.testing.assert_allclose(
        losses.group_softmax_scores(jnp.zeros((1, 9)), plain), [[1 / 3, 1 / 2, 1 / 2, 1 / 3, 1 / 2]], rtol=1e-6
    )
    # One divisor for all groups, or one each: log 3 twice and log 2 twice.
    divided = losses.group_softmax_loss(logits, labels, GROUPS, sample_weight=weight, normalizer=4)
    assert float(divided) == pytest.approx((math.log(3) + math.log(2)) / 2)
    each = losses.group_softmax_loss(
        logits, labels, GROUPS, sample_weight=weight, normalizer=jnp.array([1, 1, 1, 1, 4])
    )
    assert float(each) == pytest.approx(2 * math.log(3) + math.log(2) / 2)


def test_draw_of_the_others():
    labels = jnp.array([[0, 3, 5, 5, 5, 5, 1], [5, 5, 5, 5, 5, 2, -1]])
    draw = jax.jit(lambda key, ratio: losses.group_softmax_weights(key, labels, GROUPS, others_ratio=ratio))
    flat = np.asarray(labels).ravel()
    shares = np.zeros(14)
    for seed in range(200):
        weight = np.asarray(draw(jax.random.key(seed), 1.5)).reshape(5, 14)
        np.testing.assert_array_equal(weight.sum(1), [2 + 3, 1 + 1, 0, 1 + 1, 13])
        assert not weight[:, -1].any() and weight[0, :2].all()
        shares += weight[0]
    # Three of the eleven others of group 0, each as likely as any.
    others = (flat != 0) & (flat != 3) & (flat >= 0)
    np.testing.assert_allclose(shares[others] / 200, 3 / 11, atol=4 * math.sqrt(3 / 11 * 8 / 11 / 200))
    np.testing.assert_array_equal(np.asarray(draw(jax.random.key(0), 100.0)).sum((1, 2)), [13, 13, 0, 13, 13])
    np.testing.assert_array_equal(np.asarray(draw(jax.random.key(0), 0.0)).sum((1, 2)), [2, 1, 0, 1, 13])


def test_a_draw_inside_the_loss_is_that_of_the_weights():
    rng = np.random.default_rng(0)
    logits, labels, key = rng.normal(size=(9, 11)).astype(np.float32), rng.integers(-1, 6, 9), jax.random.key(3)
    weight = losses.group_softmax_weights(key, labels, GROUPS, others_ratio=1.0)
    apart = losses.group_softmax_loss(logits, labels, GROUPS, sample_weight=weight)
    inside = jax.jit(lambda z, y: losses.group_softmax_loss(z, y, GROUPS, key=key, others_ratio=1.0))(logits, labels)
    np.testing.assert_allclose(inside, apart, rtol=1e-6)


Z, Y, KEY = np.zeros((2, 11), np.float32), np.array([0, 5]), jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.class_groups([[1]]), r"counts has shape \(1, 1\); expected \[K\]"),
        (lambda: losses.class_groups([1, -1]), r"counts\[1\] is -1; expected at least 0"),
        (lambda: losses.class_groups([1], bin_split=(10, 10)), r"bin_split is \(10, 10\); expected limits that rise"),
        (
            lambda: losses.group_softmax_loss(Z[:, :6], Y, GROUPS, key=KEY),
            r"logits has shape \(2, 6\); expected \(2, 11\) .*groups of \[3, 2, 2, 2, 2\]; labels has shape \(2,\)",
        ),
        (lambda: losses.group_softmax_loss(Z, Y, GROUPS), "nothing of key and sample_weight given"),
        (
            lambda: losses.group_softmax_loss(Z, Y, GROUPS, key=KEY, sample_weight=np.ones((5, 2))),
            "both of key and sample_weight given",
        ),
        (
            lambda: losses.group_softmax_loss(Z, Y, GROUPS, sample_weight=np.ones((5, 3))),
            r"sample_weight has shape \(5, 3\); expected \(5, 2\) .*labels has shape \(2,\)",
        ),
        (
            lambda: losses.group_softmax_loss(Z, Y, GROUPS, sample_weight=-np.ones((5, 2))),
            r"sample_weight\[0, 0\] is -1.0; expected at least 0",
        ),
        (
            lambda: losses.group_softmax_loss(Z, Y, GROUPS, key=KEY, normalizer=np.ones(2)),
            r"normalizer has shape \(2,\); expected \(\) or \(5,\)",
        ),
        (lambda: losses.group_softmax_loss(Z, Y + 1, GROUPS, key=KEY), r"labels\[1\] is 6; expected 0..5, or -1"),
        (
            lambda: losses.group_softmax_weights(KEY, Y, GROUPS, others_ratio=-1),
            "others_ratio is -1; expected at least 0",
        ),
        (lambda: losses.group_softmax_scores(Z[:, :5], GROUPS), r"logits has shape \(2, 5\); expected \(..., 11\)"),
    ],
)
def test_errors_say_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()
