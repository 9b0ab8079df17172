"""What is known of images, objects and categories, as records.

K classes, G objects of an image, P points of a polygon. Classes are 0..K-1 in order of category id (ids may have gaps).
Boxes are float32 XYXY in absolute pixels of the image file, without the +1 of older code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eql_jax.data.polygons import RunLengths
from eql_jax.data.validation import FaultReport

# An image count up to the first is rare, up to the second common, above it frequent (LVIS).
RARE_MAX_IMAGES = 10
COMMON_MAX_IMAGES = 100

Segmentation = tuple[np.ndarray, ...] | RunLengths


class Category(NamedTuple):
    """A category of the file. `frequency` is 'r', 'c' or 'f'.

    The counts are those the file states, or where it states none, those of the file's own annotations. Only a complete
    training file has training counts: see `eql_jax.data.categories`.
    """

    id: int
    name: str
    synset: str
    frequency: str
    image_count: int
    instance_count: int


class ObjectRecord(NamedTuple):
    """One object. `ignore`: a crowd or ignore region, no positive, and what lies in it is no negative."""

    id: int
    box: np.ndarray
    class_index: int
    ignore: bool
    area: float
    segmentation: Segmentation


class Objects(NamedTuple):
    """The objects of an image, as arrays. `objects.size` counts them, `objects.record(i)` is one of them.

    Attributes:
      ids: int64 [G] annotation ids.
      boxes: float32 [G, 4] XYXY, inside the image, with positive width and height.
      classes: int32 [G] in 0..K-1.
      ignore: bool [G].
      areas: float32 [G] the file's area (that of the polygons, in LVIS), pixels.
      segmentations: list of G, each a tuple of polygons float32 [P, 2] or `RunLengths`.
    """

    ids: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray
    segmentations: list[Segmentation]

    @property
    def size(self) -> int:
        """G."""
        return len(self.segmentations)

    def record(self, i: int) -> ObjectRecord:
        """Returns object i."""
        return ObjectRecord(
            id=int(self.ids[i]),
            box=self.boxes[i],
            class_index=int(self.classes[i]),
            ignore=bool(self.ignore[i]),
            area=float(self.areas[i]),
            segmentation=self.segmentations[i],
        )

    def records(self) -> Iterator[ObjectRecord]:
        """Yields the objects one by one."""
        return (self.record(i) for i in range(self.size))


class ImageRecord(NamedTuple):
    """An image and what is known of it.

    Attributes:
      id: the file's image id.
      path: where the image file is.
      width, height: as the JSON states them; 0 for a plain path, until `pipeline.EvalBatches` has looked into the file.
      neg_classes: int32, classes verified absent (LVIS neg_category_ids).
      not_exhaustive_classes: int32, classes of which not every object is annotated.
      objects: see `Objects`.
    """

    id: int
    path: Path
    width: int
    height: int
    neg_classes: np.ndarray
    not_exhaustive_classes: np.ndarray
    objects: Objects


class Annotations(NamedTuple):
    """A validated annotation file.

    Attributes:
      categories: list of K, by category id.
      class_ids: int64 [K] category id of each class.
      images: list of `ImageRecord`, in the order of the file; images whose file is missing are left out.
      report: the faults found, `report.summary()` is the text.
      raw: path of the JSON file, for the official evaluation.
    """

    categories: list[Category]
    class_ids: np.ndarray
    images: list[ImageRecord]
    report: FaultReport
    raw: Path

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.categories)


def frequency_letter(image_count: int) -> str:
    """'r' for up to 10 images, 'c' for 11 to 100, 'f' above (LVIS)."""
    return "r" if image_count <= RARE_MAX_IMAGES else "c" if image_count <= COMMON_MAX_IMAGES else "f"


def evenly_spaced(records: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    """`count` of the records at even distances, the first and the last among them; all where there are no more."""
    if count >= len(records):
        return list(records)
    return [records[i] for i in np.linspace(0, len(records) - 1, count).round().astype(int)]


def pack_objects(objects: Sequence[ObjectRecord]) -> Objects:
    """Returns the objects as arrays."""
    return Objects(
        ids=np.array([o.id for o in objects], np.int64),
        boxes=np.array([o.box for o in objects], np.float32).reshape(-1, 4),
        classes=np.array([o.class_index for o in objects], np.int32),
        ignore=np.array([o.ignore for o in objects], bool),
        areas=np.array([o.area for o in objects], np.float32),
        segmentations=[o.segmentation for o in objects],
    )


def empty_objects() -> Objects:
    """The objects of an image without any."""
    return pack_objects([])
