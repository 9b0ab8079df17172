"""Training does not depend on the mesh: live BatchNorm, a loss with a memory, frozen stages, fsdp; and what travels.

Eight virtual devices are a matter of a process's start, so the work is in `any_mesh`, run in one of its own.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.training.any_mesh", "1x1", "8x1", "4x2,fsdp"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_first_step_is_the_same_on_any_mesh(found):
    """Losses to 1e-5; parameters, their average, statistics and memory to 1e-5 of each array's largest entry."""
    assert found["moved"]["batch_stats"] > 1e-2 and found["moved"]["loss_state"] > 1 and found["moved"]["params"] > 1e-4
    one, *others = found["rows"]
    assert one["collectives"] == {} and one["metrics"]["num_foreground"] > 0
    for row in others:
        for name, value in one["metrics"].items():
            assert row["metrics"][name] == pytest.approx(value, rel=1e-5), (row["mesh"], name)
        assert max(row["errors"].values()) < 1e-5, (row["mesh"], row["errors"])


@pytest.mark.slow
def test_what_travels_in_a_step_over_data(found):
    """All-reduces alone: every trained parameter's gradient once (frozen ones never), three sums for each live
    BatchNorm (mean and square going forward, one going back; the other two are gradients), the counts that the loss
    remembers, and scalars."""
    _, data, _ = found["rows"]
    assert set(data["collectives"]) == {"all-reduce"}
    reduced = Counter(data["collectives"]["all-reduce"])
    assert reduced.pop(1) <= 12
    assert reduced == Counter(found["trained"]) + Counter(3 * found["live"]) + Counter(found["memory"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype, limit", [("float32", 1e-6), ("bfloat16", 0.02)])
def test_the_gradient_of_a_head_on_several_levels_travels_once(found, dtype, limit):
    """Not once a level: each parameter of the RPN's head is in the all-reduces once, and the sums are those of one
    device."""
    head = found["shared_head"][dtype]
    assert head["collectives"].keys() == {"all-reduce"}
    assert sorted(head["collectives"]["all-reduce"]) == sorted(head["parameters"])
    assert head["error"] < limit


@pytest.mark.slow
def test_fsdp_spreads_the_state(found):
    """Over 4 x 2 devices each holds less than a third. Kernels are gathered, and nothing of the size of the images'
    features is."""
    one, _, spread = found["rows"]
    assert spread["held"] < one["held"] / 3
    gathered = spread["collectives"]["all-gather"]
    large = [size for size in found["trained"] if size >= 4096]
    assert sorted(size for size in gathered if size >= 4096) == sorted(large)
    for kind in set(spread["collectives"]) - {"all-reduce", "all-gather"}:  # of the loss, between parts of the classes
        assert max(spread["collectives"][kind]) < 100, kind
