"""Checkpoints in WORKDIR/checkpoints/STEP, written by Orbax in the background; all of Orbax is in this file.

A checkpoint has the items `params`, `batch_stats`, `ema_params` (the last two when not empty), `optimizer` (step and
optax state) and `run` (JSON: the config and the classes with their ids, so that a checkpoint explains itself). Orbax
writes into a temporary directory and renames it, so that a run killed while saving leaves no half checkpoint behind.
WORKDIR/checkpoints/evaluations.json holds the metrics of the steps that were evaluated; the best are kept by it.
"""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from eql_jax.training import config as config_lib
from eql_jax.training.errors import CheckpointError
from eql_jax.training.optimizer import parameter_path
from eql_jax.training.state import TrainState

BEST_METRIC = "segm/AP"  # higher is better
ITEMS = ("params", "batch_stats", "ema_params", "optimizer", "run")
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes a model was trained on, by contiguous index 0..K-1.

    ids: category ids, rising. names: category names. letters: 'r', 'c' or 'f', or '' where frequencies are unknown.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    letters: tuple[str, ...]

    def __post_init__(self):
        if not len(self.ids) == len(self.names) == len(self.letters):
            raise ValueError(f"{len(self.ids)} ids, {len(self.names)} names and {len(self.letters)} letters of classes")

    def __len__(self) -> int:
        return len(self.ids)


class InferenceModel(NamedTuple):
    """What prediction and evaluation need: config, classes, NumPy trees of parameters (the average when there is one)
    and BatchNorm statistics, and the step of the checkpoint."""

    config: ConfigDict
    classes: Classes
    params: Any
    batch_stats: Any
    step: int

    @property
    def variables(self) -> dict[str, Any]:
        """{'params': .., 'batch_stats': ..}, what `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class _KeepLatestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the newest `latest` checkpoints and the `best` ones by the metrics of steps evaluated so far."""

    def __init__(self, latest: int, best: int, evaluations: Mapping[int, Mapping[str, float]]):
        self.latest, self.best, self.evaluations = latest, best, evaluations

    def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
        del context
        steps = [c.step for c in checkpoints]
        keep = {*sorted(steps)[-self.latest :], *_rank(steps, self.evaluations)[: self.best]}
        return [s in keep for s in steps]


