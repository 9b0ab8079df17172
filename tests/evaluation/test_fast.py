"""The fast backend against the `lvis` package on made-up federated sets that hold every case at once."""

import copy

import numpy as np
import pytest

from eql_jax.evaluation import ResultTable, evaluate
from tests.evaluation.synthetic_lvis import HEIGHT, WIDTH, make_lvis
from tests.evaluation.test_evaluator import make_coco

SIDE = 24  # of the images of `grid_case`


def rectangle(box):
    """Uncompressed run lengths of a box of whole pixels, compressed."""
    from pycocotools import mask as mask_utils

    x, y, w, h = box
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = mask_utils.encode(mask)
    return {"size": [SIDE, SIDE], "counts": rle["counts"].decode()}


def grid_case(seed, *, images=12, classes=6, over=0):
    """Small boxes of whole pixels: equal overlaps, overlaps on thresholds, equal scores, no area, marked objects.

    `over` is how many detections the first image has beyond the others; image 7 has only detections of no area, image 8
    only ones of classes without a verdict, image 9 none, and image 10 no object.
    """
    rng = np.random.default_rng(seed)
    dataset = {"images": [], "annotations": [], "categories": []}
    results = []

    def box(largest=9):
        w, h = rng.integers(1, largest, 2)
        return [int(v) for v in (rng.integers(0, SIDE - w), rng.integers(0, SIDE - h), w, h)]

    for image_id in rng.permutation(images).tolist():
        present = set()
        for _ in range(0 if image_id == 10 else rng.integers(1, 10)):
            annotation = {"id": len(dataset["annotations"]), "image_id": image_id, "bbox": box()}
            annotation["category_id"] = int(rng.integers(1, classes))  # the last one has no object
            annotation["segmentation"] = rectangle(annotation["bbox"])
            # Some of no area, which count for nothing, and some on both sides of 32 * 32.
            annotation["area"] = float(rng.choice([0, 50, 900, 1024, 5000, 9216, 20_000], p=[0.1, *[0.15] * 6]))
            if rng.random() < 0.15:
                annotation["ignore"] = 1
            present.add(annotation["category_id"])
            dataset["annotations"].append(annotation)
        rest = [c for c in range(1, classes + 1) if c not in present]
        image = {"id": image_id, "height": SIDE, "width": SIDE}
        image["neg_category_ids"] = [] if image_id == 8 else rest[: len(rest) // 2]
        image["not_exhaustive_category_ids"] = sorted(present)[:1] + rest[-1:]
        dataset["images"].append(image)
        objects = [a for a in dataset["annotations"] if a["image_id"] == image_id]
        for k in range(0 if image_id == 9 else 25 + (over if image_id == 0 else 0)):
            category_id = int(rng.integers(1, classes + 2))  # one that the categories lack, too
            found = box()
            if objects and rng.random() < 0.5:
                chosen = objects[rng.integers(len(objects))]
                category_id, found = chosen["category_id"], list(chosen["bbox"])
                found[int(rng.integers(2))] = max(0, found[0] - 1) if rng.random() < 0.5 else found[0]
                found[2:] = [min(found[2], SIDE - found[0]), min(found[3], SIDE - found[1])]
            if image_id == 7 or rng.random() < 0.1:
                found[3] = 0
            if image_id == 8:
                category_id = rest[k % len(rest)]
            score = float(rng.integers(1, 6)) / 5
            results.append({"image_id": image_id, "category_id": category_id, "score": score, "bbox": found})
            results[-1]["segmentation"] = rectangle(found)
    dataset["categories"] = [
        {"id": c, "name": str(c), "frequency": "rcf"[c % 3]}
        for c in rng.permutation(np.arange(1, classes + 1)).tolist()
    ]
    order = rng.permutation(len(results))  # images not in one piece each
    return dataset, [results[i] for i in order]


def assert_same(dataset, results, **options):
    """Both backends give the same numbers; returns the fast one's."""
    fast, official = (evaluate(dataset, results, backend=b, **options) for b in ("fast", "official"))
    for iou_type in official.curves:
        for name in ("precision", "recall"):
            found, expected = (getattr(r.curves[iou_type], name) for r in (fast, official))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9, err_msg=f"{iou_type} {name}")
        assert fast.metrics[iou_type].keys() == official.metrics[iou_type].keys()
        assert fast.metrics[iou_type] == pytest.approx(official.metrics[iou_type], abs=1e-9)
    for a, b in zip(fast.classes, official.classes, strict=True):
        assert (a.class_id, a.instances) == (b.class_id, b.instances)
        assert {**a.ap, **a.ap50} == pytest.approx({**b.ap, **b.ap50}, abs=1e-9)
    assert (fast.notes, fast.num_detections) == (official.notes, official.num_detections)
    return fast


@pytest.mark.parametrize("seed", range(4))
def test_every_case_at_once(seed):
    dataset, results = grid_case(seed)
    before = copy.deepcopy((dataset, results))
    found = assert_same(dataset, results)
    assert (dataset, results) == before, "the input must not be changed"
    assert 0.01 < found.metrics["bbox"]["AP"] < 0.95
    assert found.classes[-1].ap["bbox"] == -1


