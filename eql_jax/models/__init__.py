"""Flax Linen modules of Mask R-CNN; `build_model` makes one from a config."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from eql_jax.class_losses import ClassFrequencies
from eql_jax.models.backbones import frozen_prefixes
from eql_jax.models.c4 import C4MaskRCNN
from eql_jax.models.cascade import CascadeMaskRCNN
from eql_jax.models.mask_rcnn import MaskRCNN
from eql_jax.models.structures import Detections

__all__ = ["Detections", "MaskRCNN", "build_model", "init_model", "trainable_mask"]


def build_model(config: ConfigDict, num_classes: int, frequencies: ClassFrequencies | None = None) -> MaskRCNN:
    """The model of a whole config (its `model`, and train.remat) with `num_classes` foreground classes.

    frequencies: of the classes in training, which many classification losses ask for; None will do at inference, but
      for losses whose columns depend on it ('group_softmax').
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; expected at least 1")
    kind = C4MaskRCNN if config.model.architecture == "c4" else MaskRCNN
    if config.model.cascade.ious:
        kind = CascadeMaskRCNN
    return kind(FrozenConfigDict(config.model), num_classes, frequencies, remat=config.train.remat)


def init_model(model: MaskRCNN, key: jax.Array) -> Mapping:
    """Fresh variables {'params': .., 'batch_stats': .., 'loss_state': ..}. Traceable by jit.

    The second is empty without BatchNorm, the third for classification losses without memory.
    """
    # Under jit the forward pass that init traces is dead code; run eagerly it would compile every operation by itself.
    variables = jax.jit(model.init)(key, jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64, jnp.int32))
    return {name: variables.get(name, {}) for name in ("params", "batch_stats", "loss_state")}


def trainable_mask(params: Mapping, config: ConfigDict) -> Mapping:
    """A tree like `params` of bools: False for the backbone's frozen stages (config.model.backbone.freeze_at)."""
    frozen = frozen_prefixes(config.model)

    def trainable(path, _) -> bool:
        names = [p.key for p in path]
        return not (names[0] == "backbone" and names[1].startswith(frozen)) if frozen else True

    return jax.tree_util.tree_map_with_path(trainable, params)
