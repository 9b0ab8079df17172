"""Losses for the long tail against each other: same data, same start, same steps, several seeds.

    python benchmarks/long_tail_study.py --out runs/study                 # the six arms of the table, three seeds
    python benchmarks/long_tail_study.py --out runs/study --arms sweep    # EQL at the paper's lambdas, and sigmoid
    python benchmarks/long_tail_study.py --list                           # what there is
    python benchmarks/long_tail_study.py --out runs/study --report        # tables and plots of what is finished

A study goes on where it was: finished runs are in OUT/results.jsonl, one a line, and an unfinished one resumes from its
last checkpoint in OUT/runs. After every run OUT/results.csv, OUT/table.md and the plots in OUT are written anew.
long_tail_arms.py says what is compared, and how the shared checkpoint is made.

Exit status: 0 done, or stopped by Ctrl-C or SIGTERM with the state saved; 2 something to be put right by the user.
"""

import argparse
import dataclasses
import gc
import json
import logging
import pathlib
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
from ml_collections import ConfigDict

import train
from benchmarks import common
from benchmarks.long_tail_arms import (
    ARMS,
    GROUPS,
    TINY,
    Scale,
    arm_config,
    base_config,
    other_shapes,
    paper_tail_ratio,
    start_config,
    threshold_like,
)
from benchmarks.long_tail_report import FEW, METRICS, TYPES, write_report
from configs import base
from eql_jax.data.categories import ClassStatistics
from eql_jax.data.shapes.plan import long_tail_counts
from eql_jax.data.shapes.scene import DIFFICULTIES
from eql_jax.data.supershapes import ensure_supershapes
from eql_jax.evaluation import evaluate
from eql_jax.losses import tail_ratio
from eql_jax.training import config as config_lib
from eql_jax.training.checkpoints import find_checkpoint, load_for_inference
from eql_jax.training.compile_cache import enable_compile_cache
from eql_jax.training.disk import write_atomically
from eql_jax.training.errors import CheckpointError, UserError
from eql_jax.training.inputs import load_training


class Stopped(Exception):
    """A signal ended a run early; its state is saved."""


