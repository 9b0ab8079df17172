"""scaling.py: the arithmetic by hand, and a small step on two numbers of virtual devices."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import scaling

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = (
    "--config.model.architecture=c4 --config.model.with_mask=False --config.model.backbone.width=4 "
    "--config.model.rpn.anchor_sizes=(16,) --config.model.box_head.class_agnostic_boxes=True "
    "--config.model.box_head.pool_size=4 --config.model.rpn.pre_nms_train=8 --config.model.rpn.post_nms_train=4"
).split()


def test_seconds_of_communication():
    reduced = {"all-reduce": {"count": 3, "bytes": 1000}}
    assert scaling.communication_seconds(reduced, 4, 100.0) == pytest.approx(15.0)  # 2 x 3/4 x 1000 / 100
    assert scaling.communication_seconds(reduced, 1, 100.0) == 0
    # What an all-reduce sends is what a reduce-scatter and an all-gather send.
    split = {"all-gather": {"count": 1, "bytes": 1000}, "reduce-scatter": {"count": 1, "bytes": 250}}
    assert scaling.communication_seconds(split, 4, 100.0) == pytest.approx(15.0)
    assert scaling.communication_seconds({"collective-permute": {"count": 1, "bytes": 50}}, 4, 100.0) == 0.5
    assert scaling.communication_seconds({}, 4, 100.0) == 0


def test_spread():
    rows = [{"flops": 100.0, "none": 0}, {"flops": 102.0, "none": 0}]
    assert scaling.spread(rows, "flops") == pytest.approx(0.02) and scaling.spread(rows, "none") == 0
    assert scaling.spread([{"a": 0}, {"a": 5}], "a") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--slices cpu", "--slices has 'cpu'; expected cpu:N or TPU slices"),
        ("--slices cpu:0", "--slices has 'cpu:0'"),
        ("--slices cpu:2 v9:2x2", "--slices has 'v9:2x2'"),
        ("--size 100 64", "--size is 100 64"),
    ],
)
def test_arguments_that_make_no_sense(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        scaling.main(words.split())
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_a_device_does_as_much_among_eight_as_among_four():
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--slices", "cpu:4", "cpu:8", *TINY]
    done = subprocess.run([*command, "--dtype", "float32"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [json.loads(line) for line in lines[:2]]
    assert [row["devices"] for row in rows] == [4, 8] and all(row["batch_per_device"] == 1 for row in rows)
    for key in ("flops", "bytes_accessed", "collective_bytes"):
        assert scaling.spread(rows, key) < 0.02, (key, rows)
    assert [set(row["collectives"]) for row in rows] == [{"all-reduce"}] * 2
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| slice", "| ---", "| cpu:4", "| cpu:8"]
