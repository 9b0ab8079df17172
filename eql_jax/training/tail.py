"""From a config and class statistics to what the classification loss knows of them: T(f), the tail, among it.

Shapes: K foreground classes.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from eql_jax.class_losses import ClassFrequencies, class_loss_type
from eql_jax.losses import tail_mask_from_letters, tail_ratio, threshold_function
from eql_jax.models.box_head import configured_loss
from eql_jax.training.compatibility import Classes
from eql_jax.training.errors import CheckpointError, ConfigError


class Tail(NamedTuple):
    """weights: T(f), bool [K] where it is a step (the faster path of the loss), else float32; summary: one line for the
    log."""

    weights: np.ndarray
    summary: str


def make_tail(config: ConfigDict, *, letters: tuple[str, ...], image_counts: ArrayLike, num_images: int) -> Tail:
    """T(f) as config.model.eql asks for it; all False when the loss has no tail.

    Args:
      config: the whole config.
      letters: K frequency letters of training.
      image_counts: [K] training images that contain each class.
      num_images: how many images were counted; the denominator of f where model.eql.num_images is 0.

    Raises:
      ConfigError: model.eql.num_images is not the size of the data set that was counted: a class is in more images.
    """
    eql = config.model.eql
    image_counts = np.asarray(image_counts)
    if not class_loss_type(config.model.box_head.loss).takes_tail:
        return Tail(np.zeros(len(letters), bool), f"{config.model.box_head.loss} loss: no tail")
    name = config.model.box_head.loss
    if eql.tail_by == "letters":
        weights = tail_mask_from_letters(letters, eql.tail_letters)
        return _summarised(weights, image_counts, f"{name.upper()} tail (letters {', '.join(eql.tail_letters)})")
    num_images = eql.num_images or num_images
    if image_counts.max() > num_images:
        raise ConfigError(
            f"config.model.eql.num_images is {num_images}, but one class alone is in {image_counts.max()} "
            "images; expected the number of images that config.data.frequencies counts, or 0 to take it from there"
        )
    return threshold_tail(name, image_counts, num_images, threshold=eql.threshold, function=eql.function)


def threshold_tail(name: str, image_counts: ArrayLike, num_images: int, *, threshold: float, function: str) -> Tail:
    """T(f) of classes in image_counts [K] of num_images images; `name` of the loss is for the summary."""
    image_counts = np.asarray(image_counts)
    weights = threshold_function(image_counts / num_images, threshold, function=function)
    weights = weights > 0 if function == "step" else weights
    what = f"{name.upper()} tail (f < {threshold:g} of {num_images} images, {function})"
    return _summarised(weights, image_counts, what)


def _summarised(weights: np.ndarray, image_counts: np.ndarray, what: str) -> Tail:
    in_tail = weights > 0
    ratio = tail_ratio(image_counts, in_tail) if image_counts.any() else 0.0
    return Tail(weights, f"{what}: {in_tail.sum()} of {len(in_tail)} classes, tail ratio {100 * ratio:.2f} %")


def class_frequencies(classes: Classes, tail: Tail | None = None) -> ClassFrequencies:
    """What the classification loss is given: counts and letters of training, and T(f) where it trains."""
    return ClassFrequencies(
        num_classes=len(classes),
        letters=classes.letters,
        image_counts=np.asarray(classes.image_counts),
        instance_counts=np.asarray(classes.instance_counts),
        num_images=classes.num_images,
        tail=None if tail is None else tail.weights,
    )


def check_columns(
    saved_config: ConfigDict, saved: Classes, config: ConfigDict, own: Classes, where: str | Path
) -> None:
    """Raises CheckpointError where a classifier's columns stand for other classes than in the run it is from.

    Those of 'group_softmax' are ordered by the numbers of training objects, so that weights of another training set
    would fit and mean something else. `where` names the checkpoint of `saved_config` and `saved`.
    """
    name = config.model.box_head.loss
    if saved_config.model.box_head.loss != name or len(saved) != len(own) or not saved.instance_counts:
        return
    of_saved, of_own = (
        configured_loss(c.model, class_frequencies(classes)).class_columns
        for c, classes in ((saved_config, saved), (config, own))
    )
    if np.array_equal(of_saved, of_own):
        return
    raise CheckpointError(
        f"{where}: the columns of its classifier are ordered by the numbers of training objects, as {name!r} has them, "
        f"and by this run's numbers {(of_saved != of_own).sum()} of {len(own)} classes have another column. Train with "
        "the annotations (or config.data.frequencies) and loss_options that it was trained with"
    )
