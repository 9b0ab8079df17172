"""Evaluation and prediction with a detector that has no masks."""

import copy
import json

import numpy as np
import pytest

from eql_jax import predict
from eql_jax.data.annotations import load_annotations
from eql_jax.data.categories import class_statistics
from eql_jax.evaluation.results import load_results
from eql_jax.evaluation.run import metric_names, run_evaluation
from eql_jax.training import checkpoint_files, tta
from tests.evaluation import test_predict
from tests.evaluation.test_run import CONFIG, Batches, dataset, perfect_detector

images, model = test_predict.images, test_predict.model  # fixtures


def without_masks(detector):
    def detect(variables, batch):
        found = dict(detector(variables, batch))
        return found | {"masks": np.zeros((*found["scores"].shape, 0, 0), np.float32)}

    return detect


@pytest.fixture
def annotations(tmp_path):
    """The rectangles of test_run, their masks taken out of the file."""
    dataset(tmp_path)
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    path.write_text(json.dumps(content))
    return load_annotations(path, tmp_path / "images", masks=False)


@pytest.mark.parametrize("backend", ["fast", "official"])
def test_evaluation_of_boxes_alone(annotations, tmp_path, backend):
    config = copy.deepcopy(CONFIG)
    config.model.with_mask = False
    config.eval.update(backend=backend, image_count_groups=2, ap_fixed=True, ap_pool=True, max_detections=6)
    lines = []
    metrics = run_evaluation(
        without_masks(perfect_detector(annotations)),
        {"misses": 1},
        Batches(annotations),
        annotations,
        config,
        tmp_path / "out",
        statistics=class_statistics(annotations, "train_annotations"),
        log=lines.append,
    )
    assert list(metrics) == metric_names(6, ["bbox"], ap_fixed=True, ap_pool=True, groups=2)
    assert all(name.startswith("bbox") for name in metrics)
    # Class 5 misses one of two objects in each image; all three classes are in all six, so they rank by id.
    assert metrics["bbox/AP"] == pytest.approx((2 + 51 / 101) / 3)
    assert metrics["bbox/AP1"] == metrics["bbox_fixed/AP1"] == pytest.approx((1 + 51 / 101) / 2)
    assert metrics["bbox/AP50_2"] == pytest.approx(1)
    assert "bbox_pool/AP1" not in metrics
    results = load_results(tmp_path / "out" / "results.json")
    assert len(results) == 24 and set(results[0]) == {"image_id", "category_id", "score", "bbox"}
    table = (tmp_path / "out" / "table.txt").read_text()
    assert "boxes AP" in table and "masks" not in table and table.count("images up to") == 2
    head = (tmp_path / "out" / "classes.csv").read_text().splitlines()[0]
    assert head.endswith("instances,image_count_group,boxes_AP,boxes_AP50,boxes_AP_fixed,boxes_AP50_fixed")
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]) == {"bbox"}
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 2


def test_groups_need_statistics(annotations, tmp_path):
    config = copy.deepcopy(CONFIG)
    config.model.with_mask = False
    config.eval.image_count_groups = 2
    detector = without_masks(perfect_detector(annotations))
    with pytest.raises(ValueError, match="have no number of training images"):
        run_evaluation(detector, {"misses": 0}, Batches(annotations), annotations, config, tmp_path / "out")


def test_prediction_of_boxes_alone(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(tta, "make_test_detector", lambda model, config: without_masks(test_predict.detector))
    assert test_predict.run(tmp_path, "--images", images) == 0
    results = load_results(tmp_path / "out" / "results.json")
    assert len(results) == 6 and all("segmentation" not in result for result in results)
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 3


def test_image_info_whose_annotations_have_no_masks(model, images, tmp_path):
    """Only its images are read: what objects it has does not matter."""
    listed = [{"id": 77, "width": 64, "height": 48, "file_name": "a.jpg"}]
    content = {"images": listed, "categories": [{"id": 3, "name": "apple"}, {"id": 8, "name": "pear"}]}
    content["annotations"] = [{"id": 1, "image_id": 77, "category_id": 3, "bbox": [1, 1, 9, 9]}]
    path = tmp_path / "info.json"
    path.write_text(json.dumps(content))
    assert (
        predict.main(
            [f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}", "--images", str(images), "--image_info", str(path)]
        )
        == 0
    )
    assert {r["image_id"] for r in load_results(tmp_path / "out" / "results.json")} == {77}


def test_best_checkpoint_by_box_ap():
    """By mask AP where there is one, else by box AP; a step whose AP is not finite is no candidate."""
    boxes = {10: {"bbox/AP": 0.2}, 20: {"bbox/AP": 0.4}, 30: {"bbox/AP": 0.3}, 40: {"bbox/AP": float("nan")}}
    assert checkpoint_files.rank([10, 20, 30, 40, 50], boxes) == [20, 30, 10]
    both = {10: {"bbox/AP": 0.2, "segm/AP": 0.3}, 20: {"bbox/AP": 0.4, "segm/AP": 0.1}}
    assert checkpoint_files.rank([10, 20], both) == [10, 20]
