"""Reads LVIS v0.5, LVIS v1 and COCO instance JSON into records, validated.

Classes are 0..K-1 in order of category id (ids may have gaps). Boxes are float32 XYXY in absolute pixels of the image
file, without the +1 of older code. Images and annotations are kept packed: a record is made when it is asked for.

    annotations = load_annotations("lvis_v1_val.json", "coco/", strict=False)
    print(annotations.report.summary())
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import numpy as np

from eql_jax.data.files import FilePath, as_path
from eql_jax.data.image_paths import ImageFinder
from eql_jax.data.json_file import stream_json
from eql_jax.data.object_checks import is_id
from eql_jax.data.object_columns import ObjectColumns, ObjectTable
from eql_jax.data.records import Annotations, Category, ImageIndex, ImageRecord, LazyImages, frequency_letter
from eql_jax.data.validation import AnnotationError, FaultReport, NoMasks

# What to do about a data set without masks where masks are asked for.
BOXES_ONLY = (
    "For a model without masks set config.model.with_mask=False (prepare: --no-masks); a model with masks needs a data "
    "set that has them"
)

# What is read of an image.
_IMAGE_KEYS = frozenset(
    ("id", "width", "height", "coco_url", "file_name", "neg_category_ids", "not_exhaustive_category_ids")
)


def load_annotations(
    path: str | os.PathLike,
    images_dir: str | os.PathLike,
    *,
    strict: bool = False,
    check_files: bool = True,
    require_annotations: bool = True,
    masks: bool = True,
) -> Annotations:
    """Reads and validates an annotation file.

    Args:
      path: LVIS v0.5, LVIS v1 or COCO instance JSON.
      images_dir: folder of the images. A file is looked up by the last two parts of coco_url (split and name, so LVIS
        validation images stored in train2017 are found), then its bare name, file_name, and the id as %012d.jpg.
      strict: the first faulty record raises; else faulty records are counted in `report` and skipped.
      check_files: leave out images whose file is not found (only names are looked up: what a file holds is seen when it
        is decoded, or by `eql_jax.data.prepare`). False keeps them with the path that was tried first.
      require_annotations: False also takes files that list images only, such as LVIS test sets (image_info).
      masks: False: 'segmentation' is neither asked for nor read; objects have no masks, and areas are those stated or
        else the boxes'.

    Returns:
      `Annotations`.

    Raises:
      FileNotFoundError: the file or the image folder does not exist.
      AnnotationError: the file is no annotation file, has no images or categories, none of its objects has a mask where
        masks are asked for (`NoMasks`), none of its images is found, or, in strict mode, a record is faulty.
    """
    path, images_dir = as_path(path), as_path(images_dir)
    report = FaultReport(strict=strict)
    content = read_content(path, report, require_annotations=require_annotations, masks=masks)
    records = find_files(content, images_dir, report, check_files=check_files)
    return Annotations(
        categories=content.categories,
        class_ids=np.array([category.id for category in content.categories], np.int64),
        images=JsonImages(content.objects, records),
        report=report,
        raw=path,
    )


class Content(NamedTuple):
    """What an annotation file says, validated, before its image files are looked for.

    Attributes:
      path: of the file.
      categories: list of K, by category id.
      class_of: category id -> class.
      images: the usable image records of the JSON, in the order of the file.
      objects: those of each of these images.
    """

    path: FilePath
    categories: list[Category]
    class_of: dict[int, int]
    images: list[dict]
    objects: ObjectTable


def read_content(
    path: FilePath, report: FaultReport, *, require_annotations: bool = True, masks: bool = True
) -> Content:
    """Reads and validates an annotation file, all but its images' files; see `load_annotations`."""
    columns = ObjectColumns(path, masks=masks)
    listed: dict[str, list[dict]] = {"images": [], "categories": []}

    def take_image(record: Any) -> None:
        if isinstance(record, dict):
            record = {key: value for key, value in record.items() if key in _IMAGE_KEYS}
        listed["images"].append(record)

    rest = stream_json(
        path, {"annotations": columns.append, "images": take_image, "categories": listed["categories"].append}
    )
    for key, records in listed.items():
        _check_list(rest.get(key, []), records, key, path)
        if not records:
            raise AnnotationError(f"{path} has no {key} (an empty list or no key {key!r}): nothing to do with it")
    if require_annotations and "annotations" not in rest:
        raise AnnotationError(
            f"{path} has no key 'annotations' (keys: {sorted(rest)}). Files that only list images can be predicted "
            "on (eql_jax.predict --image_info), not trained on or evaluated"
        )
    _check_list(rest.get("annotations", []), [], "annotations", path)
    if masks and columns.lacks_masks:
        raise NoMasks(f"{path} has boxes only: no annotation of it has a 'segmentation'. {BOXES_ONLY}")

    categories = _read_categories(listed["categories"], path, report)
    if not categories:
        raise AnnotationError(f"{path} has no usable category\n{report.summary()}")
    class_of = {category["id"]: index for index, category in enumerate(categories)}
    images = list(_read_images(listed["images"], path, report).values())
    objects = columns.resolve(
        *([image[key] for image in images] for key in ("id", "width", "height")), class_of, report
    )
    return Content(path, _finish_categories(categories, objects), class_of, images, objects)


