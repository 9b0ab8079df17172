"""train.py as a user meets it: wrong input gives one message and exit status 2, before anything slow starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "supershapes_tiny.py"


def run(*words):
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, str(ROOT / "train.py"), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)


def data_words(path):
    return [
        f"--config.data.{split}_{what}={path if what == 'annotations' else path.parent}"
        for split in ("train", "val")
        for what in ("annotations", "images")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.train.stps=3"], "--config.train.stps: the config has no such key; did you mean train.steps?"),
        (["--mode=eval"], "has no checkpoint; expected one in"),
        (["--checkpoint=latest"], "--checkpoint and --out are for --mode=eval"),
        (["--workdir={tmp}/file/sub"], "cannot write to {tmp}/file/sub: Not a directory"),
        (["{half}"], "half.json"),
        (["{other}"], "has 1 categories that are not among the model's 1 classes (by id and name): id 2 'dog'"),
    ],
    ids=[
        "typo",
        "no checkpoint",
        "checkpoint in training",
        "workdir is no directory",
        "JSON cut in half",
        "validation has other classes",
    ],
)
def test_wrong_input(tmp_path, words, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "1.jpg").write_bytes(b"")
    image = {"id": 1, "width": 64, "height": 64, "file_name": "1.jpg"}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    box["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    good = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    other = {"images": [image], "annotations": [box | {"category_id": 2}], "categories": [{"id": 2, "name": "dog"}]}
    (tmp_path / "half.json").write_text(json.dumps(good)[:70])
    (tmp_path / "good.json").write_text(json.dumps(good))
    (tmp_path / "other.json").write_text(json.dumps(other))
    if words == ["{half}"]:
        words = data_words(tmp_path / "half.json")
    elif words == ["{other}"]:
        words = [*data_words(tmp_path / "good.json"), f"--config.data.val_annotations={tmp_path / 'other.json'}"]
    words = [w.format(tmp=tmp_path) for w in words]
    done = run(f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *words)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr and message.format(tmp=tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
