"""The tail of the equalization loss as config.model.eql asks for it."""

import numpy as np
import pytest

from configs import base
from eql_jax.training.errors import ConfigError
from eql_jax.training.tail import make_tail

LETTERS = ("r", "c", "f", "f")
COUNTS = np.array([5, 50, 150, 800])  # of 1000 images


def tail(**changes):
    config = base.get_config()
    for key, value in changes.items():
        config.model.eql[key] = value
    return make_tail(config, letters=LETTERS, image_counts=COUNTS, num_images=1500)


def test_letters():
    found = tail()
    assert found.weights.dtype == bool and found.weights.tolist() == [True, True, False, False]
    # 55 of the 1005 (image, class) pairs are the tail's.
    assert found.summary == "EQL tail (letters r, c): 2 of 4 classes, tail ratio 5.47 %"
    assert tail(tail_letters="r").weights.tolist() == [True, False, False, False]


def test_lambda_is_a_share_of_the_stated_number_of_images():
    found = tail(tail_by="lambda", threshold=0.1, num_images=1000)
    assert found.weights.dtype == bool and found.weights.tolist() == [True, True, False, False]
    assert "f < 0.1 of 1000 images, step" in found.summary
    assert tail(tail_by="lambda", threshold=0.1, num_images=2000).weights.tolist() == [True, True, True, False]


def test_number_of_images_from_the_counted_set():
    found = tail(tail_by="lambda", threshold=0.1, num_images=0)
    assert "f < 0.1 of 1500 images" in found.summary and found.weights.tolist() == [True, True, False, False]
    assert tail(tail_by="lambda", threshold=0.101, num_images=0).weights.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("function", "expected"),
    # At f = .0005: 1 - (400 f)^2 = .96; 1 - exp(-80 exp(-3000 f)) = 1 - exp(-17.850413). At f = .005, lambda: 0.
    [("exponential", [0.96, 0, 0, 0]), ("gompertz", [1 - np.exp(-17.850413), 0, 0, 0])],
)
def test_smooth_functions_give_weights(function, expected):
    found = tail(tail_by="lambda", threshold=0.005, num_images=10_000, function=function)
    assert found.weights.dtype == np.float32
    np.testing.assert_allclose(found.weights, expected, rtol=1e-6)
    assert "1 of 4 classes" in found.summary and function in found.summary


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_other_losses_have_no_tail(loss):
    config = base.get_config()
    config.model.box_head.loss = loss
    found = make_tail(config, letters=LETTERS, image_counts=COUNTS, num_images=1500)
    assert found.weights.dtype == bool and not found.weights.any() and loss in found.summary


def test_a_number_of_images_that_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"eql\.num_images is 700, but one class alone is in 800 images"):
        tail(tail_by="lambda", num_images=700)


def test_classes_without_images_are_no_fault_here():
    """Training on a set without objects is refused by the data pipeline, which names the file."""
    found = make_tail(base.get_config(), letters=LETTERS, image_counts=np.zeros(4, int), num_images=0)
    assert found.summary.endswith("tail ratio 0.00 %")
