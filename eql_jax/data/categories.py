"""How often each class occurs in training: what EQL's tail, the letters and the balanced losses go by.

K classes, in order of category id.

The `image_count` of an annotation file counts that file. A validation file's counts, or those of a filtered file, are
not training frequencies: with LVIS validation data at hand, take 'lvis_v1' or 'lvis_v0.5', LVIS's own training counts,
which ship with this package.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import NamedTuple

import numpy as np

from eql_jax.data.files import as_path
from eql_jax.data.json_file import read_annotation_json
from eql_jax.data.records import Annotations, Category, frequency_letter
from eql_jax.data.validation import AnnotationError

# Training counts in the package, as config.data.frequencies names them.
PACKAGED_SOURCES = ("lvis_v1", "lvis_v0.5")

_SHOWN = 5  # mismatches an error lists


class ClassStatistics(NamedTuple):
    """Training frequencies of K classes.

    Attributes:
      names: tuple of K names.
      frequencies: tuple of K letters: 'r' rare, 'c' common, 'f' frequent.
      image_counts: int64 [K] training images that contain the class.
      instance_counts: int64 [K] training objects of the class.
      num_images: training images with at least one annotation, the denominator of frequencies (99388 in LVIS v1).
      category_ids: int64 [K].
    """

    names: tuple[str, ...]
    frequencies: tuple[str, ...]
    image_counts: np.ndarray
    instance_counts: np.ndarray
    num_images: int
    category_ids: np.ndarray


class _Counts(NamedTuple):
    """A file of counts: its categories by id, and its number of annotated images."""

    categories: dict[int, Category]
    num_images: int
    origin: str


def class_statistics(annotations: Annotations, source: str) -> ClassStatistics:
    """Returns the training frequencies of the classes of an annotation file.

    Args:
      annotations: says which classes there are. For 'train_annotations' it must be the training set itself.
      source: config.data.frequencies:
        'lvis_v1', 'lvis_v0.5': LVIS's training counts, shipped with the package;
        'train_annotations': counted here, over the usable objects of `annotations` (crowd regions aside); letters
        are the file's, or where it has none, by image count (up to 10 'r', up to 100 'c', else 'f');
        else the path of a JSON with such counts: an LVIS file whose categories have image_count and instance_count, or
        one in the form of the package's own.

    Raises:
      AnnotationError: a class is not in the source under the same id and synset (or name).
      FileNotFoundError: source is a path and there is no such file.
    """
    if source == "train_annotations":
        return _count(annotations)
    counts = _packaged(source) if source in PACKAGED_SOURCES else _from_file(source)
    found = []
    faults = []
    for category in annotations.categories:
        counted = counts.categories.get(category.id)
        if counted is None:
            faults.append(f"id {category.id}: {category.name!r} is not there")
        elif not _same(category, counted):
            faults.append(f"id {category.id}: {category.name!r} here, {counted.name!r} there")
        else:
            found.append(counted)
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise AnnotationError(
            f"the {len(annotations.categories)} categories of {annotations.raw} are not those of the class frequencies "
            f"{counts.origin} ({len(counts.categories)} categories): {'; '.join(faults[:_SHOWN])}{more}. Set "
            f"data.frequencies to one of {PACKAGED_SOURCES}, 'train_annotations' or the JSON of the training set"
        )
    own = [category.name for category in annotations.categories]
    return _statistics(own, found, counts.num_images, annotations.class_ids)


def packaged_statistics(source: str) -> ClassStatistics:
    """The training frequencies of all classes of LVIS; source: one of PACKAGED_SOURCES."""
    counts, found = _packaged(source), packaged_categories(source)
    ids = np.array([category.id for category in found], np.int64)
    return _statistics([category.name for category in found], found, counts.num_images, ids)


def packaged_categories(source: str) -> list[Category]:
    """All classes of LVIS by id, with their training counts; source: one of PACKAGED_SOURCES."""
    counts = _packaged(source).categories
    return [counts[identity] for identity in sorted(counts)]


def _statistics(
    names: list[str], counted: list[Category], num_images: int, category_ids: np.ndarray
) -> ClassStatistics:
    return ClassStatistics(
        names=tuple(names),
        frequencies=tuple(category.frequency for category in counted),
        image_counts=np.array([category.image_count for category in counted], np.int64),
        instance_counts=np.array([category.instance_count for category in counted], np.int64),
        num_images=num_images,
        category_ids=category_ids,
    )


def _same(a: Category, b: Category) -> bool:
    """The synset decides where both have one: LVIS has renamed classes, not their synsets."""
    return a.synset == b.synset if a.synset and b.synset else a.name == b.name


def _count(annotations: Annotations) -> ClassStatistics:
    index = annotations.index
    usable = index.select(np.arange(index.ids.size), usable_only=True)
    images, classes = usable.present_classes(annotations.num_classes)
    return ClassStatistics(
        names=tuple(category.name for category in annotations.categories),
        frequencies=tuple(category.frequency for category in annotations.categories),
        image_counts=np.bincount(classes, minlength=annotations.num_classes),
        instance_counts=np.bincount(usable.classes, minlength=annotations.num_classes),
        num_images=np.unique(images).size,
        category_ids=annotations.class_ids,
    )


def _packaged(source: str) -> _Counts:
    text = resources.files("eql_jax.data").joinpath(f"counts/{source}.json").read_text(encoding="utf-8")
    return _parse_table(json.loads(text), f"'{source}' of the package")


def _from_file(source: str) -> _Counts:
    path = as_path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"data.frequencies is {source!r}: neither one of {(*PACKAGED_SOURCES, 'train_annotations')} nor a file"
        )
    content = read_annotation_json(path)
    try:
        if "columns" in content:
            return _parse_table(content, str(path))
        categories = {
            record["id"]: Category(
                record["id"],
                record["name"],
                record.get("synset", ""),
                record.get("frequency") or frequency_letter(record["image_count"]),
                int(record["image_count"]),
                int(record["instance_count"]),
            )
            for record in content["categories"]
        }
        num_images = len({annotation["image_id"] for annotation in content["annotations"]})
    except (KeyError, TypeError, ValueError) as error:
        raise AnnotationError(
            f"{path} has no class counts ({type(error).__name__}: {error}): expected an LVIS file with annotations and "
            "categories with image_count and instance_count, or the form of eql_jax/data/counts/*.json"
        ) from error
    return _Counts(categories, num_images, str(path))


def _parse_table(content: dict, origin: str) -> _Counts:
    """Reads the package's form: 'columns', 'categories' as rows of them, 'train_images_denominator'."""
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["categories"]]
    categories = {row["id"]: Category(**row) for row in rows}
    return _Counts(categories, int(content["train_images_denominator"]), origin)
