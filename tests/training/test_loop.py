"""The loop on a toy model: resume is bit-identical, signals, NaN, evaluations, failing disks, metrics, mesh."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from eql_jax.training import checkpoints as checkpoints_lib
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.errors import CheckpointError, ConfigError, NonFiniteLossError
from eql_jax.training.inference_model import load_for_inference
from eql_jax.training.metrics import MetricWriter
from tests.training import toy


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def steps_on_disk(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.is_dir() and p.name.isdigit())


def metric_lines(workdir, kind="train"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The result of 12 steps in one go."""
    return toy.run(tmp_path_factory.mktemp("whole"), toy.make_config())


def test_trains(uninterrupted, tmp_path):
    assert int(uninterrupted.state.step) == 12 and not uninterrupted.stopped and uninterrupted.metrics is None
    toy.run(tmp_path, toy.make_config(**{"train.steps": 40, "log.every": 10}))
    lines = metric_lines(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[0]["learning_rate"] == pytest.approx(0.05) and lines[0]["images_per_second"] > 0
    assert steps_on_disk(tmp_path) == [35, 40]


def test_logged_metrics_are_means_over_the_steps_between(tmp_path):
    toy.run(tmp_path / "each", toy.make_config(**{"log.every": 1}))
    toy.run(tmp_path / "fourth", toy.make_config(**{"log.every": 4}))
    toy.run(tmp_path / "rarely", toy.make_config(**{"log.every": 100}))
    losses = [line["loss"] for line in metric_lines(tmp_path / "each")]
    means = [line["loss"] for line in metric_lines(tmp_path / "fourth")]
    np.testing.assert_allclose(means, np.reshape(losses, (3, 4)).mean(1), rtol=1e-6)
    (last,) = metric_lines(tmp_path / "rarely")  # the last step is always told
    assert last["step"] == 12
    np.testing.assert_allclose(last["loss"], np.mean(losses), rtol=1e-6)


@pytest.mark.parametrize("kill_at", [6, 10])
def test_killed_and_resumed_is_bit_identical(tmp_path, uninterrupted, kill_at):
    """SIGKILL one step after a checkpoint was begun (5), and in the very step after the next (10)."""
    command = [sys.executable, "-m", "tests.training.toy", str(tmp_path), "12", str(kill_at), str(int(signal.SIGKILL))]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not any(p.name == "12" for p in (tmp_path / "checkpoints").iterdir())
    resumed = toy.run(tmp_path, toy.make_config())
    assert_same(resumed.state, uninterrupted.state)
    assert [line["step"] for line in metric_lines(tmp_path)] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_resume_is_bit_identical(tmp_path, uninterrupted, number):
    before = signal.getsignal(number)
    wrap = toy.after_updates(7, lambda: os.kill(os.getpid(), number))
    stopped = toy.run(tmp_path, toy.make_config(), wrap=wrap)
    assert stopped.stopped and int(stopped.state.step) == 8
    assert steps_on_disk(tmp_path) == [5, 8]
    assert signal.getsignal(number) is before
    resumed = toy.run(tmp_path, toy.make_config())
    assert not resumed.stopped
    assert_same(resumed.state, uninterrupted.state)


def test_a_process_that_is_terminated_exits_with_0(tmp_path):
    command = [sys.executable, "-m", "tests.training.toy", str(tmp_path), "12", "3", str(int(signal.SIGTERM))]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "SIGTERM: saving after this step" in done.stderr
    assert steps_on_disk(tmp_path) == [4]


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # repeated by schedulers: no interruption
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        toy.run(tmp_path, toy.make_config(), wrap=toy.after_updates(7, twice))
    assert steps_on_disk(tmp_path) == [5]


def test_a_finished_run_does_nothing_more(tmp_path, uninterrupted):
    toy.run(tmp_path, toy.make_config())

    def never(step):
        raise AssertionError("no batch is needed")

    again = toy.run(tmp_path, toy.make_config(), batches=never)
    assert_same(again.state, uninterrupted.state)


def nan_from(step_number):
    def batches(start):
        for i, batch in enumerate(toy.make_batches(start), start):
            if i >= step_number:
                batch["y"][2] = np.nan
            yield batch

    return batches


@pytest.mark.parametrize(("bad_batch", "last_good"), [(9, 5), (11, 10), (0, None)])
def test_nan_stops_with_step_images_and_terms(tmp_path, bad_batch, last_good):
    with pytest.raises(NonFiniteLossError) as caught:
        toy.run(tmp_path, toy.make_config(), batches=nan_from(bad_batch))
    text = str(caught.value)
    ids = ", ".join(str(8 * bad_batch + i) for i in range(8))
    assert f"step {bad_batch + 1}: loss, loss_cls, grad_norm not finite; loss nan, loss_cls nan" in text
    assert f"image ids {ids}." in text
    assert ("No checkpoint was saved" if last_good is None else f"last good checkpoint is of step {last_good}") in text
    assert steps_on_disk(tmp_path) == ([5, 10] if last_good == 10 else [5] if last_good else [])


def test_a_bad_state_never_replaces_a_good_checkpoint(tmp_path):
    """Batch 9 is the one before the save of step 10: its metrics are read before the save, not two steps later."""
    with pytest.raises(NonFiniteLossError, match="step 10"):
        toy.run(tmp_path, toy.make_config(), batches=nan_from(9))
    assert steps_on_disk(tmp_path) == [5]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(load_for_inference(tmp_path).params))


