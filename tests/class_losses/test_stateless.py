"""Losses without memory behind their names: which function with which arguments, options, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import losses
from eql_jax.class_losses import ClassFrequencies, LossInputs, make_class_loss

K = 6
COUNTS = np.array([900, 3, 40, 7, 250, 90])
TAIL = np.array([False, True, True, True, False, True])
FREQUENCIES = ClassFrequencies(K, tuple("frcrfc"), COUNTS, 3 * COUNTS, num_images=1000, tail=TAIL)
LABELS = jnp.array([[0, 1, K, -1, 3, K, 5, K], [K, K, 4, 2, K, -1, 0, 0]])
KEY = jax.random.key(3)
INPUTS = LossInputs(key=KEY)


def logits_of(columns):
    return 3 * jax.random.normal(jax.random.key(1), (2, 8, columns))


def seql(z, y):
    return losses.softmax_equalization_loss(z, y, TAIL, key=KEY, gamma=0.8)


def focal(z, y):
    return losses.focal_loss(z, y, alpha=None, gamma=1.0)


def class_balanced(z, y):
    return losses.class_balanced_loss(z, y, losses.class_balanced_weights(3 * COUNTS, 0.9), kind="focal", gamma=1.5)


def balanced_softmax(z, y):
    return losses.balanced_softmax_loss(z, y, COUNTS, tau=0.5)


def federated(z, y):
    classes = losses.federated_classes(KEY, y, 3 * COUNTS, num_classes=4, power=0.25)
    return losses.federated_loss(z, y, classes)


def group_softmax(z, y):
    groups = losses.class_groups(3 * COUNTS, bin_split=(50, 500))
    return losses.group_softmax_loss(z, y, groups, key=KEY, others_ratio=2.0)


@pytest.mark.parametrize(
    ("function", "columns", "options"),
    [
        (seql, K + 1, {"gamma": 0.8}),
        (focal, K, {"alpha": -1.0, "gamma": 1.0}),
        (class_balanced, K, {"kind": "focal", "beta": 0.9, "gamma": 1.5, "count_by": "instance"}),
        (balanced_softmax, K + 1, {"tau": 0.5, "count_by": "image"}),
        (federated, K, {"num_sampled": 4, "power": 0.25, "count_by": "instance"}),
        (group_softmax, K + 1 + 4, {"bin_split": [50, 500], "others_ratio": 2.0}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_options_are_arguments(function, columns, options):
    loss = make_class_loss(function.__name__, FREQUENCIES, options=options)
    assert loss.num_logits == columns
    logits = logits_of(columns)
    value, state = loss.loss(logits, LABELS, loss.init_state(), INPUTS)
    assert state == {}
    np.testing.assert_allclose(value, function(logits, LABELS), rtol=1e-6)


def test_scores():
    plain = jax.nn.softmax(logits_of(K + 1), axis=-1)[..., :K]
    for name in ("seql", "balanced_softmax"):
        np.testing.assert_allclose(make_class_loss(name, FREQUENCIES).scores(logits_of(K + 1)), plain, rtol=1e-6)
    for name in ("focal", "class_balanced", "federated"):
        scores = make_class_loss(name, FREQUENCIES).scores(logits_of(K))
        np.testing.assert_allclose(scores, jax.nn.sigmoid(logits_of(K)), rtol=1e-6)
    loss = make_class_loss("group_softmax", FREQUENCIES)
    logits = logits_of(loss.num_logits)
    groups = losses.class_groups(3 * COUNTS)
    np.testing.assert_allclose(loss.scores(logits), losses.group_softmax_scores(logits, groups)[..., :K], rtol=1e-6)


def test_a_set_for_each_group_of_images():
    loss = make_class_loss("federated", FREQUENCIES, options={"num_sampled": 4, "images_per_set": 1})
    grad = jax.jit(jax.grad(lambda z: loss.loss(z, LABELS, {}, INPUTS)[0]))(logits_of(K))
    counted = np.any(np.asarray(grad) != 0, axis=1)  # [images, K]
    # The first image has 4 labels and background, more than there are places; the second 3 and background.
    np.testing.assert_array_equal(np.flatnonzero(counted[0]), [0, 1, 3, 5])
    np.testing.assert_array_equal(np.flatnonzero(counted[1]), [0, 2, 4])
    together = make_class_loss("federated", FREQUENCIES, options={"num_sampled": 4, "images_per_set": 2})
    whole = make_class_loss("federated", FREQUENCIES, options={"num_sampled": 4})
    np.testing.assert_allclose(
        together.loss(logits_of(K), LABELS, {}, INPUTS)[0], whole.loss(logits_of(K), LABELS, {}, INPUTS)[0], rtol=1e-6
    )
    three = make_class_loss("federated", FREQUENCIES, options={"images_per_set": 3})
    with pytest.raises(
        ValueError, match=r"labels has shape \(2, 8\); expected .* multiple of images_per_set, 3, images"
    ):
        three.loss(logits_of(K), LABELS, {}, INPUTS)


def test_classes_that_never_occur():
    """The training set may lack classes of the list: nothing is divided by 0."""
    counts = np.array([900, 0, 40, 0, 250, 90])
    frequencies = FREQUENCIES._replace(image_counts=counts, instance_counts=counts)
    labels = jnp.where((LABELS == 1) | (LABELS == 3), 0, LABELS)
    for name in ("class_balanced", "balanced_softmax", "federated", "group_softmax"):
        loss = make_class_loss(name, frequencies)
        run = jax.jit(jax.value_and_grad(lambda z, loss=loss: loss.loss(z, labels, {}, INPUTS)[0]))
        value, grad = run(logits_of(loss.num_logits))
        assert np.isfinite(value) and np.isfinite(grad).all(), name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("seql", {"gamma": 1.5}, "gamma is 1.5; expected at least 0 and at most 1"),
        ("focal", {"alpha": 2.0}, "alpha is 2.0; expected at least 0 and at most 1"),
        ("focal", {"gamma": -1.0}, "gamma is -1.0; expected at least 0"),
        ("class_balanced", {"kind": "softmax"}, "kind is 'softmax'; expected one of 'sigmoid', 'focal'"),
        ("class_balanced", {"beta": 1.0}, "beta is 1.0; expected at least 0 and less than 1"),
        ("class_balanced", {"count_by": "box"}, "count_by is 'box'; expected one of 'image', 'instance'"),
        ("balanced_softmax", {"tau": -1.0}, "tau is -1.0; expected at least 0"),
        ("federated", {"num_sampled": 0}, "num_sampled is 0; expected at least 1"),
        ("federated", {"power": -0.5}, "power is -0.5; expected at least 0"),
        ("federated", {"images_per_set": -1}, "images_per_set is -1; expected at least 0"),
        ("group_softmax", {"bin_split": (10, 5)}, r"bin_split is \(10, 5\); expected limits that rise"),
        ("group_softmax", {"others_ratio": -1.0}, "others_ratio is -1.0; expected at least 0"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_class_loss(name, FREQUENCIES, options=options)


def test_what_a_loss_cannot_do_without():
    for name in ("seql", "federated", "group_softmax"):
        loss = make_class_loss(name, FREQUENCIES)
        with pytest.raises(ValueError, match="draws at random in each step; expected a PRNG key in LossInputs.key"):
            loss.loss(logits_of(loss.num_logits), LABELS, {}, LossInputs())
    bare = ClassFrequencies(K)
    for name in ("class_balanced", "balanced_softmax", "federated", "group_softmax"):
        loss = make_class_loss(name, bare)
        with pytest.raises(ValueError, match="counts of the 6 classes in training"):
            loss.loss(logits_of(loss.num_logits), LABELS, {}, INPUTS)
    with pytest.raises(ValueError, match="needs the tail of the 6 classes"):
        make_class_loss("seql", bare).loss(logits_of(K + 1), LABELS, {}, INPUTS)
