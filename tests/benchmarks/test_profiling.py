"""The costliest operations are read off a trace."""

from types import SimpleNamespace as Namespace

import jax
import jax.numpy as jnp
import pytest

from benchmarks import profiling


def event(name, start, duration, **stats):
    return Namespace(name=name, start_ns=start, duration_ns=duration, stats=stats.items())


def line(name, *events):
    return Namespace(name=name, events=events)


def test_own_times_leave_out_what_is_inside():
    # A loop of 100 with bodies of 30 and 40, the second of which holds one of 15; then something else.
    events = [("loop", 0, 100), ("a", 10, 30), ("b", 50, 40), ("c", 60, 15), ("d", 100, 5)]
    assert profiling.own_times(reversed(events)) == [("loop", 30), ("a", 30), ("b", 25), ("c", 15), ("d", 5)]


def test_streams_of_a_gpu_count_once():
    stream = line("Stream #13(Compute)", event("k1", 0, 4, hlo_op="fusion.1"), event("k2", 5, 2, hlo_op="fusion.1"))
    other = line("Stream #14(Memcpy)", event("copy", 0, 3))
    derived = line("XLA Ops", event("fusion.1", 0, 7, hlo_op="fusion.1"))
    gpu = Namespace(name="/device:GPU:0", lines=[derived, stream, other])
    host = Namespace(name="/host:CPU", lines=[line("python", event("x", 0, 9, hlo_op="y"))])
    found = profiling.operation_times([host, gpu])
    assert found == {"fusion.1": (pytest.approx(6e-9), 2), "copy": (pytest.approx(3e-9), 1)}


def test_threads_of_a_cpu_count_named_operations_only():
    host = Namespace(name="/host:CPU", lines=[line("t", event("dot", 0, 5, hlo_op="dot.3"), event("wait", 6, 9))])
    assert profiling.operation_times([host]) == {"dot.3": (pytest.approx(5e-9), 1)}


def test_a_real_trace(tmp_path):
    fn = jax.jit(lambda a: jax.lax.fori_loop(0, 4, lambda i, x: jnp.sin(x @ a), a))
    a = jnp.ones((64, 64))
    compiled = fn.lower(a).compile()
    found = profiling.profile(lambda: compiled(a), str(tmp_path), hlo_text=compiled.as_text())
    assert "message" not in found and found["device_seconds"] > 0
    assert any("sin" in op["from"] or "dot_general" in op["from"] for op in found["top"])
    assert sum(op["share"] for op in found["top"]) == pytest.approx(1, abs=0.01)


def test_an_empty_trace_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "operation_times", lambda planes: {})
    found = profiling.profile(lambda: jnp.zeros(()), str(tmp_path))
    assert "names an operation" in found["message"]
