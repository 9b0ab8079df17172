"""Every number of the official API, boxes and masks, on 40 images of LVIS v0.5: metrics, AP per class, all curves.

The numbers were made with `lvis` 0.5.3 alone, outside of this package; tests/testdata/README.md has the details.
"""

import collections
import functools
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from eql_jax.evaluation import evaluate
from eql_jax.evaluation.evaluator import BACKENDS
from tests.evaluation import reference

TESTDATA = Path(__file__).parents[1] / "testdata"
# Run: IoU type, whether scores are tied, detections per class (AP-fixed).
RUNS = {
    "bbox": ("bbox", False, None),
    "segm_mask_area": ("segm", False, None),
    "bbox_tied_scores": ("bbox", True, None),
    "segm_mask_area_tied_scores": ("segm", True, None),
    "bbox_ap_fixed_10000": ("bbox", False, 10_000),
    "bbox_ap_fixed_5": ("bbox", False, 5),
    "segm_ap_fixed_10000": ("segm", False, 10_000),
    "segm_ap_fixed_5": ("segm", False, 5),
}
TOLERANCE = dict(rtol=0, atol=1e-9)


@functools.cache
def golden():
    """Annotations, detections, tied scores and expected metrics; do not change them."""
    with gzip.open(TESTDATA / "evaluation_lvis.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


@functools.cache
def golden_arrays():
    """runs [8], category_ids [K], ap [8, K], precision [8, K, A, T, R], recall [8, K, A, T]: classes with objects."""
    with np.load(TESTDATA / "evaluation_lvis.npz") as file:
        arrays = {name: file[name] for name in ("runs", "category_ids", "ap")}
        for name in ("precision", "recall"):  # few values occur, so that the files hold positions in a list of them
            arrays[name] = file[f"{name}_values"][file[f"{name}_index"]]
    return arrays


def detections(*, tied=False):
    content = golden()
    if not tied:
        return content["detections"]
    return [{**d, "score": score} for d, score in zip(content["detections"], content["tied_scores"], strict=True)]


@functools.cache
def run(name, backend="fast"):
    """The result of a run; do not change it."""
    iou_type, tied, detections_per_class = RUNS[name]
    limits = {} if detections_per_class is None else dict(max_detections=-1, detections_per_class=detections_per_class)
    return evaluate(golden(), detections(tied=tied), iou_types=[iou_type], backend=backend, **limits)


both_backends = pytest.mark.parametrize("backend", BACKENDS)


def test_data_is_complete():
    content, arrays = golden(), golden_arrays()
    assert list(content["expected"]) == arrays["runs"].tolist() == list(RUNS)
    assert [len(content[key]) for key in ("images", "annotations", "categories")] == [40, 564, 1230]
    assert len(content["detections"]) == len(content["tied_scores"]) == 2695
    assert {len(run["results"]) for run in content["expected"].values()} == {13}


@both_backends
@pytest.mark.parametrize("name", RUNS)
def test_metrics(name, backend):
    result = run(name, backend)
    found = result.metrics[RUNS[name][0]]
    expected = golden()["expected"][name]["results"]
    assert found.keys() - expected.keys() == {"AP50r", "AP50c", "AP50f"}, "the official API does not have these"
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, err_msg=key, **TOLERANCE)
    assert result.num_detections == 2695 and not result.notes


@both_backends
@pytest.mark.parametrize("name", RUNS)
def test_ap_of_every_class(name, backend):
    result = run(name, backend)
    arrays, iou_type = golden_arrays(), RUNS[name][0]
    row = arrays["runs"].tolist().index(name)
    expected = dict.fromkeys((c["id"] for c in golden()["categories"]), -1.0)
    expected |= dict(zip(arrays["category_ids"].tolist(), arrays["ap"][row], strict=True))
    assert [c.class_id for c in result.classes] == sorted(expected)
    found = [c.ap[iou_type] for c in result.classes]
    np.testing.assert_allclose(found, [expected[i] for i in sorted(expected)], **TOLERANCE)
    # AP50, which the official API does not tell by class or letter, from the official curves.
    ap50 = dict(zip(arrays["category_ids"].tolist(), arrays["precision"][row, :, 0, 0].mean(axis=-1), strict=True))
    for c in result.classes:
        assert c.ap50[iou_type] == pytest.approx(ap50.get(c.class_id, -1), abs=1e-9)
    for letter in "rcf":
        values = [ap50[c.class_id] for c in result.classes if c.frequency == letter and c.class_id in ap50]
        assert result.metrics[iou_type][f"AP50{letter}"] == pytest.approx(np.mean(values), abs=1e-9)


@both_backends
@pytest.mark.parametrize("name", RUNS)
def test_curves(name, backend):
    result = run(name, backend)
    arrays = golden_arrays()
    row = arrays["runs"].tolist().index(name)
    annotated = np.isin([c.class_id for c in result.classes], arrays["category_ids"])
    curves = result.curves[RUNS[name][0]]
    precision = curves.precision.transpose(2, 3, 0, 1)  # [K, A, T, R]
    recall = curves.recall.transpose(1, 2, 0)  # [K, A, T]
    np.testing.assert_allclose(precision[annotated], arrays["precision"][row], **TOLERANCE)
    np.testing.assert_allclose(recall[annotated], arrays["recall"][row], **TOLERANCE)
    assert (precision[~annotated] == -1).all() and (recall[~annotated] == -1).all()