def _check_list(value: Any, elements: list[Any], key: str, path: FilePath) -> None:
    """Raises AnnotationError where `value` (under a top-level key) is no list, or one of its elements no object."""
    wrong = [element for element in elements if not isinstance(element, dict)]
    if not isinstance(value, list) or wrong:
        found = wrong[0] if wrong else value
        raise AnnotationError(f"{path}: {key!r} must be a list of objects, found {str(found)[:60]!r}")


def _read_categories(listed: list[dict], path: FilePath, report: FaultReport) -> list[dict]:
    """Returns the usable category records by rising id."""
    by_id: dict[int, dict] = {}
    for record in listed:
        identity = record.get("id")
        if not is_id(identity) or not isinstance(record.get("name"), str):
            message = f"found id {identity!r} and name {record.get('name')!r}, expected an integer and a text"
            report.add("bad category", file=path, record_id=identity, message=message)
        elif identity in by_id:
            message = f"names {by_id[identity]['name']!r} and {record['name']!r}"
            report.add("duplicate category id", file=path, record_id=identity, message=message)
        else:
            by_id[identity] = record
    return [by_id[identity] for identity in sorted(by_id)]


def _read_images(listed: list[dict], path: FilePath, report: FaultReport) -> dict[int, dict]:
    """Returns the usable image records by id, in the order of the file."""
    by_id: dict[int, dict] = {}
    for record in listed:
        identity, sides = record.get("id"), (record.get("width"), record.get("height"))
        # Negative ids are taken: -1 marks the padding rows of a batch.
        if not is_id(identity) or identity < 0 or not all(is_id(side) and 0 < side < 2**31 for side in sides):
            message = f"found id {identity!r}, width and height {sides}, expected integers, id >= 0 and positive sides"
            report.add("bad image record", file=path, record_id=identity, message=message)
        elif identity in by_id:
            report.add("duplicate image id", file=path, record_id=identity, message="listed before")
        else:
            by_id[identity] = record
    if not by_id:
        raise AnnotationError(f"{path} has no usable image\n{report.summary()}")
    return by_id


class FoundImages(NamedTuple):
    """The images whose files are there.

    Attributes:
      folder: the image folder.
      positions: int64 [N], which of the usable images of the JSON.
      ids: int64 [N].
      widths, heights: int32 [N].
      names: N paths of the files below the folder.
      neg_classes, not_exhaustive_classes: N arrays each, int32.
    """

    folder: FilePath
    positions: np.ndarray
    ids: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    names: list[str]
    neg_classes: list[np.ndarray]
    not_exhaustive_classes: list[np.ndarray]

    def select(self, chosen: np.ndarray) -> FoundImages:
        """Some of them, by their position here."""
        arrays = {key: getattr(self, key)[chosen] for key in ("positions", "ids", "widths", "heights")}
        keys = ("names", "neg_classes", "not_exhaustive_classes")
        return self._replace(**arrays, **{key: [getattr(self, key)[i] for i in chosen] for key in keys})


