"""What the benchmarks share: options, timing, what a compiled programme says, and the unit.

The unit is one 4096 x 4096 x 4096 float32 matmul on the same device in the same run. Seconds drift from day to day and
from machine to machine; the ratio of two times from one run says something about the code.
"""

import argparse
import ast
import datetime
import functools
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from eql_jax.training.xla_flags import CHOICES, SWITCH

_START = time.perf_counter()
ROOT = pathlib.Path(__file__).resolve().parents[1]


def median_seconds(fn: Callable[[], object], *, repeats: int, warmup: int = 1) -> float:
    """Median wall-clock seconds of fn(), whose result is waited for, after `warmup` calls."""
    for _ in range(warmup):
        jax.block_until_ready(fn())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def pipelined_seconds(fn: Callable[[], object], *, repeats: int) -> float:
    """Seconds of a call when `repeats` are issued one after the other and only the last result is waited for.

    As a training loop does; the difference to `median_seconds` is what waiting for every call costs.
    """
    start = time.perf_counter()
    for _ in range(repeats):
        out = fn()
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / repeats


def matmul_unit(*, repeats: int = 5) -> float:
    """Seconds of one 4096-cubed float32 matmul."""
    a = jax.random.normal(jax.random.key(0), (4096, 4096), jnp.float32)
    matmul = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    return median_seconds(lambda: matmul(a), repeats=repeats)


def peak_memory_gib() -> float:
    """Peak memory: of the accelerator where it reports one, else the process's peak resident set."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    return process_memory_gib("VmHWM")


def process_memory_gib(key: str) -> float:
    """Resident set of this process: 'VmRSS' now, 'VmHWM' its peak.

    Linux's getrusage keeps the peak of the process that started this one where that was larger; VmHWM does not. Other
    systems have getrusage alone, for the peak.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30


