"""Inference of Cascade Mask R-CNN, softmax and EQL, gives detectron2's numbers in every stage. See
tests/testdata/README.md and test_detectron2_inference.py."""

import pytest

from tests.models.golden import load_variant
from tests.models.variant_checks import check_inference


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cascade_mask_rcnn_r50", "cascade_mask_rcnn_r50_eql"])
def test_inference(name):
    golden = load_variant(name)
    assert golden.num_stages == 3 and golden.config.model.box_head.loss == ("eql" if "eql" in name else "softmax")
    check_inference(golden)