class Study:
    """The folder of a study and its setting. Runs of several numbers of steps share it; tables are of one number.

    Raises:
      UserError: `out` holds a study of another setting.
    """

    def __init__(self, out: pathlib.Path, scale: Scale):
        self.out, self.scale = out, scale
        setting = {key: value for key, value in dataclasses.asdict(scale).items() if key != "steps"}
        path = out / "study.json"
        if path.is_file() and (found := json.loads(path.read_text())) != setting:
            changed = [f"{k} is {found.get(k)!r}, asked for is {v!r}" for k, v in setting.items() if found.get(k) != v]
            raise UserError(f"{path} is of a study with another setting: {'; '.join(changed)}. Name another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(setting, indent=1) + "\n")

    @property
    def start(self) -> pathlib.Path:
        """Workdir of the shared checkpoint."""
        return self.out / "start"

    def rows(self) -> list[dict]:
        """Finished runs of all numbers of steps, in the order in which they finished."""
        path = self.out / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def report(self) -> None:
        """Writes the tables and plots of runs of this number of steps."""
        write_report(self.out, [row for row in self.rows() if row["steps"] == self.scale.steps])

    def prepare(self) -> ClassStatistics:
        """Makes data sets and the shared checkpoint where they are missing; returns the training frequencies.

        Raises:
          CheckpointError: the shared checkpoint knows a class of the study.
        """
        if not (self.out / "start.json").is_file():
            ensure_supershapes(**other_shapes(self.scale, self.out))
            used = execute(start_config(self.scale, self.out), self.start)
            write_atomically(self.out / "start.json", json.dumps(used) + "\n")
            common.report({"start": str(self.start), "steps": self.scale.start_steps, **used})
        config = config_lib.load_config(base_config(self.scale, self.out), base=base.get_config())
        statistics = load_training(config)[1]
        known = set(statistics.names) & set(load_for_inference(self.start).classes.names)
        if known:
            raise CheckpointError(f"{self.start} was trained on {len(known)} classes of the study: {sorted(known)[:5]}")
        return statistics

    def run(self, name: str, seed: int, statistics: ClassStatistics) -> None:
        """Trains and evaluates an arm with a seed unless that is done, and writes the tables anew."""
        if (name, seed, self.scale.steps) in [(row["arm"], row["seed"], row["steps"]) for row in self.rows()]:
            return
        config = arm_config(
            name,
            seed,
            scale=self.scale,
            out=self.out,
            image_counts=statistics.image_counts,
            num_images=statistics.num_images,
        )
        workdir = self.out / "runs" / f"{name}_{self.scale.steps}_steps" / f"seed{seed}"
        used = execute(config, workdir)
        evaluated = json.loads((workdir / "checkpoints" / "evaluations.json").read_text())[str(config.train.steps)]
        results, truth = workdir / "evaluation" / "results.json", self.out / "data" / "val.json"
        limited = evaluate(truth, results, iou_types=tuple(TYPES), max_detections=FEW).flat()
        evaluated |= {f"{key}@{FEW}": value for key, value in limited.items()}
        metrics = {key: evaluated[key] for key in METRICS}
        row = {"arm": name, "seed": seed, "steps": config.train.steps, **metrics, **used}
        common.report(row)
        with (self.out / "results.jsonl").open("a") as file:  # another process may have added rows meanwhile
            file.write(json.dumps(row) + "\n")
        self.report()


def execute(config: ConfigDict, workdir: pathlib.Path) -> dict[str, float | int]:
    """Trains from where `workdir` is to the end, which is evaluated where the config has a validation set.

    Returns:
      seconds on the clock and of the processor, and the step from which this process went on.

    Raises:
      Stopped: a signal came.
      UserError: whatever `train.run_training` raises.
    """
    first = _latest_step(workdir)
    clock, processor = time.monotonic(), _processor_seconds()
    train.run_training(argparse.Namespace(config=config, workdir=workdir), [])
    used = {"seconds": time.monotonic() - clock, "cpu_seconds": _processor_seconds() - processor, "from_step": first}
    evaluated = workdir / "checkpoints" / "evaluations.json"
    done = _latest_step(workdir) == config.train.steps
    if not done or (needs_evaluation(config) and str(config.train.steps) not in json.loads(evaluated.read_text())):
        raise Stopped
    jax.clear_caches()  # the next run has other programmes
    gc.collect()
    return used


def needs_evaluation(config: ConfigDict) -> bool:
    """Whether runs of the config end with an evaluation."""
    return bool(config.data.val_annotations or config.data.supershapes)


def _latest_step(workdir: pathlib.Path) -> int:
    try:
        return int(find_checkpoint(workdir, checkpoint="latest").name)
    except CheckpointError:
        return 0


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def describe_arms(scale: Scale) -> str:
    """A line for every arm, with its thresholds in a study of that size."""
    lines, images = [], scale.train_images
    counts = long_tail_counts(num_classes=scale.classes, num_images=images)
    for name, arm in ARMS.items():
        notes = []
        for what, value in (("lambda", arm.paper_lambda), ("repeat threshold", arm.paper_repeat)):
            if not value:
                continue
            note = f"{what} {value:g} of the paper, tail ratio {100 * paper_tail_ratio(value):.2f} %"
            own = threshold_like(value, counts, images)
            tail = counts / images < own
            note += f"; here {own:.3g}, {tail.sum()} of {len(tail)} classes, {100 * tail_ratio(counts, tail):.2f} %"
            notes.append(note)
        lines.append(f"{name:12} {arm.title}" + "".join(f"\n{'':13}{note}" for note in notes))
    groups = [f"{name:12} {' '.join(arms)}" for name, arms in GROUPS.items()]
    return "\n".join([*lines, "", "groups:", *groups])


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="folder of the study: data, runs, tables, plots")
    parser.add_argument(
        "--arms", nargs="+", default=["table"], metavar="ARM", help="names of arms and groups, see --list"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help=f"of every run (default: {Scale().steps})")
    parser.add_argument("--difficulty", choices=sorted(DIFFICULTIES), help="of the pictures (default: normal)")
    parser.add_argument("--tiny", action="store_true", help="runs through in minutes and learns nothing, for CI")
    parser.add_argument("--list", action="store_true", help="say what arms there are, with their thresholds")
    parser.add_argument("--report", action="store_true", help="only write tables and plots of what is finished")
    args = parser.parse_args(argv)
    if args.out is None and not args.list:
        parser.error("--out is missing")
    unknown = sorted(set(args.arms) - ARMS.keys() - GROUPS.keys())
    if unknown:
        parser.error(f"no arm or group {', '.join(unknown)}; there are {', '.join([*ARMS, *GROUPS])}")
    args.arms = list(dict.fromkeys(arm for name in args.arms for arm in GROUPS.get(name, (name,))))
    args.scale = TINY if args.tiny else Scale()
    if args.steps is not None:
        if args.steps < 1:
            parser.error(f"--steps is {args.steps}; expected at least 1")
        args.scale = dataclasses.replace(args.scale, steps=args.steps)
    if args.difficulty is not None:
        args.scale = dataclasses.replace(args.scale, difficulty=args.difficulty)
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    args = parse_arguments(argv)
    logging.basicConfig(format="%(message)s", force=True)
    try:
        if args.list:
            print(describe_arms(args.scale))
            return 0
        study = Study(args.out.absolute(), args.scale)
        if not args.report:
            enable_compile_cache()
            statistics = study.prepare()
            for seed in args.seeds:  # all arms of a seed first: a study that is cut short compares like with like
                for name in args.arms:
                    study.run(name, seed, statistics)
        study.report()
        print((study.out / "table.md").read_text())
    except Stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
    except (UserError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
