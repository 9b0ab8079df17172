"""Tail classes: the facts of LVIS and the paper, the threshold functions by hand, and wrong input."""

import json
from pathlib import Path

import numpy as np
import pytest

from eql_jax.losses import tail_mask_from_letters, tail_mask_from_threshold, tail_ratio, threshold_function

COUNTS = Path(__file__).parents[2] / "eql_jax" / "data" / "counts"
ANNOTATED_V05, ALL_V05, ANNOTATED_V1 = 56_740, 57_263, 99_388


def lvis(version):
    """Letters and image counts of the training classes that ship with the package."""
    file = json.loads((COUNTS / f"lvis_{version}.json").read_text())
    columns = {name: index for index, name in enumerate(file["columns"])}
    rows = file["categories"]
    letters = [row[columns["frequency"]] for row in rows]
    return letters, np.array([row[columns["image_count"]] for row in rows])


def test_lvis_v05_thresholds_of_paper_and_code():
    letters, counts = lvis("v0.5")
    rare_and_common = tail_mask_from_letters(letters)
    assert len(counts) == 1230 and rare_and_common.sum() == 915

    # Paper: 1.76e-3 over all training images. Code: 1.77e-3 over the annotated ones. Both are rare + common exactly.
    for num_images, threshold in ((ALL_V05, 1.76e-3), (ANNOTATED_V05, 1.77e-3)):
        tail = tail_mask_from_threshold(counts / num_images, threshold)
        np.testing.assert_array_equal(tail, rare_and_common)
        assert tail_ratio(counts, tail) == pytest.approx(0.09087, abs=5e-6)

    # The paper's lambda with the code's denominator.
    tail = tail_mask_from_threshold(counts / ANNOTATED_V05, 1.76e-3)
    assert tail.sum() == 912
    assert tail_ratio(counts, tail) == pytest.approx(0.0894, abs=5e-5)


def test_lvis_v1_thresholds():
    letters, counts = lvis("v1")
    f = counts / ANNOTATED_V1
    tail = tail_mask_from_threshold(f, 1.1e-3)
    assert len(counts) == 1203 and tail.sum() == 815
    assert tail_mask_from_letters(letters, "f")[tail].sum() == 17
    for threshold in (1.007e-3, 1.016e-3):
        np.testing.assert_array_equal(tail_mask_from_threshold(f, threshold), tail_mask_from_letters(letters))
    assert 0.02 < tail_ratio(counts, tail) < 0.10


def test_letters():
    letters = ["f", "c", "r", "c"]
    np.testing.assert_array_equal(tail_mask_from_letters(letters), [False, True, True, True])
    np.testing.assert_array_equal(tail_mask_from_letters(letters, "r"), [False, False, True, False])
    np.testing.assert_array_equal(tail_mask_from_letters(letters, ""), [False] * 4)
    assert tail_mask_from_letters([]).shape == (0,)
    assert tail_mask_from_letters(letters).dtype == bool


def test_strictly_less():
    f = np.array([0.0, 0.1, 0.3, 1.0])
    np.testing.assert_array_equal(tail_mask_from_threshold(f, 0.1), [True, False, False, False])
    # Compared in float64: rounded to float32, the first of these would equal lambda.
    np.testing.assert_array_equal(tail_mask_from_threshold([0.1 - 1e-10, 0.1 + 1e-10], 0.1), [True, False])
    assert not tail_mask_from_threshold(f, 0).any()


def test_threshold_functions_by_hand():
    f = np.array([0.0, 0.5e-3, 1e-3, 1.76e-3, 2e-3, 0.5])
    step = threshold_function(f, 1.76e-3)
    np.testing.assert_array_equal(step, [1, 1, 1, 0, 0, 0])
    assert step.dtype == np.float32
    # 400 f = 0, .2, .4, .704, .8, 200; squared and taken from 1; 0 from lambda on.
    exponential = threshold_function(f, 1.76e-3, function="exponential")
    np.testing.assert_allclose(exponential, [1, 0.96, 0.84, 0, 0, 0], rtol=1e-6)
    # Without the cut (lambda 1) it falls by itself to 0 at f = 1 / 400 and is clipped there.
    uncut = threshold_function(f, 1, function="exponential")
    np.testing.assert_allclose(uncut, [1, 0.96, 0.84, 1 - 0.704**2, 0.36, 0], rtol=1e-6)
    np.testing.assert_allclose(
        threshold_function(f, 1, function="exponential", a=100, n=1), [1, 0.95, 0.9, 0.824, 0.8, 0], rtol=1e-6
    )
    # exp(-3000 f) at 1e-3 is .0497871; 80 times that is 3.982965; exp(-3.982965) = .0186302.
    gompertz = threshold_function(f, 1.76e-3, function="gompertz")
    np.testing.assert_allclose(gompertz[[0, 2]], [1, 1 - 0.0186302], rtol=1e-6)
    np.testing.assert_array_equal(gompertz[3:], 0)
    clipped = threshold_function(f, 1, function="gompertz", a=2, b=1, c=1)
    assert clipped.min() >= 0 and clipped.max() <= 1
    assert gompertz.dtype == exponential.dtype == np.float32


def test_tail_ratio_by_hand():
    counts = [80, 15, 5]
    assert tail_ratio(counts, [False, True, True]) == pytest.approx(0.2)
    assert tail_ratio(counts, [0.0, 0.5, 1.0]) == pytest.approx(0.125)
    assert tail_ratio(counts, [False] * 3) == 0 and tail_ratio(counts, [True] * 3) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tail_mask_from_letters(["r", "x"]), r"letters\[1\] is 'x'; expected one of r, c, f"),
        (lambda: tail_mask_from_letters(["r"], "rare"), r"tail_letters\[1\] is 'a'"),
        (lambda: tail_mask_from_threshold([10, 200], 1e-3), r"frequencies\[0\] is 10.0; .* Divide image counts"),
        (lambda: tail_mask_from_threshold([0.1, np.nan], 1e-3), r"frequencies\[1\] is nan"),
        (lambda: tail_mask_from_threshold([[0.1]], 1e-3), r"frequencies has shape \(1, 1\)"),
        (lambda: tail_mask_from_threshold([0.1], 1.76), "threshold is 1.76"),
        (lambda: threshold_function([0.1], 1e-3, function="linear"), "function is 'linear'; expected one of step, "),
        (lambda: threshold_function([0.1], 1e-3, a=2), "a=2 given, but function 'step' has these constants: none"),
        (lambda: threshold_function([0.1], 1e-3, function="gompertz", n=2), "constants: a, b, c"),
        (lambda: tail_ratio([1, 2], [True]), r"image_counts has shape \(2,\), tail_mask \(1,\)"),
        (lambda: tail_ratio([0, 0], [True, False]), "all zero"),
        (lambda: tail_ratio([3, -1], [True, False]), "negative"),
    ],
)
def test_errors_say_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()