@pytest.mark.parametrize("name", ["bbox_tied_scores", "segm_mask_area", "bbox_ap_fixed_5"])
def test_reference(name):
    """The evaluator in plain NumPy, by which other tests judge, is right about real annotations too."""
    iou_type, tied, detections_per_class = RUNS[name]
    limits = {} if detections_per_class is None else dict(max_detections=-1, detections_per_class=detections_per_class)
    found, _ = reference.evaluate(golden(), detections(tied=tied), masks=iou_type == "segm", **limits)
    for key, value in golden()["expected"][name]["results"].items():
        np.testing.assert_allclose(found[key], value, err_msg=key, **TOLERANCE)


# ---------------------------------------------------------------------------------------- are the telling cases there?


def area(detection, iou_type):
    if iou_type == "segm":
        return int(mask_utils.area(detection["segmentation"]))
    return detection["bbox"][2] * detection["bbox"][3]


def test_cases_in_the_detections():
    content = golden()
    images = {image["id"]: image for image in content["images"]}
    annotated = {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    found = content["detections"]
    per_image = collections.Counter(d["image_id"] for d in found)
    assert sorted(per_image.values())[-4:] == [300, 301, 340, 522]
    kind = collections.Counter()
    for d in found:
        image, category_id = images[d["image_id"]], d["category_id"]
        known = (d["image_id"], category_id) in annotated
        kind["not exhaustive"] += category_id in image["not_exhaustive_category_ids"]
        kind["verified absent"] += category_id in image["neg_category_ids"]
        kind["no verdict"] += not known and category_id not in image["neg_category_ids"]
    assert kind == {"not exhaustive": 421, "verified absent": 843, "no verdict": 398}
    for iou_type in ("bbox", "segm"):
        assert sum(area(d, iou_type) == 0 for d in found) == 33, iou_type
    # Images are neither in the order of their ids nor in one piece each.
    first_seen = list(per_image)
    assert first_seen != sorted(first_seen) and len({d["image_id"] for d in found[:100]}) > 20
    assert len({d["score"] for d in found}) == len(found)
    ties = collections.Counter(zip((d["category_id"] for d in found), content["tied_scores"], strict=True))
    assert sum(n > 1 for n in ties.values()) > 100


def differs(dataset, results, iou_type="bbox", **options):
    """Whether an evaluation of altered input gives other APs than the golden run with 300 detections an image."""
    expected = run("bbox" if iou_type == "bbox" else "segm_mask_area").metrics[iou_type]
    found = evaluate(dataset, results, iou_types=[iou_type], **options).metrics[iou_type]
    return max(abs(found[key] - expected[key]) for key in expected if "@" not in key) > 1e-6


def test_no_case_is_idle():
    """Each case decides a number: input that makes the evaluator see it otherwise gives other numbers."""
    content, found = golden(), golden()["detections"]

    def images(key, ids):
        return {**content, "images": [{**image, key: ids} for image in content["images"]]}

    assert not differs(content, found)
    assert differs(content, found, max_detections=-1), "more than 300 detections"
    verified = {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    verified |= {(image["id"], c) for image in content["images"] for c in image["neg_category_ids"]}
    known = [d for d in found if (d["image_id"], d["category_id"]) in verified]
    assert differs(content, known), "the limit comes before classes without a verdict go"
    assert differs(images("not_exhaustive_category_ids", []), found), "classes that are not exhaustive"
    assert differs(images("neg_category_ids", []), found), "classes verified absent"
    assert differs(images("neg_category_ids", [c["id"] for c in content["categories"]]), found), "no verdict"


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_detections_of_no_area_are_no_false_positives(iou_type):
    small = dict(bbox=lambda d: [*d["bbox"][:2], 0.01, 0.01], segm=lambda d: one_pixel(d["segmentation"]["size"]))
    key = "bbox" if iou_type == "bbox" else "segmentation"
    found = golden()["detections"]
    grown = [d if area(d, iou_type) else {**d, key: small[iou_type](d)} for d in found]
    assert differs(golden(), grown, iou_type), "they would be, had they any area"


def one_pixel(size):
    mask = np.zeros(size, np.uint8, order="F")
    mask[0, 0] = 1
    return {"size": size, "counts": mask_utils.encode(mask)["counts"].decode()}


def test_ties_follow_the_order_of_detections_within_an_image():
    expected, tied = run("bbox_tied_scores").metrics, detections(tied=True)
    # The order of images in the file is nothing to go by: they rank by rising id within a class.
    moved = sorted(tied, key=lambda d: -d["image_id"])
    assert evaluate(golden(), moved, iou_types=["bbox"]).metrics == expected
    assert evaluate(golden(), tied[::-1], iou_types=["bbox"]).metrics != expected
