"""The linear rule: a config that is meant for one batch size, run with another.

With s = batch size / reference batch size, the learning rate is multiplied by s and every count of steps is divided by
s (Goyal et al. 2017, arXiv 1706.02677; detectron2's SOLVER.REFERENCE_WORLD_SIZE does the same): the run sees as many
images, in the same phases of warm-up and decay. It is a rule for SGD, and was tested by its authors on batches that
grow, not on very small ones. Weight decay, momentum and the average of parameters stay as they are.
"""

import functools
import logging
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

LOG = logging.getLogger(__name__)

RATE = "optimizer.learning_rate"
STEPS = (
    "train.steps",
    "optimizer.decay_at",
    "optimizer.warmup_steps",
    "eval.every",
    "checkpoint.every",
    "checkpoint.keep_every",
)


def apply_linear_rule(config: ConfigDict, *, given: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Scales `config` in place from train.reference_batch_size to train.batch_size, and logs what changed.

    Then train.reference_batch_size is train.batch_size, so that the result says what is run and applying the rule again
    changes nothing. With a reference of 0, or equal to the batch size, the config stays as it is.

    Args:
        config: a valid config, unlocked.
        given: keys ('train.steps') that the user set for this very run: they are left alone.

    Returns:
        {key: (old value, new value)} of what was scaled. Counts are rounded half up, to at least 1; 0 stays 0.
    """
    batch_size, reference = config.train.batch_size, config.train.reference_batch_size
    if reference in (0, batch_size):
        return {}

    def steps(count):
        if isinstance(count, tuple | list):
            return tuple(steps(c) for c in count)
        # Whole numbers: count / s + 1/2, rounded down.
        return max(1, (2 * count * reference + batch_size) // (2 * batch_size)) if count > 0 else count

    old = {key: functools.reduce(getattr, key.split("."), config) for key in (RATE, *STEPS) if key not in given}
    new = {key: value * batch_size / reference if key == RATE else steps(value) for key, value in old.items()}
    config.update_from_flattened_dict(new | {"train.reference_batch_size": batch_size})
    changes = {key: (old[key], new[key]) for key in old if old[key] != new[key]}
    kept = [key for key in (RATE, *STEPS) if key in given]
    LOG.info(
        "batch size %d, the config is meant for %d; by the linear rule: %s%s",
        batch_size,
        reference,
        ", ".join(f"{key} {_text(before)} -> {_text(after)}" for key, (before, after) in changes.items()) or "nothing",
        f"; as given: {', '.join(kept)}" if kept else "",
    )
    return changes


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
