"""Inference with detectron2's weights gives detectron2's numbers, stage by stage and from the pixels to the masks.

The run is one of detectron2 on a drawn image of 153 x 171 pixels (padded to 160 x 192), a Mask R-CNN R50-FPN with the
EQL head, all layers and narrow widths; see tests/testdata/README.md. The weights come through eql_jax.convert.
"""

import numpy as np
import pytest

from tests.models import inference_checks as checks
from tests.models.golden import BOXES, CONFIG, RELATIVE, SCORES, TESTDATA, WEIGHTS, load_golden
from tests.models.variant_checks import check_results


@pytest.fixture(scope="module")
def golden():
    return load_golden(WEIGHTS, CONFIG, TESTDATA / "detectron2_inference.npz")


@pytest.fixture(scope="module")
def found(golden):
    """What every stage makes of its recorded input."""
    return checks.run_stages(golden)


def assert_below(differences, limit):
    assert differences and all(v <= limit for v in differences.values()), differences


def test_normalised_and_padded_input(golden):
    """Against NumPy: BGR minus mean, then zeros; the model has RGB and the mean in that order."""
    height, width = golden.arrays["image_size"]
    expected = np.zeros((1, 160, 192, 3), np.float32)
    expected[0, :height, :width] = golden.arrays["image_bgr_hwc"] - np.array([103.53, 116.28, 123.675], np.float32)
    found = golden.apply(lambda model, x, size: model.normalize(x, size), golden.padded_image(), golden.image_size)
    np.testing.assert_allclose(found, expected[..., ::-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", [checks.backbone, checks.fpn, checks.rpn], ids=lambda f: f.__name__)
def test_features(golden, found, stage):
    """res2..res5 from the image, p2..p6 from the recorded res2..res5, RPN outputs from the recorded p2..p6."""
    assert_below(stage(golden, found), RELATIVE)


def test_anchors(golden, found):
    assert_below(checks.anchors(golden, found), 1e-4)


def test_proposals(golden, found):
    differences = checks.proposals(golden, found)
    assert differences["unmatched"] == 0 and differences["boxes"] <= BOXES, differences
    assert differences["logits"] <= 1e-5 and differences["levels"] == 0, differences


def test_box_head(golden, found):
    """RoIAlign, hidden layer, class logits, box deltas and decoded boxes of the recorded proposals."""
    assert_below(checks.box_head(golden, found), RELATIVE)


def test_detections(golden, found):
    differences = checks.detections(golden, found)
    assert differences["unmatched"] == 0 and differences["boxes"] <= BOXES, differences
    assert differences["scores"] <= SCORES, differences


def test_mask_head(golden, found):
    assert_below(checks.mask_head(golden, found), RELATIVE)


def test_pasted_masks(golden):
    differences = checks.pasted(golden)
    assert differences["boxes"] <= BOXES and differences["pixels"] <= 1e-4, differences


def test_end_to_end(golden, found):
    """At most one percent of the detections may be lost to ties of the float32 noise; here none is."""
    check_results(checks.end_to_end(golden, found))


def test_detector_of_evaluation(golden):
    """The same, by what evaluation and prediction run."""
    check_results(checks.detector(golden))
