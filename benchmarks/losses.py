"""Time and temporary memory of every classification loss, as a ratio to this package's fused sigmoid cross-entropy.

    python benchmarks/losses.py
    python benchmarks/losses.py --rows 8192 --losses eql seesaw

Forward and gradient under jit for logits [rows, columns], 1203 classes with the counts of LVIS v1, three quarters of
the rows background, the foreground as often as its class. The losses are those of eql_jax.class_losses, with their
default options, as a box head runs them: with memory, its update is part of the call. `eql_*` are further forms of the
equalization loss: a smooth threshold, verified negatives, classes that are not annotated.

Each loss is timed in turns with the baseline, call by call with the order swapped, and `seconds_ratio` is the median
over the turns of loss / baseline; `cpu_seconds_ratio` is the same of the processor time of the process, which other
work on the machine changes less (and which says nothing on an accelerator). The row `sigmoid` is the baseline against
itself and shows the noise. `temporary_mib` is what XLA says that the compiled call needs besides arguments and results.
`compiled_seconds` is the time of tracing and compiling.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from eql_jax import losses
from eql_jax.class_losses import REGISTRY, ClassFrequencies, ClassLoss, LossInputs, make_class_loss
from eql_jax.data.categories import packaged_statistics

NUM_CLASSES = 1203  # of LVIS v1, at most
LAMBDA = 1.76e-3  # the paper's threshold


def frequencies(num_classes: int) -> ClassFrequencies:
    """The first classes of LVIS v1 with their training counts; the tail is f < lambda."""
    found = packaged_statistics("lvis_v1")
    counts = np.asarray(found.image_counts)[:num_classes]
    return ClassFrequencies(
        num_classes,
        tuple(found.frequencies[:num_classes]),
        counts,
        np.asarray(found.instance_counts)[:num_classes],
        found.num_images,
        losses.tail_mask_from_threshold(counts / found.num_images, LAMBDA),
    )


def variants(known: ClassFrequencies) -> dict[str, tuple[ClassLoss, LossInputs]]:
    """{name of the row: (loss, what it is told of the batch)}."""
    rng = np.random.default_rng(1)
    key = jax.random.key(2)
    some = jnp.asarray(rng.random((1, known.num_classes)) < 0.02)
    most = jnp.asarray(rng.random((1, known.num_classes)) < 0.9)
    rows = {name: (make_class_loss(name, known), LossInputs(key=key)) for name in REGISTRY}
    smooth = losses.threshold_function(known.image_counts / known.num_images, LAMBDA, function="exponential")
    rows["eql_smooth"] = (make_class_loss("eql", known._replace(tail=smooth)), LossInputs())
    rows["eql_verified"] = (rows["eql"][0], LossInputs(verified=some))
    rows["eql_annotated"] = (rows["eql"][0], LossInputs(annotated=most))
    return rows


def make_labels(rows: int, known: ClassFrequencies) -> jax.Array:
    """int32 [rows]: a quarter objects, of a class by its number of objects; the rest background."""
    rng = np.random.default_rng(0)
    share = known.instance_counts / known.instance_counts.sum()
    classes = rng.choice(known.num_classes, rows, p=share)
    return jnp.asarray(np.where(rng.random(rows) < 0.25, classes, known.num_classes), jnp.int32)


def compile_step(loss: ClassLoss, inputs: LossInputs, logits: jax.Array, labels: jax.Array) -> tuple[Callable, dict]:
    """A call without arguments that gives loss, memory and gradient, and what compiling it said."""

    def step(logits, labels, state, inputs):
        (value, state), gradient = jax.value_and_grad(lambda z: loss.loss(z, labels, state, inputs), has_aux=True)(
            logits
        )
        return value, state, gradient

    state = jax.tree.map(jnp.asarray, loss.init_state())
    started = time.perf_counter()
    compiled = jax.jit(step).lower(logits, labels, state, inputs).compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    temporary = memory.temp_size_in_bytes / 2**20 if memory is not None else float("nan")
    return lambda: compiled(logits, labels, state, inputs), {"temporary_mib": temporary, "compiled_seconds": seconds}


def timed(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """Wall-clock and processor seconds of one of `calls` calls."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        found = call()
    jax.block_until_ready(found)
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def compare(call: Callable, baseline: Callable, *, turns: int, least_seconds: float) -> dict[str, float]:
    """Medians over the turns of the times of both and of their ratios; a turn lasts about `least_seconds` for each."""
    jax.block_until_ready((call(), baseline()))
    calls = max(1, round(least_seconds / max(timed(baseline, 1)[0], 1e-6)))
    pairs = []
    for turn in range(turns):
        if turn % 2:
            second = timed(baseline, calls)
            first = timed(call, calls)
        else:
            first = timed(call, calls)
            second = timed(baseline, calls)
        pairs.append((first, second))
    row = {}
    for i, unit in enumerate(("seconds", "cpu_seconds")):
        row[unit] = statistics.median(a[i] for a, _ in pairs)
        row[f"baseline_{unit}"] = statistics.median(b[i] for _, b in pairs)
        row[f"{unit}_ratio"] = statistics.median(a[i] / max(b[i], 1e-9) for a, b in pairs)
    return row


def run(rows: int, args: argparse.Namespace) -> list[dict[str, object]]:
    """One row of results for each loss, printed as they come."""
    known = frequencies(args.classes)
    chosen = variants(known)
    labels = make_labels(rows, known)

    def logits_for(loss):
        return jax.random.normal(jax.random.key(0), (rows, loss.num_logits), jnp.dtype(args.dtype)) * 2 - 4

    baseline_loss = chosen["sigmoid"][0]
    baseline, compiled = compile_step(baseline_loss, LossInputs(), logits_for(baseline_loss), labels)
    found = []
    for name, (loss, inputs) in chosen.items():
        if args.losses and name not in args.losses:
            continue
        call, own = compile_step(loss, inputs, logits_for(loss), labels)
        times = compare(call, baseline, turns=args.turns, least_seconds=args.turn_seconds)
        row = {
            "benchmark": "losses",
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "loss": name,
            "logits": [rows, loss.num_logits],
            "dtype": args.dtype,
            **own,
            "temporary_ratio": own["temporary_mib"] / max(compiled["temporary_mib"], 1e-9),
            "ms": 1000 * times["seconds"],
            "baseline_ms": 1000 * times["baseline_seconds"],
            "cpu_ms": 1000 * times["cpu_seconds"],
            "seconds_ratio": times["seconds_ratio"],
            "cpu_seconds_ratio": times["cpu_seconds_ratio"],
        }
        common.report(row)
        found.append(row)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=(1024, 8192))
    parser.add_argument("--classes", type=int, default=NUM_CLASSES)
    parser.add_argument("--losses", nargs="+", default=(), help="names of the rows to run; default: all")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the logits")
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--turn_seconds", type=float, default=0.1, help="about how long each is run in a turn")
    args = parser.parse_args(argv)
    if not 1 < args.classes <= NUM_CLASSES:
        parser.error(f"--classes {args.classes}: expected 2 to {NUM_CLASSES}, the classes of LVIS v1")
    known = variants(frequencies(args.classes))
    if unknown := set(args.losses) - set(known):
        parser.error(f"--losses {' '.join(sorted(unknown))}: expected some of {' '.join(known)}")
    table = [row for rows in args.rows for row in run(rows, args)]
    if eql := [row for row in table if row["loss"] == "eql"]:
        worst = max(row["seconds_ratio"] for row in eql)
        print(json.dumps({"eql over sigmoid, worst": round(worst, 3), "expected at most": 1.15}), flush=True)


if __name__ == "__main__":
    main()
