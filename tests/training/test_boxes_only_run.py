"""From tables of Open Images to AP of five groups: converted, trained without masks, evaluated, predicted with."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eql_jax.data.open_images import image_number
from eql_jax.data.supershapes import ensure_supershapes

ROOT = Path(__file__).parents[2]
FIELDS = {
    "data.frequencies": "train_annotations",
    "data.shorter_side": "(64,)",
    "data.longest_side": 64,
    "data.eval_shorter_side": 64,
    "data.buckets": "((64,64),)",
    "model.with_mask": False,
    "model.backbone.width": 8,
    "model.fpn.channels": 16,
    "model.box_head.fc_dim": 16,
    "model.test.detections_per_image": 10,
    "train.batch_size": 2,
    "train.steps": 6,
    "eval.batch_size": 2,
    "eval.every": 3,
    "eval.pictures": 2,
    "eval.image_count_groups": 5,
    "checkpoint.every": 3,
    "log.every": 1,
    "log.tensorboard": False,
}


def run(*words):
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_tables(content, images, folder):
    """An LVIS data set as Open Images writes its own: hexadecimal names, shares of the sides. Returns the names."""
    (folder / "images").mkdir(parents=True)
    names = {image["id"]: f"{0xABC000 + image['id']:016x}" for image in content["images"]}
    labels = {category["id"]: f"/m/{category['id']:04x}" for category in content["categories"]}
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for image in content["images"]:
        url = Path(image["coco_url"])
        shutil.copy(images / url.parent.name / url.name, folder / "images" / f"{names[image['id']]}.jpg")
    with (folder / "classes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([labels[c["id"]], c["name"]] for c in content["categories"])
    with (folder / "boxes.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"])
        for a in content["annotations"]:
            (x, y, w, h), (width, height) = a["bbox"], sizes[a["image_id"]]
            shares = [f"{value:.6f}" for value in (x / width, (x + w) / width, y / height, (y + h) / height)]
            writer.writerow([names[a["image_id"]], labels[a["category_id"]], *shares, 0])
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["ImageID", "Source", "LabelName", "Confidence"])
        for image in content["images"]:
            writer.writerows([names[image["id"]], "verification", labels[c], 0] for c in image["neg_category_ids"])
    return names


@pytest.mark.slow
def test_from_tables_to_groups(tmp_path):
    shapes = ensure_supershapes(
        tmp_path / "shapes", num_classes=20, train_images=40, val_images=6, image_size=64, progress=False, workers=1
    )
    words = []
    for split, path in (("train", shapes.train_annotations), ("val", shapes.val_annotations)):
        folder, content = tmp_path / split, json.loads(path.read_text())
        names = write_tables(content, shapes.images, folder)
        tables = [f"--{name}={folder / name}.csv" for name in ("boxes", "classes", "labels")]
        out = tmp_path / f"{split}.json"
        run("-m", "eql_jax.data.open_images", *tables, f"--images={folder / 'images'}", f"--out={out}")
        made = json.loads(out.read_text())
        # Nothing but the masks is lost on the way.
        for mine, theirs in zip(made["annotations"], content["annotations"], strict=True):
            assert mine["image_id"] == image_number(names[theirs["image_id"]])
            np.testing.assert_allclose(mine["bbox"], theirs["bbox"], atol=0.02)
        absent = [image["neg_category_ids"] for image in made["images"]]
        place = {category["id"]: k for k, category in enumerate(content["categories"], 1)}
        assert absent == [sorted(place[c] for c in image["neg_category_ids"]) for image in content["images"]]
        words += [f"--config.data.{split}_annotations={out}", f"--config.data.{split}_images={folder / 'images'}"]

    workdir = tmp_path / "run"
    words += [f"--config.{key}={value}" for key, value in FIELDS.items()]
    text = run("train.py", f"--config={ROOT / 'configs' / 'supershapes_tiny.py'}", f"--workdir={workdir}", *words)
    assert "done: step 6" in text and "images up to" in text and "segm" not in text
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if line["kind"] == "train"]
    assert len(losses) == 6 and not any("mask" in key for key in losses[0])
    evaluated = [line for line in lines if line["kind"] == "eval"]
    assert {f"bbox/{name}{i}" for name in ("AP", "AP50_") for i in range(1, 6)} <= evaluated[-1].keys()
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    assert results and all(set(result) == {"image_id", "category_id", "score", "bbox"} for result in results)
    assert len(list((workdir / "pictures").iterdir())) == 2
    # 'best' is by box AP; of equal ones the newer.
    best = max(evaluated, key=lambda line: (line["bbox/AP"], line["step"]))["step"]
    again = run("train.py", "--mode=eval", f"--workdir={workdir}", f"--out={tmp_path / 'again'}")
    assert f"step {best} of" in again
    run(
        "-m",
        "eql_jax.predict",
        f"--workdir={workdir}",
        f"--images={tmp_path / 'val' / 'images'}",
        f"--out={tmp_path / 'p'}",
    )
    assert len(list((tmp_path / "p" / "pictures").iterdir())) == 6
