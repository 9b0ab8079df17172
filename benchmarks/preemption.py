"""Takes processes away from a run, again and again, and compares what comes out with an undisturbed run, bit by bit.

    python benchmarks/preemption.py --out=runs/preemption --kills=20 [--processes=2] [--words --config=... ...]

Every time: all processes are started, one of them (each in turn, process 0 among them) gets SIGKILL at a random step,
or, every third time, while a checkpoint is being written; the others must end by themselves within a minute, with
status 75 and a message. Then all are started again. --terms=N adds N times SIGTERM to one of them, at which all must
save and stop with status 75.
--full_disk makes the writing of the first checkpoint fail in the middle (a limit on the size of files stands for the
full disk); the run must end with a message and go on when there is room.

Prints one JSON line for every stop and one for the whole; status 1 if anything differs.
"""

import argparse
import functools
import json
import pathlib
import random
import resource
import signal
import sys
import time
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.local_processes import Processes, start  # noqa: E402
from eql_jax.training import checkpoint_files  # noqa: E402
from eql_jax.training.hosts import RESTART  # noqa: E402

MINUTE = 60.0
# A classifier of some 40,000 weights, whose state has parameters, momentum, an average and BatchNorm's statistics.
TINY = (
    "--config=configs/classification/synthetic_seql.py",
    "--config.data.drawn.num_classes=4",
    "--config.data.drawn.largest_class=30",
    "--config.data.drawn.val_per_class=5",
    "--config.data.imbalance=6.0",
    "--config.data.image_size=16",
    "--config.model.width=12",
    "--config.model.depth=8",
    "--config.loss.tail_threshold=0.15",
    "--config.train.batch_size=8",
    "--config.train.reference_batch_size=0",
    "--config.eval.batch_size=8",
    "--config.optimizer.warmup_steps=5",
    "--config.optimizer.ema_decay=0.9",
)
# What the script goes by: a line of metrics every step, and checkpoints often.
WATCHED = ("--config.log.every=1", "--config.log.tensorboard=False", "--config.checkpoint.keep_best=0")


class Run:
    """A run of several processes in a workdir, started as often as it takes."""

    def __init__(self, workdir: pathlib.Path, args: argparse.Namespace, cache: pathlib.Path):
        self.workdir, self.args, self.starts = workdir, args, 0
        self.words = [*args.words, *WATCHED, f"--config.checkpoint.every={args.every}", f"--workdir={workdir}"]
        self.words += [f"--config.train.steps={args.steps}", "--config.optimizer.decay_at=(1000000,)"]
        self.environment = {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(self, **options: Any) -> Processes:
        self.starts += 1
        logs = self.workdir.with_name(f"{self.workdir.name}_logs") / f"start{self.starts:02d}"
        count, devices = self.args.processes, self.args.devices
        options |= {"devices": devices, "environment": self.environment}
        if self.args.module:
            options["programme"] = ("-m", self.args.module)
        return start(count, self.words, logs, **options)

    def steps_told(self) -> list[int]:
        """Steps in metrics.jsonl, in order; it starts shorter when a run goes on from an earlier checkpoint."""
        try:
            lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
            return [line["step"] for line in map(json.loads, lines) if line["kind"] == "train"]
        except (OSError, ValueError):  # not there yet, or half a line
            return []

    def is_writing(self) -> bool:
        """Whether a checkpoint is half written now."""
        return any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    def newest(self) -> int:
        """Step of the newest checkpoint, 0 without one."""
        steps = [int(p.name) for p in (self.workdir / "checkpoints").glob("*") if p.name.isdigit()]
        return max(steps, default=0)

    def arrays(self) -> dict[str, Any]:
        """All arrays of the newest checkpoint."""
        path = checkpoint_files.find_checkpoint(self.workdir, checkpoint="latest")
        return checkpoint_files.restore(path, checkpoint_files.metadata(path), as_numpy=True)


def take_away(
    run: Run, victim: int, number: signal.Signals, *, step: int, last: int, while_writing: bool
) -> dict[str, Any]:
    """Starts the run, sends one process a signal at a step, and tells what all did.

    With `while_writing` it is sent in the next write that is seen after the step, or without one at step `last`.
    """
    (run.workdir / "metrics.jsonl").unlink(missing_ok=True)
    processes = run.start()
    writing, begun, limit = False, time.monotonic(), run.args.reach_seconds
    while processes.processes[victim].poll() is None or processes.renew():
        processes.renew()
        told, writing = run.steps_told(), run.is_writing()
        if told and told[-1] >= step and (writing or not while_writing or told[-1] >= last):
            break
        if time.monotonic() - begun > limit:
            processes.end()
            what = f"step {step}" + (" and the write of a checkpoint after it" if while_writing else "")
            seen = f"the last step told is {told[-1]}" if told else "no step was told"
            raise TimeoutError(f"{what} did not come within {limit:.0f} s; {seen}\n{processes.texts()}")
        time.sleep(0.001 if while_writing else 0.01)
    processes.processes[victim].send_signal(number)
    sent, at = time.monotonic(), max(run.steps_told(), default=0)
    statuses = processes.wait(10 * MINUTE if number == signal.SIGTERM else MINUTE)
    seconds = time.monotonic() - sent
    expected = [RESTART] * len(statuses)
    if number == signal.SIGKILL:
        expected[victim] = -number
    said = [i for i in range(len(statuses)) if i == victim or "error: " in processes.text(i)]
    return {
        "signal": number.name,
        "victim": victim,
        "step": at,
        "during_write": writing,
        "statuses": statuses,
        "seconds_until_all_ended": round(seconds, 2),
        "newest_checkpoint": run.newest(),
        "as_expected": statuses == expected and (number == signal.SIGTERM or len(said) == len(statuses)),
        "last_line": processes.text((victim + 1) % len(statuses)).strip().splitlines()[-1:],
    }


def fill_disk(run: Run) -> dict[str, Any]:
    """Starts the run with processes that cannot write files beyond a size, which their checkpoints need."""
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (run.args.full_disk_bytes, -1))
    processes = run.start(limits=dict.fromkeys(range(run.args.processes), limit))
    statuses = processes.wait(10 * MINUTE)
    lines = [line for line in processes.texts().splitlines() if "could not be written" in line]
    return {
        "full_disk": True,
        "statuses": statuses,
        "message": lines[:1],
        "newest_checkpoint": run.newest(),
        "as_expected": 2 in statuses and bool(lines) and all(s in (2, RESTART) for s in statuses),
    }


