"""Checkpoints: bit-identical restore, which are kept, what does not fit, damage, and disks that fail."""

import contextlib
import dataclasses
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from eql_jax.training import checkpoint_files, disk, run_dir
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.checkpoint_files import find_checkpoint
from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.compatibility import Classes
from eql_jax.training.errors import CheckpointError, ConfigError
from eql_jax.training.inference_model import load_detector, load_for_inference
from eql_jax.training.state import create_state
from eql_jax.training.warm_start import init_from
from tests.training import toy

ROOT = Path(__file__).parents[2]


def random_state(config, *, seed=0, step=7):
    """A toy state of random numbers on all devices."""
    state, _ = toy.fresh_state(config, mesh_lib.make_mesh(config))
    rng = np.random.default_rng(seed)

    def fill(x):
        return jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding)

    return jax.tree.map(fill, state).replace(step=jax.device_put(jnp.int32(step), state.step.sharding))


def save(workdir, config, state, *, classes=toy.CLASSES):
    with Checkpoints(workdir, config, classes) as checkpoints:
        checkpoints.save(state)


def steps_on_disk(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.is_dir())


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_restore_is_bit_identical(tmp_path, name):
    config = toy.make_config(**{"optimizer.name": name})
    state = random_state(config)
    save(tmp_path, config, state)
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        assert checkpoints.latest_step() == 7
        restored = checkpoints.restore(random_state(config, seed=1, step=0))
    assert_same(restored, state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype and a.sharding == b.sharding


def test_latest_and_best_are_kept(tmp_path):
    config = toy.make_config(**{"checkpoint.keep": 2, "checkpoint.keep_best": 1})
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(random_state(config, step=step))
            if step in (2, 3, 5):
                checkpoints.record_evaluation(step, {"segm/AP": {2: 0.3, 3: 0.2, 5: float("nan")}[step]})
    assert steps_on_disk(tmp_path) == [2, 5, 6]
    assert find_checkpoint(tmp_path, checkpoint="best").name == "2"
    assert find_checkpoint(tmp_path, checkpoint="latest").name == "6"
    assert find_checkpoint(tmp_path, checkpoint="5").name == "5"
    with pytest.raises(CheckpointError, match=r"has no checkpoint 4; expected 'best', 'latest' or one of \[2, 5, 6\]"):
        find_checkpoint(tmp_path, checkpoint=4)
    # A better one later, in another process, replaces the best.
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        checkpoints.save(random_state(config, step=8))
        checkpoints.record_evaluation(8, {"segm/AP": 0.4})
    assert steps_on_disk(tmp_path) == [6, 8]


def test_some_are_kept_for_good(tmp_path):
    config = toy.make_config(**{"checkpoint.keep": 1, "checkpoint.keep_best": 0, "checkpoint.keep_every": 4})
    state = random_state(config)
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        for step in (2, 4, 6, 8, 9):
            checkpoints.save(state.replace(step=jax.device_put(jnp.int32(step), state.step.sharding)))
        checkpoints.record_evaluation(9, {"segm/AP": 0.1})
    assert steps_on_disk(tmp_path) == [4, 8, 9]


def test_other_meshes(tmp_path):
    """Saved over 8 devices, restored over 4, saved again and restored on 1: the same bits."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.training.other_meshes", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    spread = json.loads(done.stdout.splitlines()[-1])
    assert spread["8"] == spread["4"] == 4  # kernel, average and two moments


def test_inference_loads_the_average_and_the_classes(tmp_path):
    config = toy.make_config()
    state = random_state(config)
    save(tmp_path, config, state)
    found = load_for_inference(tmp_path)
    assert found.step == 7 and found.classes == toy.CLASSES and found.config.to_dict() == config.to_dict()
    assert_same(found.params, jax.device_get(state.ema_params))
    assert_same(found.variables["batch_stats"], jax.device_get(state.batch_stats))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(found.params))
    for path in (tmp_path / "checkpoints", tmp_path / "checkpoints" / "7"):
        assert load_for_inference(path).step == 7


def test_a_run_of_another_task_is_no_detector(tmp_path):
    config = toy.make_config()
    config.task = "classification"
    save(tmp_path, config, random_state(config))
    assert load_for_inference(tmp_path).config.task == "classification"
    with pytest.raises(CheckpointError, match="of a run with the task 'classification'; expected one of 'detection'"):
        load_detector(tmp_path)


def test_without_average_and_statistics(tmp_path):
    config = toy.make_config(**{"optimizer.ema_decay": 0.0})
    state = random_state(config).replace(batch_stats={})
    save(tmp_path, config, state)
    found = load_for_inference(tmp_path)
    assert found.batch_stats == {}
    assert_same(found.params, jax.device_get(state.params))
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        assert_same(checkpoints.restore(random_state(config, seed=1).replace(batch_stats={})), state)


def test_the_average_may_be_switched_on_and_off(tmp_path, caplog):
    on, off = toy.make_config(), toy.make_config(**{"optimizer.ema_decay": 0.0})
    state = random_state(off)
    save(tmp_path / "off", off, state)
    with Checkpoints(tmp_path / "off", on, toy.CLASSES) as checkpoints:
        restored = checkpoints.restore(random_state(on, seed=1))
    assert_same(restored.ema_params, state.params)
    assert "it starts from the parameters" in caplog.text
    save(tmp_path / "on", on, random_state(on))
    with Checkpoints(tmp_path / "on", off, toy.CLASSES) as checkpoints:
        assert checkpoints.restore(random_state(off, seed=1)).ema_params is None


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (Classes((3,), ("cat",), ("r",)), "has 2 classes; the annotations have 1"),
        (Classes((3, 6), ("cat", "dog"), ("r", "f")), r"class 1 = id 5 'dog'; the annotations have id 6 'dog'"),
        (Classes((3, 5), ("cat", "cow"), ("r", "f")), r"class 1 = id 5 'dog'; the annotations have id 5 'cow'"),
    ],
)
def test_other_classes_are_refused(tmp_path, classes, message):
    config = toy.make_config()
    save(tmp_path, config, random_state(config))
    with Checkpoints(tmp_path, config, classes) as checkpoints:
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore(random_state(config))


def test_another_model_is_refused_other_differences_are_listed(tmp_path, caplog):
    config = toy.make_config()
    state = random_state(config)
    save(tmp_path, config, state)
    other = toy.make_config(**{"model.fpn.channels": 128, "train.steps": 50})
    with Checkpoints(tmp_path, other, toy.CLASSES) as checkpoints:
        with pytest.raises(CheckpointError, match=r"of another model(.|\n)*model\.fpn\.channels: 256 -> 128") as caught:
            checkpoints.restore(state)
    assert "train.steps" not in str(caught.value)
    other = toy.make_config(**{"optimizer.learning_rate": 0.5, "train.steps": 50})
    with Checkpoints(tmp_path, other, toy.CLASSES) as checkpoints:
        assert_same(checkpoints.restore(random_state(other, seed=1)), state)
    assert "optimizer.learning_rate: 0.05 -> 0.5" in caplog.text and "train.steps: 12 -> 50" in caplog.text


def test_another_optimizer_structure_is_refused(tmp_path):
    config, other = toy.make_config(), toy.make_config(**{"optimizer.name": "adamw"})
    save(tmp_path, config, random_state(config))
    with Checkpoints(tmp_path, other, toy.CLASSES) as checkpoints:
        with pytest.raises(CheckpointError, match=r"arrays of its optimizer differ: .*mu.* not in the checkpoint"):
            checkpoints.restore(random_state(other))


def test_half_written_checkpoints_are_not_picked_up(tmp_path):
    config = toy.make_config()
    state = random_state(config)
    save(tmp_path, config, state)
    half = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "7", half)
    assert load_for_inference(tmp_path, checkpoint="latest").step == 7
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        assert checkpoints.latest_step() == 7
        checkpoints.save(state.replace(step=state.step + 1))
    assert not half.exists()


@pytest.mark.parametrize("victim", ["params", "run"])
def test_damaged_checkpoints_are_named(tmp_path, victim):
    config = toy.make_config()
    save(tmp_path, config, random_state(config))
    for file in (tmp_path / "checkpoints" / "7" / victim).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        with pytest.raises(CheckpointError, match=r"checkpoint .*/7 cannot be read .*Remove that directory"):
            checkpoints.restore(random_state(config))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_for_inference(tmp_path)


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint; expected one in .*/checkpoints"):
        load_for_inference(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "evaluations.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"evaluations\.json is not what this package writes"):
        Checkpoints(tmp_path, toy.make_config(), toy.CLASSES)


def test_init_from_takes_what_fits(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="eql_jax")
    config = toy.make_config()
    state = random_state(config)
    save(tmp_path, config, state)
    fresh = random_state(config, seed=1, step=0)
    wide = jax.device_put(jnp.zeros((16, 9)), fresh.step.sharding)
    fresh = fresh.replace(params=fresh.params | {"dense": fresh.params["dense"] | {"kernel": wide}})
    found = init_from(fresh, tmp_path, config)
    assert int(found.step) == 0
    np.testing.assert_array_equal(found.params["dense"]["bias"], state.ema_params["dense"]["bias"])
    np.testing.assert_array_equal(found.params["dense"]["kernel"], wide)
    assert_same(found.ema_params, found.params)
    assert "3 of 4 arrays" in caplog.text and "params/dense/kernel (shape (16, 3) against (16, 9))" in caplog.text
    alien = fresh.replace(params={"other": wide}, batch_stats={}, ema_params=None)
    with pytest.raises(CheckpointError, match="not one of 1 arrays fits this model; the first is params/other"):
        init_from(alien, tmp_path, config)


def test_the_first_save_at_or_after_each_multiple_is_kept(tmp_path):
    """With steps that the linear rule has scaled none may divide."""
    config = toy.make_config(**{"checkpoint.keep": 1, "checkpoint.keep_best": 0, "checkpoint.keep_every": 10})
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        for step in range(3, 29, 3):
            checkpoints.save(random_state(config, step=step))
    assert steps_on_disk(tmp_path) == [12, 21, 27]


def test_saving_does_not_move_the_point_where_processes_stop(tmp_path, monkeypatch):
    """JAX stops after the last number that it was asked plus one, and Orbax would ask it with the step."""
    monkeypatch.setattr(ocp.checkpoint_manager.utils, "reached_preemption", lambda step: pytest.fail("asked"))
    config = toy.make_config()
    save(tmp_path, config, random_state(config))
    assert steps_on_disk(tmp_path) == [7]


@pytest.mark.parametrize(("own", "first", "good"), [(7, 7, True), (None, -1, True), (7, 3, False), (None, 7, False)])
def test_processes_that_see_other_checkpoints_are_told(monkeypatch, own, first, good):
    two = types.SimpleNamespace(process_count=lambda: 2, process_index=lambda: 1)
    monkeypatch.setattr(run_dir, "jax", two)
    monkeypatch.setattr(run_dir.multihost_utils, "broadcast_one_to_all", lambda _: np.int32(first))
    found = types.SimpleNamespace(latest_step=lambda: own, directory="runs/a/checkpoints")
    with contextlib.nullcontext() if good else pytest.raises(CheckpointError, match="process 1 sees .* all processes"):
        run_dir._check_same_workdir(found)


def test_init_from_keeps_the_classes_of_a_padded_classifier(tmp_path):
    def run(multiple, fill):
        config = toy.make_config(**{"model.box_head.class_multiple": multiple})
        columns = max(multiple, len(toy.CLASSES))
        layer = {"kernel": jnp.full((3, columns), fill) + jnp.arange(columns), "bias": jnp.full(columns, fill)}
        params = jax.device_put({"cls_score": layer, "dense": {"kernel": jnp.full((2, 2), fill)}})
        return config, create_state({"params": params}, optax.sgd(0.1), ema=False)

    config, saved = run(8, 1.0)
    save(tmp_path, config, saved)
    for multiple in (1, 4, 8):
        config, fresh = run(multiple, 5.0)
        found = init_from(fresh, tmp_path, config).params["cls_score"]
        for name, values in saved.params["cls_score"].items():
            np.testing.assert_array_equal(found[name][..., :2], values[..., :2])
            assert multiple == 8 or not found[name][..., 2:].any()
    config, fresh = run(1, 5.0)
    wider = {"kernel": jnp.full((3, 3), 5.0), "bias": jnp.full(3, 5.0)}  # softmax: a column for background
    fresh = fresh.replace(params=fresh.params | {"cls_score": wider})
    assert_same(init_from(fresh, tmp_path, config).params["cls_score"], wider)


def test_init_from_refuses_weights_of_another_input(tmp_path, caplog):
    """Weights made for pixels of std 1 run silently wrong on pixels divided by 58."""
    config = toy.make_config()
    save(tmp_path, config, random_state(config))
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.model.pixel_std = (1.0, 1.0, 1.0)
        other.model.roi.sampling_ratio = 0
    with pytest.raises(ConfigError, match=r"model\.pixel_std: .*58\.395.* there, \(1\.0, 1\.0, 1\.0\) here") as error:
        init_from(random_state(other), tmp_path, other)
    assert "--config.model.pixel_std='(58.395,57.12,57.375)'" in str(error.value)
    with other.unlocked():
        other.model.pixel_std = config.model.pixel_std
    init_from(random_state(other), tmp_path, other)
    assert "model.roi.sampling_ratio: 2 -> 0" in caplog.text


def test_columns_that_would_stand_for_other_classes_are_refused(tmp_path):
    """Group softmax orders its columns by the numbers of training objects: the same shapes, other classes."""
    config = toy.make_config(**{"model.box_head.loss": "group_softmax"})
    counted = lambda *n: dataclasses.replace(toy.CLASSES, image_counts=n, instance_counts=n, num_images=900)  # noqa: E731
    state = random_state(config)
    save(tmp_path, config, state, classes=counted(5, 500))
    with Checkpoints(tmp_path, config, counted(4, 400)) as checkpoints:  # in the same groups
        assert_same(checkpoints.restore(random_state(config, seed=1)), state)
        init_from(state, tmp_path, config, checkpoints.classes)
    with Checkpoints(tmp_path, config, counted(500, 5)) as checkpoints:
        with pytest.raises(CheckpointError, match="'group_softmax' has them, .* 2 of 2 classes have another"):
            checkpoints.restore(state)
        with pytest.raises(CheckpointError, match="^train.init_from .* 2 of 2 classes have another column"):
            init_from(state, tmp_path, config, checkpoints.classes)
    softmax = toy.make_config(**{"model.box_head.loss": "softmax"})
    init_from(state, tmp_path, softmax, counted(500, 5))  # columns of another loss, which shapes tell apart


def test_a_failed_save_is_told_and_the_next_works(tmp_path, caplog):
    """The file size limit of the process stands for a full disk: writing fails in the same places."""
    config = toy.make_config()
    big = jnp.asarray(np.random.default_rng(0).normal(size=200_000))  # random, so that it does not compress away
    state = random_state(config)
    state = state.replace(batch_stats={"big": big})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        assert not checkpoints.last_save_failed
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            checkpoints.save(state.replace(step=state.step + 1))
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.last_save_failed and checkpoints.latest_step() == 7
        assert "the checkpoint of step 8 could not be written" in caplog.text
        assert "The newest whole checkpoint is of step 7" in caplog.text
        checkpoints.save(state.replace(step=state.step + 2))
        checkpoints.wait()
        assert not checkpoints.last_save_failed
    assert steps_on_disk(tmp_path) == [7, 9]
    assert load_for_inference(tmp_path, checkpoint="latest").step == 9


def test_a_failed_save_of_one_of_several_processes_ends_the_run(tmp_path, monkeypatch):
    """The others wait for its part; that they end is for `tests/training/test_hosts.py`."""
    with Checkpoints(tmp_path, toy.make_config(), toy.CLASSES) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_count", lambda: 2)
            with pytest.raises(CheckpointError, match=r"step 3 could not be written .* by process 0: OSError: no room"):
                checkpoints._failed(3, OSError("no room"))


def test_an_unwritable_workdir_is_told_before_the_start(tmp_path, monkeypatch):
    config = toy.make_config()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write to .*/file/.*: Not a directory.*another --workdir"):
        Checkpoints(tmp_path / "file", config, toy.CLASSES)

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(disk.tempfile, "NamedTemporaryFile", read_only)
    with pytest.raises(CheckpointError, match="cannot write to .*: Read-only file system"):
        Checkpoints(tmp_path, config, toy.CLASSES)


def test_a_full_disk_is_told_before_the_start(tmp_path, monkeypatch):
    config = toy.make_config()
    state = random_state(config)
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        checkpoints.check_space(state)
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
        with pytest.raises(CheckpointError, match="has 0.00 GB free; a checkpoint needs"):
            checkpoints.check_space(state)


def test_the_layout_on_disk(tmp_path):
    """What other tools may rely on."""
    config = toy.make_config()
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        checkpoints.save(random_state(config))
        checkpoints.record_evaluation(7, {"segm/AP": 0.25})
    items = {p.name for p in (tmp_path / "checkpoints" / "7").iterdir() if p.is_dir()}
    assert items == set(checkpoint_files.ITEMS)
    assert json.loads((tmp_path / "checkpoints" / "evaluations.json").read_text()) == {"7": {"segm/AP": 0.25}}