def test_nan_checks_can_be_switched_off(tmp_path):
    result = toy.run(tmp_path, toy.make_config(**{"debug.nan_checks": False}), batches=nan_from(9))
    assert int(result.state.step) == 12
    assert metric_lines(tmp_path)[-1]["loss"] == "nan"  # JSON has no NaN


def test_evaluations_happen_on_time_and_the_best_is_kept(tmp_path):
    seen = []

    def evaluate(state):
        seen.append(int(state.step))
        return {"segm/AP": {4: 0.5, 8: 0.2, 12: 0.3}[int(state.step)]}

    config = toy.make_config(**{"eval.every": 4, "checkpoint.every": 100, "checkpoint.keep": 1})
    result = toy.run(tmp_path, config, evaluate=evaluate)
    assert seen == [4, 8, 12] and result.metrics == {"segm/AP": 0.3}
    assert steps_on_disk(tmp_path) == [4, 12]
    assert load_for_inference(tmp_path).step == 4
    assert [line["segm/AP"] for line in metric_lines(tmp_path, "eval")] == [0.5, 0.2, 0.3]
    toy.run(tmp_path, config, evaluate=evaluate)  # everything is there already
    assert seen == [4, 8, 12]


def test_stopped_during_evaluation_evaluates_when_resumed(tmp_path, uninterrupted):
    def interrupted(state):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")

    config = toy.make_config(**{"eval.every": 4})
    assert toy.run(tmp_path, config, evaluate=interrupted).stopped
    assert steps_on_disk(tmp_path) == [4]
    seen = []

    def evaluate(state):
        seen.append(int(state.step))
        return {"segm/AP": 0.1}

    result = toy.run(tmp_path, config, evaluate=evaluate)
    assert seen == [4, 8, 12]
    assert_same(result.state, uninterrupted.state)


def test_an_error_of_the_data_reaches_the_caller(tmp_path):
    def batches(start):
        yield next(toy.make_batches(start))
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        toy.run(tmp_path, toy.make_config(), batches=batches)
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_a_failed_last_save_is_an_error_an_earlier_one_is_not(tmp_path, monkeypatch, uninterrupted, caplog):
    failing = {5}
    save = checkpoints_lib.ocp.CheckpointManager.save

    def sometimes(self, step, *args, **kwargs):
        if step in failing:
            raise OSError(28, "No space left on device")
        return save(self, step, *args, **kwargs)

    monkeypatch.setattr(checkpoints_lib.ocp.CheckpointManager, "save", sometimes)
    result = toy.run(tmp_path / "early", toy.make_config())
    assert_same(result.state, uninterrupted.state)
    assert steps_on_disk(tmp_path / "early") == [10, 12]
    assert "step 5 could not be written" in caplog.text and "No space left on device" in caplog.text
    failing.add(12)
    with pytest.raises(CheckpointError, match=r"step 12 could not be saved.*newest whole checkpoint is of step 10"):
        toy.run(tmp_path / "late", toy.make_config())
    failing.clear()
    assert_same(toy.run(tmp_path / "late", toy.make_config()).state, uninterrupted.state)


