"""Starting from the weights of another run."""

import logging
from pathlib import Path

import jax

from eql_jax.training.checkpoints import load_for_inference
from eql_jax.training.compatibility import flatten
from eql_jax.training.errors import CheckpointError
from eql_jax.training.optimizer import parameter_path
from eql_jax.training.state import TrainState

LOG = logging.getLogger(__name__)


def init_from(state: TrainState, source: str | Path) -> TrainState:
    """`state` with the parameters and statistics of another run's checkpoint, at step 0 with a fresh optimizer.

    Arrays go by path; those that are absent there or of another shape (a head of other classes) keep their fresh values
    and are listed in the log.

    Raises:
        CheckpointError: no checkpoint in `source`, or not one array of it fits.
    """
    found = load_for_inference(source)
    own = {"params": state.params, "batch_stats": state.batch_stats}
    flat = flatten(found.variables)
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
            f"train.init_from {source}: not one of {total} arrays fits this model; the first is {skipped[0]}"
        )
    LOG.info("started from %s, step %d: %d of %d arrays", source, found.step, total - len(skipped), total)
    if skipped:
        LOG.warning("not taken from %s, freshly initialised: %s", source, ", ".join(skipped))
    ema = None if state.ema_params is None else jax.tree.map(lambda x: x.copy(), merged["params"])
    return state.replace(params=merged["params"], batch_stats=merged["batch_stats"], ema_params=ema)
