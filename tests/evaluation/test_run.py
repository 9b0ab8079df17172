"""From batches to tables and pictures with a detector that knows the answers."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from eql_jax.data.annotations import load_annotations
from eql_jax.data.categories import class_statistics
from eql_jax.evaluation import run
from eql_jax.evaluation.evaluator import BOUNDARY, IOU_TYPES
from eql_jax.evaluation.results import load_results
from eql_jax.evaluation.run import detect, metric_names, run_evaluation
from tests.evaluation.synthetic_lvis import HEIGHT, WIDTH

CONFIG = ConfigDict(
    {
        "eval": {
            "max_detections": 300,
            "ap_fixed": False,
            "ap_pool": False,
            "boundary": False,
            "backend": "fast",
            "image_count_groups": 0,
            "pictures": 2,
        },
        "model": {"with_mask": True, "test": {"detections_per_image": 8}},
        "log": {"progress": False},
        "data": {"workers": 2},
    }
)
SIZE = 28  # of predicted masks
SCALE = 0.5  # resized images are half as large as files


def dataset(tmp_path, *, boxes=5, missing=()):
    """Rectangles of three classes on grey images, on disk."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for image_id in range(1, 7):
        images.append({"id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": f"{image_id:012d}.png"})
        images[-1] |= {"neg_category_ids": [1, 5, 9], "not_exhaustive_category_ids": []}
        if image_id not in missing:
            Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(tmp_path / "images" / f"{image_id:012d}.png")
        for k in range(boxes):
            w, h = (int(v) for v in rng.integers(20, 60, 2))
            x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": (1, 5, 9)[k % 3]}
            annotation |= {"bbox": [x, y, w, h], "area": w * h}
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append(annotation)
    categories = [{"id": i, "name": f"rectangle_{i}", "synset": f"r{i}.n.01"} for i in (1, 5, 9)]
    for category, letter in zip(categories, "rcf", strict=True):
        category |= {"frequency": letter, "image_count": 6, "instance_count": 10}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return load_annotations(path, tmp_path / "images")


class Batches:
    """This host's images, four a batch, the last one padded."""

    def __init__(self, annotations, host=0, num_hosts=1):
        self.records = {record.id: record for record in annotations.images}
        self._mine = list(self.records)[host::num_hosts]
        self.skipped = []

    def __iter__(self):
        for start in range(0, len(self._mine), 4):
            ids = (self._mine[start : start + 4] + [-1] * 4)[:4]
            yield {
                "image": np.zeros((4, 8, 8, 3), np.uint8),
                "image_id": np.array(ids, np.int64),
                "image_size": np.tile(np.int32([HEIGHT * SCALE, WIDTH * SCALE]), (4, 1)),
                "original_size": np.tile(np.int32([HEIGHT, WIDTH]), (4, 1)),
            }


def perfect_detector(annotations):
    """Answers with the ground truth; `variables` is how many of each image's objects it misses."""
    by_id = {record.id: record.objects for record in annotations.images}

    def detector(variables, batch):
        rows = len(batch["image_id"])
        out = {
            "boxes": np.zeros((rows, 8, 4), np.float32),
            "scores": np.zeros((rows, 8), np.float32),
            "classes": np.full((rows, 8), -1, np.int32),
            "masks": np.ones((rows, 8, SIZE, SIZE), np.float32),
            "exact": np.ones(rows, bool),
        }
        for row, image_id in enumerate(batch["image_id"].tolist()):
            if image_id in by_id:
                objects = by_id[image_id]
                n = objects.size - variables["misses"]
                out["boxes"][row, :n] = objects.boxes[:n] * SCALE
                out["classes"][row, :n] = objects.classes[:n]
                out["scores"][row, :n] = np.linspace(0.9, 0.5, n)
        return out

    return detector


