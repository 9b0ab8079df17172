"""Losses for the long tail against each other: same data, same features, same steps, several seeds.

    python benchmarks/long_tail_study.py --out runs/study                 # the arms of the table, three seeds
    python benchmarks/long_tail_study.py --out runs/study --arms sweep    # EQL at the paper's lambdas, and sigmoid
    python benchmarks/long_tail_study.py --list                           # what there is
    python benchmarks/long_tail_study.py --out runs/study --report        # tables and plots of what is finished

A study goes on where it was: finished runs are in OUT/results.jsonl, one a line, and an unfinished one resumes from its
last checkpoint in OUT/runs. After every run OUT/results.csv, OUT/table.md and the plots in OUT are written anew.
long_tail_arms.py says what is compared and how the shared detector is made, long_tail_features.py how runs are trained.

Exit status: 0 done, or stopped by Ctrl-C or SIGTERM with the state saved; 2 something to be put right by the user.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import logging
import pathlib
import resource
import subprocess
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
from benchmarks.long_tail_features import Features, pooled_features, train_head
from benchmarks.long_tail_report import GROUPS as AP_GROUPS
from benchmarks.long_tail_report import TYPES, limits, write_report
from configs import base
from eql_jax.data.shapes.plan import long_tail_counts
from eql_jax.data.shapes.scene import DIFFICULTIES
from eql_jax.data.supershapes import ensure_supershapes
from eql_jax.evaluation import evaluate
from eql_jax.losses import tail_ratio
from eql_jax.training import config as config_lib
from eql_jax.training.compile_cache import enable_compile_cache
from eql_jax.training.disk import write_atomically
from eql_jax.training.errors import CheckpointError, UserError
from eql_jax.training.inference_model import load_for_inference
from eql_jax.training.inputs import Data, load_data

OF_RUNS = ("steps", "learning_rate")  # fields of Scale that are no setting of the whole study


class Stopped(Exception):
    """A signal ended a run early; its state is saved."""


class Study:
    """The folder of a study and its setting. Runs of several numbers of steps share it; tables are of one number.

    Raises:
      UserError: `out` holds a study of another setting.
    """

    def __init__(self, out: pathlib.Path, scale: Scale):
        self.out, self.scale = out, scale
        setting = {key: value for key, value in dataclasses.asdict(scale).items() if key not in OF_RUNS}
        path = out / "study.json"
        if path.is_file() and (found := json.loads(path.read_text())) != setting:
            changed = [f"{k} is {found.get(k)!r}, asked for is {v!r}" for k, v in setting.items() if found.get(k) != v]
            raise UserError(f"{path} is of a study with another setting: {'; '.join(changed)}. Name another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(setting, indent=1) + "\n")

    @property
    def start(self) -> pathlib.Path:
        """Workdir of the shared detector."""
        return self.out / "start"

    def rows(self) -> list[dict]:
        """Finished runs of all numbers of steps, in the order in which they finished."""
        path = self.out / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def report(self) -> None:
        """Writes the tables and plots of runs of this number of steps."""
        write_report(self.out, [row for row in self.rows() if row["steps"] == self.scale.steps], self.scale)

    def prepare(self) -> tuple[Data, Features]:
        """Makes data sets, the shared detector and its features where they are missing, and returns the last two.

        Raises:
          CheckpointError: the shared detector knows a class of the study.
          Stopped: a signal came.
        """
        if not (self.out / "start.json").is_file():
            clock = Clock()
            ensure_supershapes(**other_shapes(self.scale, self.out))
            train.run_training(argparse.Namespace(config=start_config(self.scale, self.out), workdir=self.start), [])
            evaluations = json.loads(_text(self.start / "checkpoints" / "evaluations.json") or "{}")
            if str(self.scale.start_steps) not in evaluations:
                raise Stopped
            found = evaluations[str(self.scale.start_steps)]
            row = {"steps": self.scale.start_steps, **{k: found[k] for k in ("bbox/AP", "segm/AP")}, **clock.used()}
            write_atomically(self.out / "start.json", json.dumps(row) + "\n")
            common.report({"start": str(self.start), **row})
        config = config_lib.load_config(base_config(self.scale, self.out), base=base.get_config())
        data, shared = load_data(config), load_for_inference(self.start)
        known = set(data.statistics.names) & set(shared.classes.names)
        if known:
            raise CheckpointError(f"{self.start} was trained on {len(known)} classes of the study: {sorted(known)[:5]}")
        return data, pooled_features(self.out / "features", shared.variables, config, data.train)

    def run(self, name: str, seed: int, data: Data, features: Features) -> None:
        """Trains and evaluates an arm with a seed unless that is done, and writes the tables anew.

        Raises:
          Stopped: a signal came.
        """
        if (name, seed, self.scale.steps) in [(row["arm"], row["seed"], row["steps"]) for row in self.rows()]:
            return
        config = arm_config(
            name,
            seed,
            scale=self.scale,
            out=self.out,
            image_counts=data.statistics.image_counts,
            num_images=data.statistics.num_images,
        )
        config = config_lib.load_config(config, base=base.get_config())
        workdir, clock = self.out / "runs" / f"{name}_{self.scale.steps}_steps" / f"seed{seed}", Clock()
        if train_head(config, workdir, features, data) < config.train.steps:
            raise Stopped
        results, metrics = workdir / "evaluation" / "results.json", {}
        for end, limit in limits(self.scale).items():
            found = evaluate(data.val, results, iou_types=tuple(TYPES), max_detections=limit).flat()
            metrics |= {f"{kind}/{group}{end}": found[f"{kind}/{group}"] for kind in TYPES for group in AP_GROUPS}
        row = {"arm": name, "seed": seed, "steps": config.train.steps, **metrics, **clock.used(), **origin(config)}
        common.report(row)
        with (self.out / "results.jsonl").open("a") as file:  # another process may have added rows meanwhile
            file.write(json.dumps(row) + "\n")
        self.report()
        jax.clear_caches()  # the next run has other programmes
        gc.collect()


class Clock:
    """Seconds since it was made, on the clock and of the processor."""

    def __init__(self):
        self._started, self._processor = time.monotonic(), _processor_seconds()

    def used(self) -> dict[str, float]:
        return {
            "seconds": time.monotonic() - self._started,
            "cpu_seconds": _processor_seconds() - self._processor,
        }


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def origin(config: ConfigDict) -> dict[str, str]:
    """What a row is of: a digest of its config without seed, name and folders, device, JAX and commit ('' unknown)."""
    fields = json.loads(config_lib.to_json(config))
    for section, field in (("data", "supershapes"), ("train", "init_from")):
        fields[section].pop(field)
    text = json.dumps({k: v for k, v in fields.items() if k not in ("seed", "name")}, sort_keys=True)
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return {"config": digest, "device": jax.devices()[0].device_kind, "jax": jax.__version__, "commit": commit}


def _text(path: pathlib.Path) -> str:
    return path.read_text() if path.is_file() else ""


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
        if args.steps < 3:
            parser.error(f"--steps is {args.steps}; expected at least 3, for the rate falls twice")
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
            data, features = study.prepare()
            for seed in args.seeds:  # all arms of a seed first: a study that is cut short compares like with like
                for name in args.arms:
                    study.run(name, seed, data, features)
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
