"""What the benchmarks share: synthetic batches, timing and the unit.

The unit is one 4096 x 4096 x 4096 float32 matmul on the same device in the same run. Seconds drift from day to day and
from machine to machine; the ratio of two times from one run says something about the code.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


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


def synthetic_batch(
    *,
    batch: int,
    height: int,
    width: int,
    num_classes: int,
    objects: int,
    max_objects: int,
    mask_size: int,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """A training batch of noise images with `objects` ellipses each, of LVIS-like sizes (log-uniform from 16 px up)."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.uniform(np.log(16), np.log(min(height, width) / 1.5), (batch, objects, 2)))
    centre = rng.uniform(size / 2, np.array([width, height]) - size / 2)
    boxes = np.zeros((batch, max_objects, 4), np.float32)
    boxes[:, :objects] = np.concatenate([centre - size / 2, centre + size / 2], axis=-1)
    classes = np.full((batch, max_objects), -1, np.int32)
    classes[:, :objects] = rng.integers(0, num_classes, (batch, objects))
    yy, xx = np.mgrid[:mask_size, :mask_size] * (2 / mask_size) - 1
    masks = np.zeros((batch, max_objects, mask_size, mask_size), np.uint8)
    masks[:, :objects] = xx**2 + yy**2 < 1
    return {
        "image": rng.integers(0, 256, (batch, height, width, 3), np.uint8),
        "image_size": np.tile(np.array([height, width], np.int32), (batch, 1)),
        "image_id": np.arange(batch, dtype=np.uint32),
        "gt_boxes": boxes,
        "gt_classes": classes,
        "gt_ignore": np.zeros((batch, max_objects), bool),
        "gt_masks": masks,
        "verified_classes": np.zeros((batch, num_classes), bool),
    }


def report(row: dict[str, object]) -> None:
    """Prints a row of results as one line of JSON, so that nothing is lost when a run is cut short."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps(rounded), flush=True)


def compare(script: str, args: argparse.Namespace) -> None:
    """Runs `script` once for each class count of args.compare and prints the ratios of time and memory."""
    passed = {k: v for k, v in vars(args).items() if k not in ("compare", "classes")}
    flags = [str(x) for k, v in passed.items() for x in (f"--{k}", *(v if isinstance(v, (list, tuple)) else [v]))]
    rows = []
    for classes in args.compare:
        out = subprocess.run(
            [sys.executable, script, "--classes", str(classes), *flags], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        print(out, end="", flush=True)
        rows.append(json.loads(out.strip().splitlines()[-1]))
    a, b = rows
    ratios = {f"{k}_ratio": round(a[k] / b[k], 3) for k in ("seconds", "units", "peak_gib")}
    print(json.dumps({"classes": args.compare, **ratios}))