class Checkpoints:
    """Saves to and resumes from one workdir. Use it as a context manager, or call `close()`: it waits for the last save.

    A save that fails (a full disk, say) is logged and training goes on with the checkpoints there are;
    `last_save_failed` tells at the end.
    """

    def __init__(self, workdir: str | Path, config: ConfigDict, classes: Classes):
        """Opens WORKDIR/checkpoints for training; creates it and removes what an interrupted save left behind.

        Raises:
            CheckpointError: the directory cannot be made or written.
        """
        self.directory = _checkpoint_dir(workdir)
        self.config, self.classes = config, classes
        self.last_save_failed = False
        self._pending: int | None = None
        check_writable(self.directory)
        self.evaluations = _read_evaluations(self.directory)
        self._manager = self._open()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, None without one."""
        return max(self._manager.all_steps(), default=None)

    def save(self, state: TrainState) -> None:
        """Copies `state` to the host and starts writing it; waits for the previous save first. Never raises OSError.

        A step that is saved already is not written again.
        """
        step = int(state.step)
        self.wait()
        if step in self._manager.all_steps():
            self.last_save_failed = False
            return
        try:
            self._manager.save(step, args=ocp.args.Composite(**_items(state, self.config, self.classes)), force=True)
            self._pending = step
        except (
            Exception
        ) as e:  # tensorstore reports a full disk as ValueError or RuntimeError, the file system as OSError
            self._failed(step, e)

    def wait(self) -> None:
        """Blocks until the save under way, if any, is on disk or has failed."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if not (self.directory / str(step)).is_dir():
                raise OSError(f"{self.directory / str(step)} was not written")
            self.last_save_failed = False
        except Exception as e:  # see save()
            self._failed(step, e)

    def restore(self, state: TrainState, *, step: int | None = None) -> TrainState:
        """The checkpoint of `step` (None: the newest) in the structure and on the devices of `state`.

        Raises:
            CheckpointError: model, classes or optimizer structure differ, or the checkpoint is damaged. Other
                differences between the configs are logged.
        """
        step = self.latest_step() if step is None else step
        path = self.directory / str(step)
        run = _read_run(path)
        _check_classes(run["classes"], self.classes, path)
        _check_config(run["config"], self.config, path)
        saved = _metadata(path)
        target = {k: v for k, v in _trees(state).items() if k != "ema_params"}
        for item, tree in target.items():
            _check_structure(saved.get(item, {}), tree, item=item, path=path)
        if state.ema_params is not None and "ema_params" in saved:
            target["ema_params"] = state.ema_params
        restored = _restore(path, target)
        blank = flax.serialization.to_state_dict(state.opt_state)
        opt_state = _fill(blank, restored["optimizer"].get("state", {}))
        ema = restored.get("ema_params")
        if state.ema_params is not None and ema is None:
            logging.warning("%s has no moving average of the parameters; it starts from the parameters", path)
            ema = jax.tree.map(lambda x: x.copy(), restored["params"])
        return state.replace(
            step=restored["optimizer"]["step"],
            params=restored["params"],
            batch_stats=restored.get("batch_stats", state.batch_stats),
            opt_state=flax.serialization.from_state_dict(state.opt_state, opt_state),
            ema_params=ema,
        )

    def record_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes the metrics of a saved step (the best by `segm/AP` are kept) and drops checkpoints no longer needed."""
        self.evaluations[step] = {k: float(v) for k, v in metrics.items()}
        if jax.process_index() == 0:
            try:
                _write_atomically(self.directory / "evaluations.json", json.dumps(self.evaluations, indent=1))
            except OSError as e:
                logging.error("the evaluation of step %d could not be noted: %s", step, e)
        self.wait()
        policy = _KeepLatestAndBest(self.config.checkpoint.keep, self.config.checkpoint.keep_best, self.evaluations)
        steps = sorted(self._manager.all_steps())
        keep = policy.should_preserve([_Step(s) for s in steps], context=None)
        for old in (s for s, kept in zip(steps, keep, strict=True) if not kept):
            self._manager.delete(old)

    def close(self) -> None:
        """Waits for the save under way and frees the background threads."""
        self.wait()
        try:
            self._manager.close()
        except Exception as e:  # a failed save was reported by wait() already
            logging.error("closing the checkpoints: %s", e)

    def _open(self) -> ocp.CheckpointManager:
        c = self.config.checkpoint
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_KeepLatestAndBest(c.keep, c.keep_best, self.evaluations),
            cleanup_tmp_directories=True,
            create=True,
        )
        return ocp.CheckpointManager(self.directory, options=options, item_names=ITEMS)

    def _failed(self, step: int, error: Exception) -> None:
        """Reports a failed save, removes what it wrote so that the space is free again, and starts afresh."""
        self.last_save_failed = True
        self._pending = None
        try:
            self._manager.close()
        except Exception:  # the same error again, in the manager's threads
            pass
        self._manager = self._open()
        logging.error(
            "the checkpoint of step %d could not be written to %s (%s free): %s: %s. Training goes on; the newest whole "
            "checkpoint is of step %s",
            step,
            self.directory,
            _gigabytes(_free_bytes(self.directory)),
            type(error).__name__,
            str(error).strip().partition("\n")[0],
            self.latest_step(),
        )


@dataclasses.dataclass(frozen=True)
class _Step:
    step: int


# ---------------------------------------------------------------------------------------------------- inference
def load_for_inference(workdir: str | Path, *, checkpoint: str | int = "best") -> InferenceModel:
    """Reads a checkpoint without knowing its model: as NumPy arrays, on any devices.

    Args:
        workdir: a run's directory, its `checkpoints` or one checkpoint in it (then `checkpoint` is not read).
        checkpoint: 'best' (by mask AP; the newest when none was evaluated), 'latest' or a step.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one.
    """
    path = find_checkpoint(workdir, checkpoint=checkpoint)
    run = _read_run(path)
    saved = _metadata(path)
    weights = "ema_params" if "ema_params" in saved else "params"
    wanted = {item: saved[item] for item in (weights, "batch_stats") if item in saved}
    arrays = _restore(path, wanted, as_numpy=True)
    return InferenceModel(run["config"], run["classes"], arrays[weights], arrays.get("batch_stats", {}), int(path.name))


def find_checkpoint(workdir: str | Path, *, checkpoint: str | int = "best") -> Path:
    """Path of a checkpoint; arguments and errors as for `load_for_inference`."""
    workdir = Path(workdir)
    if (workdir / "run").is_dir():
        return workdir
    directory = workdir if workdir.name == "checkpoints" else _checkpoint_dir(workdir)
    steps = sorted(int(p.name) for p in directory.glob("*") if p.is_dir() and p.name.isdigit())
    if not steps:
        raise CheckpointError(
            f"{workdir} has no checkpoint; expected one in {directory}. Train first, or check --workdir"
        )
    if checkpoint == "latest":
        return directory / str(steps[-1])
    if checkpoint == "best":
        ranked = _rank(steps, _read_evaluations(directory))
        return directory / str(ranked[0] if ranked else steps[-1])
    if not str(checkpoint).isdigit() or int(checkpoint) not in steps:
        raise CheckpointError(
            f"{directory} has no checkpoint {checkpoint!r}; expected 'best', 'latest' or one of {steps}"
        )
    return directory / str(int(checkpoint))


def init_from(state: TrainState, source: str | Path) -> TrainState:
    """`state` with the parameters and statistics of another run's checkpoint, at step 0 with a fresh optimizer.

    Arrays go by path; those that are absent there or of another shape (a head of other classes) keep their fresh values
    and are listed in the log.

    Raises:
        CheckpointError: no checkpoint in `source`, or not one array of it fits.
    """
    found = load_for_inference(source)
    own = {"params": state.params, "batch_stats": state.batch_stats}
    flat = {key: leaf for key, leaf in _flatten(found.variables).items()}
    skipped: list[str] = []

    def pick(path, leaf):
        key = parameter_path(path)
        if key in flat and flat[key].shape == leaf.shape:
            return jax.device_put(flat[key].astype(leaf.dtype), leaf.sharding)
        shape = f"shape {flat[key].shape} against {leaf.shape}" if key in flat else "absent"
        skipped.append(f"{key} ({shape})")
        return leaf

    merged = jax.tree_util.tree_map_with_path(pick, own)
    total = len(jax.tree.leaves(own))
    if len(skipped) == total:
        raise CheckpointError(
            f"train.init_from {source}: not one of {total} arrays fits this model; first: {skipped[0]}"
        )
    logging.info("started from %s, step %d: %d of %d arrays", source, found.step, total - len(skipped), total)
    if skipped:
        logging.warning("not taken from %s, freshly initialised: %s", source, ", ".join(skipped))
    ema = None if state.ema_params is None else jax.tree.map(lambda x: x.copy(), merged["params"])
    return state.replace(params=merged["params"], batch_stats=merged["batch_stats"], ema_params=ema)


# ---------------------------------------------------------------------------------------------------- disk
def check_writable(directory: str | Path, *, needed_bytes: int = 0) -> None:
    """Makes `directory`, writes and removes a probe file there, and compares the free space.

    Raises:
        CheckpointError: it cannot be made or written, or has less than `needed_bytes` free.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".probe-") as probe:
            probe.write(bytes(1 << 16))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as e:
        raise CheckpointError(
            f"cannot write to {directory}: {e.strerror or e}. Free some space or choose another --workdir"
        ) from e
    free = _free_bytes(directory)
    if free < needed_bytes:
        raise CheckpointError(
            f"{directory} has {_gigabytes(free)} free; a checkpoint needs {_gigabytes(needed_bytes)}. Free some space "
            "or choose another --workdir"
        )


