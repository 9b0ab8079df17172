"""What the parity tests of all model variants ask for; see inference_checks."""

from tests.models import inference_checks as checks
from tests.models.golden import BOXES, RELATIVE, SCORES, Golden


def check_inference(golden: Golden) -> None:
    """Every stage within the tolerances of float32, then detections, masks and results from the image on."""
    found = checks.run_stages(golden)
    for stage in (checks.backbone, checks.fpn, checks.rpn, checks.box_head, checks.mask_head):
        differences = stage(golden, found)
        assert all(v <= RELATIVE for v in differences.values()), (stage.__name__, differences)
    differences = checks.proposals(golden, found)
    assert differences["unmatched"] == 0 and differences["boxes"] <= BOXES, differences
    assert differences["logits"] <= SCORES and differences.get("levels", 0) == 0, differences
    differences = checks.cascade(golden, found)
    assert differences.pop("mean_scores", 0) <= SCORES and all(v <= BOXES for v in differences.values()), differences
    differences = checks.detections(golden, found)
    assert differences["unmatched"] == 0, differences
    assert differences["boxes"] <= BOXES and differences["scores"] <= SCORES, differences
    differences = checks.pasted(golden)
    assert differences["boxes"] <= BOXES and differences["pixels"] <= 1e-4, differences
    check_results(checks.end_to_end(golden, found))


def check_results(differences: dict[str, float]) -> None:
    """Tolerances of what `inference_checks.compare_results` finds."""
    assert differences["unmatched"] <= 0.01, differences
    assert differences["boxes"] <= BOXES and differences["scores"] <= SCORES, differences
    assert differences["mask_probabilities"] <= 1e-3 and differences["pixels"] <= 1e-4, differences
    assert differences["output_boxes"] <= 1.37 * BOXES + 5e-4, differences  # scaled, and rounded to 1/1000
