"""AP against an evaluator in plain NumPy (LVIS) and against pycocotools (COCO), and files that are not as they should.

The reference is itself checked against numbers that the official package printed for 40 images of LVIS v0.5
(test_golden.py).
"""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eql_jax.data.validation import AnnotationError
from eql_jax.evaluation import evaluate
from tests.evaluation import reference
from tests.evaluation.synthetic_lvis import HEIGHT, WIDTH, ellipse, make_lvis, octagon


@pytest.mark.parametrize("seed, tied", [(0, False), (1, True), (2, False)])
def test_equals_reference(seed, tied):
    dataset, results = make_lvis(seed, tied=tied)
    before = copy.deepcopy((dataset, results))
    found = evaluate(dataset, results)
    assert (dataset, results) == before, "the input must not be changed"
    assert found.num_images == 9 and found.num_detections == len(results) and not found.notes
    for iou_type in ("bbox", "segm"):
        metrics, per_class = reference.evaluate(dataset, results, masks=iou_type == "segm")
        assert metrics.keys() == found.metrics[iou_type].keys()
        for name, value in metrics.items():
            assert found.metrics[iou_type][name] == pytest.approx(value, abs=1e-9), (iou_type, name)
        np.testing.assert_allclose([c.ap[iou_type] for c in found.classes], per_class, atol=1e-9)
        assert found.classes[-1].ap[iou_type] == -1, "a class without ground truth"
        assert found.classes[-2].ap[iou_type] == 0, "a class without detections"
    assert 0.05 < found.metrics["segm"]["AP"] < 0.95, "the case must be neither trivial nor hopeless"
    assert [c.class_id for c in found.classes] == sorted(c["id"] for c in dataset["categories"])
    assert sum(c.instances for c in found.classes) == found.num_annotations == len(dataset["annotations"])


@pytest.mark.parametrize("limit", [5, -1])
def test_other_limits(lvis_case, limit):
    dataset, results = lvis_case
    found = evaluate(dataset, results, iou_types=["bbox"], max_detections=limit)
    metrics, _ = reference.evaluate(dataset, results, masks=False, max_detections=limit)
    assert found.metrics["bbox"] == pytest.approx(metrics, abs=1e-9)


def test_mask_area_decides_and_not_the_box_area(lvis_case):
    dataset, results = lvis_case
    without_box = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
    assert evaluate(dataset, results, iou_types=["segm"]) == evaluate(dataset, without_box, iou_types=["segm"])


def test_polygons_of_several_parts_count_as_their_union(lvis_case):
    dataset, results = copy.deepcopy(lvis_case)
    as_run_lengths = copy.deepcopy(dataset)
    for annotation, other in zip(dataset["annotations"], as_run_lengths["annotations"], strict=True):
        x, y, w, h = annotation["bbox"]
        parts = octagon([x, y, w * 0.7, h]) + octagon([x + w * 0.5, y, w * 0.5, h * 0.6])
        rles = [reference.to_mask([part], HEIGHT, WIDTH) for part in parts]
        union = mask_utils.encode(np.asfortranarray((rles[0] | rles[1]).astype(np.uint8)))
        annotation["segmentation"] = parts
        other["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": union["counts"].decode()}
    expected = evaluate(as_run_lengths, results, iou_types=["segm"])
    assert expected.metrics["segm"]["AP50"] > 0.05
    assert evaluate(dataset, results, iou_types=["segm"]) == expected


def one_image(boxes):
    """A data set of one image with these boxes of class 1."""
    image = {"id": 1, "height": 100, "width": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3]} for i, box in enumerate(boxes)
    ]
    return {"images": [image], "annotations": annotations, "categories": [{"id": 1, "frequency": "r"}]}


def box_metrics(boxes, detected):
    """Metrics of `boxes` where `detected` are found, by falling score."""
    results = [{"image_id": 1, "category_id": 1, "score": 1 - i / 10, "bbox": box} for i, box in enumerate(detected)]
    return evaluate(one_image(boxes), results, iou_types=["bbox"]).metrics["bbox"]


