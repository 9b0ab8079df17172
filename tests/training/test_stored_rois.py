"""Twenty steps of a detector by several processes are those of one, where nothing hangs on the last bit of a score."""

import json

import pytest

from benchmarks import local_processes

STEPS = 20
PROGRAMME = ("-m", "tests.training.stored_rois")


def losses(count, devices, folder):
    """What each step of `count` processes with `devices` each told."""
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    flags["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    run = local_processes.start(count, [STEPS], folder, programme=PROGRAMME, environment=flags)
    assert run.wait(500) == [0] * count, run.texts()
    lines = [json.loads(line) for line in run.text(0).splitlines() if line.startswith("{")]
    assert len(lines) == STEPS
    return lines


@pytest.mark.slow
def test_twenty_steps_of_two_processes_are_those_of_one(tmp_path):
    """Two with two devices each against one with one."""
    one, two = losses(1, 1, tmp_path / "one"), losses(2, 2, tmp_path / "two")
    assert one[-1]["loss"] < one[0]["loss"] / 2 and one[0]["num_foreground"] == 32
    for step, (alone, together) in enumerate(zip(one, two, strict=True), 1):
        assert together.keys() == alone.keys() >= {"loss_mask", "loss_cls", "loss_box", "loss_rpn_cls", "grad_norm"}
        for name, value in alone.items():
            assert together[name] == pytest.approx(value, rel=1e-5 if step == 1 else 1e-4), (step, name)
