"""A set of labelled images, whatever it comes from, and those that a config names.

K classes, N images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from eql_jax.classification.cifar import load_cifar
from eql_jax.classification.drawn import DrawnArgs, drawn_arrays
from eql_jax.classification.imagenet_lt import ImageList
from eql_jax.classification.long_tail import GroupBorders, class_groups, exponential_counts, long_tailed_subset
from eql_jax.training.compatibility import Classes
from eql_jax.training.errors import ConfigError, user_input

SOURCES = ("drawn", "cifar10", "cifar100", "imagenet_lt")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    Attributes:
      where: names the set in messages.
      labels: int32 [N], 0..K-1.
      class_names: K.
      read: position -> RGB image; called from several threads. Raises ImageError for one that cannot be read.
    """

    where: str
    labels: np.ndarray
    class_names: tuple[str, ...]
    read: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return self.labels.size

    @property
    def counts(self) -> np.ndarray:
        """int64 [K], images of each class."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    @classmethod
    def of_arrays(cls, where: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> ImageSet:
        """images uint8 [N, H, W, 3] in memory, labels int [N]."""
        return cls(where, labels.astype(np.int32), class_names, lambda i: Image.fromarray(images[i]))

    @classmethod
    def of_list(cls, images: ImageList) -> ImageSet:
        """Image files."""
        return cls(str(images.file), images.labels, images.class_names, images.read)


class ImageSets(NamedTuple):
    """Training set (None where only the other was asked for) and validation set."""

    train: ImageSet | None
    val: ImageSet


def load_sets(config: ConfigDict, *, train: bool = True) -> ImageSets:
    """The sets of `config.data`.

    train: False leaves out the training set and what it takes to have it.

    Raises:
      UserError: a path is missing, a file is no image list, CIFAR is not there ...
    """
    d = config.data
    with user_input():
        if d.source == "imagenet_lt":
            return _image_lists(config, train=train)
        if d.source == "drawn":
            counts = exponential_counts(
                num_classes=d.drawn.num_classes, largest=d.drawn.largest_class, imbalance=d.imbalance
            )
            arguments = DrawnArgs(size=d.image_size, seed=d.subset_seed, lookalikes=d.drawn.lookalikes)
            val = drawn_arrays(np.full(len(counts), d.drawn.val_per_class), "val", arguments)
            sets = {"val": ImageSet.of_arrays("drawn/val", *val)}
            if train:
                sets["train"] = ImageSet.of_arrays("drawn/train", *drawn_arrays(counts, "train", arguments))
            return ImageSets(sets.get("train"), sets["val"])
        val = ImageSet.of_arrays(f"{d.source}/test", *load_cifar(d.source, "test", d.tfds_dir))
        if not train:
            return ImageSets(None, val)
        images, labels, names = load_cifar(d.source, "train", d.tfds_dir)
        largest = int(np.bincount(labels).min())
        counts = exponential_counts(num_classes=len(names), largest=largest, imbalance=d.imbalance)
        kept = long_tailed_subset(labels, counts, seed=d.subset_seed)
        where = f"{d.source}/train, imbalance {d.imbalance:g}"
        return ImageSets(ImageSet.of_arrays(where, images[kept], labels[kept], names), val)


def _image_lists(config: ConfigDict, *, train: bool) -> ImageSets:
    d = config.data
    for name in ("images", "val_list", *(("train_list",) if train else ())):
        if not d[name]:
            what = "the folder of the images" if name == "images" else "an image list with lines 'path label'"
            raise ConfigError(f"config.data.{name} is empty; expected {what}")
    val = ImageList.load(d.val_list, d.images)
    if not train:
        return ImageSets(None, ImageSet.of_list(val))
    images = ImageList.load(d.train_list, d.images)
    if len(val.class_names) > len(images.class_names):
        raise ValueError(
            f"{d.val_list} has labels up to {len(val.class_names) - 1}; those of {d.train_list} go up to "
            f"{len(images.class_names) - 1}"
        )
    return ImageSets(ImageSet.of_list(images), ImageSet.of_list(val))


def classes_of(train: ImageSet, borders: GroupBorders) -> Classes:
    """The classes with their training counts, as checkpoints keep them: letters f, c, r are many, medium, few."""
    counts = train.counts
    return Classes(
        ids=tuple(range(len(counts))),
        names=train.class_names,
        letters=tuple("fcr"[g] for g in class_groups(counts, borders)),
        image_counts=tuple(counts.tolist()),
        instance_counts=tuple(counts.tolist()),
        num_images=len(train),
    )
