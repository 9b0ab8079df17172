"""What the figures compute, by hand, and that they are drawn of odd input too."""

import io

import numpy as np
import pytest
from PIL import Image

from eql_jax.analysis import figures
from eql_jax.analysis.groups import Confusion, empty_confusion

NAN = np.nan


def panel(letters, name="run", color="#1f5fbf"):
    return figures.Panel(name, tuple(letters), np.arange(len(letters)), color)


def pixels(figure, tmp_path):
    """Share of pixels that are not white."""
    png = figures.save(figure, tmp_path / "figure.png")
    assert png == (tmp_path / "figure.png").read_bytes()
    return (np.asarray(Image.open(io.BytesIO(png)).convert("L")) < 250).mean()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 6, 3], [1.5, 3, 11 / 3, 4.5]),
        ([1, NAN, NAN, NAN, 5], [1, 1, NAN, 5, 5]),
        ([NAN], [NAN]),
        ([], []),
    ],
)
def test_running_mean(values, expected):
    np.testing.assert_allclose(figures.running_mean(np.array(values, float), 3), expected)


def test_group_means():
    x, y = figures.group_means(np.array([1000, 1, 10, 100]), np.array([40.0, 0, 10, 20]), groups=2)
    np.testing.assert_allclose(x, [np.sqrt(10), np.sqrt(1e5)])
    np.testing.assert_allclose(y, [5, 30])
    x, y = figures.group_means(np.array([7]), np.array([3.0]), groups=10)  # fewer classes than groups
    np.testing.assert_allclose((x[0], y[0]), (7, 3))


@pytest.mark.parametrize("letters", ["f", "ffccrr", "f" * 400 + "c" * 450 + "r" * 350])
def test_by_class(letters, tmp_path):
    rng = np.random.default_rng(0)
    k = len(letters)
    values = rng.uniform(size=k)
    one, other = panel(letters), panel(letters, "other", "#d1650f")
    zeros = np.where(np.arange(k) % 3 == 1, 0, values)
    assert pixels(figures.gradient_norms([one, other], [(zeros, values), (values, values)]), tmp_path) > 0.01
    unknown = np.full(k, NAN)
    assert pixels(figures.positive_probabilities([one, other], [values, unknown]), tmp_path) > 0.01
    assert pixels(figures.weight_norms([one], [values]), tmp_path) > 0.01


def test_runs_of_other_classes_get_their_own_panel():
    """The same order shares one; other letters or another order do not."""
    turned = panel("rcf")._replace(order=np.array([2, 1, 0]))
    values = [np.ones(3)] * 4
    shared = figures.weight_norms([panel("rcf"), panel("rcf"), turned, panel("rccf")], [*values[:3], np.ones(4)])
    assert len(shared.axes) == 3


def test_no_gradient_at_all(tmp_path):
    assert pixels(figures.gradient_norms([panel("rf")], [(np.zeros(2), np.zeros(2))]), tmp_path) > 0.01


def test_ap_by_frequency(tmp_path):
    counts = [np.array([1, 5, 200]), np.zeros(0, int), np.array([0, 3])]
    ap = [np.array([0.1, NAN, 0.5]), np.zeros(0), np.array([0.2, NAN])]
    figure = figures.ap_by_frequency(["a", "b", "c"], counts, ap, "masks")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a"]
    assert pixels(figure, tmp_path) > 0.01


def test_confusions(tmp_path):
    some = Confusion(np.arange(16).reshape(4, 4), np.array([0, 3, 9, 12]))
    figure = figures.confusions(["a", "b", "c", "d"], [some, some, empty_confusion(), some])
    assert pixels(figure, tmp_path) > 0.05
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 20 and texts[:5] == ["0.0", "16.7", "33.3", "50.0", "0.0"]
    assert {text.get_text() for text in figure.axes[2].texts} == {"–"}


def test_training_curves(tmp_path):
    steps = np.arange(100.0)
    train = [{"loss": (steps, 1 / (1 + steps)), "loss_cls": (steps, np.where(steps == 3, NAN, 1))}, {}]
    evaluated = [{}, {"segm/AP": (np.array([50.0]), np.array([0.2]))}]
    figure = figures.training_curves(["a", "b"], train, evaluated)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == ["loss", "loss_cls", "segm/AP, percent"]
    assert pixels(figure, tmp_path) > 0.01
    assert figures.training_curves(["a"], [{}], [{}]) is None
