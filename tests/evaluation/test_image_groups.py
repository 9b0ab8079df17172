"""AP of groups of classes by number of training images: worked by hand, and against means of the classes' own AP."""

import csv
import json

import numpy as np
import pytest

from eql_jax.evaluation import evaluate, format_table, write_class_csv, write_metrics_json
from eql_jax.evaluation.image_groups import MAX_GROUPS, group_classes, group_metric_names

SQUARE = [10.0, 10.0, 20.0, 20.0]


def test_groups_by_hand():
    """Seven classes in three groups: 3, 2 and 2 by falling count; equal counts by rising id."""
    counts = {3: 5, 5: 90, 8: 5, 9: 0, 11: 40, 12: 5, 20: 7}
    groups = group_classes(sorted(counts), counts, 3)
    assert [group.class_ids for group in groups] == [(5, 11, 20), (3, 8), (12, 9)]
    assert [(group.fewest, group.most) for group in groups] == [(7, 90), (5, 5), (0, 5)]
    assert [group.class_ids for group in group_classes([3, 5], counts, 2)] == [(5,), (3,)]


def test_five_groups_of_a_hundred():
    groups = group_classes(range(1, 501), {i: 1000 - i for i in range(1, 501)}, 5)
    assert [len(group.class_ids) for group in groups] == [100] * 5
    assert groups[0].class_ids == tuple(range(1, 101)) and groups[4].fewest == 500


@pytest.mark.parametrize("count, message", [(4, "eval.image_count_groups is 4; expected 1 to 3"), (2, r"ids \[7\]")])
def test_groups_that_cannot_be(count, message):
    with pytest.raises(ValueError, match=message):
        group_classes([1, 2, 7], {1: 4, 2: 9}, count)


def boxes_dataset(boxes, *, num_images=4, num_classes=5, crowd=()):
    """Boxes (image, class, is it found) of one place; each found one has a detection with IoU 1."""
    images = [
        {"id": i, "height": 64, "width": 64, "neg_category_ids": [], "not_exhaustive_category_ids": []}
        for i in range(1, num_images + 1)
    ]
    annotations, results = [], []
    for number, (image, category, found) in enumerate(boxes, 1):
        annotations.append({"id": number, "image_id": image, "category_id": category, "bbox": SQUARE, "area": 400})
        annotations[-1]["iscrowd"] = int(number in crowd)
        if found:
            results.append({"image_id": image, "category_id": category, "bbox": SQUARE, "score": 0.9})
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, num_classes + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def test_names_of_groups_are_no_other_metrics():
    """AP50 is AP at IoU .5: there is no 50th group."""
    counts = dict.fromkeys(range(60), 1)
    assert not {"AP50", "AP75"} & set(group_metric_names(len(group_classes(range(60), counts, MAX_GROUPS))))
    with pytest.raises(ValueError, match="eval.image_count_groups is 50; expected 1 to 49 for 60 classes"):
        group_classes(range(60), counts, 50)


def test_ap_of_groups_by_hand():
    """Class 1 finds both of two objects, class 2 one of two (51 of 101 recall points), class 4 none of one. Classes 3
    and 5 have no object and count nowhere."""
    dataset, results = boxes_dataset([(1, 1, True), (2, 1, True), (1, 2, True), (2, 2, False), (3, 4, False)])
    counts = {1: 3, 2: 400, 3: 20, 4: 8, 5: 1}
    found = evaluate(dataset, results, iou_types=["bbox"], image_counts=counts, image_count_groups=3)
    metrics = found.metrics["bbox"]
    assert [group.class_ids for group in found.groups] == [(2, 3), (4, 1), (5,)]
    for name in ("AP", "AP50_"):
        assert metrics[f"{name}1"] == pytest.approx(51 / 101)
        assert metrics[f"{name}2"] == pytest.approx(0.5)
        assert metrics[f"{name}3"] == -1
    assert metrics["AP"] == pytest.approx((1 + 51 / 101 + 0) / 3)


@pytest.mark.parametrize("backend", ["fast", "official"])
def test_groups_are_means_of_classes(lvis_case, backend):
    dataset, results = lvis_case
    rng = np.random.default_rng(3)
    counts = {c["id"]: int(rng.integers(1, 500)) for c in dataset["categories"]}
    found = evaluate(dataset, results, image_counts=counts, image_count_groups=3, backend=backend)
    plain = evaluate(dataset, results)
    by_id = {c.class_id: c for c in plain.classes}
    for iou_type in ("bbox", "segm"):
        for i, group in enumerate(found.groups, 1):
            for name, attribute in (("AP", "ap"), ("AP50_", "ap50")):
                own = [getattr(by_id[k], attribute)[iou_type] for k in group.class_ids]
                own = [value for value in own if value >= 0]
                expected = np.mean(own) if own else -1
                assert found.metrics[iou_type][f"{name}{i}"] == pytest.approx(expected, abs=1e-9)
        assert {k: v for k, v in found.metrics[iou_type].items() if k in plain.metrics[iou_type]} == pytest.approx(
            plain.metrics[iou_type], abs=1e-9
        )


def test_tables_and_files(tmp_path):
    dataset, results = boxes_dataset([(1, 1, True), (2, 1, True), (1, 2, True), (2, 2, False), (3, 4, False)])
    counts = {1: 3, 2: 400, 3: 20, 4: 8, 5: 1}
    found = evaluate(dataset, results, iou_types=["bbox"], image_counts=counts, image_count_groups=3)
    lines = {line[:14].strip(): line[14:].split() for line in format_table(found).splitlines()[-7:]}
    assert lines["group"] == ["1", "2", "3"] and lines["classes"] == ["1", "2", "0"]
    assert lines["images up to"] == ["400", "8", "1"] and lines["images from"] == ["20", "3", "1"]
    assert lines["boxes AP"] == lines["boxes AP50"] == ["50.5", "50.0", "-"]
    write_class_csv(tmp_path / "classes.csv", found, train_image_counts=counts)
    with open(tmp_path / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_count_group"] for row in rows] == ["2", "1", "1", "2", "3"]
    assert "masks_AP" not in rows[0] and rows[2]["boxes_AP"] == ""
    write_metrics_json(tmp_path / "metrics.json", found)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["image_count_groups"][0] == {"classes": 2, "images_from": 20, "images_up_to": 400}
    assert content["metrics"]["bbox"]["AP3"] is None


@pytest.mark.parametrize("backend", ["fast", "official"])
def test_class_of_a_crowd_was_looked_for(backend):
    """Image 2 has class 1 as a crowd region only: a detection in it is neither right nor wrong, one beside it wrong,
    and one in image 3, where nobody looked for class 1, neither."""
    dataset, results = boxes_dataset([(1, 1, True), (2, 1, False)], crowd=(2,))
    away = [40.0, 40.0, 20.0, 20.0]

    def ap(*more):
        return evaluate(dataset, [*more, *results], iou_types=["bbox"], backend=backend).metrics["bbox"]["AP50"]

    assert ap() == pytest.approx(1)
    assert ap({"image_id": 2, "category_id": 1, "bbox": [12.0, 12.0, 8.0, 8.0], "score": 0.95}) == pytest.approx(1)
    assert ap({"image_id": 3, "category_id": 1, "bbox": away, "score": 0.95}) == pytest.approx(1)
    assert ap({"image_id": 2, "category_id": 1, "bbox": away, "score": 0.95}) == pytest.approx(0.5)
