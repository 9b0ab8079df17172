"""Classifier and loss spread over classes on the mesh's 'model' axis: the same numbers, and an eighth of the memory.

Eight virtual devices are a matter of a process's start, so the work is in `sharded_classes`, run in one of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import base
from eql_jax.training import config as config_lib
from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.errors import ConfigError
from eql_jax.training.inference_model import load_for_inference
from eql_jax.training.mesh import to_local_devices
from eql_jax.training.sharding import gathered, partition_spec, tree_shardings, whole_over_data, with_fsdp
from eql_jax.training.state import create_state
from tests.training import toy
from tests.training.sharded_classes import ROWS, UNITS

ROOT = Path(__file__).parents[2]


def run(*words, flags=""):
    flags = f"--xla_force_host_platform_device_count=8 {flags}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.training.sharded_classes", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def losses():
    """Of 50,000 and 200,000 classes, and of one more than divides, over 1 x 8 and 2 x 4 devices."""
    return run("loss", "50000", "50001", "200000")


def test_loss_and_gradients_are_those_of_one_device(losses):
    assert [(row["classes"], row["mesh"]) for row in losses] == [
        (k, mesh) for k in (50_000, 50_001, 200_000) for mesh in ([1, 8], [2, 4])
    ]
    for row in losses:
        assert row["many"]["loss"] == pytest.approx(row["one"]["loss"], rel=1e-6)
        assert len(row["errors"]) == 3 and max(row["errors"]) < 2e-6, row  # bias, kernel, hidden layer
        assert row["added"] == 0  # no gradient of columns without a class


def test_class_counts_that_do_not_divide_are_padded(losses):
    assert [row["many"]["columns"] for row in losses] == [50_000, 50_000, 50_008, 50_004, 200_000, 200_000]


def test_each_device_holds_its_part(losses):
    """Of the classifier 1 / model, of all memory 1 / 8 over 1 x 8 devices, of the logits 1 / 8 over 2 x 4."""
    kinds = ("argument_bytes", "output_bytes", "temp_bytes")
    for row in losses:
        one, many, model = row["one"], row["many"], row["mesh"][1]
        assert many["held"] == UNITS * many["columns"] // model
        assert one["temp_bytes"] > 4 * ROWS * row["classes"]  # the logits are in it
        assert many["temp_bytes"] < one["temp_bytes"] / 8 * 1.01
        for kind in kinds:
            assert many[kind] < one[kind] / model * 1.02, (row["classes"], kind)


def test_nothing_of_the_logits_size_travels(losses):
    """No gather; the sums are of the hidden layer's gradient and, between rows of the mesh, the classifier's."""
    for row in losses:
        found, (data, model) = row["many"]["collectives"], row["mesh"]
        assert set(found) == {"all-reduce"}, found
        expected = ROWS * UNITS if data == 1 else UNITS * row["many"]["columns"] // model
        assert found["all-reduce"] == expected < ROWS * row["classes"] // 8


@pytest.mark.slow
def test_training_steps_of_a_detector_over_both_axes():
    """4 x 2 devices: losses, norms and the classifier after two updates are those of one device."""
    found = run("detector", flags="--xla_backend_optimization_level=0")  # compiles faster
    one, many = found["one"], found["many"]
    assert found["columns"] == 32  # 31 classes
    for key, value in one["metrics"][0].items():
        assert many["metrics"][0][key] == pytest.approx(value, rel=2e-5), key
    assert many["metrics"][1]["loss"] == pytest.approx(one["metrics"][1]["loss"], rel=1e-3)
    assert found["kernel_error"] < 1e-3
    assert one["held"] == [[12, 32]] * 3 and many["held"] == [[12, 16]] * 3  # kernel, average, momentum
    assert one["others_whole"] and many["others_whole"]
    assert set(many["collectives"]) == {"all-reduce"}  # images and logits stay where they are


@pytest.mark.parametrize("fsdp", [False, True])
def test_checkpoints_and_evaluation_of_a_spread_state(tmp_path, fsdp):
    """A restored state lies where it is wanted, which may be elsewhere than it lay; evaluation has all of it on every
    device."""
    rng = np.random.default_rng(0)
    params = {
        "box_head": {"cls_score": {"kernel": rng.random((4, 8), np.float32), "bias": rng.random(8, np.float32)}},
        "backbone": {"kernel": rng.random((3, 4096), np.float32)},
    }
    state = create_state({"params": params}, optax.adam(0.1), ema=True)
    state = jax.device_put(state, tree_shardings(state, mesh(2, 2), fsdp=fsdp))
    config = toy.make_config()
    with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
        checkpoints.save(state)
    for other, also in ((mesh(2, 2), fsdp), (mesh(4, 1), not fsdp)):
        shardings = tree_shardings(state, other, fsdp=also)
        blank = jax.tree.map(lambda x, s: jax.device_put(np.zeros(x.shape, x.dtype), s), state, shardings)
        with Checkpoints(tmp_path, config, toy.CLASSES) as checkpoints:
            restored = checkpoints.restore(blank)
        for a, b, where in zip(*(jax.tree.leaves(t) for t in (restored, state, shardings)), strict=True):
            assert a.sharding == where
            np.testing.assert_array_equal(a, b)
        spread = [x for x in jax.tree.leaves(restored) if not x.is_fully_replicated]
        # Kernel and bias of the classifier, the backbone's kernel: in parameters, average and both moments.
        assert len(spread) == 8 * (other.shape["model"] == 2) + 4 * also
        for tree in (
            load_for_inference(tmp_path).params,
            to_local_devices(restored.eval_params),
            gathered(state.params),
        ):
            for kernel, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True):
                np.testing.assert_array_equal(kernel, expected)
                assert isinstance(kernel, np.ndarray) or kernel.is_fully_replicated


# ---------------------------------------------------------------- rules and faults


def test_rules():
    for before in ("", "params/", "ema_params/", "opt_state/inner_states/trained/inner_state/1/trace/"):
        assert partition_spec(f"{before}box_head_2/cls_score/kernel") == P(None, "model")
        assert partition_spec(f"{before}box_head/cls_score/bias") == P("model")
        for name in ("box_head/bbox_pred/kernel", "mask_head/predictor/bias", "box_head/my_cls_score/kernel"):
            assert partition_spec(before + name) == P()


def test_what_fsdp_spreads():
    kernel, classifier = (3, 3, 64, 128), P(None, "model")
    assert with_fsdp("params/a/kernel", kernel, P(), 4) == P(None, None, None, "data")  # the largest dimension
    assert with_fsdp("opt_state/1/trace/a/kernel", (48, 100), P(), 8) == P("data", None)  # that divides
    assert with_fsdp("params/cls_score/kernel", (64, 128), classifier, 4) == P("data", "model")  # that is whole
    assert with_fsdp("params/a/kernel", (3, 3, 7, 99), P(), 8) == P()  # none does
    assert with_fsdp("params/a/kernel", (4, 1023), P(), 4) == P()  # small
    assert with_fsdp("params/cls_score/kernel", (63, 128), classifier, 4) == classifier
    assert with_fsdp("params/a/kernel", kernel, P(), 1) == P()
    for name in ("params/a/norm/scale", "batch_stats/a/mean", "loss_state/box_head/memory/counts"):
        assert with_fsdp(name, (8192,), P(), 4) == P()
    shardings = {"a": NamedSharding(mesh(2, 2), P("data", "model")), "b": NamedSharding(mesh(2, 2), P("model"))}
    assert [s.spec for s in jax.tree.leaves(whole_over_data(shardings))] == [P(None, "model"), P("model")]


def mesh(data, model):
    devices = np.array(jax.devices()[: data * model]).reshape(data, model)
    return Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def test_shardings_of_a_tree():
    tree = {"a": {"cls_score": {"kernel": np.zeros((3, 6)), "bias": np.zeros(6)}}, "step": np.zeros(())}
    specs = lambda mesh: [s.spec for s in jax.tree.leaves(tree_shardings(tree, mesh))]  # noqa: E731
    assert specs(mesh(2, 2)) == [P("model"), P(None, "model"), P()]
    assert specs(mesh(4, 1)) == [P(), P(), P()]
    with pytest.raises(ConfigError, match=r"a/cls_score/bias has shape \(6,\), whose 6 columns do not divide by") as e:
        tree_shardings(tree, mesh(1, 4))
    assert "set config.model.box_head.class_multiple to 4, which adds columns" in str(e.value)


def test_losses_that_cannot_be_padded_are_a_fault_of_the_config():
    config = base.get_config()
    config.model.box_head.update(loss="softmax", class_multiple=8)
    with pytest.raises(ConfigError, match=r"class_multiple is 8; expected 1 for 'softmax'.*'eql'.*'sigmoid'"):
        config_lib.validate(config, base=base.get_config())
    config.model.box_head.loss = "eql"
    config_lib.validate(config, base=base.get_config())
