"""train.py from data to pictures on a model of a few thousand weights: interrupted, resumed, evaluated again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import local_processes
from eql_jax.training import checkpoint_files

ROOT = Path(__file__).parents[2]
STEPS = 40
FIELDS = {
    "data.supershapes.num_classes": 20,
    "data.supershapes.train_images": 40,
    "data.supershapes.val_images": 7,
    "data.supershapes.image_size": 64,
    "data.shorter_side": "(56,64)",
    "data.longest_side": 64,
    "data.eval_shorter_side": 64,
    "data.buckets": "((64,64),)",
    "data.mask_size": 28,
    "model.backbone.width": 8,
    "model.fpn.channels": 16,
    "model.box_head.fc_dim": 16,
    "model.mask_head.channels": 16,
    "model.mask_head.num_convs": 1,
    "model.test.detections_per_image": 10,
    "train.batch_size": 4,
    "train.steps": STEPS,
    "eval.batch_size": 4,
    "eval.pictures": 2,
    "checkpoint.every": 5,
    "log.every": 1,
    "log.tensorboard": False,
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Starts train.py on the shared small data set, one CPU device, compiled programmes shared between the runs."""
    shared = tmp_path_factory.mktemp("shared")
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(shared / "cache"), "PYTHONUNBUFFERED": "1"}
    fields = FIELDS | {"data.supershapes.out": shared / "data"}

    def start(workdir, *words):
        command = [sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", *words]
        if not (workdir / "config.json").exists():
            command += [f"--config={ROOT / 'configs' / 'supershapes_tiny.py'}"]
            command += [f"--config.{key}={value}" for key, value in fields.items()]
        return subprocess.Popen(command, cwd=shared, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return start


def finish(process):
    _, text = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def arrays(workdir):
    """Everything that the checkpoint of the last step holds, as NumPy arrays by item and path."""
    path = workdir / "checkpoints" / str(STEPS)
    restored = checkpoint_files.restore(path, checkpoint_files.metadata(path), as_numpy=True)
    assert {"params", "batch_stats", "ema_params", "optimizer"} == restored.keys()
    return restored


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """The workdir of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    text = finish(train(workdir))
    assert f"done: step {STEPS}" in text
    return workdir


@pytest.mark.slow
def test_a_run_leaves_what_its_head_promises(whole, train):
    for name in ("config.json", "versions.json", "metrics.jsonl", "evaluation/table.txt", "evaluation/classes.csv"):
        assert (whole / name).is_file(), name
    assert len(list((whole / "pictures").glob("*.png"))) == 2
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == STEPS and np.all(np.isfinite(losses))
    # Evaluated again from the checkpoint alone: the same metrics.
    out = whole / "again"
    finish(train(whole, "--mode=eval", f"--out={out}"))
    assert (out / "table.txt").read_text() == (whole / "evaluation" / "table.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_interrupted_and_resumed_is_bit_identical(whole, train, tmp_path, number):
    step = int(np.random.default_rng().integers(6, STEPS - 15))
    process = train(tmp_path)
    metrics = tmp_path / "metrics.jsonl"

    def reached():
        # Saves are asynchronous: SIGKILL before the first is whole would start from nothing, another case than this.
        saved = any(path.name.isdigit() for path in (tmp_path / "checkpoints").glob("*"))
        return saved and metrics.exists() and f'{{"step": {step},' in metrics.read_text()

    while process.poll() is None and not reached():
        time.sleep(0.005)
    process.send_signal(number)
    _, text = process.communicate(timeout=100)
    if number == signal.SIGTERM:
        assert process.returncode == 0 and "to go on: python train.py" in text, f"at step {step}: {text}"
    else:
        assert process.returncode == -number, f"at step {step}: {text}"
    assert not (tmp_path / "checkpoints" / str(STEPS)).exists()
    assert "going on from step" in finish(train(tmp_path)), f"interrupted at step {step}"
    jax.tree.map(np.testing.assert_array_equal, arrays(tmp_path), arrays(whole))


@pytest.mark.slow
def test_two_processes_begin_as_one_and_evaluate_each_image_once(whole, tmp_path):
    """Two processes with two devices each: the losses of the first step, and seven images in batches of two a host."""
    words = [f"--config={whole / 'config.json'}", f"--workdir={tmp_path}", "--config.train.steps=2"]
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"}
    flags["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "cache")
    both = local_processes.start(2, words, tmp_path / "logs", environment=flags)
    assert both.wait(500) == [0, 0], both.texts()
    alone, together = (json.loads(open(path / "metrics.jsonl").readline()) for path in (whole, tmp_path))
    names = [name for name in alone if name.startswith("loss")]
    assert len(names) == 6 and together["step"] == alone["step"] == 1
    for name in names:
        assert together[name] == pytest.approx(alone[name], rel=1e-5), name
    hosts = [tmp_path / "evaluation" / f"results.host000{i}.json" for i in range(2)]
    seen = [{result["image_id"] for result in json.loads(path.read_text())} for path in hosts]
    assert not seen[0] & seen[1]
    merged = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert {result["image_id"] for result in merged} == seen[0] | seen[1]
    config = json.loads((whole / "config.json").read_text())
    val = json.loads((Path(config["data"]["supershapes"]["out"]) / "val.json").read_text())
    assert len(seen[0] | seen[1]) == len(val["images"]) == 7  # an untrained model finds something in every image
