"""train.py with a classification config, as a user runs it: it learns, stops, goes on, and is evaluated."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    f"--config={ROOT / 'configs' / 'classification' / 'synthetic_seql.py'}",
    "--config.data.drawn.num_classes=4",
    "--config.data.drawn.largest_class=60",
    "--config.data.drawn.val_per_class=25",
    "--config.data.imbalance=6.0",
    "--config.data.image_size=24",
    "--config.loss.tail_threshold=0.15",
    "--config.eval.many_above=30",
    "--config.eval.few_below=15",
    "--config.train.batch_size=32",
    "--config.train.reference_batch_size=0",
    "--config.optimizer.learning_rate=0.1",
    "--config.optimizer.warmup_steps=5",
    "--config.log.tensorboard=False",
    "--config.log.every=20",
]


def run(*words, status=0, timeout=900):
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, str(ROOT / "train.py"), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


@pytest.mark.slow
def test_learns_goes_on_and_is_evaluated(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    text = run(*SMALL, f"--workdir={whole}", "--config.train.steps=140", "--config.optimizer.decay_at=(100,)")
    assert "drawn/train: 121 images, 4 classes" in text and "SEQL tail (f < 0.15 of 121 images, step): 2 of 4" in text
    metrics = json.loads((whole / "evaluation" / "metrics.json").read_text())
    assert metrics["step"] == 140 and metrics["top1"] > 0.4  # chance is .25 +- .04
    with open(whole / "evaluation" / "classes.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["training_images"] for row in rows] == ["60", "33", "18", "10"]
    assert [row["group"] for row in rows] == ["many", "many", "medium", "few"]
    assert np.mean([float(row["top1"]) for row in rows]) == pytest.approx(metrics["top1"], abs=1e-3)
    assert metrics["top1_few"] == pytest.approx(float(rows[3]["top1"]), abs=1e-4)
    trained = losses(whole)
    assert trained[140] < trained[20]

    # Stopped after 40 steps and gone on with: the same losses, bit for bit.
    run(*SMALL, f"--workdir={parts}", "--config.train.steps=40", "--config.optimizer.decay_at=(100,)")
    text = run(f"--workdir={parts}", "--config.train.steps=60")
    assert "going on from step 40" in text
    assert losses(parts) == {step: trained[step] for step in (20, 40, 60)}

    text = run("--mode=eval", f"--workdir={whole}", f"--out={tmp_path / 'again'}")
    assert f"top-1 {100 * metrics['top1']:.2f} %" in text
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == metrics
    text = run("--mode=eval", f"--workdir={whole}", "--config.model.width=4", status=2)
    assert "model.width: 8 -> 4" in text


@pytest.mark.slow
def test_data_that_is_not_there(tmp_path):
    config = ROOT / "configs" / "classification" / "cifar100_lt_seql.py"
    text = run(f"--config={config}", f"--workdir={tmp_path}", f"--config.data.tfds_dir={tmp_path}", status=2)
    assert "error: TFDS cifar100/test is not in" in text and "tfds build cifar100" in text