def differences(a: Any, b: Any) -> list[str]:
    """Paths of arrays that are not the same, bit for bit."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return ["the trees have other arrays"]
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    return [jax.tree_util.keystr(path) for (path, x), y in pairs if x.tobytes() != np.asarray(y).tobytes()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a new folder")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=2, help="virtual CPU devices of each process")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=3, help="steps between checkpoints")
    parser.add_argument("--terms", type=int, default=0)
    parser.add_argument("--reach_seconds", type=float, default=300.0, help="limit for a start to come to its signal")
    parser.add_argument("--full_disk", action="store_true", help="also one run whose disk is full")
    parser.add_argument("--full_disk_bytes", type=int, default=1 << 16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=pathlib.Path, help="compiled programmes; default: in --out")
    parser.add_argument("--module", help="in place of train.py: a module with its flags")
    parser.add_argument(
        "--words", nargs=argparse.REMAINDER, default=list(TINY), help="of train.py, in place of a tiny job"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    cache = args.cache or args.out.absolute() / "cache"
    rng = random.Random(args.seed)
    undisturbed = Run(args.out.absolute() / "undisturbed", args, cache)
    statuses = (processes := undisturbed.start()).wait(60 * MINUTE)
    if any(statuses):
        print(processes.texts(), file=sys.stderr)
        return 1
    run, good = Run(args.out.absolute() / "disturbed", args, cache), True
    if args.full_disk:
        row = fill_disk(run)
        good &= row["as_expected"]
        print(json.dumps(row), flush=True)
    for i in range(args.kills + args.terms):
        # SIGTERM first: it is looked for once a second, and must not find the run at its end.
        number = signal.SIGTERM if i < args.terms else signal.SIGKILL
        begin = run.newest()
        last = args.steps - args.every - 1  # later the run might be done before the signal comes
        step = min(begin + rng.randint(1, 2 * args.every), last)
        row = take_away(run, i % args.processes, number, step=step, last=last, while_writing=i % 3 == 2)
        good &= row["as_expected"]
        print(json.dumps({"stop": i + 1, **row}), flush=True)
    statuses = (processes := run.start()).wait(60 * MINUTE)
    if any(statuses):
        print(processes.texts(), file=sys.stderr)
        return 1
    different = differences(undisturbed.arrays(), run.arrays())
    good &= not different and undisturbed.newest() == run.newest() == args.steps
    print(
        json.dumps(
            {
                "kills": args.kills,
                "terms": args.terms,
                "steps": run.newest(),
                "different_arrays": different,
                "good": good,
            }
        )
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
