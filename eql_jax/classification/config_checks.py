"""Which values the fields of classification configs may take, and what must fit together."""

from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from eql_jax.class_losses import ClassFrequencies, class_loss_type, make_class_loss
from eql_jax.classification.augment import CROPS
from eql_jax.classification.auto_augment import POLICIES
from eql_jax.classification.image_set import SOURCES
from eql_jax.classification.models import IMAGENET_BLOCKS, KINDS
from eql_jax.data.shapes.catalogue import MAX_CLASSES
from eql_jax.training import config_values

# Fields that mean the same in detectors' configs
_SHARED_CHOICES = ("data.engine", "model.dtype", "train.reduce_dtype", "optimizer.name", "optimizer.schedule")
_SHARED_RANGES = ("seed", "data.workers", "data.prefetch", "eval.every", "eval.batch_size", "eval.max_images")
_SHARED_SECTIONS = ("data.photometric.", "model.pixel_", "train.", "optimizer.", "mesh.", "log.", "checkpoint.")

CHOICES = {key: config_values.CHOICES[key] for key in _SHARED_CHOICES} | {
    "task": ("classification",),
    "data.source": SOURCES,
    "data.crop": CROPS,
    "data.auto_augment": ("", *POLICIES),
    "model.kind": KINDS,
    "loss.tail_function": config_values.CHOICES["model.eql.function"],
}
RANGES = {
    key: limits
    for key, limits in config_values.RANGES.items()
    if key in _SHARED_RANGES or key.startswith(_SHARED_SECTIONS)
} | {
    "data.imbalance": (1, None),
    "data.subset_seed": (0, 2**31 - 1),
    "data.drawn.num_classes": (2, MAX_CLASSES),
    "data.drawn.largest_class": (1, None),
    "data.drawn.val_per_class": (1, None),
    "data.image_size": (16, 4096),
    "data.pad": (0, None),
    "data.cutout": (0, None),
    "model.depth": (8, None),
    "model.width": (1, None),
    "loss.tail_threshold": (0, 1),
    "eval.many_above": (0, None),
    "eval.few_below": (0, None),
}


def find_faults(config: ConfigDict) -> list[str]:
    """One line for every value that is not allowed; relations between values only when each is right by itself."""
    faults = [*config_values.table_faults(config, CHOICES, RANGES), *_loss_faults(config)]
    return faults or [*config_values.training_faults(config), *_relation_faults(config)]


def _loss_faults(config: ConfigDict) -> Iterator[str]:
    try:
        class_loss_type(config.loss.name)
    except ValueError as e:
        yield f"loss.name is {config.loss.name!r}; {e}"
        return
    try:
        # Values are the loss's own to check; the classes are only there to have some.
        counts = np.array([1, 20, 300])
        frequencies = ClassFrequencies(3, ("r", "c", "f"), counts, counts, 321, counts < 100)
        make_class_loss(config.loss.name, frequencies, background=False, options=dict(config.loss.options))
    except ValueError as e:
        yield f"loss.options: {e}"


def _relation_faults(config: ConfigDict) -> Iterator[str]:
    d, m, e = config.data, config.model, config.eval
    if m.kind == "cifar_resnet" and m.depth % 6 != 2:
        yield f"model.depth is {m.depth}; expected 6n + 2 for 'cifar_resnet', such as 20, 32 or 56"
    if m.kind == "resnet" and m.depth not in IMAGENET_BLOCKS:
        yield f"model.depth is {m.depth}; expected one of {', '.join(map(str, IMAGENET_BLOCKS))} for 'resnet'"
    if not 0 < m.prior < 1:
        yield f"model.prior is {m.prior}; expected between 0 and 1"
    if d.source == "imagenet_lt" and d.crop != "resized":
        yield f"data.crop is {d.crop!r}; expected 'resized' for data.source 'imagenet_lt', whose images have all sizes"
    if d.source.startswith("cifar") and d.crop != "resized" and d.image_size != 32:
        yield f"data.image_size is {d.image_size}; expected 32, that of CIFAR, with data.crop {d.crop!r}"
    if d.source == "drawn" and d.imbalance > d.drawn.largest_class:
        yield (
            f"data.imbalance is {d.imbalance:g}; expected at most data.drawn.largest_class {d.drawn.largest_class}, so "
            "that every class has an image"
        )
    if e.few_below > e.many_above + 1:
        yield f"eval.few_below {e.few_below} and eval.many_above {e.many_above} overlap; expected few below many"