def state_bytes(state: Any) -> int:
    """Size of a tree of arrays in bytes, about what its checkpoint takes on disk."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


# ---------------------------------------------------------------------------------------------------- layout
def _checkpoint_dir(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / "checkpoints"


def _read_evaluations(directory: Path) -> dict[int, dict[str, float]]:
    path = directory / "evaluations.json"
    if not path.is_file():
        return {}
    try:
        return {int(step): metrics for step, metrics in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError) as e:
        raise CheckpointError(f"{path} is not what this package writes ({e}); remove it to go on without") from e


def _rank(steps: Sequence[int], evaluations: Mapping[int, Mapping[str, float]]) -> list[int]:
    """Evaluated steps, best first; of equal ones the newer first; without a finite metric not at all."""
    scores = {s: evaluations[s].get(BEST_METRIC, np.nan) for s in steps if s in evaluations}
    return sorted((s for s in scores if np.isfinite(scores[s])), key=lambda s: (scores[s], s), reverse=True)


def _trees(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint that hold arrays; empty ones are left out, as Orbax refuses them."""
    optimizer = {"step": state.step, "state": flax.serialization.to_state_dict(state.opt_state)}
    trees = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "ema_params": state.ema_params,
        "optimizer": optimizer,
    }
    return {name: _prune(tree) for name, tree in trees.items() if jax.tree.leaves(tree)}


def _prune(tree: Any) -> Any:
    """A nested dict without the nodes that hold no array (masked parameters, empty optax states)."""
    if not isinstance(tree, Mapping):
        return tree
    return {k: _prune(v) for k, v in tree.items() if jax.tree.leaves(v)}


def _fill(template: Any, pruned: Any) -> Any:
    """Undoes `_prune`: `pruned` with the empty nodes of `template`."""
    if not isinstance(template, Mapping):
        return pruned
    return {k: _fill(v, pruned[k]) if jax.tree.leaves(v) else v for k, v in template.items()}


