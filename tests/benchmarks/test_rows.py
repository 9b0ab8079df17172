"""Lists of rows: what is left out on a rerun, when time is short and after a failure. No jax in it."""

import dataclasses
import json
import sys

import pytest

from benchmarks import gpu_session, rows
from benchmarks.rows import Row, run_rows

FIRST, SECOND, THIRD = Row("train_step"), Row("train_step", batch=4), Row("train_step", batch=1)


class Machine:
    """Stands for processes and the clock: a row takes `seconds` and prints its lines."""

    def __init__(self, seconds=60.0, fails=()):
        self.now, self.seconds, self.fails, self.started = 0.0, seconds, fails, []

    def __call__(self, command, limit, on_line):
        batch = command[command.index("--batch") + 1]
        peer = "torchvision_peer.py" in command[1]
        self.started.append(("peer " if peer else "") + batch)
        if limit is not None and self.seconds > limit:
            self.now += limit
            raise TimeoutError("stopped")
        self.now += self.seconds
        if batch in self.fails:
            return "exit status 1: out of memory"
        kind = "torchvision_train" if peer else "train_step"
        speed = 2.0 if peer else 7.0
        on_line({"benchmark": kind, "images_per_second": speed, "process_seconds": self.seconds})
        return None

    def run(self, *todo, **options):
        return run_rows(todo, start=self, clock=lambda: self.now, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_of_the_file_are_not_run_again(tmp_path):
    out = tmp_path / "new" / "rows.jsonl"
    assert len(Machine().run(FIRST, SECOND, out=out)) == 2
    machine = Machine()
    results = machine.run(FIRST, THIRD, SECOND, out=out)
    assert machine.started == ["1"]
    assert [r["row"] for r in lines(out)] == [FIRST.name, SECOND.name, THIRD.name] == [r["row"] for r in results]


def test_a_line_cut_short_is_measured_again(tmp_path):
    out = tmp_path / "rows.jsonl"
    Machine().run(FIRST, SECOND, out=out)
    out.write_text(out.read_text()[:-20])
    machine = Machine()
    machine.run(FIRST, SECOND, out=out)
    assert machine.started == ["4"]
    assert rows.is_done(SECOND, rows.read_results(out))


def test_no_row_starts_that_would_not_end_in_time(tmp_path):
    machine = Machine(seconds=60)
    machine.run(FIRST, SECOND, THIRD, minutes=2.5, row_seconds=100)
    assert machine.started == ["8", "4"]  # 150 s: the third would end after 180
    unknown = Machine(seconds=60)
    unknown.run(FIRST, SECOND, minutes=1.5, row_seconds=100)
    assert unknown.started == []  # what a row of its kind takes is not known yet
    slow = Machine(seconds=300)
    assert slow.run(FIRST, SECOND, minutes=3, row_seconds=100) == []  # stopped at the end of the time
    assert slow.started == ["8"]


def test_failures_are_kept_and_run_again_only_when_asked(tmp_path):
    out = tmp_path / "rows.jsonl"
    Machine(fails=("4",)).run(FIRST, SECOND, THIRD, out=out)
    assert [r.get("error", "") for r in lines(out)] == ["", "exit status 1: out of memory", ""]
    machine = Machine()
    machine.run(FIRST, SECOND, THIRD, out=out)
    assert machine.started == []
    machine.run(FIRST, SECOND, THIRD, out=out, retry=True)
    assert machine.started == ["4"]


def test_a_peer_gets_the_ratio_and_no_options_of_ours(tmp_path):
    results = Machine().run(FIRST, dataclasses.replace(FIRST, peer=True), dataclasses.replace(THIRD, peer=True))
    assert [r.get("ours_over_theirs") for r in results] == [None, 3.5, None]
    commands = []
    run_rows(
        [FIRST, dataclasses.replace(FIRST, peer=True)],
        extra=["--repeats", "3"],
        torch_python="other",
        start=lambda command, limit, on_line: commands.append(command),
    )
    assert commands[0][-2:] == ["--repeats", "3"] and commands[0][0] == sys.executable
    assert commands[1][0] == "other" and "--repeats" not in commands[1]


def test_launch_hands_on_lines_and_reports_failures_and_time():
    found = []
    script = "print('{\"a\": 1}', flush=True); print('words'); import time; time.sleep({})"
    assert rows.launch([sys.executable, "-c", script.replace("{}", "0")], 30, found.append) is None
    assert found == [{"a": 1}]
    message = rows.launch([sys.executable, "-c", "raise SystemExit('broken')"], None, found.append)
    assert message == "exit status 1: broken\n"
    with pytest.raises(TimeoutError, match="stopped after 3 s"):
        rows.launch([sys.executable, "-c", script.replace("{}", "600")], 3, found.append)


def test_order_of_worth():
    names = [row.name for row in gpu_session.SESSION]
    assert len(set(names)) == len(names)
    setting = "batch 8 bfloat16 800x1344 1203 classes"
    assert names[:4] == [f"{kind} {setting}" for kind in ("train_step", "torchvision_train", "inference")] + [
        f"torchvision_inference {setting}"
    ]
    for row in (*gpu_session.TRAIN, *gpu_session.INFER):
        assert row in gpu_session.SESSION


def test_a_row_with_options_has_a_name_of_its_own():
    row = dataclasses.replace(FIRST, options=("--xla_flags", "none"))
    assert row in gpu_session.SESSION and row.name == f"{FIRST.name} --xla_flags none"
    assert row.command(python="p", torch_python="t", profile="")[-2:] == ["--xla_flags", "none"]
    assert "| 8, bfloat16, 800 x 1344, 1203, `--xla_flags none` | not measured |" in gpu_session.table([])


def test_table(tmp_path):
    empty = gpu_session.table([])
    assert "| 8, bfloat16, 800 x 1344, 1203 | not measured |" in empty
    measured = {"images_per_second": 70.0, "seconds": 0.1143, "peak_gib": 20.5, "compile_seconds": 61.2, "mfu": 0.2}
    results = [
        {"row": FIRST.name, "benchmark": "train_step"} | measured,
        {"row": dataclasses.replace(FIRST, peer=True).name, "images_per_second": 20.0},
        {"row": SECOND.name, "error": "out of memory"},
    ]
    full = gpu_session.table(results)
    assert "| 8, bfloat16, 800 x 1344, 1203 | 70.0 | 114.3 | 20.50 | 61 | 20.0% | 20.0 | **3.50** |" in full
    assert "| 4, bfloat16, 800 x 1344, 1203 | failed |" in full


def test_table_with_a_breakdown_in_place_of_a_row_that_failed_and_a_loss_that_diverged():
    measured = {"images_per_second": 70.0, "seconds": 0.1143, "peak_gib": 20.5, "compile_seconds": 61.2, "mfu": None}
    results = [
        {"row": FIRST.name, "error": "out of memory"},
        {"row": dataclasses.replace(FIRST, breakdown=True).name, "loss": None} | measured,
    ]
    full = gpu_session.table(results)
    assert "| 8, bfloat16, 800 x 1344, 1203 (loss not finite) | 70.0 | 114.3 | 20.50 | 61 |" in full


def test_docs_have_every_row():
    text = (rows.HERE.parent / "docs" / "performance.md").read_text()
    for line in gpu_session.table([]).splitlines():
        assert not line.startswith("|") or line.split(" | ")[0] in text
