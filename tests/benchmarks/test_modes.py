"""What the command lines of train_step.py and inference.py start; nothing is run."""

import sys

import pytest

from benchmarks import common, inference, rows, torchvision_peer, train_step


@pytest.fixture
def started(monkeypatch):
    """What would have been run: [(rows, options)] and [(class counts, words)]."""
    found = []
    monkeypatch.setattr(rows, "run_rows", lambda todo, **options: found.append((list(todo), options)))
    monkeypatch.setattr(common, "compare", lambda script, counts, words: found.append((script.name, counts, words)))
    return found


def test_torchvision_runs_both_at_one_setting(started):
    words = ["--batch", "8", "--dtype", "bfloat16", "--size", "800", "1344", "--classes", "80", "--torchvision"]
    train_step.main([*words, "--repeats", "7", "--set", "model.fpn.channels=8", "--no-unit", "--torch_python", "other"])
    [(todo, options)] = started
    assert [row.name for row in todo] == [
        "train_step batch 8 bfloat16 800x1344 80 classes",
        "torchvision_train batch 8 bfloat16 800x1344 80 classes",
    ]
    assert sorted(options["extra"]) == sorted(["--repeats", "7", "--set", "model.fpn.channels=8", "--no-unit"])
    assert options["torch_python"] == "other"


def test_lists_of_rows_get_the_other_options(started, tmp_path):
    out = tmp_path / "rows.jsonl"
    inference.main(["--rows", "gpu", "--out", str(out), "--minutes", "9", "--commit", "abc"])
    [(todo, options)] = started
    assert todo == list(rows.LISTS["inference"]["gpu"])
    assert options["extra"] == ["--commit", "abc"] and options["out"] == out and options["minutes"] == 9


def test_compare_passes_everything_on(started):
    train_step.main(["--compare", "1203", "80", "--objects", "20", "--size", "64", "96", "--stages"])
    assert started == [("train_step.py", [1203, 80], ["--objects", "20", "--size", "64", "96", "--stages"])]


def test_a_breakdown_is_expected_to_take_twice_as_long():
    todo = rows.Row("train_step", breakdown=True)
    assert rows.expected_seconds(todo, [], 100) == 200
    done = {"row": todo.name, "benchmark": "stages", "process_seconds": 150}
    assert rows.expected_seconds(todo, [done], 100) == 150


def test_missing_torch_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as stop:
        torchvision_peer.main(["--mode", "train"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "needs PyTorch and torchvision" in message and "--torch_python" in message


def test_wrong_settings_are_told(capsys):
    with pytest.raises(SystemExit) as stop:
        train_step.main(["--set", "model.backbone.widht=4"])
    assert stop.value.code == 2
    assert "model.backbone.widht" in capsys.readouterr().err
