"""Inference of the FPN variants with detectron2's weights gives detectron2's numbers: grouped and deformable
convolutions, 101 layers, class-agnostic masks. See tests/testdata/README.md and test_detectron2_inference.py."""

import numpy as np
import pytest

from tests.models.golden import load_variant
from tests.models.variant_checks import check_inference


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_rcnn_r50_softmax_agnostic", "mask_rcnn_r50_dcnv2", "mask_rcnn_x101"])
def test_inference(name):
    golden = load_variant(name)
    m = golden.config.model
    assert m.box_head.loss == "softmax" and m.mask_head.class_agnostic == ("agnostic" in name)
    assert m.backbone.deform_stages == ((3, 4, 5) if "dcn" in name else ())
    assert (m.backbone.groups, m.backbone.width_per_group) == ((4, 2) if "x101" in name else (1, 0))
    if "agnostic" in name:
        np.testing.assert_array_equal(golden.arrays["image_size"], [153, 171])
    check_inference(golden)