# --------------------------------------------------------------------------------------------- detectors and programmes
def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that train_step.py and inference.py have in common."""
    parser.add_argument("--classes", type=int, default=1203, help="foreground classes: 80 for COCO's 81")
    parser.add_argument("--compare", type=int, nargs=2, metavar="K", help="two class counts, one process each")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 640), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=0, help="timed calls; 0: 5 on a CPU, 20 elsewhere")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of configs/base.py")
    parser.add_argument("--unit", action=argparse.BooleanOptionalAction, help="time the unit; default: on a CPU")
    parser.add_argument(
        "--xla_flags", choices=CHOICES, help="those of eql_jax/training/xla_flags.py, or none; default: by $" + SWITCH
    )
    parser.add_argument("--commit", default="", help="what to call the code where there is no git")
    parser.add_argument("--stages", action="store_true", help="also the time of every stage, see stages.py")
    parser.add_argument("--profile", metavar="DIR", help="also a trace, and its ten costliest operations")


def detector_config(args: argparse.Namespace):
    """configs/base.py with the options of `add_detector_arguments`, on one device.

    Raises:
      ConfigError: --set names no field, or its value has another type than the field's.
    """
    from configs import base
    from eql_jax.training.errors import ConfigError

    config = base.get_config()
    config.mesh.update(data=1, model=1)
    config.train.batch_size = args.batch
    config.model.dtype = args.dtype
    config.model.backbone.depth = args.depth
    # Random weights behind frozen BatchNorm do not bear a real rate: after ten steps the loss would be NaN.
    config.optimizer.learning_rate = 1e-6
    for assignment in args.set:
        field, _, text = assignment.partition("=")
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        try:
            *sections, last = field.split(".")
            part = functools.reduce(getattr, sections, config)
            if last not in part:
                raise AttributeError(f"there is no {field}")
            part[last] = value
        except (AttributeError, KeyError, TypeError) as e:
            raise ConfigError(f"--set {assignment}: expected FIELD=VALUE with a field of configs/base.py: {e}") from e
    return config


def facts(args: argparse.Namespace) -> dict[str, object]:
    """Where, when and on what a row is measured: the fields that begin it."""
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": args.commit or commit(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "settings": args.set,
        "classes": args.classes,
        "size": list(args.size),
        "batch": args.batch,
        "dtype": args.dtype,
    }


def commit() -> str | None:
    """The commit of this checkout, with '+changes' where files differ from it; None without git."""
    git = ["git", "-C", str(ROOT)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


class Programme(NamedTuple):
    """compiled: to call; facts: the fields of a row on its compilation, memory and FLOPs."""

    compiled: jax.stages.Compiled
    facts: dict[str, object]


def compile_programme(jitted, *args) -> Programme:
    """Traces and compiles jitted(*args), timing both.

    The facts: trace_seconds, compile_seconds (compile_cache names the directory of a compilation cache, if one was on:
    then it may have been read), planned_gib (XLA's plan: arguments, results and temporary memory; None where it does
    not say), compiled_flops and matmul_flops (see flops.py).
    """
    from benchmarks import flops

    start = time.perf_counter()
    traced = jitted.trace(*args)
    lowered = traced.lower()
    traced_at = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    m = compiled.memory_analysis()
    planned = m and m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    found = {
        "trace_seconds": traced_at - start,
        "compile_seconds": end - traced_at,
        "compile_cache": jax.config.jax_compilation_cache_dir,
        "planned_gib": planned / 2**30 if planned else None,
        "compiled_flops": flops.compiled_flops(compiled),
        "matmul_flops": flops.matmul_flops(traced.jaxpr),
    }
    return Programme(compiled, found)


def timings(
    fn: Callable[[], object], args: argparse.Namespace, *, warmup: int = 2, steps: int = 1
) -> dict[str, object]:
    """seconds (median of calls that are waited for), pipelined_seconds and images/s by both, of one of the `steps`
    batches that fn() takes."""
    repeats = repeats_of(args)
    seconds = median_seconds(fn, repeats=repeats, warmup=warmup) / steps
    pipelined = pipelined_seconds(fn, repeats=repeats) / steps
    return {
        "repeats": repeats,
        "seconds": seconds,
        "images_per_second": args.batch / seconds,
        "pipelined_seconds": pipelined,
        "pipelined_images_per_second": args.batch / pipelined,
    }


def repeats_of(args: argparse.Namespace) -> int:
    """--repeats, or what it is by default on this backend."""
    return args.repeats or (5 if jax.default_backend() == "cpu" else 20)


def unit_fields(seconds: float, args: argparse.Namespace) -> dict[str, float]:
    """unit_seconds and units, `seconds` in units; nothing with --no-unit and, by default, on anything but a CPU."""
    wanted = jax.default_backend() == "cpu" if args.unit is None else args.unit
    if not wanted:
        return {}
    unit = matmul_unit()
    return {"unit_seconds": unit, "units": seconds / unit}


def process_seconds() -> float:
    """Seconds since this module was imported, which the scripts do first: what a row costs in all."""
    return time.perf_counter() - _START


def report(row: dict[str, object]) -> None:
    """Prints a row of results as one line of JSON, so that nothing is lost when a run is cut short."""
    print(json.dumps({k: rounded(v) for k, v in row.items()}), flush=True)


def rounded(value: object) -> object:
    """Numbers with four decimals, or where that is less, five digits; None for NaN and infinity, which JSON lacks."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return round(value, 4) if abs(value) >= 1 else float(f"{value:.5g}")


def compare(script: pathlib.Path, class_counts: Sequence[int], words: Sequence[str]) -> None:
    """Runs `script` with `words` once for each of two class counts and prints the ratios of time and memory."""
    rows = []
    for classes in class_counts:
        command = [sys.executable, str(script), "--classes", str(classes), *words]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(out, end="", flush=True)
        rows.append(json.loads(out.strip().splitlines()[0]))
    a, b = rows
    ratios = {f"{k}_ratio": round(a[k] / b[k], 3) for k in ("seconds", "units", "peak_gib") if k in a and k in b}
    print(json.dumps({"classes": list(class_counts), **ratios}))