def test_perfect_detections_on_one_host(tmp_path):
    annotations = dataset(tmp_path)
    lines = []
    metrics = run_evaluation(
        perfect_detector(annotations),
        {"misses": 0},
        Batches(annotations),
        annotations,
        CONFIG,
        tmp_path / "out",
        statistics=class_statistics(annotations, "train_annotations"),
        step=40,
        log=lines.append,
    )
    assert sorted(metrics) == sorted(metric_names(300))
    for name in ("segm/AP", "bbox/AP", "segm/APr", "bbox/AP50f", "segm/AR@300"):
        assert metrics[name] == pytest.approx(1, abs=1e-9), name
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "results.host0000.json",
        "results.json",
        "metrics.json",
        "table.txt",
        "classes.csv",
        "pictures",
    }
    assert len(load_results(out / "results.json")) == 30
    assert json.loads((out / "metrics.json").read_text())["step"] == 40
    assert "masks AP " in (out / "table.txt").read_text() and any("masks AP " in line for line in lines)
    first = (out / "classes.csv").read_text().splitlines()[1]
    assert first.startswith("1,rectangle_1,r,6,12,12,1.0")
    pictures = sorted((out / "pictures").iterdir())
    assert [p.name for p in pictures] == ["000000000001.png", "000000000006.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.width > 2 * 640


def test_two_hosts_give_the_metrics_of_one(tmp_path, monkeypatch):
    """Host 1 writes its share, host 0 its own, merges and evaluates; what is broadcast is taken as it is here."""
    monkeypatch.setattr(run, "_wait_for_all_hosts", lambda: None)
    monkeypatch.setattr(run, "_share_metrics", lambda metrics, names: metrics)
    annotations = dataset(tmp_path)

    def evaluate_on(host, num_hosts, out):
        return run_evaluation(
            perfect_detector(annotations),
            {"misses": 1},
            Batches(annotations, host, num_hosts),
            annotations,
            CONFIG,
            tmp_path / out,
            host=host,
            num_hosts=num_hosts,
            log=lambda line: None,
        )

    assert evaluate_on(1, 2, "two") is None
    assert [p.name for p in (tmp_path / "two").iterdir()] == ["results.host0001.json"]
    assert evaluate_on(0, 2, "two") == evaluate_on(0, 1, "one")
    ids = {r["image_id"] for r in load_results(tmp_path / "two" / "results.host0000.json")}
    assert ids == {1, 3, 5}
    assert len(load_results(tmp_path / "two" / "results.json")) == 24


def config_for_ap_fixed(*, kept, limit=3):
    """AP-fixed with `kept` detections an image from the model, the other metrics with `limit`."""
    config = CONFIG.copy_and_resolve_references()
    config.eval.update(ap_fixed=True, max_detections=limit, pictures=0)
    config.model.test.detections_per_image = kept
    return config


def test_ap_fixed_beside_the_other_metrics(tmp_path):
    annotations = dataset(tmp_path)

    def evaluate(config, out, lines):
        detector, batches = perfect_detector(annotations), Batches(annotations)
        return run_evaluation(detector, {"misses": 0}, batches, annotations, config, tmp_path / out, log=lines.append)

    lines = []
    metrics = evaluate(config_for_ap_fixed(kept=8), "out", lines)
    assert sorted(metrics) == sorted(metric_names(3, ap_fixed=True)) and len(metrics) == 64
    # The best three of five in an image have the classes 1, 5 and 9; the file has all.
    assert metrics["segm/AR@3"] == pytest.approx((0.5 + 0.5 + 1) / 3, abs=1e-9)
    for name in ("segm_fixed/AP", "bbox_fixed/APc", "bbox_fixed/AP50r", "segm_fixed/AR@-1"):
        assert metrics[name] == pytest.approx(1, abs=1e-9), name
    out = tmp_path / "out"
    assert len(load_results(out / "results.json")) == 30
    content = json.loads((out / "metrics.json").read_text())
    assert content["max_detections"] == 3 and content["metrics"]["segm"]["AR@3"] == metrics["segm/AR@3"]
    fixed = content["ap_fixed"]
    assert fixed["detections_per_class"] == 10_000 and fixed["max_detections"] == -1 and fixed["notes"] == []
    assert {f"segm_fixed/{name}": v for name, v in fixed["metrics"]["segm"].items() if v is not None}.items() <= (
        metrics.items()
    )
    table = (out / "table.txt").read_text()
    assert "(at most 3 an image)" in table and "(AP-fixed: the best 10000 of each class)" in table
    head, first = (out / "classes.csv").read_text().splitlines()[:2]
    row = dict(zip(head.split(","), first.split(","), strict=True))
    assert float(row["boxes_AP"]) < 0.6 and float(row["boxes_AP_fixed"]) == float(row["masks_AP50_fixed"]) == 1

    plain = config_for_ap_fixed(kept=8)
    plain.eval.ap_fixed = False
    without = evaluate(plain, "plain", [])
    assert without == {name: metrics[name] for name in metric_names(3)}, "the other metrics are as ever"
    assert len(load_results(tmp_path / "plain" / "results.json")) == 18


def test_ap_fixed_says_where_the_model_kept_too_few(tmp_path):
    annotations = dataset(tmp_path)
    for kept, expected in ((5, True), (6, False)):
        lines = []
        run_evaluation(
            perfect_detector(annotations),
            {"misses": 0},
            Batches(annotations),
            annotations,
            config_for_ap_fixed(kept=kept),
            tmp_path / f"out{kept}",
            log=lines.append,
        )
        note = "note: 6 of 6 images have as many detections as model.test.detections_per_image 5 allows"
        assert any(note in line for line in lines) == expected


def test_pools_and_boundaries_beside_the_other_metrics(tmp_path):
    annotations = dataset(tmp_path)
    config = config_for_ap_fixed(kept=8, limit=300)
    config.eval.update(ap_fixed=False, ap_pool=True, boundary=True)

    def evaluate(out, backend, lines):
        config.eval.backend = backend
        detector, batches = perfect_detector(annotations), Batches(annotations)
        return run_evaluation(detector, {"misses": 1}, batches, annotations, config, tmp_path / out, log=lines.append)

    lines = []
    metrics = evaluate("out", "fast", lines)
    assert set(metrics) == set(metric_names(300, (*IOU_TYPES, BOUNDARY), ap_pool=True)) and len(metrics) == 96
    # Class 5 misses 6 of its 12 objects, the last ones of each image; 24 of 30 are found.
    assert metrics["boundary/APc"] == pytest.approx(51 / 101, abs=1e-9)
    assert metrics["boundary_pool/AP"] == pytest.approx(81 / 101, abs=1e-9)
    assert metrics["segm_pool/AR@-1"] == pytest.approx(0.8, abs=1e-9)
    assert metrics["bbox_pool/APf"] == pytest.approx(1, abs=1e-9)
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["metrics"]["boundary"]["APc"] == metrics["boundary/APc"]
    assert content["ap_pool"]["metrics"]["segm"]["AR@-1"] == metrics["segm_pool/AR@-1"]
    assert content["ap_pool"]["detections_per_class"] == 10_000 and "ap_fixed" not in content
    table = (tmp_path / "out" / "table.txt").read_text()
    assert "boundary AP50" in table and "AP-pool: the detections of all classes ranked together" in table
    head = (tmp_path / "out" / "classes.csv").read_text().splitlines()[0]
    assert head.endswith("masks_AP50,boundary_AP,boundary_AP50")
    assert evaluate("other", "official", []) == pytest.approx(metrics, abs=1e-9)


def test_metrics_go_to_all_hosts_under_their_names():
    names = metric_names(300, (*IOU_TYPES, BOUNDARY), ap_fixed=True, ap_pool=True)
    assert len(names) == len(set(names)) == 144
    metrics = {name: index / 256 for index, name in enumerate(reversed(names))}
    assert run._share_metrics(metrics, names) == metrics
    assert set(run._share_metrics(None, names)) == set(names)


def test_missing_files_and_detections_show(tmp_path):
    annotations = dataset(tmp_path, missing=(4,))
    lines = []
    metrics = run_evaluation(
        perfect_detector(annotations),
        {"misses": 1},
        Batches(annotations),
        annotations,
        CONFIG,
        tmp_path / "out",
        pictures=0,
        log=lines.append,
    )
    assert metrics["bbox/AR@300"] == pytest.approx((1 + 0.5 + 1) / 3, abs=1e-9)  # class 5 has lost one of two
    assert any("1 of the 6 images" in line and "not evaluated" in line for line in lines)
    assert not (tmp_path / "out" / "pictures").exists()


def test_results_keep_the_order_of_batches(tmp_path):
    annotations = dataset(tmp_path)
    detector = perfect_detector(annotations)
    found = list(detect(detector, {"misses": 0}, Batches(annotations), [1, 5, 9], max_detections=2, workers=3))
    assert [b.image_ids for b in found] == [[1, 2, 3, 4], [5, 6]]
    assert [r["image_id"] for b in found for r in b.results] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


def test_error_in_a_thread_is_raised(tmp_path):
    annotations = dataset(tmp_path)
    with pytest.raises(ValueError, match="there are 2 category ids"):
        list(detect(perfect_detector(annotations), {"misses": 0}, Batches(annotations), [1, 5], max_detections=9))
