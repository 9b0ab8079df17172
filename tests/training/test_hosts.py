"""Joining processes: wrong flags, JAX's errors in words, and two real processes that are stopped and killed."""

import argparse
import contextlib
import json
import socket
import types

import jax
import numpy as np
import pytest

from benchmarks import preemption
from eql_jax.training import hosts
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.errors import CheckpointError, ConfigError, NonFiniteLossError
from tests.training import toy


def options(*words):
    parser = argparse.ArgumentParser()
    hosts.add_arguments(parser)
    return parser.parse_args(words)


TWO = ("--coordinator=localhost:1234", "--num_processes=2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_processes=2"], "--coordinator, --process_id missing beside --num_processes: the three go together"),
        ([*TWO], "--process_id missing beside --coordinator, --num_processes"),
        ([*TWO, "--process_id=2"], "--process_id is 2 with --num_processes 2; expected 0 to num_processes - 1"),
        ([*TWO[1:], "--process_id=0", "--coordinator=host"], "--coordinator is 'host'; expected HOST:PORT"),
        ([*TWO[1:], "--process_id=0", "--coordinator=host:99999"], "expected HOST:PORT"),
        (["--distributed", "--heartbeat_timeout=0"], "--heartbeat_timeout is 0; expected a number of seconds"),
    ],
)
def test_flags_that_do_not_fit(words, message):
    with pytest.raises(hosts.LaunchError, match=message.replace("(", r"\(")):
        hosts.join(options(*words))


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--distributed"], ValueError("coordinator_address should be defined."), "found no launcher that JAX knows"),
        (["--distributed"], RuntimeError("UNKNOWN: Failed to start RPC server"), r"\$JAX_COORDINATOR_PORT .*in use"),
        ([*TWO, "--process_id=1"], RuntimeError("something else"), "could not be joined: RuntimeError: something else"),
        (["--distributed"], RuntimeError("Kubernetes API Error: 403"), "could not be joined: RuntimeError: Kubernetes"),
    ],
)
def test_errors_of_jax_in_words(monkeypatch, words, error, message):
    def initialize(*_, cluster_detection_method, heartbeat_timeout_seconds, **__):
        assert (cluster_detection_method == "deactivate") == (len(words) > 1) and heartbeat_timeout_seconds == 30
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(hosts, "_on_abort", lambda message: None)
    with pytest.raises(hosts.LaunchError, match=message):
        hosts.join(options(*words))


def test_a_port_in_use():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(hosts.LaunchError, match=f"coordinator's port, {port}: it is in use"):
            hosts.join(options(f"--coordinator=localhost:{port}", "--num_processes=2", "--process_id=0"))


@pytest.mark.parametrize(
    ("owners", "good"),
    [
        ([[0, 0], [0, 0], [1, 1], [1, 1]], True),
        ([[0], [1], [2]], True),
        ([[0, 1]], False),
        ([[0, 0], [1, 0], [1, 1]], False),
        ([[0], [0], [1]], False),
    ],
)
def test_a_row_of_the_mesh_belongs_to_one_process(owners, good):
    grid = np.array([[types.SimpleNamespace(process_index=i) for i in row] for row in owners])
    with contextlib.nullcontext() if good else pytest.raises(ConfigError, match="config.mesh.model is .* one process"):
        mesh_lib.check_rows(grid)


def test_one_process_joins_nothing_and_leaves_as_usual():
    hosts.join(options())
    assert not hosts.joined() and hosts.lost_peer(RuntimeError("Gloo AllReduce failed")) is None
    for together in (True, False):
        with pytest.raises(SystemExit) as left:
            hosts.leave(3, together=together)
        assert left.value.code == 3


def test_what_a_lost_process_looks_like(monkeypatch, capsys):
    monkeypatch.setattr(hosts, "joined", lambda: True)
    lost = ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:34226")
    assert hosts.lost_peer(lost) is lost
    outer = CheckpointError("the checkpoint of step 3 could not be written")
    outer.__cause__ = lost
    assert hosts.lost_peer(outer) is lost
    assert hosts.tell(outer) == hosts.RESTART
    told = capsys.readouterr().err
    assert "another process of this run is gone (UNKNOWN: Gloo AllGather failed" in told and "step 3" not in told
    assert hosts.tell(CheckpointError("no room")) == 2 and capsys.readouterr().err == "error: no room\n"
    assert hosts.tell(NonFiniteLossError("step 3")) == 1 and hosts.tell(KeyError("x")) == 1
    assert "Traceback" not in told and "KeyError: 'x'" in capsys.readouterr().err
    assert hosts.lost_peer(CheckpointError("No space left on device")) is None
    assert hosts.lost_peer(OSError("socket closed")) is None  # a download, say
    assert hosts.lost_peer(TypeError("optimization_barrier got 2 arguments")) is None
    assert hosts.lost_peer(RuntimeError("ncclCommInitRank failed: invalid usage")) is None


# ---------------------------------------------------------------- real processes
@pytest.fixture(scope="module")
def taken_away(tmp_path_factory):
    """The folder of benchmarks/preemption.py after a kill of each process and a SIGTERM to one, and its rows."""
    out = tmp_path_factory.mktemp("preemption") / "out"
    words = ["--out", str(out), "--kills=2", "--terms=1", "--steps=30"]
    words += ["--module=tests.training.toy_hosts", "--words"]
    words += ["--config.train.steps_per_call=2", "--heartbeat_timeout=15"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["preemption.py", *words])
        rows = []
        patch.setattr("builtins.print", lambda text, **_: rows.append(text))
        status = preemption.main()
    assert status == 0, "\n".join(rows)
    return out, [json.loads(row) for row in rows]


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


@pytest.mark.slow
def test_killed_processes_end_the_others_and_the_state_is_that_of_an_undisturbed_run(taken_away):
    stopped, *kills, whole = taken_away[1]
    assert [kill["victim"] for kill in kills] == [1, 0]
    # At 26 the signal is sent in any case: writes are short, and none may have been seen until then.
    assert kills[1]["during_write"] or kills[1]["step"] >= 26
    for kill in kills:
        assert kill["statuses"][1 - kill["victim"]] == hosts.RESTART and kill["seconds_until_all_ended"] < 60
        assert "Start all processes again with the same command" in kill["last_line"][0]
    assert stopped["signal"] == "SIGTERM" and stopped["statuses"] == [hosts.RESTART] * 2
    assert stopped["newest_checkpoint"] > stopped["step"]
    assert whole == {"kills": 2, "terms": 1, "steps": 30, "different_arrays": [], "good": True}


@pytest.mark.slow
def test_two_processes_train_as_one(taken_away, tmp_path):
    """Two processes of two devices and this one of four, on a model that draws nothing which rounding could turn."""
    fields = {"train.steps": 30, "log.every": 1, "optimizer.decay_at": (1_000_000,)}
    toy.run(tmp_path, toy.make_config(**fields))
    alone, together = losses(tmp_path), losses(taken_away[0] / "undisturbed")
    assert together.keys() == alone.keys() == set(range(1, 31))
    assert together[1] == pytest.approx(alone[1], rel=1e-5)
    np.testing.assert_allclose(list(together.values()), list(alone.values()), rtol=1e-4)
