"""Federated loss: detectron2's numbers, and a sampler whose draws are those of the released code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import losses
from tests.losses.golden import assert_equals_golden, long_tail

draw = jax.jit(losses.federated_classes, static_argnames="num_classes")


@pytest.mark.parametrize("part", ["main", "extreme"])
def test_federated_of_detectron2(part):
    golden = long_tail()
    classes, labels = golden[f"{part}/federated/class_mask"], golden[f"{part}/in/labels"]
    key = f"{part}/federated"
    assert_equals_golden(lambda z: losses.federated_loss(z, labels, classes), golden[f"{part}/in/logits"], key)
    # The released set: distinct labels, then others; background (40) takes a place and has no column.
    chosen = golden[f"{part}/federated/classes"]
    np.testing.assert_array_equal(np.flatnonzero(classes), np.sort(chosen[chosen < 40]))


def test_inclusion_frequency_of_the_released_sampler():
    golden = long_tail()
    labels = golden["federated_sampler/gt"]
    assert list(labels) == [0, 1, 2, 40]
    keys = jax.random.split(jax.random.key(0), 40_000)
    one = lambda key: losses.federated_classes(key, labels, golden["image_count"], num_classes=20)  # noqa: E731
    found = np.array(jax.jit(jax.vmap(one))(keys))
    assert found[:, labels[:-1]].all()
    np.testing.assert_array_equal(found.sum(1), 19)  # the twentieth place is background's
    expected = golden["federated_sampler/inclusion_frequency"]
    error = np.sqrt(expected * (1 - expected) * (1 / 40_000 + 1 / 200_000))
    found[:, labels[:-1]] = False  # theirs without a draw; the expected numbers are those of the draw alone
    deviation = np.abs(found.mean(0) - expected)
    np.testing.assert_array_less(deviation, 4.5 * error + 1e-9)


def test_the_set_has_the_right_size_whatever_the_labels():
    counts = np.array([1, 2, 3, 4, 0, 6, 7, 8])
    for labels, size in (
        ([1, 1, 1, 1], 4),
        ([-1, -1, -1, -1], 4),  # padding is no label
        ([1, 8, 8, -1], 3),  # background takes a place
        ([0, 1, 2, 3], 4),
        ([4, 4, 4, 4], 4),  # a class without count is in the set where it is a label
    ):
        for seed in range(5):
            found = np.asarray(draw(jax.random.key(seed), jnp.array(labels), counts, num_classes=4))
            present = [x for x in labels if 0 <= x < 8]
            assert found.sum() == size and found[present].all()
            assert 4 in present or not found[4]
    # More labels than places: all of them and no other.
    labels = jnp.array([0, 1, 2, 3, 7, 8])
    np.testing.assert_array_equal(
        np.flatnonzero(draw(jax.random.key(0), labels, counts, num_classes=3)), [0, 1, 2, 3, 7]
    )
    # More places than classes: all that have a count.
    found = draw(jax.random.key(0), jnp.array([0]), counts, num_classes=50)
    np.testing.assert_array_equal(found, counts > 0)


def test_another_key_draws_another_set_and_the_shape_of_labels_is_none_of_its_concern():
    counts = np.arange(1, 41)
    labels = jnp.array([[3, 40], [-1, 7]])
    sets = [np.asarray(draw(jax.random.key(seed), labels, counts, num_classes=10)) for seed in (0, 1, 0)]
    assert (sets[0] != sets[1]).any()
    np.testing.assert_array_equal(sets[0], sets[2])
    np.testing.assert_array_equal(sets[0], draw(jax.random.key(0), labels.ravel(), counts, num_classes=10))


def test_power_0_draws_uniformly():
    counts = np.array([1, 1000, 1, 1000])
    keys = jax.random.split(jax.random.key(1), 4000)
    one = lambda key: losses.federated_classes(key, jnp.array([-1]), counts, num_classes=1, power=0.0)  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(keys).mean(0), 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 4000))


def test_loss_by_hand():
    # All logits 0 cost log 2. Set {0, 2}: two elements in each row that counts, whatever its label.
    labels, classes = jnp.array([[0, 1], [3, -1]]), jnp.array([True, False, True])
    logits = jnp.zeros((2, 2, 3))
    loss, grad = jax.value_and_grad(losses.federated_loss)(logits, labels, classes)
    np.testing.assert_allclose(loss, 6 * np.log(2) / 3, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(grad) * 6, [[[-1, 0, 1], [1, 0, 1]], [[1, 0, 1], [0, 0, 0]]], rtol=1e-6)
    # A set for each image; and classes that nobody looked for are negatives in no set.
    per_image = jnp.array([[[True, True, True]], [[False, False, False]]])
    np.testing.assert_allclose(losses.federated_loss(logits, labels, per_image), 6 * np.log(2) / 3, rtol=1e-6)
    annotated = jnp.array([[[True, False, False]], [[False, True, True]]])
    loss = losses.federated_loss(logits, labels, classes, annotated_classes=annotated)
    np.testing.assert_allclose(loss, 3 * np.log(2) / 3, rtol=1e-6)


Z, Y = np.zeros((2, 4), np.float32), np.array([0, 4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: losses.federated_classes(key, Y, [[1, 2]]), r"counts has shape \(1, 2\); expected \[K\]"),
        (
            lambda key: losses.federated_classes(key, Y, [1, -2]),
            r"counts\[1\] is -2; expected at least 0 .*shape \(2,\)",
        ),
        (
            lambda key: losses.federated_classes(key, np.array([0, 3]), [1, 2]),
            r"labels\[1\] is 3; expected 0..2, or -1 .*labels has shape \(2,\), counts \(2,\)",
        ),
        (lambda key: losses.federated_classes(key, Y / 2, [1, 2]), "labels have dtype float32"),
        (lambda key: losses.federated_classes(key, Y, [1] * 4, num_classes=0), "num_classes is 0; expected at least 1"),
        (lambda key: losses.federated_classes(key, Y, [1] * 4, power=-1), "power is -1; expected at least 0"),
        (
            lambda key: losses.federated_loss(Z, Y, np.ones(5, bool)),
            r"classes has shape \(5,\); expected one that broadcasts to \(2, 4\)",
        ),
        (lambda key: losses.federated_loss(Z, Y, np.ones(4)), "classes has dtype float32; expected bool"),
    ],
)
def test_errors_say_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))