@pytest.mark.parametrize("limits", [{}, {"max_detections": 7}, {"max_detections": -1}, {"max_detections": 0}])
def test_limits_per_image(limits):
    dataset, results = grid_case(10, over=330)
    assert_same(dataset, results, **limits)


@pytest.mark.parametrize("count", [1, 9, 10_000])
def test_limits_per_class(count):
    dataset, results = grid_case(11, over=330)
    assert_same(dataset, results, max_detections=-1, detections_per_class=count)


def test_the_usual_set_with_ties_and_without():
    for seed, tied in ((6, False), (7, True)):
        assert_same(*make_lvis(seed, tied=tied))


def test_coco_crowds():
    dataset, results = make_coco(3)
    with_crowds = assert_same(dataset, results)
    without = {**dataset, "annotations": [a for a in dataset["annotations"] if not a["iscrowd"]]}
    assert with_crowds.metrics != assert_same(without, results).metrics


def test_images_whose_detections_all_go():
    dataset, results = grid_case(12)
    for image_id in (7, 8):
        mine = [r for r in results if r["image_id"] == image_id]
        assert mine
        found = assert_same(dataset, mine, image_ids=[image_id])
        assert found.metrics["bbox"]["AP"] in (0, -1)
    assert_same(dataset, [r for r in results if r["image_id"] in (7, 8)])


def test_no_detections_and_no_objects():
    dataset, results = grid_case(13)
    assert_same(dataset, [])
    assert_same({**dataset, "annotations": []}, results)
    assert_same(dataset, results, image_ids=[10])


def test_boxes_turned_inside_out_and_not_finite():
    """A box of two negative sides has an area and overlaps nothing; one that is not finite counts for nothing."""
    dataset, results = grid_case(14)
    strange = [[20, 20, -5, -5], [1, 1, -5, 5], [1, 1, float("nan"), 5], [1, 1, float("inf"), 5], [1, 1, 1e200, 1e200]]
    changed = [{**r, "bbox": box} for r, box in zip(results[::20], strange * 9, strict=False)] + results
    assert_same(dataset, changed, iou_types=["bbox"])


def test_annotations_and_images_that_are_faulty():
    dataset, results = grid_case(15)
    for annotation in dataset["annotations"][::5]:
        annotation["segmentation"] = None
    dataset["annotations"].append({"image_id": 99, "category_id": 1})
    found = assert_same(dataset, results, iou_types=["segm"])
    assert "without a usable segmentation" in found.notes[0]
    both = evaluate(dataset, results)
    assert both.metrics["segm"] == found.metrics["segm"]
    assert both.metrics["bbox"] == assert_same(dataset, results, iou_types=["bbox"]).metrics["bbox"]


def test_a_table_a_file_and_dicts_are_the_same(tmp_path):
    import json

    dataset, results = grid_case(16)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    expected = evaluate(dataset, results)
    assert evaluate(dataset, path) == evaluate(dataset, ResultTable.from_results(results)) == expected
    assert evaluate(dataset, iter(results)) == expected


def test_damaged_masks_are_named():
    """The official code would go round for ever over runs that do not fill the image."""
    dataset, results = make_lvis(4)
    annotation = dataset["annotations"][0]
    counts = annotation["segmentation"]["counts"]
    result = {"image_id": annotation["image_id"], "category_id": annotation["category_id"], "score": 0.5}
    for damaged in (counts[:-1], counts[:-4], counts + "8"):
        results[7] = {**result, "segmentation": {"size": [HEIGHT, WIDTH], "counts": damaged}}
        with pytest.raises(ValueError, match=f"^result 7: its run lengths are damaged.*{HEIGHT} x {WIDTH} pixels"):
            evaluate(dataset, results, iou_types=["segm"])
    dataset, results = make_coco(3)
    crowd = next(a for a in dataset["annotations"] if a["iscrowd"])
    result = {"image_id": crowd["image_id"], "category_id": crowd["category_id"], "score": 0.5}
    results[7] = {**result, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "0102"}}
    with pytest.raises(ValueError, match="^result 7: its run lengths are damaged"):
        evaluate(dataset, results, iou_types=["segm"])


def test_strings_that_pycocotools_must_not_see():
    """Far from any object: nothing compares these masks, but their areas are asked for."""
    dataset, results = make_lvis(4)
    image = next(image for image in dataset["images"] if image["neg_category_ids"])
    result = {"image_id": image["id"], "category_id": image["neg_category_ids"][0], "score": 0.5}
    for counts in ("P" * 5, "0P", "09\x00", "09~", "\x1409"):
        results[7] = {**result, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}}
        for options in ({}, {"backend": "official"}, {"iou_types": ["boundary"]}):
            with pytest.raises(ValueError, match="^result 7: its run lengths are damaged"):
                evaluate(dataset, results, **{"iou_types": ["segm"], **options})
    # The package measures and compares what it is given: one that does not fill its image never gets there.
    results[7]["segmentation"]["counts"] = "0102"
    with pytest.raises(ValueError, match="^result 7: its run lengths are damaged"):
        evaluate(dataset, results, iou_types=["segm"], backend="official")


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend: expected one of .*'slow'"):
        evaluate({}, [], backend="slow")
