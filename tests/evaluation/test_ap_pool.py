"""AP-pool: the detections of all classes rank together. By hand, and against the evaluator in plain NumPy."""

import pytest

from eql_jax.evaluation import evaluate
from tests.evaluation import reference
from tests.evaluation.synthetic_lvis import make_lvis
from tests.evaluation.test_fast import grid_case

BOX, ELSEWHERE = [10, 10, 40, 40], [100, 10, 40, 40]


def one_image(**lists):
    """One object of each of the classes 1 (rare) and 2 (frequent), in the same box."""
    image = {"id": 1, "height": 100, "width": 200, "neg_category_ids": [], "not_exhaustive_category_ids": [], **lists}
    annotation = {"image_id": 1, "bbox": BOX, "area": 1600}
    return {
        "images": [image],
        "annotations": [{**annotation, "id": i, "category_id": i} for i in (1, 2)],
        "categories": [{"id": i, "frequency": letter} for i, letter in ((1, "r"), (2, "f"), (3, "c"))],
    }


def found(category_id, score, box=BOX):
    return {"image_id": 1, "category_id": category_id, "score": score, "bbox": box}


def pooled(dataset, results):
    result = evaluate(dataset, results, iou_types=["bbox"], max_detections=-1, pooled=True)
    return result.pooled["bbox"]


def test_scores_are_compared_across_classes():
    """Class 1 is right with .9 and .8 is a false one of class 2, before its right one with .7.

    By class: AP 1 and 1/2. Pooled: right, wrong, right: precision 1 up to recall 1/2 (51 points), then 2/3 (50 points).
    """
    results = [found(1, 0.9), found(2, 0.8, ELSEWHERE), found(2, 0.7)]
    result = evaluate(one_image(), results, iou_types=["bbox"], max_detections=-1, pooled=True)
    assert [c.ap["bbox"] for c in result.classes] == pytest.approx([1, 0.5, -1])
    values = result.pooled["bbox"]
    assert [values[name] for name in ("AP", "AP50", "AP75")] == pytest.approx([(51 + 50 * 2 / 3) / 101] * 3)
    # The pools of letters rank only their own classes.
    assert (values["APr"], values["APf"], values["APc"]) == pytest.approx((1, 0.5, -1))
    assert (values["AP50r"], values["AP50f"], values["AP50c"]) == pytest.approx((1, 0.5, -1))
    assert values["AR@-1"] == pytest.approx(1)
    assert (values["APs"], values["APm"], values["APl"]) == pytest.approx((-1, values["AP"], -1))
    # AP-fixed does not change when the scores of a class are halved; AP-pool does.
    results[0]["score"] = 0.1
    again = evaluate(one_image(), results, iou_types=["bbox"], max_detections=-1, pooled=True)
    assert again.metrics == result.metrics
    assert again.pooled["bbox"]["AP"] == pytest.approx(2 / 3)  # wrong, right, right


def test_a_detection_matches_objects_of_its_class_only():
    assert pooled(one_image(), [found(1, 0.9), found(1, 0.8)])["AP"] == pytest.approx(51 / 101)


def test_federated_rules_stay():
    right = [found(1, 0.5), found(2, 0.4)]
    false = [found(3, 0.9)]
    assert pooled(one_image(), right + false)["AP"] == pytest.approx(1), "nobody looked for class 3"
    assert pooled(one_image(neg_category_ids=[3]), right + false)["AP"] == pytest.approx(2 / 3)
    false = [found(2, 0.9, ELSEWHERE)]
    assert pooled(one_image(), right + false)["AP"] == pytest.approx(2 / 3)
    assert pooled(one_image(not_exhaustive_category_ids=[2]), right + false)["AP"] == pytest.approx(1)


@pytest.mark.parametrize("make", [lambda: make_lvis(3, num_images=6, tied=True), lambda: make_lvis(8, num_images=5)])
@pytest.mark.parametrize("count", [5, 10_000])
def test_equals_reference(make, count):
    dataset, results = make()
    limits = dict(max_detections=-1, detections_per_class=count)
    result = evaluate(dataset, results, pooled=True, **limits)
    assert result.metrics == evaluate(dataset, results, **limits).metrics, "the other metrics are as ever"
    assert result.pooled == evaluate(dataset, results, pooled=True, backend="official", **limits).pooled
    letters = {c["id"]: c["frequency"] for c in dataset["categories"]}
    for iou_type in ("bbox", "segm"):
        values = result.pooled[iou_type]
        for name in ("", "r", "c", "f"):
            pool = [i for i in letters if name in ("", letters[i])]
            expected, _ = reference.evaluate(dataset, results, masks=iou_type == "segm", pools=[pool], **limits)
            assert values[f"AP{name}"] == pytest.approx(expected["AP"], abs=1e-9)
            assert values[f"AP50{name}"] == pytest.approx(expected["AP50"], abs=1e-9)
            if not name:
                others = {key: values[key] for key in expected if key[-1] not in "rcf"}
                assert others == pytest.approx({key: expected[key] for key in others}, abs=1e-9)


def test_boundaries_and_no_detections():
    dataset, results = grid_case(3)
    result = evaluate(dataset, results, iou_types=["boundary"], pooled=True)
    assert 0 < result.pooled["boundary"]["AP"] < 1
    nothing = evaluate(dataset, [], pooled=True)
    assert set(nothing.pooled["segm"].values()) <= {0.0, -1.0}
    assert evaluate(dataset, results).pooled == {}