def test_area_ranges_hold_both_their_ends():
    """An object of 32 * 32 pixels is small and medium, and so is a false detection of that size."""
    right, wrong = [10, 10, 32, 32], [60, 60, 32, 32]
    for detected, ap in (([right], 1), ([wrong, right], 0.5)):
        values = box_metrics([right], detected)
        assert (values["APs"], values["APm"]) == pytest.approx((ap, ap)) and values["APl"] == -1


def test_of_equal_overlaps_the_later_object_is_matched():
    """The first detection overlaps both objects by 5 / 7, the second only the later one enough (7 / 8)."""
    earlier, later = [0, 0, 30, 10], [10, 0, 30, 10]
    detected = [[5, 0, 30, 10], [12, 0, 30, 10]]
    assert box_metrics([earlier, later], detected)["AP50"] == pytest.approx(51 / 101), "recall one half"
    assert box_metrics([later, earlier], detected)["AP50"] == pytest.approx(1)


def test_subset_of_images(lvis_case):
    dataset, results = lvis_case
    chosen = [image["id"] for image in dataset["images"]][1:4]
    found = evaluate(dataset, results, iou_types=["bbox"], image_ids=chosen)
    part = {
        "images": [i for i in dataset["images"] if i["id"] in chosen],
        "annotations": [a for a in dataset["annotations"] if a["image_id"] in chosen],
        "categories": dataset["categories"],
    }
    mine = [r for r in results if r["image_id"] in chosen]
    assert found.num_images == 3 and found.num_detections == len(mine)
    assert found == evaluate(part, mine, iou_types=["bbox"])
    with pytest.raises(ValueError, match=r"lacks.*\[5\]"):
        evaluate(dataset, results, image_ids=[5])
    for backend in ("fast", "official"):
        with pytest.raises(ValueError, match="image_ids is empty"):
            evaluate(dataset, results, image_ids=[], backend=backend)


def test_no_detections(lvis_case):
    found = evaluate(lvis_case[0], [])
    for values in found.metrics.values():
        assert set(values.values()) == {0.0}
    assert found.classes[0].ap == {"bbox": 0, "segm": 0} and found.classes[-1].ap == {"bbox": -1, "segm": -1}


def test_no_annotations_in_the_images(lvis_case):
    dataset, results = lvis_case
    empty = [i["id"] for i in dataset["images"]][3:4]
    found = evaluate(dataset, results, image_ids=empty)
    assert set(found.flat().values()) == {-1.0}


def test_letters(lvis_case):
    dataset, results = lvis_case
    rare = {c["id"]: "r" for c in dataset["categories"]}
    all_rare = evaluate(dataset, results, iou_types=["bbox"], letters=rare)
    values = all_rare.metrics["bbox"]
    assert values["APr"] == values["AP"] and values["AP50r"] == values["AP50"]
    assert values["APc"] == values["APf"] == values["AP50c"] == -1
    # The file's letters come before the fallback; a file without any has none to show.
    same = evaluate(
        dataset, results, iou_types=["bbox"], fallback_letters={c["id"]: "r" for c in dataset["categories"]}
    )
    assert same == evaluate(dataset, results, iou_types=["bbox"])
    bare = copy.deepcopy(dataset)
    for category in bare["categories"]:
        del category["frequency"]
    assert evaluate(bare, results, iou_types=["bbox"]).metrics["bbox"]["APr"] == -1
    letters = {c["id"]: c["frequency"] for c in dataset["categories"]}
    assert evaluate(bare, results, iou_types=["bbox"], fallback_letters=letters) == same
    with pytest.raises(ValueError, match="'x'; expected one of"):
        evaluate(dataset, results, letters={10: "x"})


# ------------------------------------------------------------------------------------------------------------- COCO


