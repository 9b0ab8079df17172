"""Tables say what the evaluation found, and '-' where there is nothing to say."""

import csv
import json

import pytest

from eql_jax.evaluation import evaluate, format_pooled_table, format_table, write_class_csv, write_metrics_json


@pytest.fixture(scope="module")
def result(lvis_case):
    return evaluate(*lvis_case)


def row(table, label):
    return next(line for line in table.splitlines() if line.startswith(label)).removeprefix(label).split()


def test_console_table(result):
    table = format_table(result)
    values = result.metrics["segm"]
    percent = [f"{100 * values[name]:.1f}" for name in ("AP", "APr", "APc", "APf", "APs", "APm", "APl")]
    assert row(table, "masks AP ") == percent
    assert row(table, "boxes AP50") == [
        f"{100 * result.metrics['bbox'][n]:.1f}" for n in ("AP50", "AP50r", "AP50c", "AP50f")
    ]
    assert row(table, "masks AR")[0] == f"{100 * values['AR@300']:.1f}"
    assert row(table, "classes")[0] == str(sum(c.instances > 0 for c in result.classes))
    assert "9 images" in table and "at most 300 an image" in table
    assert max(map(len, table.splitlines()[1:])) < 80
    ends = {len(line) for line in table.splitlines() if line.startswith(("masks AP ", "boxes AR", " " * 12))}
    assert len(ends) == 1, "columns are aligned"


def test_no_ground_truth_is_a_dash(lvis_case):
    result = evaluate(*lvis_case, letters={c["id"]: "f" for c in lvis_case[0]["categories"]})
    assert row(format_table(result), "masks AP ")[1:3] == ["-", "-"]


def test_class_csv(result, tmp_path):
    path = tmp_path / "classes.csv"
    write_class_csv(path, result, train_image_counts={10: 5}, train_instance_counts={10: 7})
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["class_id"]) for r in rows] == [c.class_id for c in result.classes]
    first, last = rows[0], rows[-1]
    assert (first["name"], first["frequency"], first["train_images"], first["train_instances"]) == (
        "shape_10",
        "r",
        "5",
        "7",
    )
    assert float(first["masks_AP50"]) == pytest.approx(result.classes[0].ap50["segm"], abs=1e-6)
    assert float(first["boxes_AP"]) == pytest.approx(result.classes[0].ap["bbox"], abs=1e-6)
    assert last["boxes_AP"] == "" and last["instances"] == "0" and last["train_images"] == ""


def test_metrics_json(result, tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics_json(path, result, extra={"step": 12})
    content = json.loads(path.read_text())
    assert content["metrics"] == result.metrics and content["step"] == 12 and content["num_images"] == 9


def test_pools(lvis_case, tmp_path):
    result = evaluate(*lvis_case, iou_types=["segm", "boundary"], max_detections=-1, pooled=True)
    table = format_pooled_table(result)
    values = result.pooled["boundary"]
    percent = [f"{100 * values[name]:.1f}" for name in ("AP", "APr", "APc", "APf", "APs", "APm", "APl")]
    assert row(table, "boundary AP ") == percent
    assert row(table, "masks AR")[0] == f"{100 * result.pooled['segm']['AR@-1']:.1f}"
    path = tmp_path / "metrics.json"
    write_metrics_json(path, result, ap_pool=result)
    assert json.loads(path.read_text())["ap_pool"]["metrics"] == result.pooled