def test_metrics_of_a_full_disk_are_told_once(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").mkdir()  # cannot be opened as a file
    with MetricWriter(tmp_path, toy.make_config()) as writer:
        writer.train(2, {"loss": 1.0})
        writer.train(4, {"loss": 1.0})
    assert caplog.text.count("metrics cannot be written") == 1


def test_console_lines_and_forgotten_steps(tmp_path, capsys):
    for line in ('{"step": 2, "kind": "train"}\n', '{"step": 6, "kind": "train"}\n', '{"step": 8, "ki'):
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(line)
    with MetricWriter(tmp_path, toy.make_config(), start_step=5) as writer:
        writer.train(6, {"loss": 1.0, "loss_cls": 0.5, "learning_rate": 0.02})
    assert [line["step"] for line in metric_lines(tmp_path)] == [2, 6]
    text = capsys.readouterr().err
    assert "step 6/12  loss 1.0000 (cls 0.5000)  lr 0.02" in text and "images/s" in text and "left" in text


def test_tensorboard_gets_the_metrics(tmp_path):
    with MetricWriter(tmp_path, toy.make_config(**{"log.tensorboard": True})) as writer:
        writer.train(2, {"loss": 1.0})
        writer.evaluation(2, {"segm/AP": 0.5})
    events = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert b"train/loss" in events and b"eval/segm/AP" in events


def test_mesh_and_batches():
    config = toy.make_config()
    mesh = mesh_lib.make_mesh(config)
    assert dict(mesh.shape) == {"data": jax.device_count(), "model": 1}
    batch = next(toy.make_batches(0))
    batch["image_id"] = np.array([-1, 2**32 + 5, 2, 3, 4, 5, 6, 7], np.int64)
    arrays = mesh_lib.put_batch(batch, mesh)
    assert arrays.keys() == {"x", "y", "image_id"}
    assert arrays["image_id"].dtype == np.uint32
    assert arrays["image_id"].tolist() == [2**32 - 1, 5, 2, 3, 4, 5, 6, 7]
    assert arrays["x"].sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh), 2)
    np.testing.assert_array_equal(arrays["x"], batch["x"])


def test_mesh_sizes():  # on the four virtual devices of conftest.py
    both = mesh_lib.make_mesh(toy.make_config(**{"mesh.model": 2}))
    assert dict(both.shape) == {"data": 2, "model": 2}
    with pytest.raises(ConfigError, match=r"mesh\.data x config\.mesh\.model is 3 x 1; expected to use all 4 devices"):
        mesh_lib.make_mesh(toy.make_config(**{"mesh.data": 3}))
    config = toy.make_config(**{"train.batch_size": 6, "eval.batch_size": 10})
    with pytest.raises(ConfigError, match=r"config\.eval\.batch_size is 10; expected a multiple of 4"):
        mesh_lib.check_batch_sizes(config)
    config.eval.batch_size = 8
    mesh_lib.check_batch_sizes(config)
    mesh_lib.check_batch_sizes(config, both)
    with pytest.raises(ConfigError, match=r"config\.train\.batch_size is 6; expected a multiple of 4"):
        mesh_lib.check_batch_sizes(config, mesh_lib.make_mesh(config))
    config.train.update(batch_size=12, gradient_accumulation=2)
    with pytest.raises(ConfigError, match=r"batch_size is 12; expected a multiple of 8, .* gradient_accumulation 2"):
        mesh_lib.check_batch_sizes(config, mesh_lib.make_mesh(config))


def test_the_prefetcher_gives_all_batches_in_order_and_ends():
    mesh = mesh_lib.make_mesh(toy.make_config())
    few = [batch for batch, _ in zip(toy.make_batches(3), range(5), strict=False)]
    with mesh_lib.Prefetcher(iter(few), mesh, size=2) as batches:
        seen = list(batches)
        assert list(batches) == []
    assert [b.image_ids.tolist() for b in seen] == [b["image_id"].tolist() for b in few]
