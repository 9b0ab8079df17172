"""From workdirs to the page: of complete runs, and of runs that lack this or that."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eql_jax.analysis.__main__ import main, parse_arguments
from eql_jax.analysis.collect import collect_runs, run_names
from eql_jax.training.errors import UserError
from tests.analysis.runs import make_config, make_data, make_workdir

ROOT = Path(__file__).parents[2]
FIGURES = {
    "training_curves.png",
    "ap_by_frequency.png",
    "gradient_norms.png",
    "positive_probabilities.png",
    "weight_norms.png",
    "confusion.png",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the data set and two complete runs, eql and softmax."""
    folder = tmp_path_factory.mktemp("analysis")
    data = make_data(folder / "data")
    for i, loss in enumerate(("eql", "softmax")):
        config = make_config(data, **{"model.box_head.loss": loss, "optimizer.learning_rate": 0.01 * (i + 1)})
        make_workdir(folder / loss, config, seed=i)
    return folder


def text_of(page: Path) -> str:
    """The page without what is within its pictures."""
    return re.sub(r"data:[^\"]+", "", page.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_two_runs(made, tmp_path):
    words = [f"--workdir={made / name}" for name in ("eql", "softmax")]
    words += [f"--out={tmp_path}", "--batches=1", "--classes=2", "--split=val", "--config.train.batch_size=4"]
    # Unoptimised code compiles in a third of the time.
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", "eql_jax.analysis", *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == FIGURES | {"index.html"}
    whole, text = (tmp_path / "index.html").read_text(), text_of(tmp_path / "index.html")
    assert whole.count("data:image/png;base64,") == len(FIGURES)
    assert whole.count("data:image/jpeg;base64,") == 2 * 2 * 2  # runs, best and worst, classes
    assert "http" not in text and "was not looked into" not in text
    for row in ("model.box_head.loss</td><td>eql</td><td>softmax", "optimizer.learning_rate</td><td>0.01</td><td>0.02"):
        assert row in text
    assert "RoIs as in training, of 1 batches of val images." in text
    assert "Classes that changed most against eql" in text


def test_what_is_missing_is_noted(made, tmp_path, caplog):
    """One run has nothing but its checkpoint, one has other classes and lost its data."""
    bare, other = tmp_path / "bare", tmp_path / "other"
    shutil.copytree(made / "eql" / "checkpoints", bare / "checkpoints")
    data = make_data(tmp_path / "data", num_classes=20)
    make_workdir(other, make_config(data))
    with (other / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "kind": "tr')
    shutil.rmtree(tmp_path / "data")
    words = [f"--workdir={path}" for path in (made / "eql", bare, other)]
    assert main([*words, f"--out={tmp_path / 'out'}", "--batches=0", "--classes=1"]) == 0
    text = text_of(tmp_path / "out" / "index.html")
    for message in (
        f"bare: {bare / 'metrics.jsonl'} is missing: no curves of training",
        f"bare: no evaluation in {bare}: no AP here",
        "bare: no evaluation with AP of each class",
        f"other: 1 lines of {other / 'metrics.jsonl'} are damaged",
        "other: no pictures of classes: ",
        "--batches=0: no batch was looked at",
    ):
        assert message in text, message
    assert "<td>20: " in text and "<td>24: " in text  # numbers of classes
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "training_curves.png",
        "ap_by_frequency.png",
        "weight_norms.png",
    }
    assert "other: no pictures of classes" in caplog.text


def test_one_run_whose_data_is_gone(made, tmp_path):
    """The pass cannot be made; the rest of the page is there."""
    words = [f"--workdir={made / 'softmax'}", f"--out={tmp_path}", "--images=0"]
    assert main([*words, "--config.data.train_annotations=gone.json"]) == 0
    text = text_of(tmp_path / "index.html")
    assert "One run: nothing to compare with." in text
    assert "softmax: no pass over batches: " in text and "gone.json" in text
    assert "softmax: read with --config.data.train_annotations=gone.json" in text


def test_a_stage_that_only_another_run_has(made, tmp_path):
    assert main([f"--workdir={made / 'eql'}", f"--out={tmp_path}", "--images=0", "--stage=2"]) == 0
    assert "have stages 0 to 0" in text_of(tmp_path / "index.html")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir={tmp}/empty"], "error: {tmp}/empty has no checkpoint; expected one in {tmp}/empty/checkpoints"),
        (["--workdir={tmp}/nowhere"], "error: --workdir {tmp}/nowhere is no directory"),
        (["--workdir={made}/eql", "--workdir={made}/./eql"], "eql more than once"),
        (["--workdir={made}/eql", "--checkpoint=7"], "has no checkpoint '7'; expected 'best', 'latest' or one of [20]"),
        (["--workdir={made}/eql", "--config.model.fpn.channels=8"], "is of another model"),
        (["--workdir={made}/eql", "--config.model.fpn.chanels=8"], "did you mean model.fpn.channels?"),
    ],
)
def test_wrong_input(made, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    words = [word.format(tmp=tmp_path, made=made) for word in words]
    assert main([*words, f"--out={tmp_path / 'out'}"]) == 2
    assert message.format(tmp=tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--batches=-1"], ["--score_threshold=30"], ["--split=test"]])
def test_wrong_options(words, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--workdir=a", "--out=b", *words])
    assert words[0].split("=")[0].lstrip("-") in capsys.readouterr().err


def test_damaged_evaluation(made, tmp_path):
    shutil.copytree(made / "eql", tmp_path / "eql")
    (tmp_path / "eql" / "evaluation" / "metrics.json").write_text('{"metrics": 3}')
    with pytest.raises(UserError, match=r"metrics.json is not what this package writes"):
        collect_runs([tmp_path / "eql"])


def test_run_names():
    paths = [Path("runs/a/eql"), Path("runs/b/eql"), Path("runs/b/softmax")]
    assert run_names(paths) == ["a/eql", "b/eql", "softmax"]
    assert run_names([Path("runs/eql")]) == ["eql"]
