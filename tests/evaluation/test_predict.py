"""The prediction command, with a detector in place of a trained model (training tests make real checkpoints)."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.base import get_config
from eql_jax import predict
from eql_jax.evaluation import load_results
from eql_jax.training import inference_model, tta
from eql_jax.training.compatibility import Classes


def detector(variables, batch):
    rows = len(batch["image"])
    return {
        "boxes": np.tile(np.float32([[[8, 8, 40, 30], [0, 0, 9, 9]]]), (rows, 1, 1)),
        "scores": np.tile(np.float32([[0.8, 0.01]]), (rows, 1)),
        "classes": np.tile(np.int32([[1, 0]]), (rows, 1)),
        "masks": np.ones((rows, 2, 28, 28), np.float32),
        "exact": np.ones(rows, bool),
    }


@pytest.fixture
def model(monkeypatch):
    config = get_config()
    with config.unlocked():
        config.data.buckets = ((64, 64),)
        config.data.eval_shorter_side = config.data.longest_side = 64
        config.data.workers = 2
    loaded = inference_model.InferenceModel(config, Classes((3, 8), ("apple", "pear"), ("r", "f")), {}, {}, 12)
    monkeypatch.setattr(inference_model, "load_for_inference", lambda path, checkpoint="best": loaded)
    monkeypatch.setattr(tta, "make_test_detector", lambda model, config: detector)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in (("a.jpg", (64, 48)), ("b.png", (128, 96)), ("d.jpg", (32, 64))):
        Image.new("RGB", size, (60, 90, 120)).save(folder / name)
    (folder / "c.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])  # cut short
    (folder / "notes.txt").write_text("no image")
    return folder


def run(tmp_path, *arguments):
    return predict.main([f"--workdir={tmp_path}", "--out", str(tmp_path / "out"), *map(str, arguments)])


def test_pattern(model, images, tmp_path, capsys):
    assert run(tmp_path, "--images", images / "*.*", "--batch_size", 2) == 0
    errors = capsys.readouterr().err
    assert "skipped" in errors and "c.jpg" in errors and "notes.txt" in errors
    described = json.loads((tmp_path / "out" / "images.json").read_text())
    ids = {image["file_name"].rsplit("/", 1)[1]: image["id"] for image in described["images"]}
    assert sorted(ids) == ["a.jpg", "b.png", "d.jpg"]
    assert described["categories"][1] == {"id": 8, "name": "pear", "frequency": "f"}
    results = load_results(tmp_path / "out" / "results.json")
    assert len(results) == 6
    large = next(r for r in results if r["image_id"] == ids["b.png"] and r["score"] == 0.8)
    assert large["category_id"] == 8 and large["bbox"] == [16, 16, 64, 44]  # twice the resized image's
    assert large["segmentation"]["size"] == [96, 128]
    pictures = sorted(p.name for p in (tmp_path / "out" / "pictures").iterdir())
    assert pictures == sorted(f"{i:06d}_{name.split('.')[0]}.jpg" for name, i in ids.items())


def test_folder_and_number_of_pictures(model, images, tmp_path):
    assert run(tmp_path, "--images", images, "--max_pictures", 1) == 0
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 1
    assert run(tmp_path, "--images", images / "a.jpg", images / "d.jpg", "--max_pictures", 0) == 0
    assert len({r["image_id"] for r in load_results(tmp_path / "out" / "results.json")}) == 2


def test_test_time_augmentation(model, images, tmp_path, monkeypatch, capsys):
    """--tta: batches of views at the sides given; boxes come in pixels of the file."""

    def of_views(variables, batch):
        assert [batch[f"view{i}/image_size"][0].tolist() for i in (0, 1)] == [[32, 43], [48, 64]]
        return detector(variables, {"image": batch["image_id"]})

    monkeypatch.setattr(tta, "make_test_detector", lambda model, config: of_views)
    assert run(tmp_path, "--images", images / "b.png", "--tta", 32, 48) == 0
    assert "shorter sides 32, 48; 1 groups of images" in capsys.readouterr().out
    results = load_results(tmp_path / "out" / "results.json")
    assert [r["bbox"] for r in results] == [[8, 8, 32, 22], [0, 0, 9, 9]]
    with pytest.raises(SystemExit):
        run(tmp_path, "--images", images / "b.png", "--tta", 0)


def image_info(tmp_path, names):
    listed = [
        {"id": 77, "width": 64, "height": 48, "coco_url": "http://x/test2017/a.jpg"},
        {"id": 78, "width": 128, "height": 96, "coco_url": "http://x/test2017/b.png"},
        {"id": 79, "width": 9, "height": 9, "coco_url": "http://x/test2017/gone.jpg"},
    ]
    categories = [{"id": i, "name": name, "synset": "", "frequency": "f"} for i, name in names.items()]
    path = tmp_path / "info.json"
    path.write_text(json.dumps({"images": listed, "categories": categories}))
    return path


def test_image_info(model, images, tmp_path, capsys):
    path = image_info(tmp_path, {3: "apple", 8: "pear", 11: "plum"})
    assert run(tmp_path, "--images", images, "--image_info", path) == 0
    assert "gone.jpg" in capsys.readouterr().err
    results = load_results(tmp_path / "out" / "results.json")
    assert {r["image_id"] for r in results} == {77, 78} and {r["category_id"] for r in results} == {3, 8}


@pytest.mark.parametrize(("other", "there"), [({9: "pear"}, "None"), ({8: "fig"}, "'fig'")])
def test_image_info_of_another_data_set(model, images, tmp_path, capsys, other, there):
    """Another id, or (as in LVIS v0.5 and v1) the same ids with other names."""
    path = image_info(tmp_path, {3: "apple"} | other)
    assert run(tmp_path, "--images", images, "--image_info", path) == 2
    assert f"1 of the model's are not in the file: id 8 'pear' (there {there})" in capsys.readouterr().err


def test_image_info_cut_in_half(model, images, tmp_path, capsys):
    path = image_info(tmp_path, {3: "apple", 8: "pear"})
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    assert run(tmp_path, "--images", images, "--image_info", path) == 2
    assert "info.json is cut off" in capsys.readouterr().err


def test_out_that_cannot_be_written(model, images, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert run(tmp_path, "--images", images) == 2
    assert f"File exists: '{tmp_path / 'out'}'" in capsys.readouterr().err


def test_nothing_to_predict_on(model, images, tmp_path, capsys):
    assert run(tmp_path, "--images", tmp_path / "none*.jpg") == 2
    assert "none*.jpg: no such file, and no file matches" in capsys.readouterr().err
    assert run(tmp_path, "--images", images / "c.jpg") == 2
    assert "none of the images could be read" in capsys.readouterr().err


def test_no_checkpoint(images, tmp_path, capsys):
    assert run(tmp_path, "--images", images) == 2
    assert f"{tmp_path} has no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--batch_size", "0"], ["--max_pictures", "-1"], ["--image_info", "x"]])
def test_wrong_arguments(images, tmp_path, wrong):
    with pytest.raises(SystemExit):
        run(tmp_path, "--images", images, images, *wrong)
