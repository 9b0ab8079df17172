"""train_step.py and inference.py run a tiny model on a CPU: the row of each, and stages and profile of training."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.rows import HERE, read_results

# They run where none of these is installed.
BARRED = ("tensorflow", "tensorflow_datasets", "lvis", "pycocotools", "cv2", "PIL", "clu", "orbax", "torch")
# Compiling takes most of the time, and nothing is said of speed.
QUICK = " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """{(script, benchmark): line} of the lists 'tiny'."""
    found = {}
    barred = tmp_path_factory.mktemp("barred")
    for name in BARRED:
        (barred / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    for script in ("train_step", "inference"):
        folder = tmp_path_factory.mktemp(script)
        command = [sys.executable, HERE / f"{script}.py", "--rows", "tiny", "--out", folder / "rows.jsonl"]
        flags = os.environ.get("XLA_FLAGS", "") + QUICK
        env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(barred)}
        run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        results = read_results(folder / "rows.jsonl")
        assert [json.loads(line) for line in run.stdout.splitlines()] == results
        found |= {(script, r["benchmark"]): r for r in results}
    return found


@pytest.mark.parametrize("script", ["train_step", "inference"])
def test_row(lines, script):
    row = lines[script, script]
    assert "error" not in row, row["error"]
    assert row["images_per_second"] == pytest.approx(1 / row["seconds"], rel=1e-3)
    assert row["classes"] == 20 and row["size"] == [64, 64] and row["dtype"] == "float32" and row["device"] == "cpu"
    assert row["peak_gib"] > 0.05 and row["compile_seconds"] > 0 and row["trace_seconds"] > 0
    assert row["compiled_flops"] > 1e6 and row["matmul_flops"] > 1e6
    assert row["mfu"] is None and "no peak known" in row["mfu_note"]
    assert row["jax"] and row["date"] and QUICK in row["xla_flags"]


def test_profile(lines):
    profile = lines["train_step", "profile"]
    assert len(profile["top"]) == 10 and profile["device_seconds"] > 0


def test_stages_of_training_make_the_whole(lines):
    found = lines["train_step", "stages"]
    assert list(found["stage_seconds"]) == [
        *("backbone_fpn", "rpn", "proposals", "targets", "roi_align", "box_head", "mask_head", "losses"),
        *("backward", "optimizer"),
    ]
    # The loss that comes out of the stages is the model's: nothing is left out or done twice.
    assert found["stages_loss"] == pytest.approx(found["loss"], rel=1e-4)
    assert sum(found["stage_seconds"].values()) == pytest.approx(found["sum_seconds"], rel=1e-3)
    assert found["sum_over_whole"] == pytest.approx(found["sum_seconds"] / found["whole_seconds"], rel=1e-3)
