"""--mode=export: the file has what the checkpoint has, by name, and is read back as one."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from eql_jax.training import mesh as mesh_lib
from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.errors import CheckpointError
from eql_jax.training.inference_model import export_parameters, load_for_inference
from eql_jax.training.warm_start import init_from
from tests.training import toy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a checkpoint of step 0 whose parameters and average differ; the state in it."""
    workdir, config = tmp_path_factory.mktemp("run"), toy.make_config()
    state, _ = toy.fresh_state(config, mesh_lib.make_mesh(config))
    rng = np.random.default_rng(0)
    drawn = lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding)  # noqa: E731
    state = jax.tree.map(drawn, state).replace(step=state.step)
    with Checkpoints(workdir, config, toy.CLASSES) as checkpoints:
        checkpoints.save(state)
    export_parameters(load_for_inference(workdir), workdir / "model.safetensors")
    return workdir, state


def test_arrays_by_name_and_metadata(run):
    workdir, state = run
    arrays = load_file(workdir / "model.safetensors")  # as somebody without this package would
    assert set(arrays) == {
        "params/dense/kernel",
        "params/dense/bias",
        "params/frozen/kernel",
        "batch_stats/bn/mean",
    }
    np.testing.assert_array_equal(arrays["params/dense/kernel"], state.ema_params["dense"]["kernel"])
    data = (workdir / "model.safetensors").read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert json.loads(metadata["classes"])["names"] == ["cat", "dog"]
    assert json.loads(metadata["config"])["train"]["steps"] == 12


def test_it_is_read_as_a_checkpoint(run):
    workdir, state = run
    file = workdir / "model.safetensors"
    a, b = load_for_inference(workdir), load_for_inference(file)
    jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)
    assert (a.classes, a.step) == (b.classes, b.step) and a.config.to_dict() == b.config.to_dict()
    started = init_from(state, file, toy.make_config())
    np.testing.assert_array_equal(started.params["dense"]["bias"], state.ema_params["dense"]["bias"])


def test_files_that_are_none(run, tmp_path):
    whole = run[0] / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"expected one ending in \.safetensors"):
        export_parameters(load_for_inference(run[0]), tmp_path / "model.npz")
    with pytest.raises(CheckpointError, match="none.safetensors cannot be read .* --mode=export writes such a file"):
        load_for_inference(tmp_path / "none.safetensors")
    half = tmp_path / "half.safetensors"
    half.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="half.safetensors is damaged"):
        load_for_inference(half)
    save_file({"a": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="of another origin"):
        load_for_inference(tmp_path / "other.safetensors")
    shutil.copy(whole, tmp_path / "copy.safetensors")
    assert load_for_inference(tmp_path / "copy.safetensors").step == 0