def make_coco(seed):
    """COCO annotations with crowds, and fewer than 100 detections per image and class, where the two limits agree."""
    dataset, results = make_lvis(seed, num_classes=6)
    for image in dataset["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for category in dataset["categories"]:
        del category["frequency"]
    results = [r for r in results if r["bbox"][3] > 0]  # COCO counts a detection of no area as false, LVIS drops it
    # Twelve detections an image; crowds over the right half of every other image, of two classes.
    by_image = {}
    for r in results:
        by_image.setdefault(r["image_id"], []).append(r)
    results = [r for mine in by_image.values() for r in mine[:60]]
    for annotation in dataset["annotations"]:
        annotation["id"] += 1
        annotation["iscrowd"] = 0
    for image in dataset["images"][::2]:
        for category_id in (10, 20):
            box = [100.0, 0.0, 110.0, 150.0]
            dataset["annotations"].append(
                {
                    "id": len(dataset["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category_id,
                    "iscrowd": 1,
                    "bbox": box,
                    "area": 16500.0,
                    "segmentation": ellipse(box),
                }
            )
    return dataset, results


@pytest.mark.parametrize("seed", [0, 5])
def test_coco_equals_pycocotools(seed):
    dataset, results = make_coco(seed)
    found = evaluate(dataset, results)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        for iou_type, key in (("bbox", "bbox"), ("segm", "segmentation")):
            kept = [{k: copy.deepcopy(r[k]) for k in ("image_id", "category_id", "score", key)} for r in results]
            peer = COCOeval(truth, truth.loadRes(kept), iou_type)
            peer.params.maxDets = [1, 10, 300]
            peer.evaluate()
            peer.accumulate()
            precision = peer.eval["precision"][:, :, :, :, -1]  # [T, R, K, A]

            def mean(values):
                return values[values > -1].mean()

            expected = {"AP": mean(precision[..., 0]), "AP50": mean(precision[0, ..., 0])}
            expected |= {f"AP{name}": mean(precision[..., i]) for i, name in enumerate("sml", 1)}
            expected["AR@300"] = mean(peer.eval["recall"][:, :, 0, -1])
            mine = {name: found.metrics[iou_type][name] for name in expected}
            assert mine == pytest.approx(expected, abs=1e-9)
            for k, c in enumerate(found.classes):
                if c.instances:
                    assert c.ap[iou_type] == pytest.approx(mean(precision[:, :, k, 0]), abs=1e-9)
    without_crowds = {**dataset, "annotations": [a for a in dataset["annotations"] if not a["iscrowd"]]}
    assert evaluate(without_crowds, results).metrics["bbox"]["AP"] != found.metrics["bbox"]["AP"]
    assert found.metrics["bbox"]["APr"] == -1, "COCO has no letters"


# ----------------------------------------------------------------------------------------------------- faulty input


def test_faulty_records_are_named_and_left_out(lvis_case, tmp_path):
    dataset, results = copy.deepcopy(lvis_case)
    image_id, category_id = dataset["annotations"][0]["image_id"], dataset["annotations"][0]["category_id"]
    good = {"image_id": image_id, "category_id": category_id, "bbox": [1, 1, 40, 40], "area": 1600}
    good["segmentation"] = octagon(good["bbox"])
    clean = evaluate(dataset, results)
    faulty = [
        {**good, "id": 901, "image_id": 4},
        {**good, "id": 902, "image_id": [4]},
        {**good, "id": 903, "category_id": 11},
        {**good, "id": 904, "segmentation": [[1, 1, 5, 5]], "bbox": None},
        {**good, "id": 905, "segmentation": {"size": [3, 3], "counts": "04"}, "bbox": [1, 2, float("nan"), 4]},
        {**good, "id": 906, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 10**6]}, "bbox": None},
        {**good, "id": 907, "segmentation": {"size": 7, "counts": "zz"}, "bbox": None},
        {**good, "id": 0},  # the first annotation's
    ]
    dataset["annotations"] += faulty
    dataset["images"] += [{"id": 5, "height": None, "width": 3}, dict(dataset["images"][0]), {"height": 4}]
    dataset["categories"].append({"name": "without id"})
    path = tmp_path / "faulty.json"
    path.write_text(json.dumps(dataset))
    found = evaluate(path, results)
    assert found.metrics == clean.metrics
    notes = "\n".join(found.notes)
    for part in (
        "image that is not there, left out: 901, 902",
        "unknown category, left out: 903",
        "904, 905, 906, 907",
        "left out: 0",
    ):
        assert part in notes, notes
    assert "images without height and width, left out: 5" in notes and "categories without an id" in notes


def test_missing_box_and_area_come_from_the_mask(lvis_case):
    dataset, results = copy.deepcopy(lvis_case)
    for annotation in dataset["annotations"]:
        annotation["segmentation"] = octagon([20, 30, 60, 50])
        annotation["bbox"], annotation["area"] = [20, 30, 60, 50], None
    expected = evaluate(dataset, results, iou_types=["bbox"]).metrics
    for annotation in dataset["annotations"]:
        del annotation["bbox"]
    found = evaluate(dataset, results, iou_types=["bbox"])
    assert found.metrics == expected
    assert any("which was taken from their mask" in note for note in found.notes)


def test_boxes_without_masks_can_be_evaluated_for_boxes(lvis_case):
    dataset, results = copy.deepcopy(lvis_case)
    expected = evaluate(dataset, results, iou_types=["bbox"]).metrics
    for record in (*dataset["annotations"], *results):
        del record["segmentation"]
    assert evaluate(dataset, results, iou_types=["bbox"]).metrics == expected
    with pytest.raises(ValueError, match="has no 'segmentation', so iou_type 'segm'"):
        evaluate(dataset, results)
    with pytest.raises(ValueError, match="has no 'segmentation', so iou_type 'boundary'"):
        evaluate(dataset, results, iou_types=["boundary"])


def test_counts_do_not_depend_on_the_order_of_the_types(lvis_case):
    """One annotation has no usable mask, and one result a mask of another size."""
    dataset, results = copy.deepcopy(lvis_case)
    dataset["annotations"][0]["segmentation"] = None
    results[0]["segmentation"] = {"size": [HEIGHT + 1, WIDTH], "counts": "0"}
    one, other = (evaluate(dataset, results, iou_types=types) for types in (("bbox", "segm"), ("segm", "bbox")))
    assert one.num_annotations == other.num_annotations == len(dataset["annotations"])
    assert one.num_detections == other.num_detections == len(results)
    assert sum(c.instances for c in one.classes) == sum(c.instances for c in other.classes) == one.num_annotations
    assert one.metrics == other.metrics
    masks = evaluate(dataset, results, iou_types=["segm"])
    assert (masks.num_annotations, masks.num_detections) == (one.num_annotations - 1, len(results) - 1)


def test_results_that_do_not_fit(lvis_case):
    dataset, results = lvis_case
    with pytest.raises(ValueError, match="image 77 is not among the 9 annotated images"):
        evaluate(dataset, [{**results[0], "image_id": 77}])
    with pytest.raises(ValueError, match="expected image_id, category_id and score"):
        evaluate(dataset, [{"image_id": 1000}])
    with pytest.raises(ValueError, match=r"expected run lengths with 'size' and 'counts'.*found"):
        evaluate(dataset, [{**results[0], "segmentation": octagon([20, 30, 60, 50])}], iou_types=["segm"])
    with pytest.raises(ValueError, match="max_detections: expected at least 0, or -1 for no limit, got -5"):
        evaluate(dataset, results, max_detections=-5)
    with pytest.raises(ValueError, match="iou_types: expected some of"):
        evaluate(dataset, results, iou_types=["keypoints"])
    strange = [{**results[0], "category_id": 11}]
    assert "categories that the annotations do not have" in evaluate(dataset, strange).notes[0]
    other_size = {**results[0], "segmentation": {"size": [HEIGHT + 1, WIDTH], "counts": "0"}}
    assert "another size" in evaluate(dataset, [other_size]).notes[0]


def test_files_that_are_none(tmp_path, lvis_case):
    dataset, _ = lvis_case
    path = tmp_path / "annotations.json"
    with pytest.raises(FileNotFoundError, match="annotations.json"):
        evaluate(path, [])
    text = json.dumps(dataset)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(AnnotationError, match="annotations.json is cut off"):
        evaluate(path, [])
    with pytest.raises(ValueError, match="a file without annotations"):
        evaluate({"images": [], "categories": []}, [])
    with pytest.raises(ValueError, match="0 usable images"):
        evaluate({"images": [], "categories": [{"id": 1}], "annotations": []}, [])
