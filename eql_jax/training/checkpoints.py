"""A run's checkpoints: saved by Orbax in the background, kept by a policy, restored onto any devices.

`checkpoint_files` says what a checkpoint is made of and reads it; these two files are all that knows of Orbax.
"""

import dataclasses
import importlib.util
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from eql_jax.training import checkpoint_files
from eql_jax.training import config as config_lib
from eql_jax.training.compatibility import Classes, check_classes, check_config, check_structure
from eql_jax.training.disk import check_writable, free_space, remove_folder, state_bytes, write_atomically
from eql_jax.training.errors import CheckpointError, NonFiniteLossError
from eql_jax.training.state import TrainState
from eql_jax.training.tail import check_columns

LOG = logging.getLogger(__name__)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Not asked: `loop` asks JAX by its own count, and JAX stops at the number after the last one it was asked."""
        return False


class _KeepLatestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the newest `latest` checkpoints, the `best` ones by the metrics of steps evaluated so far, and the first at
    or after each multiple of `every` steps (0: no such)."""

    def __init__(self, settings: ConfigDict, evaluations: Mapping[int, Mapping[str, float]]):
        """settings: config.checkpoint."""
        self.latest, self.best, self.every = settings.keep, settings.keep_best, settings.keep_every
        self.evaluations = evaluations

    def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
        del context
        steps = [c.step for c in checkpoints]
        rising = sorted(steps)
        keep = {*rising[-self.latest :], *checkpoint_files.rank(steps, self.evaluations)[: self.best]}
        if self.every:
            before = [0, *rising[:-1]]
            keep |= {s for s, last in zip(rising, before, strict=True) if s // self.every > last // self.every}
        return [s in keep for s in steps]


class Checkpoints:
    """Saves to and resumes from one workdir. A context manager; leaving it, or `close()`, waits for the last save.

    A save that fails (a full disk, say) is logged and training goes on with the checkpoints there are;
    `last_save_failed` tells at the end. With several processes it is an error: the others know nothing of it and wait
    for this one to write its part, so the run has to end and start again from the newest whole checkpoint.
    """

    def __init__(self, workdir: str | Path, config: ConfigDict, classes: Classes):
        """Opens WORKDIR/checkpoints for training; creates it and removes what an interrupted save left behind.

        Raises:
            CheckpointError: the directory cannot be made or written.
        """
        self.directory = checkpoint_files.checkpoint_dir(workdir)
        if str(self.directory).startswith("gs://") and not _is_installed("google.cloud.storage"):
            raise CheckpointError(
                f"checkpoints in {self.directory} need the package google-cloud-storage, which Orbax asks about the "
                "bucket: pip install google-cloud-storage"
            )
        self.config, self.classes = config, classes
        self.last_save_failed = False
        self._pending: int | None = None
        check_writable(self.directory)
        logging.getLogger("absl").addFilter(_not_orbax_traceback)
        self._remove_leftovers()
        self.evaluations = checkpoint_files.read_evaluations(self.directory)
        self._manager = self._open()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        # All processes meet a loss that is not finite at once. After another error this one is about to end, and what
        # is under way may wait for one that is gone.
        if kind is not None and jax.process_count() > 1 and not issubclass(kind, NonFiniteLossError):
            return
        self.close()

    def check_space(self, state: TrainState) -> None:
        """Raises CheckpointError when the disk has no room for one checkpoint of `state`."""
        check_writable(self.directory, needed_bytes=state_bytes(state))

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, None without one."""
        return max(self._manager.all_steps(), default=None)

    def save(self, state: TrainState) -> None:
        """Copies `state` to the host and starts writing it; waits for the previous save first. Never raises OSError.

        A step that is saved already is not written again.

        Raises:
            CheckpointError: one of several processes could not write the previous one, or begin this one.
        """
        step = int(state.step)
        self.wait()
        if step in self._manager.all_steps():
            self.last_save_failed = False
            return
        if self.last_save_failed:
            self._remove_leftovers()
        try:
            self._manager.save(step, args=ocp.args.Composite(**_items(state, self.config, self.classes)), force=True)
            self._pending = step
        except (
            Exception
        ) as e:  # tensorstore reports a full disk as ValueError or RuntimeError, the file system as OSError
            self._failed(step, e)

    def wait(self) -> None:
        """Blocks until the save under way, if any, is on disk or has failed. Raises as `save`."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if not checkpoint_files.is_whole(self.directory / str(step)):
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
        run = checkpoint_files.read_run(path)
        check_classes(run["classes"], self.classes, path)
        check_config(run["config"], self.config, path)
        if config_lib.task_of(self.config) == config_lib.DETECTION:
            check_columns(run["config"], run["classes"], self.config, self.classes, path)
        saved = checkpoint_files.metadata(path)
        target = {k: v for k, v in _trees(state).items() if k != "ema_params"}
        for item, tree in target.items():
            check_structure(saved.get(item, {}), tree, item=item, path=path)
        if state.ema_params is not None and "ema_params" in saved:
            target["ema_params"] = state.ema_params
        restored = checkpoint_files.restore(path, target)
        blank = flax.serialization.to_state_dict(state.opt_state)
        opt_state = _fill(blank, restored["optimizer"].get("state", {}))
        ema = restored.get("ema_params")
        if state.ema_params is not None and ema is None:
            LOG.warning("%s has no moving average of the parameters; it starts from the parameters", path)
            ema = jax.tree.map(lambda x: x.copy(), restored["params"])
        return state.replace(
            step=restored["optimizer"]["step"],
            params=restored["params"],
            batch_stats=restored.get("batch_stats", state.batch_stats),
            opt_state=flax.serialization.from_state_dict(state.opt_state, opt_state),
            ema_params=ema,
            loss_state=restored.get("loss_state", state.loss_state),
        )

    def record_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes the metrics of a saved step and drops checkpoints that are not needed (of the best some are kept)."""
        self.evaluations[step] = {k: float(v) for k, v in metrics.items()}
        if jax.process_index() == 0:
            try:
                write_atomically(self.directory / "evaluations.json", json.dumps(self.evaluations, indent=1))
            except OSError as e:
                LOG.error("the evaluation of step %d could not be noted: %s", step, e)
        self.wait()
        policy = _KeepLatestAndBest(self.config.checkpoint, self.evaluations)
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
            LOG.error("closing the checkpoints: %s", e)

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_KeepLatestAndBest(self.config.checkpoint, self.evaluations),
        )
        return _Manager(self.directory, options=options, item_names=checkpoint_files.ITEMS)

    def _remove_leftovers(self) -> None:
        """Removes what interrupted and failed saves left. Orbax can do so too, but trips over its own threads when
        other items of the failed save are still being written."""
        if jax.process_index() > 0:
            return
        for attempt in range(20):
            left = list(self.directory.glob("*.orbax-checkpoint-tmp*"))
            if not isinstance(self.directory, Path):  # in a bucket half of one has the name of a whole one
                left += [p for p in self.directory.glob("*") if p.name.isdigit() and not checkpoint_files.is_whole(p)]
            for path in left:
                remove_folder(path)
            if not any(path.exists() for path in left):
                return
            time.sleep(0.05 * attempt)

    def _failed(self, step: int, error: Exception) -> None:
        """Reports a failed save, removes what it wrote so that the space is free again, and starts afresh.

        Raises:
            CheckpointError: this is one of several processes.
        """
        self.last_save_failed = True
        self._pending = None
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        free = free_space(self.directory)
        if jax.process_count() > 1:
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.directory} ({free}) by process "
                f"{jax.process_index()}: {reason}. Make room and start all processes again: the run goes on from the "
                "newest whole checkpoint"
            ) from error
        try:
            self._manager.close()
        except Exception:  # the same error again, in the manager's threads
            pass
        self._remove_leftovers()
        self._manager = self._open()
        LOG.error(
            "the checkpoint of step %d could not be written to %s (%s): %s. The newest whole checkpoint is of step %s",
            step,
            self.directory,
            free,
            reason,
            self.latest_step(),
        )


@dataclasses.dataclass(frozen=True)
class _Step:
    step: int


def _not_orbax_traceback(record: logging.LogRecord) -> bool:
    """False for the pages of traceback that Orbax's threads log about a failed save; `_failed` says it in one line."""
    return not (record.exc_info and "orbax" in record.pathname)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False


def _trees(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint that hold arrays; empty ones are left out, as Orbax refuses them."""
    optimizer = {"step": state.step, "state": flax.serialization.to_state_dict(state.opt_state)}
    trees = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "ema_params": state.ema_params,
        "loss_state": state.loss_state,
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


def _items(state: TrainState, config: ConfigDict, classes: Classes) -> dict[str, Any]:
    saved = json.loads(config_lib.to_json(config))
    run = {"format": checkpoint_files.FORMAT, "config": saved, "classes": dataclasses.asdict(classes)}
    items = {name: ocp.args.PyTreeSave(tree) for name, tree in _trees(state).items()}
    return items | {"run": ocp.args.JsonSave(run)}
