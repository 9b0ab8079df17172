"""Starting from the weights of another run."""

import logging
import re
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from eql_jax.losses import padded_count
from eql_jax.training import config as config_lib
from eql_jax.training.compatibility import Classes, flatten
from eql_jax.training.config import differences
from eql_jax.training.errors import CheckpointError, ConfigError
from eql_jax.training.inference_model import load_for_inference
from eql_jax.training.optimizer import parameter_path
from eql_jax.training.state import TrainState
from eql_jax.training.tail import check_columns

LOG = logging.getLogger(__name__)

_CLASSIFIER = r"params/(.*/)?cls_score/(kernel|bias)"
# What weights expect of their input and of the place of the stride. Nothing in a wrong one would fail: the model would
# only be worse.
_CONVENTIONS = ("model.pixel_mean", "model.pixel_std", "model.backbone.stride_in_1x1")


def init_from(state: TrainState, source: str | Path, config: ConfigDict, classes: Classes | None = None) -> TrainState:
    """`state` with the parameters and statistics of another run's checkpoint, at step 0 with a fresh optimizer.

    A loss's memory, if it has one, starts anew: it is of the other run's data.

    Arrays go by path; those that are absent there or of another shape (a head of other classes) keep their fresh values
    and are listed in the log. So are the model's settings that are others than there. Columns that
    box_head.class_multiple adds to a classifier are left out there and 0 here, so that it may be another.

    Raises:
        CheckpointError: no checkpoint in `source`, or not one array of it fits.
        ConfigError: the weights of `source` were made for another pixel mean, pixel std or place of the stride than
            `config`, the config of this run, has.
    """
    found = load_for_inference(source)
    _check_conventions(found.config, config, source)
    if classes is not None and config_lib.task_of(config) == config_lib.task_of(found.config) == config_lib.DETECTION:
        check_columns(found.config, found.classes, config, classes, f"train.init_from {source}")
    own = {"params": state.params, "batch_stats": state.batch_stats}
    flat = flatten(found.variables)
    skipped: list[str] = []
    columns = tuple(_classifier_columns(c, len(found.classes)) for c in (found.config, config))

    def pick(path, leaf):
        key = parameter_path(path)
        if key in flat and re.fullmatch(_CLASSIFIER, key) and (flat[key].shape[-1], leaf.shape[-1]) == columns:
            flat[key] = _with_columns(np.asarray(flat[key]), len(found.classes), leaf.shape[-1])
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
    if jax.tree.leaves(state.loss_state):
        LOG.info("the memory of the classification loss starts anew")
    if skipped:
        LOG.warning("not taken from %s, freshly initialised: %s", source, ", ".join(skipped))
    ema = None if state.ema_params is None else jax.tree.map(lambda x: x.copy(), merged["params"])
    return state.replace(params=merged["params"], batch_stats=merged["batch_stats"], ema_params=ema)


def _classifier_columns(config: ConfigDict, num_classes: int) -> int | None:
    """Columns that a classifier with one for each class has with those of box_head.class_multiple."""
    if config_lib.task_of(config) != config_lib.DETECTION:
        return None
    return padded_count(num_classes, config.model.box_head.class_multiple)


def _with_columns(x: np.ndarray, num_classes: int, columns: int) -> np.ndarray:
    """x[..., :num_classes] and zeros up to `columns`."""
    return np.pad(x[..., :num_classes], [(0, 0)] * (x.ndim - 1) + [(0, columns - num_classes)])


def _check_conventions(saved: ConfigDict, own: ConfigDict, source: str | Path) -> None:
    changed = {k: v for k, v in differences(saved, own).items() if k.startswith("model.")}
    faults = [f"  {k}: {changed[k][0]!r} there, {changed[k][1]!r} here" for k in _CONVENTIONS if k in changed]
    if faults:
        raise ConfigError(
            "\n".join([f"the weights of train.init_from {source} expect other settings than this config has:", *faults])
            + "\nTake theirs, such as "
            + " ".join(f"--config.{k}={str(changed[k][0]).replace(' ', '')!r}" for k in _CONVENTIONS if k in changed)
        )
    others = [f"  {k}: {old!r} -> {new!r}" for k, (old, new) in changed.items() if not k.startswith("model.test.")]
    if others:
        LOG.warning("%s", "\n".join([f"the model's settings differ from those of {source} (there -> here):", *others]))
