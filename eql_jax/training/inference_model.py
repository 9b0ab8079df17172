"""A trained model as prediction, evaluation and export take it: read from a checkpoint or a file of parameters."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from eql_jax.training import checkpoint_files
from eql_jax.training import config as config_lib
from eql_jax.training.compatibility import Classes
from eql_jax.training.errors import CheckpointError
from eql_jax.training.parameter_file import SUFFIX, read_parameters, write_parameters


class InferenceModel(NamedTuple):
    """What prediction and evaluation need: config, classes, NumPy trees of parameters (the average when there is one)
    and BatchNorm statistics, and the step of the checkpoint; for looking at the loss also its memory, {} without."""

    config: ConfigDict
    classes: Classes
    params: Any
    batch_stats: Any
    step: int
    loss_state: Any = types.MappingProxyType({})

    @property
    def variables(self) -> dict[str, Any]:
        """{'params': .., 'batch_stats': ..}, what `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def load_for_inference(workdir: str | Path, *, checkpoint: str | int = "best") -> InferenceModel:
    """Reads a checkpoint without knowing its model: as NumPy arrays, on any devices.

    Args:
        workdir: a run's directory, its `checkpoints` or one checkpoint in it, or a file of `--mode=export` (then
            `checkpoint` is not read).
        checkpoint: as for `checkpoint_files.find_checkpoint`.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one.
    """
    if str(workdir).endswith(SUFFIX):
        file = read_parameters(workdir)
        config, classes = config_lib.from_json(json.dumps(file.config)), Classes.from_json(file.classes)
        return InferenceModel(config, classes, file.variables["params"], file.variables["batch_stats"], file.step)
    path = checkpoint_files.find_checkpoint(workdir, checkpoint=checkpoint)
    run = checkpoint_files.read_run(path)
    saved = checkpoint_files.metadata(path)
    weights = "ema_params" if "ema_params" in saved else "params"
    wanted = {item: saved[item] for item in (weights, "batch_stats", "loss_state") if item in saved}
    arrays = checkpoint_files.restore(path, wanted, as_numpy=True)
    memory = [arrays.get(item, {}) for item in ("batch_stats", "loss_state")]
    return InferenceModel(run["config"], run["classes"], arrays[weights], memory[0], int(path.name), memory[1])


def load_detector(workdir: str | Path, *, checkpoint: str | int = "best") -> InferenceModel:
    """`load_for_inference` of a run that trained a detector.

    Raises:
        CheckpointError: also where the run had another task.
    """
    found = load_for_inference(workdir, checkpoint=checkpoint)
    task = config_lib.task_of(found.config)
    if task != config_lib.DETECTION:
        raise CheckpointError(f"{workdir} is of a run with the task {task!r}; expected one of {config_lib.DETECTION!r}")
    return found


def export_parameters(found: InferenceModel, path: str | Path) -> int:
    """Writes a model as a safetensors file, see `parameter_file`; returns the number of arrays.

    Raises:
        CheckpointError: the name does not end in .safetensors, or the file cannot be written.
    """
    config_json, classes = config_lib.to_json(found.config), dataclasses.asdict(found.classes)
    return write_parameters(path, found.variables, config_json=config_json, classes=classes, step=found.step)
