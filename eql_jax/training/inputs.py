"""The annotation files a config names, read and checked against each other; supershapes are made when missing."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from eql_jax.data.categories import ClassStatistics, class_statistics
from eql_jax.data.records import Annotations
from eql_jax.data.sources import needs_images, open_annotations
from eql_jax.data.supershapes import ensure_supershapes
from eql_jax.training.compatibility import Classes, check_categories
from eql_jax.training.errors import ConfigError, user_input
from eql_jax.training.extra_sets import with_extra_sets

LOG = logging.getLogger(__name__)


class Data(NamedTuple):
    """Training set, validation set (None without one) and the classes' training frequencies."""

    train: Annotations
    val: Annotations | None
    statistics: ClassStatistics


def data_paths(config: ConfigDict, splits: Sequence[str]) -> dict[str, str]:
    """{'train_annotations': path, 'train_images': path, ..} of the splits.

    Makes the supershapes data set where the config names no files.
    """
    names = [f"{split}_{what}" for split in splits for what in ("annotations", "images")]
    paths = {name: config.data[name] for name in names}
    lacking = [name for name, path in paths.items() if not path and _is_needed(name, paths)]
    if config.data.supershapes and lacking:
        if "out" not in config.data.supershapes:
            raise ConfigError("config.data.supershapes has no `out`, the folder of the data set")
        with user_input():
            made = ensure_supershapes(**config.data.supershapes.to_dict())._asdict()
        made |= {"train_images": made["images"], "val_images": made["images"]}
        paths |= {name: str(made[name]) for name in lacking}
    return paths


def _is_needed(name: str, paths: Mapping[str, str]) -> bool:
    """An annotation file always, the images of one that comes without them, too."""
    split, _, what = name.partition("_")
    where = paths[f"{split}_annotations"]
    return what == "annotations" or not where or needs_images(where)


def load_data(config: ConfigDict) -> Data:
    """Reads the data of `config` for training, telling the faults found.

    Raises:
        UserError: a path is missing, a file is no annotation file, class frequencies are of other classes ...
    """
    train, statistics = load_training(config)
    paths = data_paths(config, ("train", "val"))
    with user_input():
        val = _load(config, paths, "val") if paths["val_annotations"] else None
    if val is not None:
        check_categories(Classes.of(statistics), val.categories, where=val.raw)
    return Data(train, val, statistics)


def load_training(config: ConfigDict) -> tuple[Annotations, ClassStatistics]:
    """Reads the training sets of `config` alone: one, or with data.extra_sets a mixed one. Raises as `load_data`.

    The frequencies are those of the main set, which evaluation and EQL's tail go by.
    """
    with user_input():
        train = _load(config, data_paths(config, ("train",)), "train")
        statistics = class_statistics(train, config.data.frequencies)
        train = with_extra_sets(config, train)
    _check_groups(config, len(statistics.names))
    return train, statistics


def load_validation(config: ConfigDict, classes: Classes) -> Annotations:
    """Reads the validation set of `config` for a model of `classes`. Raises as `load_data`."""
    with user_input():
        val = _load(config, data_paths(config, ("val",)), "val")
    check_categories(classes, val.categories, where=val.raw)
    _check_groups(config, len(classes))
    return val


def _check_groups(config: ConfigDict, num_classes: int) -> None:
    if config.eval.image_count_groups > num_classes:
        raise ConfigError(
            f"config.eval.image_count_groups is {config.eval.image_count_groups}; expected at most {num_classes}, the "
            "number of classes"
        )


def _load(config: ConfigDict, paths: Mapping[str, str], split: str) -> Annotations:
    where, images = paths[f"{split}_annotations"], paths[f"{split}_images"]
    if not where:
        raise ConfigError(
            f"config.data.{split}_annotations is empty; expected the path of an LVIS or COCO instance JSON, a folder "
            "of prepared records or tfds:lvis/SPLIT"
        )
    if not images and needs_images(where):
        raise ConfigError(f"config.data.{split}_images is empty; expected the folder of the images of {where}")
    try:
        annotations = open_annotations(where, images, strict=config.data.strict, masks=config.model.with_mask)
    except FileNotFoundError as e:
        raise ConfigError(
            f"{e}; config.data.{split}_annotations is {where!r}, config.data.{split}_images {images!r}, and relative "
            f"paths start at {Path.cwd()}"
        ) from e
    summary = annotations.report.summary()
    LOG.info("%s: %d images, %d classes", annotations.raw, len(annotations.images), annotations.num_classes)
    if summary:
        LOG.warning("%s", summary)
    return annotations