def _flatten(tree: Any) -> dict[str, Any]:
    return {parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _items(state: TrainState, config: ConfigDict, classes: Classes) -> dict[str, Any]:
    run = {"format": FORMAT, "config": json.loads(config_lib.to_json(config)), "classes": dataclasses.asdict(classes)}
    items = {name: ocp.args.PyTreeSave(tree) for name, tree in _trees(state).items()}
    return items | {"run": ocp.args.JsonSave(run)}


def _read_run(path: Path) -> dict[str, Any]:
    """{'config': ConfigDict, 'classes': Classes} of a checkpoint."""
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            run = reader.restore(path / "run", args=ocp.args.JsonRestore())
        if run["format"] != FORMAT:
            raise ValueError(f"format {run['format']}; this version reads format {FORMAT}")
        classes = Classes(**{k: tuple(v) for k, v in run["classes"].items()})
        return {"config": config_lib.from_json(json.dumps(run["config"])), "classes": classes}
    except Exception as e:
        raise _damaged(path, e) from e


def _metadata(path: Path) -> dict[str, Any]:
    """{item: nested dict of array metadata} of the items that hold arrays."""
    found = {}
    try:
        for item in ("params", "batch_stats", "ema_params", "optimizer"):
            if (path / item).is_dir():
                with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                    found[item] = reader.metadata(path / item).item_metadata.tree
    except Exception as e:
        raise _damaged(path, e) from e
    return found


def _restore(path: Path, target: Mapping[str, Any], *, as_numpy: bool = False) -> dict[str, Any]:
    """Reads items into trees like `target`: on the devices of its arrays, or as NumPy."""
    if as_numpy:
        how = lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray)  # noqa: E731
    else:
        how = lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)  # noqa: E731
    found = {}
    try:
        for item, tree in target.items():
            args = ocp.args.PyTreeRestore(item=tree, restore_args=jax.tree.map(how, tree))
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                found[item] = reader.restore(path / item, args=args)
    except Exception as e:
        raise _damaged(path, e) from e
    return found


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return CheckpointError(f"checkpoint {path} cannot be read ({reason}). Remove that directory to use an older one")


# ---------------------------------------------------------------------------------------------------- does it fit?
def _check_classes(saved: Classes, own: Classes, path: Path) -> None:
    hint = (
        "Use the annotations it was trained on, another --workdir, or config.train.init_from to start from its weights"
    )
    if len(saved) != len(own):
        raise CheckpointError(f"checkpoint {path} has {len(saved)} classes; the annotations have {len(own)}. {hint}")
    for i, (a, b) in enumerate(zip(saved.ids, own.ids, strict=True)):
        if (a, saved.names[i]) != (b, own.names[i]):
            raise CheckpointError(
                f"checkpoint {path} has class {i} = id {a} {saved.names[i]!r}; the annotations have id {b} "
                f"{own.names[i]!r}. {hint}"
            )
    changed = sum(a != b for a, b in zip(saved.letters, own.letters, strict=True))
    if changed:
        logging.warning("%d classes have another frequency letter than in checkpoint %s", changed, path)


def _check_config(saved: ConfigDict, own: ConfigDict, path: Path) -> None:
    changed = config_lib.differences(saved, own)
    lines = [f"  {key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()]
    model = [line for key, line in zip(changed, lines, strict=True) if key.startswith("model.")]
    if model:
        raise CheckpointError(
            "\n".join([f"checkpoint {path} is of another model (checkpoint -> now):", *model])
            + "\nUse the old values, another --workdir, or config.train.init_from to start from its weights"
        )
    if lines:
        logging.warning("%s", "\n".join([f"the config differs from that of checkpoint {path} (was -> now):", *lines]))


def _check_structure(saved: Any, own: Any, *, item: str, path: Path) -> None:
    before = {k: tuple(v.shape) for k, v in _flatten(saved).items()}
    now = {k: tuple(v.shape) for k, v in _flatten(own).items()}
    if before == now:
        return
    faults = [f"{k} only in the checkpoint" for k in before.keys() - now.keys()]
    faults += [f"{k} not in the checkpoint" for k in now.keys() - before.keys()]
    faults += [
        f"{k} {before[k]} in the checkpoint, {now[k]} now" for k in before.keys() & now.keys() if before[k] != now[k]
    ]
    shown = "; ".join(sorted(faults)[:5]) + ("; ..." if len(faults) > 5 else "")
    raise CheckpointError(
        f"checkpoint {path} does not fit: {len(faults)} arrays of its {item} differ: {shown}. Use the settings it was "
        "trained with (config.optimizer.name, momentum, model.backbone.freeze_at ...), another --workdir, or "
        "config.train.init_from to start from its weights"
    )
