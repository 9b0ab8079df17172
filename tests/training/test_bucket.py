"""A workdir at gs://, which a folder and a small server stand for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.data.files import as_path
from eql_jax.evaluation.work_folder import WorkFolder
from eql_jax.training import checkpoints as checkpoints_lib
from eql_jax.training import config as config_lib
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.checkpoint_files import find_checkpoint
from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.disk import check_writable, free_space, write_atomically
from eql_jax.training.errors import CheckpointError
from eql_jax.training.inference_model import load_for_inference
from eql_jax.training.metrics import MetricWriter
from eql_jax.training.parameter_file import read_parameters, write_parameters
from tests.training import fake_bucket, toy

WORKDIR = "gs://bucket/runs/a"


@pytest.fixture
def root(tmp_path, monkeypatch):
    fake_bucket.install(monkeypatch, tmp_path)
    (tmp_path / "bucket").mkdir()
    return tmp_path


def test_files_of_a_run(root):
    workdir = as_path(WORKDIR)
    check_writable(workdir, needed_bytes=1 << 60)  # nobody knows how much room a bucket has
    assert free_space(workdir) == "a bucket"
    write_atomically(workdir / "config.json", config_lib.to_json(toy.make_config()))
    assert config_lib.load_config(f"{WORKDIR}/config.json", base=toy.make_config()).train.steps == 12
    with MetricWriter(workdir, toy.make_config()) as writer:
        writer.train(2, {"loss": 1.0})
        writer.train(4, {"loss": 1.0})
    with MetricWriter(workdir, toy.make_config(), start_step=2):
        pass
    lines = (root / "bucket/runs/a/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2]


def test_a_checkpoint_without_its_last_file_is_none(root, monkeypatch):
    """In a bucket, which cannot rename, Orbax writes commit_success.txt last."""
    folder = root / "bucket/runs/a/checkpoints"
    for step in (5, 10):
        (folder / str(step) / "run").mkdir(parents=True)
    (folder / "5" / "commit_success.txt").write_text("")
    assert str(find_checkpoint(WORKDIR, checkpoint="latest")) == f"{WORKDIR}/checkpoints/5"
    with pytest.raises(CheckpointError, match=r"has no checkpoint 10; expected 'best', 'latest' or one of \[5\]"):
        find_checkpoint(WORKDIR, checkpoint=10)
    monkeypatch.setattr(checkpoints_lib, "_is_installed", lambda module: False)
    with pytest.raises(CheckpointError, match="pip install google-cloud-storage"):
        Checkpoints(WORKDIR, toy.make_config(), toy.CLASSES)
    monkeypatch.setattr(checkpoints_lib, "_is_installed", lambda module: True)
    with Checkpoints(WORKDIR, toy.make_config(), toy.CLASSES) as checkpoints:
        assert checkpoints.latest_step() == 5
        assert not (folder / "10").exists()
        checkpoints.record_evaluation(5, {"segm/AP": 0.5})
    assert json.loads((folder / "evaluations.json").read_text()) == {"5": {"segm/AP": 0.5}}


def test_arrays_come_back(root, monkeypatch):
    """Through TensorStore's own client. What was begun and not ended is overwritten."""
    monkeypatch.setattr(checkpoints_lib, "_is_installed", lambda module: True)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    config = toy.make_config()
    blank, _ = toy.fresh_state(config, mesh_lib.make_mesh(config))
    rng = np.random.default_rng(0)
    drawn = lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding)  # noqa: E731
    state = jax.tree.map(drawn, blank).replace(step=jax.device_put(jnp.int32(7), blank.step.sharding))
    half = root / "bucket/runs/a/checkpoints/7/params/manifest.ocdbt"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    with fake_bucket.served(root) as address:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        with Checkpoints(WORKDIR, config, toy.CLASSES) as checkpoints:
            assert checkpoints.latest_step() is None
            checkpoints.save(state)
            checkpoints.wait()
            assert not checkpoints.last_save_failed and half.read_bytes() != b"half"
            restored = checkpoints.restore(blank)
        assert load_for_inference(WORKDIR).step == 7
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_files_of_an_evaluation_by_two_hosts(root):
    with WorkFolder(f"{WORKDIR}/evaluation") as first, WorkFolder(f"{WORKDIR}/evaluation") as second:
        (second.local / "results.host0001.json").write_text("[]")
        second.share("results.host0001.json")
        first.collect("results.host0001.json")
        (first.local / "pictures").mkdir()
        (first.local / "pictures" / "1.png").write_bytes(b"x")
        first.share_all()
        with pytest.raises(FileNotFoundError):
            first.collect("results.host0002.json")
        local = first.local
    assert not local.exists()
    assert (root / "bucket/runs/a/evaluation/results.host0001.json").read_text() == "[]"
    assert (root / "bucket/runs/a/evaluation/pictures/1.png").read_bytes() == b"x"
    with WorkFolder(root / "here") as folder:
        assert folder.local == root / "here"
        folder.share_all()


def test_exported_parameters(root):
    write_parameters(
        f"{WORKDIR}/model.safetensors", {"params": {"a": np.ones(3)}}, config_json="{}", classes={}, step=4
    )
    found = read_parameters(f"{WORKDIR}/model.safetensors")
    assert found.step == 4 and found.variables["params"]["a"].tolist() == [1, 1, 1]
    with pytest.raises(CheckpointError, match="gs://bucket/runs/a/none.safetensors cannot be read"):
        read_parameters(f"{WORKDIR}/none.safetensors")
