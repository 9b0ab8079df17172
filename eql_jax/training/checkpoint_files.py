"""Where a checkpoint lies, whether it is whole, and how its items are read; `checkpoints` writes them.

A checkpoint, WORKDIR/checkpoints/STEP, has the items `params`, `batch_stats`, `ema_params`, `loss_state` (the last
three when not empty), `optimizer` (step and optax state) and `run` (JSON: the config and the classes with their ids, so
that a checkpoint explains itself). Orbax writes into a temporary directory and renames it (in a bucket, which cannot
rename: ends with writing commit_success.txt), so that a run killed while saving leaves no half checkpoint behind.
WORKDIR/checkpoints/evaluations.json holds the metrics of the steps that were evaluated; the best are kept by it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from eql_jax.data.files import FilePath, as_path
from eql_jax.training import config as config_lib
from eql_jax.training.compatibility import Classes
from eql_jax.training.errors import CheckpointError

# Checkpoints are ranked by the first that was evaluated; higher is better.
BEST_METRICS = ("segm/AP", "bbox/AP", "top1")
ITEMS = ("params", "batch_stats", "ema_params", "loss_state", "optimizer", "run")
FORMAT = 1


def checkpoint_dir(workdir: str | Path) -> FilePath:
    workdir = as_path(workdir)
    return (workdir.absolute() if isinstance(workdir, Path) else workdir) / "checkpoints"


def is_whole(path: FilePath) -> bool:
    """Whether there is a checkpoint that was written to its end."""
    return path.is_dir() and ocp.utils.is_checkpoint_finalized(path)


def read_evaluations(directory: FilePath) -> dict[int, dict[str, float]]:
    path = directory / "evaluations.json"
    if not path.is_file():
        return {}
    try:
        return {int(step): metrics for step, metrics in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError) as e:
        raise CheckpointError(f"{path} is not what this package writes ({e}); remove it to go on without") from e


def rank(steps: Sequence[int], evaluations: Mapping[int, Mapping[str, float]]) -> list[int]:
    """Evaluated steps, best first; of equal ones the newer first; without a finite metric not at all."""
    scores = {s: _score(evaluations[s]) for s in steps if s in evaluations}
    return sorted((s for s in scores if np.isfinite(scores[s])), key=lambda s: (scores[s], s), reverse=True)


def _score(metrics: Mapping[str, float]) -> float:
    return next((metrics[name] for name in BEST_METRICS if name in metrics), np.nan)


def find_checkpoint(workdir: str | Path, *, checkpoint: str | int = "best") -> FilePath:
    """Path of a whole checkpoint.

    Args:
        workdir: a run's directory, its `checkpoints` or one checkpoint in it.
        checkpoint: 'best' (by the first of BEST_METRICS; the newest when none was evaluated), 'latest' or a step.

    Raises:
        CheckpointError: no such checkpoint.
    """
    workdir = as_path(workdir)
    if workdir.name.isdigit() and (workdir / "run").is_dir():
        return workdir
    directory = workdir if workdir.name == "checkpoints" else checkpoint_dir(workdir)
    steps = sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit() and is_whole(p))
    if not steps:
        raise CheckpointError(
            f"{workdir} has no checkpoint; expected one in {directory}. Train first, or check --workdir"
        )
    if checkpoint == "latest":
        return directory / str(steps[-1])
    if checkpoint == "best":
        ranked = rank(steps, read_evaluations(directory))
        return directory / str(ranked[0] if ranked else steps[-1])
    if not str(checkpoint).isdigit() or int(checkpoint) not in steps:
        raise CheckpointError(
            f"{directory} has no checkpoint {checkpoint!r}; expected 'best', 'latest' or one of {steps}"
        )
    return directory / str(int(checkpoint))


def _reader() -> ocp.Checkpointer:
    trees = {item: ocp.PyTreeCheckpointHandler() for item in ITEMS if item != "run"}
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**trees, run=ocp.JsonCheckpointHandler()))


def read_run(path: FilePath) -> dict[str, Any]:
    """{'config': ConfigDict, 'classes': Classes} of a checkpoint."""
    try:
        with _reader() as reader:
            run = reader.restore(path, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        if run["format"] != FORMAT:
            raise ValueError(f"format {run['format']}; this version reads format {FORMAT}")
        classes = Classes.from_json(run["classes"])
        return {"config": config_lib.from_json(json.dumps(run["config"])), "classes": classes}
    except Exception as e:  # whatever Orbax and JSON make of a damaged file
        raise _damaged(path, e) from e


def metadata(path: FilePath) -> dict[str, Any]:
    """{item: nested dict of array metadata (shape, dtype)} of the items that hold arrays."""
    try:
        with _reader() as reader:
            found = reader.metadata(path).item_metadata
        return {item: found[item].tree for item in ITEMS if item != "run" and found.get(item) is not None}
    except Exception as e:
        raise _damaged(path, e) from e


def restore(path: FilePath, target: Mapping[str, Any], *, as_numpy: bool = False) -> dict[str, Any]:
    """Reads items into trees like `target`: on the devices of its arrays, or as NumPy."""

    def how(leaf):
        if as_numpy:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)

    args = {k: ocp.args.PyTreeRestore(item=tree, restore_args=jax.tree.map(how, tree)) for k, tree in target.items()}
    try:
        with _reader() as reader:
            found = reader.restore(path, args=ocp.args.Composite(**args))
        return {item: found[item] for item in target}
    except Exception as e:
        raise _damaged(path, e) from e


def _damaged(path: FilePath, error: Exception) -> CheckpointError:
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return CheckpointError(f"checkpoint {path} cannot be read ({reason}). Remove that directory to use an older one")
