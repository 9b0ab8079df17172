"""How a run begins and ends in its workdir, whatever it trains."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from eql_jax.training import config as config_lib
from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.disk import write_atomically
from eql_jax.training.errors import CheckpointError
from eql_jax.training.loop import TrainResult
from eql_jax.training.state import TrainState
from eql_jax.training.warm_start import init_from

LOG = logging.getLogger("eql_jax.train")


def begin(state: TrainState, config: ConfigDict, workdir: Path, checkpoints: Checkpoints) -> TrainState:
    """The state to start from, and config.json and versions.json in the workdir.

    It is that of the newest checkpoint of the workdir; without one `state`, with the parameters of
    config.train.init_from where that is set.

    Raises:
        CheckpointError: the checkpoint does not fit this run, or is damaged, or several processes see different ones.
    """
    _check_same_workdir(checkpoints)
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state)
        LOG.info("going on from step %d of %s", state.step, workdir)
    elif config.train.init_from:
        state = init_from(state, config.train.init_from, config, checkpoints.classes)
    if jax.process_index() == 0:
        write_atomically(workdir / "config.json", config_lib.to_json(config))
        write_atomically(workdir / "versions.json", config_lib.versions_json())
    return state


def _check_same_workdir(checkpoints: Checkpoints) -> None:
    """Raises CheckpointError unless this process sees the newest checkpoint that the first one sees."""
    if jax.process_count() == 1:
        return
    own = checkpoints.latest_step()
    first = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if own is None else own)))
    if first != (-1 if own is None else own):
        seen = "none" if first < 0 else f"that of step {first}"
        raise CheckpointError(
            f"process {jax.process_index()} sees {'no checkpoint' if own is None else f'one of step {own}'} in "
            f"{checkpoints.directory}, and process 0 {seen}; expected a --workdir on storage that all processes share"
        )


def finish(result: TrainResult, workdir: Path, iterators: Iterable[Any]) -> bool:
    """Logs what the iterators of training batches have to report, and how the run ended; returns whether early."""
    for summary in (iterator.report.summary() for iterator in iterators):
        if summary:
            LOG.warning("%s", summary)
    step, command = int(result.state.step), f"python train.py --workdir={workdir}"
    LOG.info(f"stopped at step {step}; to go on: {command}" if result.stopped else f"done: step {step} in {workdir}")
    return result.stopped
