"""memory.py and tpu_aot.py: arguments, the search for the largest batch, a small programme for the CPU and for a TPU.

The TPU one runs where libtpu is installed.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import aot, memory, rows, slices, tpu_aot
from eql_jax.training.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = (
    "--size 64 64 --classes 5 --config.model.backbone.width=4 --config.model.backbone.depth=18 "
    "--config.model.fpn.channels=8 --config.model.box_head.fc_dim=16 --config.model.mask_head.channels=8 "
    "--config.model.roi.batch_per_image=16 --config.data.max_objects=4"
).split()
GIB = 2**30


def needs_libtpu(test):
    """Left out where libtpu is not installed; .ci/run has a step of its own with it."""
    missing = importlib.util.find_spec("libtpu") is None
    return pytest.mark.libtpu(pytest.mark.skipif(missing, reason='needs libtpu: pip install "jax[tpu]"')(test))


def script(name, *words):
    """Runs a benchmark in a process of its own: the number of CPU devices is fixed when JAX starts."""
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(ROOT / "benchmarks" / name), *words]
    return subprocess.run(command, capture_output=True, text=True, env=env)


# ---------------------------------------------------------------------------------------------------- arguments
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data=8,model=1", {"data": 8, "model": 1}),
        ("model=2", {"data": 1, "model": 2}),
        (" data = -1 , model=2", {"data": -1, "model": 2}),
    ],
)
def test_meshes(text, expected):
    assert aot.parse_mesh(text) == expected


@pytest.mark.parametrize("text", ["", "data", "data=0", "data=-2", "data=x", "pipe=2", "data=-1,model=-1", "8"])
def test_meshes_that_make_no_sense(text):
    with pytest.raises(UserError, match="--mesh is"):
        aot.parse_mesh(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch-per-device 0", "--batch-per-device is 0; expected at least 1"),
        ("--classes 80 -3", "--classes is -3; expected at least 1"),
        ("--size 1000 1024", "--size is 1000 1024; expected multiples of 32"),
        ("--size 32 1024", "--size is 32 1024; expected multiples of 32"),
        ("--mesh data=zwei", "--mesh is 'data=zwei'"),
        ("--topology v9:2x2", "--topology is 'v9:2x2'"),
        ("--topology v5e", "--topology is 'v5e'"),
        ("--sweep", "--sweep needs --limit-gib"),
        ("--limit-gib -1", "--limit-gib is -1.0; expected more than 0"),
        ("--sweep-most 0 --sweep", "--sweep-most is 0"),
        ("--kept --mode inference", "--kept is of training"),
    ],
)
def test_arguments_that_make_no_sense(words, message, capsys, monkeypatch):
    monkeypatch.setattr(slices, "prepare_environment", lambda *_: None)  # it would change the tests' own environment
    with pytest.raises(SystemExit) as stop:
        memory.main(words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--batch 8 --batch-per-device 2", "--nonsense 3", "--dtype float8", "leftover"])
def test_words_that_are_no_arguments(words, capsys):
    with pytest.raises(SystemExit) as stop:
        memory.main(words.split())
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [("--top 0", "--top is 0"), ("--topology cpu", "--topology is 'cpu'"), ("--topology v5e:2x2 v3:2", "'v3:2'")],
)
def test_arguments_of_tpu_aot_that_make_no_sense(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        tpu_aot.main(words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_what_to_install_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "jax\[tpu\]"'):
        slices.find_devices("v5e:2x4")


def test_overrides_of_the_config():
    config = aot.load_config("", ["--config.model.backbone.depth=101", "--config.optimizer.ema_decay=.5"])
    assert config.model.backbone.depth == 101 and config.optimizer.ema_decay == 0.5
    assert aot.load_config(str(ROOT / "configs" / "lvis_v1_r101_eql.py"), []).model.backbone.depth == 101
    for path, words in [("no.py", []), ("", ["--config.model.dpeth=1"]), ("", ["--config.model.backbone.depth=x"])]:
        with pytest.raises(UserError):
            aot.load_config(path, words)


def test_combinations_of_settings():
    parser = argparse.ArgumentParser()
    aot.add_setting_arguments(parser)
    args = aot.parse(parser, "--classes 80 1203 --dtype float32 bfloat16 --batch 8 16 --size 64 128".split())
    found = list(aot.settings(args, ["train"], 4))
    assert len(found) == 8 and found[0] == aot.Setting("train", (64, 128), 80, "float32", 2)
    assert found[-1] == aot.Setting("train", (64, 128), 1203, "bfloat16", 4)
    with pytest.raises(UserError, match="--batch is 8; expected a multiple of the 3 devices"):
        list(aot.settings(args, ["train"], 3))


def test_batch_that_does_not_divide_by_the_accumulation():
    setting = aot.Setting("train", (64, 64), 5, "float32", 3)
    mesh = slices.mesh_over(slices.find_devices("present")[:1], {"data": 1, "model": 1})
    with pytest.raises(UserError, match="3 images on each device; expected a multiple of .*, 2"):
        aot.compile_setting(setting, mesh, overrides=["--config.train.gradient_accumulation=2"])
    with pytest.raises(UserError, match="steps_per_call is 4; expected 1"):
        aot.compile_setting(setting, mesh, overrides=["--config.train.steps_per_call=4"])


# ---------------------------------------------------------------------------------------------------- the search
@pytest.mark.parametrize("start", [1, 5, 40])
@pytest.mark.parametrize("limit", [0.5, 1.4, 1.5, 9.0, 16.0, 100.0])
@pytest.mark.parametrize("silent", [False, True])
def test_largest_batch_that_fits(start, limit, silent):
    """Against all batches; also when the compiler does not say how much was too much."""
    asked = []

    def needs(batch):
        return 1 + 0.5 * batch + 0.02 * (batch % 3)

    def need(batch):
        asked.append(batch)
        return None if silent and needs(batch) > limit else needs(batch)

    found = memory.largest_fitting(need, limit=limit, start=start, most=64)
    assert found == max([b for b in range(1, 65) if needs(b) <= limit], default=0)
    assert len(asked) == len(set(asked)) <= (8 if silent else 6)


# ---------------------------------------------------------------------------------------------------- results
def test_memory_that_the_compiler_missed():
    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.29G of 15.75G hbm. Exceeded by 4.54G."
    assert aot.OutOfMemory(text).needs_gib == 20.29
    assert aot.OutOfMemory("Used 512.00M of 256.00M vmem").needs_gib == 0.5
    assert aot.OutOfMemory("out of memory").needs_gib is None


def test_modelled_seconds():
    chip = slices.Chip(hbm_gib=16, flops=1e12, bandwidth=1e11, clock=1e9)
    small = {"flops": 1e10, "bytes accessed": 1e9}  # 10 ms and 10 ms
    seconds = lambda raw, cost=small: tpu_aot.modelled_seconds(cost | {"optimal_seconds": raw}, 5_000_000, chip)  # noqa: E731
    assert seconds(0.015) == {
        "optimal_seconds": 0.015,
        "unknown_operations": 0,
        "seconds_modelled": 0.015,
        "seconds_from": "optimal_seconds",
    }
    found = seconds(-160.84)  # 161 unknown operations
    assert found["unknown_operations"] == 161 and found["seconds_modelled"] == pytest.approx(0.16)
    # So much arithmetic may take more than a second: the whole seconds are not the number of unknown operations.
    by_cycles = {"seconds_modelled": 0.005, "seconds_from": "estimated_cycles / clock"}
    assert seconds(-3.5, {"flops": 1e12, "bytes accessed": 0.0}).items() >= by_cycles.items()
    assert seconds(float("nan")).items() >= by_cycles.items()
    assert tpu_aot.modelled_seconds(small, 5_000_000, chip).items() >= by_cycles.items()


def test_description_of_a_programme():
    cycles = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
    where = 'metadata={op_name="a" source_file="/x/eql_jax/ops/conv.py" source_line=%d}'
    text = (
        "ENTRY %main (p: f32[4]) -> f32[4] {\n"
        f"  %a.1 = f32[4]{{0}} add(%p, %p), {where % 3}, {cycles % 300}\n"
        f"  %a.2 = f32[4]{{0}} add(%p, %p), {where % 9}, {cycles % 600}\n"
        f"  %a.3 = f32[4]{{0}} add(%p, %p), {cycles % 100}\n"
        "  %s.1 = f32[4]{0} sort(%p)\n}\n"
    )
    setting = aot.Setting("train", (64, 64), 5, "bfloat16", 8)
    chip = slices.Chip(hbm_gib=16, flops=1e12, bandwidth=1e11, clock=1e9)
    cost = {"flops": 2e10, "bytes accessed": 1e9, "optimal_seconds": 0.04}
    row = tpu_aot.describe(text, cost, setting, chip, top=2)
    assert row["limit_seconds_modelled"] == {"flops": 0.02, "bytes": 0.01}
    assert row["images_per_second_per_chip_modelled"] == 200
    assert row["cycles_modelled"] == 1000 and row["cycles_seconds_modelled"] == pytest.approx(1e-6)
    assert row["share_of_cycles_by_file"] == {"eql_jax/ops/conv.py": 0.9, "": 0.1}
    assert [(o["name"], o["share_of_cycles"], o["where"]) for o in row["top"]] == [
        ("a.2", 0.6, "eql_jax/ops/conv.py:9"),
        ("a.1", 0.3, "eql_jax/ops/conv.py:3"),
    ]
    assert row["without_estimate"]["kinds"] == {"sort": {"count": 1, "bytes": 16}}


@pytest.mark.slow
def test_remat_keeps_less_for_the_gradient():
    """Without remat at least the input of the second convolution of every block that is not frozen."""
    setting = aot.Setting("train", (64, 64), 5, "float32", 1)
    mesh = slices.mesh_over(slices.find_devices("present")[:1], {"data": 1, "model": 1})
    words = [w for w in TINY if w.startswith("--config")]
    kept, anew = (
        aot.kept_bytes(setting, mesh, overrides=[*words, f"--config.train.remat={remat}"]) for remat in (False, True)
    )
    # res3, res4 and res5 have 64, 16 and 4 pixels of 8, 16 and 32 channels, and two blocks each.
    assert kept - anew >= 4 * (64 * 8 + 16 * 16 + 4 * 32) * 2


@pytest.mark.slow
def test_memory_of_a_small_step_on_virtual_devices():
    words = "--topology cpu --mesh data=2,model=1 --dtype float32 --batch 4 --limit-gib 1".split()
    done = script("memory.py", *words, *TINY)
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["mesh"] == {"data": 2, "model": 1} and row["batch"] == 4 and row["batch_per_device"] == 2
    # Of the batch of 4 each device has two images of 64 x 64 x 3 bytes and two times 4 masks of 112 x 112.
    assert row["arguments"] > 2 * (64 * 64 * 3 + 4 * 112 * 112)
    assert 0 < row["aliased"] <= row["outputs"] < row["arguments"]
    assert row["total"] == row["arguments"] + row["outputs"] - row["aliased"] + row["temporaries"] + row["code"]
    assert row["total_gib"] == pytest.approx(row["total"] / GIB, abs=1e-4) and row["fits"] is True


@pytest.mark.slow
def test_memory_of_a_small_detector_over_the_limit():
    words = "--topology cpu --mode inference --dtype float32 --batch-per-device 1 --limit-gib .0001".split()
    done = script("memory.py", *words, *TINY)
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["mode"] == "inference" and row["batch"] == 1 and row["mesh"] == {"data": 1, "model": 1}
    assert row["arguments"] > 64 * 64 * 3 and row["aliased"] == 0 and row["fits"] is False


def test_mesh_that_does_not_use_all_devices():
    done = script("memory.py", "--topology", "present", "--mesh", "data=3", *TINY)
    assert done.returncode == 2 and "config.mesh.data x config.mesh.model is 3 x 1" in done.stderr


@pytest.mark.slow
@needs_libtpu
def test_small_detector_for_a_tpu_slice():
    words = "--topology v5e:2x2 --mode inference --batch-per-device 1 --top 3 --size 64 64 --classes 5"
    # Of rows.TINY, which is smaller than TINY: libtpu takes minutes for more.
    fields = [f"--config.{word}" for word in rows.TINY if "=" in word] + ["--config.model.backbone.depth=18"]
    done = script("tpu_aot.py", *words.split(), *fields)
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["device"] == "TPU v5 lite" and row["chips"] == 4 and row["modelled"] is True
    assert row["fits"] is True and row["flops"] > 0 and row["seconds_modelled"] > 0 and row["cycles_modelled"] > 0
    assert len(row["top"]) == 3 and row["memory"]["total_gib"] < 1


@needs_libtpu
def test_slices_that_libtpu_does_not_know():
    done = script("tpu_aot.py", "--topology", "v5e:3x3")
    assert done.returncode == 2 and "libtpu knows no slice v5e:3x3" in done.stderr
