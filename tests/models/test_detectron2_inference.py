"""Inference with detectron2's weights gives detectron2's numbers, stage by stage and from the pixels to the masks.

The run is one of detectron2 on a drawn image of 153 x 171 pixels (padded to 160 x 192), a Mask R-CNN R50-FPN with the
EQL head, all layers and narrow widths; see tests/testdata/README.md. The weights come through eql_jax.convert.
"""

import numpy as np
import pytest

from tests.models import inference_checks as checks
from tests.models.golden import BOXES, CONFIG, RELATIVE, SCORES, TESTDATA, WEIGHTS, load_golden


@pytest.fixture(scope="module")
def golden():
    return load_golden(WEIGHTS, CONFIG, TESTDATA / "detectron2_inference.npz")


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
def test_features(golden, stage):
    """res2..res5 from the image, p2..p6 from the recorded res2..res5, RPN outputs from the recorded p2..p6."""
    assert_below(stage(golden), RELATIVE)


def test_anchors(golden):
    assert_below(checks.anchors(golden), 1e-4)


def test_proposals(golden):
    found = checks.proposals(golden)
    assert found["unmatched"] == 0 and found["boxes"] <= BOXES and found["logits"] <= 1e-5 and found["levels"] == 0


def test_box_head(golden):
    """RoIAlign, hidden layer, class logits, box deltas and decoded boxes of the recorded proposals."""
    assert_below(checks.box_head(golden), RELATIVE)


def test_detections(golden):
    found = checks.detections(golden)
    assert found["unmatched"] == 0 and found["boxes"] <= BOXES and found["scores"] <= SCORES, found


def test_mask_head(golden):
    assert_below(checks.mask_head(golden), RELATIVE)


def test_pasted_masks(golden):
    found = checks.pasted(golden)
    assert found["boxes"] <= BOXES and found["pixels"] <= 1e-4, found


def test_end_to_end(golden):
    """At most one percent of the detections may be lost to ties of the float32 noise; here none is."""
    found = checks.end_to_end(golden)
    assert found["unmatched"] <= 0.01, found
    assert found["boxes"] <= BOXES and found["scores"] <= SCORES, found
    assert found["mask_probabilities"] <= 1e-3 and found["pixels"] <= 1e-4, found
    assert found["output_boxes"] <= 1.37 * BOXES + 5e-4, found  # scaled, and rounded to 1/1000 in the results
