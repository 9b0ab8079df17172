"""The parts of the classifier's gradient, against loops in NumPy; what batches add up to, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.analysis.gradients import Probe, column_norms, own_entries, split_gradient, summarize

K, F = 4, 3
# Where the columns of the classes are: as in most losses; with K + 1 and K + 2 columns; anywhere (group softmax).
LAYOUTS = {"K": (np.arange(K), K), "K+2": (np.arange(K), K + 2), "mixed": (np.array([5, 0, 3, 1]), 7)}


def loops(hidden, labels, dlogits, columns):
    """Norms [K] of positives' and negatives' gradients, row by row."""
    positive, negative = np.zeros((K, F)), np.zeros((K, F))
    for r in range(len(labels)):
        for j in range(K):
            part = positive if labels[r] == j else negative
            part[j] += hidden[r] * dlogits[r, columns[j]]
    return [np.sqrt((part**2).sum(axis=1)) for part in (positive, negative)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_are_those_of_loops(layout):
    columns, width = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    labels = np.array([0, 2, K, -1, 2, K, 1, 0])  # no row of class 3
    hidden = rng.normal(size=(len(labels), F)).astype(np.float32)
    kernel = rng.normal(size=(F, width)).astype(np.float32)
    dlogits = rng.normal(size=(len(labels), width)).astype(np.float32)
    dlogits[labels == -1] = 0  # what a loss gives rows that do not count
    own = own_entries(jnp.asarray(labels), columns, width)
    parts = split_gradient(lambda w: hidden @ w, jnp.asarray(kernel), jnp.asarray(dlogits), own)
    found = [column_norms(part, columns) for part in parts]
    np.testing.assert_allclose(found, loops(hidden, labels, dlogits, columns), rtol=1e-5)
    assert found[0][3] == 0
    np.testing.assert_allclose(sum(parts), hidden.T @ dlogits, rtol=1e-5, atol=1e-6)


def test_a_case_by_hand():
    """Two RoIs of class 0 and 1 and one of background; sigmoid of logits 0 has the gradient .5 - y."""
    hidden = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]], np.float32)
    dlogits = np.array([[-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]], np.float32)
    own = own_entries(jnp.array([0, 1, 2]), np.arange(2), 2)
    positive, negative = split_gradient(lambda w: hidden @ w, jnp.zeros((2, 2)), jnp.asarray(dlogits), own)
    np.testing.assert_allclose(positive, [[-0.5, 0], [0, -1]])
    # Class 0: .5 (0, 2) + .5 (3, 4) = (1.5, 3); class 1: .5 (1, 0) + .5 (3, 4) = (2, 2).
    np.testing.assert_allclose(negative, [[1.5, 2], [3, 2]])
    np.testing.assert_allclose(column_norms(negative, np.arange(2)), [np.sqrt(11.25), np.sqrt(8)], rtol=1e-6)


def test_classifier_that_is_not_linear_in_its_weights():
    """Cosine: the parts are those of the derivative with respect to the weights, not h times dL/dlogits."""
    rng = np.random.default_rng(1)
    hidden, kernel = rng.normal(size=(6, F)).astype(np.float32), rng.normal(size=(F, K)).astype(np.float32)
    labels = jnp.array([0, 1, 1, K, 3, K])

    def classifier(w):
        return hidden @ (w / jnp.linalg.norm(w, axis=0))

    def loss(w, only):
        """Sum of BCE over the entries of `only`."""
        z, y = classifier(w), jax.nn.one_hot(labels, K)
        return jnp.sum(jnp.where(only, jax.nn.softplus(z) - y * z, 0))

    dlogits = jax.nn.sigmoid(classifier(kernel)) - jax.nn.one_hot(labels, K)
    own = own_entries(labels, np.arange(K), K)
    positive, negative = split_gradient(classifier, jnp.asarray(kernel), dlogits, own)
    np.testing.assert_allclose(positive, jax.grad(loss)(kernel, own), atol=1e-5)
    np.testing.assert_allclose(negative, jax.grad(loss)(kernel, ~own), atol=1e-5)


def test_summary_by_hand():
    scores = np.array([[0.5, 0.1], [0.25, 0.75], [0.9, 0.2], [0.3, 0.6]], np.float32)
    first = Probe(np.array([0, 1, 2, -1]), scores, np.array([1.0, 2.0]), np.array([3.0, 0.0]))
    second = Probe(np.array([0, 0, -1, 2]), scores, np.array([0.0, 4.0]), np.array([1.0, 1.0]))
    found = summarize([first, second], ["f", "r"], score_threshold=0.5)
    assert found.batches == 2
    np.testing.assert_array_equal(found.positives, [3, 1])
    np.testing.assert_allclose(found.probability, [(0.5 + 0.5 + 0.25) / 3, 0.75])
    np.testing.assert_allclose(found.positive, [0.5, 3])
    np.testing.assert_allclose(found.negative, [2, 0.5])
    # Best class of the rows that count: 0, 1, 0 (background), then 0, 1 (a row of class 0), 1 (background).
    expected = np.zeros((4, 4), int)
    expected[2] = [1, 0, 2, 0]
    expected[0] = [1, 0, 0, 0]
    expected[3] = [1, 0, 1, 0]
    np.testing.assert_array_equal(found.confusion.counts, expected)
    np.testing.assert_array_equal(found.confusion.right, [1, 0, 2, 0])


def test_summary_of_odd_batches():
    """No positives: no mean score. A loss without columns for the classes: no norms."""
    nothing = Probe(np.array([-1, -1]), np.zeros((2, 2)), None, None)
    found = summarize([nothing], ["c", "c"], score_threshold=0.5)
    assert found.positive is None and np.isnan(found.probability).all() and found.confusion.counts.sum() == 0
    with pytest.raises(ValueError, match="probes is empty"):
        summarize([], ["c"], score_threshold=0.5)
