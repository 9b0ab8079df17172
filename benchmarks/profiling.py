"""A trace of some calls by jax.profiler, and the operations in it that took most of the device's time.

The trace is read with jax.profiler.ProfileData, without TensorFlow: events that name an operation of the compiled
programme (`hlo_op`; kernels of a GPU that name none go by their own names), on the streams of a GPU, the 'XLA Ops' of
a TPU or the threads of a CPU. An operation's time is its own, without that of the operations within it (a loop's
body). The same trace opens in Perfetto or XProf.
"""

import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import jax

CALLS = 3
TOP = 10


def profile(call: Callable[[], Any], directory: str, *, hlo_text: str = "", calls: int = CALLS) -> dict[str, Any]:
    """Traces `calls` calls of a compiled function into `directory` and returns what took longest.

    hlo_text: of the compiled programme, which tells which line of the model an operation comes from.

    Returns:
      trace: the directory; calls; device_seconds: of all operations of one call, on all streams together; top: the ten
      costliest operations, each {op, seconds of a call, share, times a call, from}. Or message in place of the last
      two, where the trace cannot be read or names no operation.
    """
    jax.block_until_ready(call())
    with jax.profiler.trace(directory):
        for _ in range(calls):
            out = call()
        jax.block_until_ready(out)
    found = {"trace": str(directory), "calls": calls}
    try:
        from jax.profiler import ProfileData
    except ImportError:
        return found | {"message": f"JAX {jax.__version__} has no jax.profiler.ProfileData: open the trace in Perfetto"}
    files = sorted(pathlib.Path(directory).rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    if not files:
        return found | {"message": f"the profiler wrote no xplane.pb under {directory}"}
    totals = operation_times(ProfileData.from_file(str(files[-1])).planes)
    if not totals:
        return found | {"message": "no event of the trace names an operation of the programme: open it in Perfetto"}
    everything = sum(seconds for seconds, _ in totals.values())
    origins = operation_origins(hlo_text)
    costliest = sorted(totals.items(), key=lambda item: -item[1][0])[:TOP]
    top = [
        {
            "op": name,
            "seconds": float(f"{seconds / calls:.4g}"),
            "share": round(seconds / everything, 4),
            "times": round(count / calls, 2),
            "from": origins.get(name, ""),
        }
        for name, (seconds, count) in costliest
    ]
    return found | {"device_seconds": everything / calls, "top": top}


def operation_times(planes: Iterable[Any]) -> dict[str, tuple[float, int]]:
    """{operation: (its own seconds, number of events)} of all device planes, or of the host's where there is none.

    planes: of ProfileData (with name and lines; lines with name and events; events with name, start_ns, duration_ns and
    stats).
    """
    planes = list(planes)
    devices = [p for p in planes if p.name.startswith("/device:") and "CUSTOM" not in p.name]
    totals: dict[str, list] = defaultdict(lambda: [0.0, 0])
    for plane in devices or [p for p in planes if p.name.startswith("/host:")]:
        lines = list(plane.lines)
        # A GPU's plane may repeat its streams as derived lines, a TPU's has steps and modules besides the operations.
        chosen = [x for x in lines if x.name.startswith("Stream")] or [x for x in lines if x.name == "XLA Ops"]
        for line in chosen or lines:
            for name, nanoseconds in own_times(_operations(line.events, named_only=not chosen)):
                totals[name][0] += nanoseconds * 1e-9
                totals[name][1] += 1
    return {name: (seconds, count) for name, (seconds, count) in totals.items()}


def own_times(events: Iterable[tuple[str, float, float]]) -> list[tuple[str, float]]:
    """(name, start, duration) of one line -> (name, duration without that of the events inside)."""
    result: list[list] = []
    open_events: list[tuple[float, int]] = []  # end, place in result
    for name, start, duration in sorted(events, key=lambda e: (e[1], -e[2])):
        while open_events and open_events[-1][0] <= start:
            open_events.pop()
        if open_events:
            result[open_events[-1][1]][1] -= duration
        open_events.append((start + duration, len(result)))
        result.append([name, duration])
    return [(name, max(duration, 0.0)) for name, duration in result]


def operation_origins(hlo_text: str) -> dict[str, str]:
    """{operation: its op_name, such as 'jit(step)/MaskRCNN.losses/backbone/res2_0/conv1/dot_general'}."""
    pattern = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]*)"', re.MULTILINE)
    return dict(pattern.findall(hlo_text))


def _operations(events: Iterable[Any], *, named_only: bool) -> list[tuple[str, float, float]]:
    """(operation, start, duration); an event that names none goes by its own name, or with named_only is left out."""
    found = []
    for event in events:
        name = dict(event.stats).get("hlo_op", "" if named_only else event.name)
        if name:
            found.append((str(name), event.start_ns, event.duration_ns))
    return found
