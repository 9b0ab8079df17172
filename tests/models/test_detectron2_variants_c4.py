"""Inference of the C4 variant, whose RoI heads run res5, gives detectron2's numbers. See tests/testdata/README.md and
test_detectron2_inference.py."""

import pytest

from tests.models import inference_checks as checks
from tests.models.golden import load_variant
from tests.models.variant_checks import check_inference


@pytest.mark.slow
def test_inference():
    """Its images are not padded: 153 x 171 pixels give 10 x 11 cells."""
    golden = load_variant("mask_rcnn_r50_c4")
    assert golden.padded_image().shape == (1, 153, 171, 3) and golden.nhwc("res4").shape == (1, 10, 11, 64)
    found = checks.anchors(golden, {})
    assert list(found) == ["anchors_res4"] and found["anchors_res4"] <= 1e-4
    check_inference(golden)