class JsonImages(LazyImages):
    """The records of an annotation file, each made when it is asked for. Safe from any thread."""

    def __init__(self, objects: ObjectTable, found: FoundImages):
        self._objects = objects
        self._found = found

    def read(self, i: int) -> ImageRecord:
        f = self._found
        return ImageRecord(
            id=int(f.ids[i]),
            path=f.folder / f.names[i],
            width=int(f.widths[i]),
            height=int(f.heights[i]),
            neg_classes=f.neg_classes[i],
            not_exhaustive_classes=f.not_exhaustive_classes[i],
            objects=self._objects.objects(int(f.positions[i])),
        )

    @functools.cached_property
    def image_index(self) -> ImageIndex:
        """What `Annotations.index` is."""
        o, f = self._objects, self._found
        everything = ImageIndex(
            np.zeros(o.offsets.size - 1), *[np.zeros(o.offsets.size - 1)] * 2, o.offsets, o.classes, o.ignore
        )
        return everything.select(f.positions)._replace(ids=f.ids, heights=f.heights, widths=f.widths)


def find_files(content: Content, images_dir: FilePath, report: FaultReport, *, check_files: bool = True) -> FoundImages:
    """Looks for the images' files; see `load_annotations`. Raises AnnotationError where there is none at all."""
    finder = ImageFinder(images_dir, check_folder=check_files)
    path, class_of = content.path, content.class_of
    positions, names = [], []
    lists: tuple[list, list] = [], []
    missing = 0
    for position, image in enumerate(content.images):
        name = finder.find(image)
        if name is None and check_files:
            missing += 1
            report.add("missing image", file=path, record_id=image["id"], message=finder.where_looked(image))
            continue
        positions.append(position)
        names.append(str(name or finder.candidates(image)[0]))
        for classes, key in zip(lists, ("neg_category_ids", "not_exhaustive_category_ids"), strict=True):
            classes.append(_class_list(image, key, class_of, path, report))
    if not names:
        raise AnnotationError(
            f"none of the {missing} images of {path} is in {images_dir}: is it the right folder?\n{report.summary()}"
        )
    kept = [content.images[position] for position in positions]
    return FoundImages(
        folder=images_dir,
        positions=np.array(positions, np.int64),
        ids=np.array([image["id"] for image in kept], np.int64),
        widths=np.array([image["width"] for image in kept], np.int32),
        heights=np.array([image["height"] for image in kept], np.int32),
        names=names,
        neg_classes=lists[0],
        not_exhaustive_classes=lists[1],
    )


def _class_list(image: dict, key: str, class_of: dict[int, int], path: FilePath, report: FaultReport) -> np.ndarray:
    """Returns a list of category ids of an image as classes, int32."""
    classes = []
    listed = image.get(key) or []
    for category_id in listed if isinstance(listed, list) else [listed]:
        if is_id(category_id) and category_id in class_of:
            classes.append(class_of[category_id])
        else:
            message = f"{key} of this image names category {category_id!r}, which the file does not define"
            report.add("unknown category", file=path, record_id=image["id"], message=message)
    return np.array(classes, np.int32)


def _finish_categories(listed: list[dict], objects: ObjectTable) -> list[Category]:
    """Adds counts and letters where the file has none."""
    image_of = np.repeat(np.arange(objects.offsets.size - 1), np.diff(objects.offsets))
    pairs = np.unique(image_of * len(listed) + objects.classes)  # each class once an image
    image_counts = np.bincount(pairs % len(listed), minlength=len(listed))
    instance_counts = np.bincount(objects.classes, minlength=len(listed))
    categories = []
    for index, record in enumerate(listed):
        counts = [record.get("image_count"), record.get("instance_count")]
        own = [int(image_counts[index]), int(instance_counts[index])]
        image_count, instance_count = (c if is_id(c) and c >= 0 else o for c, o in zip(counts, own, strict=True))
        letter = record.get("frequency")
        categories.append(
            Category(
                id=record["id"],
                name=record["name"],
                synset=record["synset"] if isinstance(record.get("synset"), str) else "",
                frequency=letter if letter in ("r", "c", "f") else frequency_letter(image_count),
                image_count=image_count,
                instance_count=instance_count,
            )
        )
    return categories
