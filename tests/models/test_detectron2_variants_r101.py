"""Inference of R101-FPN with the EQL head gives detectron2's numbers, on a small image and on one of 480 x 576, whose
boxes reach every level of the pyramid. See tests/testdata/README.md and test_detectron2_inference.py."""

import pytest

from eql_jax.ops import assign_levels
from tests.models.golden import load_variant
from tests.models.variant_checks import check_inference


@pytest.mark.slow
def test_inference():
    check_inference(load_variant("mask_rcnn_r101_eql"))


@pytest.mark.slow
def test_inference_on_every_level():
    """From res2 on, which stands for the image (a photograph, not kept here)."""
    golden = load_variant("mask_rcnn_r101_eql", suffix="/large")
    levels = assign_levels(golden.arrays["proposal_boxes"], strides=(4, 8, 16, 32))
    assert set(levels.tolist()) == {0, 1, 2, 3}
    check_inference(golden)
