"""What a run left in its workdir: config, classes, curves of training, evaluations. NumPy only, but for the checkpoint.

What is missing becomes a note, which the page shows; a workdir without a checkpoint is an error, since nothing says
then what the model was. K classes of the model.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eql_jax.training.errors import UserError
from eql_jax.training.inference_model import InferenceModel, load_detector

Curve = tuple[np.ndarray, np.ndarray]  # steps, values


class ClassAP(NamedTuple):
    """A row of an evaluation's classes.csv. AP are shares of 1, NaN without ground truth; counts -1 where unknown."""

    class_id: int
    name: str
    letter: str
    train_images: int
    train_instances: int
    instances: int
    ap: Mapping[str, float]  # 'boxes', 'masks'


class Evaluation(NamedTuple):
    """A folder `evaluation*` of a workdir.

    name: of the folder. metrics: {'bbox': {'AP': .., 'APr': ..}, 'segm': ..}, shares of 1, NaN without ground truth.
    classes: rows of classes.csv, () without that file. notes: what the evaluation itself had to say.
    """

    folder: Path
    step: int | None
    num_images: int
    metrics: Mapping[str, Mapping[str, float]]
    classes: tuple[ClassAP, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def kind(self) -> str:
        """What classes are ranked by: 'masks', or 'boxes' where there are none."""
        return "masks" if "segm" in self.metrics else "boxes"


@dataclasses.dataclass
class Run:
    """One run.

    Attributes:
      name: what the page calls it, unlike all others.
      workdir: as given.
      model: config, classes and parameters of the checkpoint.
      train, evaluated: curves by name of the metric, of training and of evaluations during it.
      evaluations: by name of the folder.
      versions: versions.json, {} without.
      notes: what is missing or does not fit. The page adds to them.
    """

    name: str
    workdir: Path
    model: InferenceModel
    train: dict[str, Curve] = dataclasses.field(default_factory=dict)
    evaluated: dict[str, Curve] = dataclasses.field(default_factory=dict)
    evaluations: dict[str, Evaluation] = dataclasses.field(default_factory=dict)
    versions: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def config(self):
        return self.model.config

    @property
    def classes(self):
        return self.model.classes

    @property
    def counts(self) -> np.ndarray | None:
        """int [K] training objects of each class (images, where only those are known); None: the run does not know."""
        known = self.classes.instance_counts or self.classes.image_counts
        return np.asarray(known) if len(known) == len(self.classes) else None

    @property
    def order(self) -> np.ndarray:
        """Classes by falling number of training objects; as they are where that is not known."""
        return np.arange(len(self.classes)) if self.counts is None else np.argsort(-self.counts, kind="stable")


def collect_runs(workdirs: Sequence[str | Path], *, checkpoint: str = "best") -> list[Run]:
    """Reads all workdirs.

    Args:
      workdirs: directories of runs.
      checkpoint: 'best', 'latest' or a step, of each of them.

    Raises:
      UserError: a workdir is given twice, or one has no such checkpoint, a damaged one or damaged files.
    """
    paths = [Path(workdir) for workdir in workdirs]
    twice = [str(path) for i, path in enumerate(paths) if path.resolve() in {p.resolve() for p in paths[:i]}]
    if twice:
        raise UserError(f"--workdir names {', '.join(twice)} more than once; expected a different run each time")
    return [collect_run(path, name, checkpoint) for path, name in zip(paths, run_names(paths), strict=True)]


def run_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ from each other: 'eql', or 'a/eql' beside 'b/eql'."""
    parts = [path.resolve().parts for path in paths]

    def name(i: int) -> str:
        for length in range(1, len(parts[i]) + 1):
            end = parts[i][-length:]
            if sum(other[-length:] == end for other in parts) == 1:
                return "/".join(end)
        return str(paths[i])

    return [name(i) for i in range(len(paths))]


def collect_run(workdir: Path, name: str, checkpoint: str) -> Run:
    """Reads one workdir. Raises UserError as `collect_runs`."""
    if not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is no directory; expected that of a training run")
    run = Run(name, workdir, load_detector(workdir, checkpoint=checkpoint))
    run.train, run.evaluated = read_curves(workdir / "metrics.jsonl", run.notes)
    for folder in sorted(path for path in workdir.glob("evaluation*") if path.is_dir()):
        if (folder / "metrics.json").is_file():
            run.evaluations[folder.name] = read_evaluation(folder)
        else:
            run.notes.append(f"{folder} has no metrics.json: an evaluation that did not come to its end; left out")
    if not run.evaluations:
        run.notes.append(
            f"no evaluation in {workdir}: no AP here. `python train.py --mode=eval --workdir={workdir}` makes one"
        )
    for one in run.evaluations.values():
        if one.step not in (None, run.model.step):
            run.notes.append(
                f"{one.name} is of step {one.step}, the checkpoint that is looked into of step {run.model.step}"
            )
    versions = workdir / "versions.json"
    if versions.is_file():
        run.versions = _read_json(versions)
    if run.counts is None:
        run.notes.append("the checkpoint does not know how often each class occurs in training; classes are not sorted")
    return run


def read_curves(path: Path, notes: list[str]) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Curves of training and of evaluations from a metrics.jsonl; lines that are no JSON are left out with a note."""
    if not path.is_file():
        notes.append(f"{path} is missing: no curves of training")
        return {}, {}
    points: dict[str, dict[str, list[tuple[float, float]]]] = {"train": {}, "eval": {}}
    faulty = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            step, curves = float(record["step"]), points[record["kind"]]
            values = {k: float(v) for k, v in record.items() if k not in ("step", "kind")}
        except (ValueError, KeyError, TypeError):
            faulty += 1
            continue
        for key, value in values.items():
            curves.setdefault(key, []).append((step, value))
    if faulty:
        notes.append(f"{faulty} lines of {path} are damaged and were left out")
    as_arrays = [{k: tuple(np.array(v).T) for k, v in points[kind].items()} for kind in ("train", "eval")]
    return as_arrays[0], as_arrays[1]


def read_evaluation(folder: Path) -> Evaluation:
    """Reads metrics.json and classes.csv of an evaluation.

    Raises:
      UserError: one of them is not what `eql_jax.evaluation` writes.
    """
    content = _read_json(folder / "metrics.json")
    try:
        metrics = {
            t: {k: np.nan if v is None else float(v) for k, v in m.items()} for t, m in content["metrics"].items()
        }
        step, num_images, notes = content.get("step"), int(content["num_images"]), tuple(content["notes"])
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise _unlike(folder / "metrics.json", e) from e
    path = folder / "classes.csv"
    classes: tuple[ClassAP, ...] = ()
    if path.is_file():
        with open(path, encoding="utf-8", newline="") as file:
            try:
                classes = tuple(_class_row(row) for row in csv.DictReader(file))
            except (KeyError, TypeError, ValueError) as e:
                raise _unlike(path, e) from e
    return Evaluation(folder, step, num_images, metrics, classes, notes)


def _class_row(row: Mapping[str, str]) -> ClassAP:
    ap = {kind: row[f"{kind}_AP"] for kind in ("boxes", "masks") if f"{kind}_AP" in row}
    return ClassAP(
        int(row["class_id"]),
        row["name"],
        row["frequency"],
        int(row["train_images"] or -1),
        int(row["train_instances"] or -1),
        int(row["instances"]),
        {kind: float(value) if value else np.nan for kind, value in ap.items()},
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise _unlike(path, e) from e
    if not isinstance(content, dict):
        raise _unlike(path, f"a {type(content).__name__}")
    return content


def _unlike(path: Path, found: object) -> UserError:
    kind = f"{type(found).__name__}: {found}" if isinstance(found, Exception) else str(found)
    return UserError(f"{path} is not what this package writes ({kind}). Evaluate the run again, or remove the file")
