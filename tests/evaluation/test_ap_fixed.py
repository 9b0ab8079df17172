"""AP-fixed: the best N of each class over all images. By hand, and against the evaluator in plain NumPy.

The numbers of the official API for it are in test_golden.py.
"""

import copy

import pytest

from eql_jax.evaluation import evaluate
from tests.evaluation import reference
from tests.evaluation.synthetic_lvis import make_lvis

BOX, ELSEWHERE, NO_AREA = [10, 10, 40, 40], [100, 10, 40, 40], [10, 10, 40, 0]


def two_images(*, absent=(2,)):
    """One object of class 1 in each of the images 1 and 2; class 2 has an object in image 1."""
    image = {"height": 100, "width": 200, "not_exhaustive_category_ids": []}
    annotation = {"bbox": BOX, "area": 1600}
    return {
        "images": [{**image, "id": 1, "neg_category_ids": []}, {**image, "id": 2, "neg_category_ids": list(absent)}],
        "annotations": [
            {**annotation, "id": 1, "image_id": 1, "category_id": 1},
            {**annotation, "id": 2, "image_id": 2, "category_id": 1},
            {**annotation, "id": 3, "image_id": 1, "category_id": 2},
        ],
        "categories": [{"id": 1, "frequency": "r"}, {"id": 2, "frequency": "f"}],
    }


def found(image_id, category_id, score, box=BOX):
    return {"image_id": image_id, "category_id": category_id, "score": score, "bbox": box}


def recalls(dataset, results, count):
    """Recall at IoU .5 of classes 1 and 2: with perfect boxes AP50 is the recall, up to its 101 points."""
    result = evaluate(dataset, results, iou_types=["bbox"], max_detections=-1, detections_per_class=count)
    assert result.detections_per_class == count and result.max_detections == -1
    return [round(c.ap50["bbox"], 1) for c in result.classes]


def test_the_limit_is_per_class_and_over_all_images():
    results = [found(1, 1, 0.5), found(2, 1, 0.6), found(1, 2, 0.1)]
    assert recalls(two_images(), results, 2) == [1, 1]
    assert recalls(two_images(), results, 1) == [0.5, 1]
    # Three hundred better ones of class 1 in image 1 take no place from class 2, as they do with 300 an image.
    crowd = [found(1, 1, 0.9 - i / 1000) for i in range(300)]
    assert recalls(two_images(), crowd + results[2:], 300) == [0.5, 1]
    limited = evaluate(two_images(), crowd + results[2:], iou_types=["bbox"])
    assert limited.classes[1].ap50["bbox"] == 0 and limited.detections_per_class is None


def test_of_equal_scores_the_first_in_the_results_stay():
    right, wrong = found(1, 2, 0.5), found(2, 2, 0.5, ELSEWHERE)
    assert recalls(two_images(), [right, wrong], 1) == [0, 1]
    assert recalls(two_images(), [wrong, right], 1) == [0, 0]
    wrong["score"] = 0.4
    assert recalls(two_images(), [wrong, right], 1) == [0, 1]


def test_the_cut_comes_before_anything_else():
    assert recalls(two_images(), [found(1, 2, 0.9, NO_AREA), found(1, 2, 0.5)], 1) == [0, 0]
    # Nobody looked for class 2 in image 2, so its detection there goes, but only after it has taken a place.
    results = [found(2, 2, 0.9), found(1, 2, 0.5)]
    assert recalls(two_images(absent=()), results, 1) == [0, 0]
    assert recalls(two_images(absent=()), results, 2) == [0, 1]


def test_the_limit_per_image_comes_before_anything_else_too():
    results = [found(1, 2, 0.9, NO_AREA), found(1, 2, 0.5)]
    limited = evaluate(two_images(), results, iou_types=["bbox"], max_detections=1)
    assert limited.classes[1].ap50["bbox"] == 0


def test_only_the_images_that_are_evaluated_take_places():
    options = dict(iou_types=["bbox"], max_detections=-1, detections_per_class=1)
    results = [found(2, 1, 0.9), found(1, 1, 0.5)]
    assert evaluate(two_images(), results, image_ids=[1], **options).classes[0].ap50["bbox"] == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 7, 10_000])
def test_equals_reference(count):
    dataset, results = make_lvis(3, tied=True)
    before = copy.deepcopy((dataset, results))
    result = evaluate(dataset, results, max_detections=-1, detections_per_class=count)
    assert (dataset, results) == before, "the input must not be changed"
    for iou_type in ("bbox", "segm"):
        metrics, per_class = reference.evaluate(
            dataset, results, masks=iou_type == "segm", max_detections=-1, detections_per_class=count
        )
        assert result.metrics[iou_type] == pytest.approx(metrics, abs=1e-9)
        assert [c.ap[iou_type] for c in result.classes] == pytest.approx(per_class.tolist(), abs=1e-9)


def test_limits_that_do_not_go_together():
    with pytest.raises(ValueError, match="detections_per_class 5 with max_detections 300.*pass max_detections=-1"):
        evaluate(two_images(), [], detections_per_class=5)
    with pytest.raises(ValueError, match="expected at least 1, or None for no limit, got 0"):
        evaluate(two_images(), [], max_detections=-1, detections_per_class=0)
