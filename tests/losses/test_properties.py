"""What must hold for any numbers, drawn by hypothesis: reductions to simpler losses, symmetries, padding, devices."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eql_jax import losses
from tests.losses.every_loss import BIN_SPLIT, group_softmax, losses_of_known

K, R, PADDING = 5, 6, 3  # one shape each, so that one compilation serves all draws
CASES = losses_of_known(K)
ROOT = Path(__file__).parents[2]

# The same draws in every run: a failure in CI is a failure at home.
some_draws = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def logits_of(columns, rows=R):
    return arrays(np.float32, (rows, columns), elements=st.floats(-80, 80, width=32))


def labels_to(last, first=0, rows=R):
    return arrays(np.int32, rows, elements=st.integers(first, last))


masks = arrays(bool, K)
knowledge = st.fixed_dictionaries(
    {
        "tail": masks,
        "smooth": arrays(np.float32, K, elements=st.floats(0, 1, width=32)),
        "drawn": arrays(bool, (R, K)),
        "counts": arrays(np.int32, K, elements=st.integers(1, 100_000)),
        "in_set": masks,
        "weights": arrays(np.float32, K, elements=st.floats(0, 1000, width=32)),
    }
)


@functools.cache
def compiled(loss):
    return jax.jit(jax.value_and_grad(loss))


def run(loss, *args):
    value, grad = compiled(loss)(*args)
    return np.asarray(value), np.asarray(grad)


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-6, atol=2e-6 * np.abs(e).max())


def sigmoid(z, y):
    return losses.sigmoid_cross_entropy_loss(z, y)


def softmax(z, y):
    return losses.softmax_cross_entropy_loss(z, y)


def eql(z, y, tail):
    return losses.equalization_loss(z, y, tail)


def eql_ablation(z, y, tail):
    return losses.equalization_loss(z, y, tail, background_keeps_negatives=False)


def seql(z, y, tail, beta):
    return losses.softmax_equalization_loss(z, y, tail, beta=beta)


# ---------------------------------------------------------------- reductions
@some_draws
@given(logits_of(K), labels_to(K, -1))
def test_eql_without_a_tail_is_cross_entropy(logits, labels):
    expected = run(sigmoid, logits, labels)
    for tail in (np.zeros(K, bool), np.zeros(K, np.float32)):
        assert_same(run(eql, logits, labels, tail), expected)
        assert_same(run(eql_ablation, logits, labels, tail), expected)


@some_draws
@given(logits_of(K), masks, arrays(np.float32, K, elements=st.floats(0, 1, width=32)), st.integers(0, R))
def test_eql_of_background_alone_is_cross_entropy(logits, tail, smooth, padding):
    labels = np.full(R, K, np.int32)
    labels[:padding] = -1
    expected = run(sigmoid, logits, labels)
    for threshold in (tail, smooth):
        assert_same(run(eql, logits, labels, threshold), expected)


REDUCTIONS = {
    "focal with gamma 0 and no alpha": (lambda z, y: losses.focal_loss(z, y, alpha=None, gamma=0.0), sigmoid),
    "class-balanced with equal weights": (lambda z, y: losses.class_balanced_loss(z, y, np.ones(K)), sigmoid),
    "federated with all classes": (lambda z, y: losses.federated_loss(z, y, np.ones(K, bool)), sigmoid),
    "seql with beta 0": (lambda z, y: seql(z, y, np.ones(K, bool), np.zeros(K, bool)), softmax),
    "seql without a tail": (lambda z, y: seql(z, y, np.zeros(K), np.ones(K)), softmax),
    "balanced softmax with equal counts": (lambda z, y: losses.balanced_softmax_loss(z, y, np.full(K, 7)), softmax),
    "group softmax with one group": (
        # "others" has no row and logit -inf: what is left is one softmax over the classes.
        lambda z, y: group_softmax(losses.class_groups(np.ones(K), bin_split=(), background=False))(
            jax.numpy.pad(z, ((0, 0), (1, 0)), constant_values=-np.inf), y
        ),
        softmax,
    ),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name):
    ours, plain = REDUCTIONS[name]

    @some_draws
    @given(logits_of(K), labels_to(K if plain is sigmoid else K - 1, -1))
    def same(logits, labels):
        assert_same(run(ours, logits, labels), run(plain, logits, labels))

    same()


# ---------------------------------------------------------------- gradients
@some_draws
@given(logits_of(K), labels_to(K - 1), masks)
def test_a_tail_negative_of_a_foreground_row_has_no_gradient(logits, labels, tail):
    spared = tail & (labels[:, None] != np.arange(K))
    for loss, args in ((eql, (tail,)), (eql_ablation, (tail,)), (seql, (tail, np.ones(K, bool)))):
        for z in (logits, logits / 80):
            _, grad = run(loss, z, labels, *args)
            np.testing.assert_array_equal(grad[spared], 0)
    # Every other element has one, at logits where it does not vanish in float32.
    mild = logits / 80
    np.testing.assert_array_equal(run(eql, mild, labels, tail)[1] != 0, ~spared)


@pytest.mark.parametrize("name", CASES)
def test_permuting_classes_permutes_gradients(name):
    loss, columns, last = CASES[name]

    @some_draws
    @given(logits_of(columns), labels_to(last, -1), knowledge, st.permutations(range(K)))
    def symmetric(logits, labels, known, order):
        order = np.array(order)
        by_column = np.append(order, np.arange(K, columns))  # background stays last
        new_label = np.append(np.argsort(order), [K, -1])  # the last is that of padding
        moved = {key: value[..., order] for key, value in known.items()}
        value, grad = run(loss, logits, labels, known)
        same_value, moved_grad = run(loss, logits[:, by_column], new_label[labels], moved)
        assert_same((same_value, moved_grad), (value, grad[:, by_column]))

    symmetric()


@some_draws
@given(logits_of(K + 4), labels_to(K, -1))
def test_permuting_classes_permutes_gradients_of_group_softmax(logits, labels):
    # The layout of the columns follows the counts and is fixed at compilation: one permutation.
    counts, order = np.array([2, 50, 1, 9, 40]), np.array([3, 0, 4, 2, 1])
    before, after = _grouped(tuple(counts)), _grouped(tuple(counts[order]))
    logits = np.concatenate([logits, -logits[:, :1]], axis=1)
    new_label = np.append(np.argsort(order), [K, -1])
    # Where each column of `after` is in `before`: "others" of each group, classes and background.
    source = np.empty(after[1].num_logits, int)
    source[after[1].starts] = before[1].starts
    source[after[1].label_columns] = before[1].label_columns[np.append(order, K)]
    value, grad = run(before[0], logits, labels)
    moved = run(after[0], logits[:, source], new_label[labels])
    assert_same(moved, (value, grad[:, source]))


@functools.cache
def _grouped(counts):
    groups = losses.class_groups(np.array(counts), bin_split=BIN_SPLIT)
    return group_softmax(groups), groups


# ---------------------------------------------------------------- rows
@pytest.mark.parametrize("name", CASES)
def test_padding_rows_change_nothing(name):
    loss, columns, last = CASES[name]
    places = st.lists(st.integers(0, R + PADDING - 1), min_size=PADDING, max_size=PADDING, unique=True)
    odd = st.sampled_from([np.nan, np.inf, -np.inf, 3e38, 0.0])

    @some_draws
    @given(logits_of(columns), labels_to(last), knowledge, places, odd)
    def unchanged(logits, labels, known, places, filling):
        known = known | {"drawn": known["drawn"][0]}  # the same for every row
        kept = np.setdiff1d(np.arange(R + PADDING), places)
        padded = np.full((R + PADDING, columns), filling, np.float32)
        padded[kept] = logits
        padded_labels = np.full(R + PADDING, -1, np.int32)
        padded_labels[kept] = labels
        value, grad = run(loss, padded, padded_labels, known)
        assert_same((value, grad[kept]), run(loss, logits, labels, known))
        np.testing.assert_array_equal(grad[places], 0)

    unchanged()


def test_splitting_the_batch_over_eight_devices_changes_nothing():
    command = [sys.executable, "-m", "tests.losses.split_batch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout)
    assert len(worst) > len(CASES) + 3
    assert max(worst.values()) < 3e-6, worst
