"""Reads LVIS v0.5, LVIS v1 and COCO instance JSON into records, validated.

Classes are 0..K-1 in order of category id (ids may have gaps). Boxes are float32 XYXY in absolute pixels of the image
file, without the +1 of older code.

    annotations = load_annotations("lvis_v1_val.json", "coco/", strict=False)
    print(annotations.report.summary())
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eql_jax.data.image_paths import ImageFinder
from eql_jax.data.json_file import read_annotation_json
from eql_jax.data.polygons import parse_run_lengths
from eql_jax.data.records import (
    Annotations,
    Category,
    ImageRecord,
    ObjectRecord,
    frequency_letter,
    pack_objects,
)
from eql_jax.data.segmentations import Segmentation
from eql_jax.data.validation import AnnotationError, FaultReport

# Boxes of LVIS are rounded to hundredths: those that leave the image by up to this many pixels are clipped silently.
_BORDER_TOLERANCE = 1.0


def load_annotations(
    path: str | Path,
    images_dir: str | Path,
    *,
    strict: bool = False,
    check_files: bool = True,
    require_annotations: bool = True,
) -> Annotations:
    """Reads and validates an annotation file.

    Args:
      path: LVIS v0.5, LVIS v1 or COCO instance JSON.
      images_dir: folder of the images. A file is looked up by the last two parts of coco_url (split and name, so LVIS
        validation images stored in train2017 are found), then its bare name, file_name, and the id as %012d.jpg.
      strict: the first faulty record raises; else faulty records are counted in `report` and skipped.
      check_files: leave out images whose file is not found (only names are looked up: what a file holds is seen when it
        is decoded, or by `eql_jax.data.images.verify_images`). False keeps them with the path that was tried first.
      require_annotations: False also takes files that list images only, such as LVIS test sets (image_info).

    Returns:
      `Annotations`.

    Raises:
      FileNotFoundError: the file or the image folder does not exist.
      AnnotationError: the file is no annotation file, has no images or categories, none of its images is found, or, in
        strict mode, a record is faulty.
    """
    path = Path(path)
    report = FaultReport(strict=strict)
    content = read_annotation_json(path)
    listed = {key: _list_of_records(content, key, path) for key in ("images", "categories")}
    for key, records in listed.items():
        if not records:
            raise AnnotationError(f"{path} has no {key} (an empty list or no key {key!r}): nothing to do with it")
    if require_annotations and "annotations" not in content:
        raise AnnotationError(
            f"{path} has no key 'annotations' (keys: {sorted(content)}). Files that only list images can be predicted "
            "on (eql_jax.predict --image_info), not trained on or evaluated"
        )
    annotated = _list_of_records(content, "annotations", path)
    del content

    categories = _read_categories(listed["categories"], path, report)
    if not categories:
        raise AnnotationError(f"{path} has no usable category\n{report.summary()}")
    class_of = {category["id"]: index for index, category in enumerate(categories)}
    images = _read_images(listed["images"], path, report)
    objects = _read_objects(annotated, images, class_of, path, report)
    records = _build_records(images, objects, class_of, Path(images_dir), path, report, check_files=check_files)
    return Annotations(
        categories=_finish_categories(categories, objects),
        class_ids=np.array([category["id"] for category in categories], np.int64),
        images=records,
        report=report,
        raw=path,
    )


def _list_of_records(content: dict, key: str, path: Path) -> list[dict]:
    records = content.get(key, [])
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise AnnotationError(f"{path}: {key!r} must be a list of objects, found {str(records)[:60]!r}")
    return records


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _read_categories(listed: list[dict], path: Path, report: FaultReport) -> list[dict]:
    """Returns the usable category records by rising id."""
    by_id: dict[int, dict] = {}
    for record in listed:
        identity = record.get("id")
        if not _is_id(identity) or not isinstance(record.get("name"), str):
            message = f"found id {identity!r} and name {record.get('name')!r}, expected an integer and a text"
            report.add("bad category", file=path, record_id=identity, message=message)
        elif identity in by_id:
            message = f"names {by_id[identity]['name']!r} and {record['name']!r}"
            report.add("duplicate category id", file=path, record_id=identity, message=message)
        else:
            by_id[identity] = record
    return [by_id[identity] for identity in sorted(by_id)]


def _read_images(listed: list[dict], path: Path, report: FaultReport) -> dict[int, dict]:
    """Returns the usable image records by id, in the order of the file."""
    by_id: dict[int, dict] = {}
    for record in listed:
        identity, sides = record.get("id"), (record.get("width"), record.get("height"))
        # Negative ids are taken: -1 marks the padding rows of a batch.
        if not _is_id(identity) or identity < 0 or not all(_is_id(side) and side > 0 for side in sides):
            message = f"found id {identity!r}, width and height {sides}, expected integers, id >= 0 and positive sides"
            report.add("bad image record", file=path, record_id=identity, message=message)
        elif identity in by_id:
            report.add("duplicate image id", file=path, record_id=identity, message="listed before")
        else:
            by_id[identity] = record
    if not by_id:
        raise AnnotationError(f"{path} has no usable image\n{report.summary()}")
    return by_id


def _read_objects(
    annotated: list[dict], images: dict[int, dict], class_of: dict[int, int], path: Path, report: FaultReport
) -> dict[int, list[ObjectRecord]]:
    """Returns the usable objects of each image id. Empties `annotated` on the way, to free what is packed."""
    objects: dict[int, list[ObjectRecord]] = {}
    seen: set[int] = set()
    annotated.reverse()
    while annotated:
        record = annotated.pop()
        identity = record.get("id")
        if not _is_id(identity):
            message = f"found id {identity!r}, expected an integer"
            report.add("bad annotation record", file=path, record_id=identity, message=message)
            continue
        if identity in seen:
            report.add("duplicate annotation id", file=path, record_id=identity, message="listed before")
            continue
        seen.add(identity)
        # A hostile or broken file may have a list here, which no dict can look up.
        image_id, category_id = (k if _is_id(k) else None for k in (record.get("image_id"), record.get("category_id")))
        if image_id not in images:
            message = f"image_id {record.get('image_id')!r} is not among the file's images"
            report.add("unknown image", file=path, record_id=identity, message=message)
        elif category_id not in class_of:
            message = f"category_id {record.get('category_id')!r} is not among the file's {len(class_of)} categories"
            report.add("unknown category", file=path, record_id=identity, message=message)
        else:
            image = images[image_id]
            parsed = _read_object(record, class_of[category_id], image["width"], image["height"], path, report)
            if parsed is not None:
                objects.setdefault(image_id, []).append(parsed)
    return objects


def _read_object(
    record: dict, class_index: int, width: int, height: int, path: Path, report: FaultReport
) -> ObjectRecord | None:
    """Returns the object, its box clipped to the image, or None when it cannot be used."""
    identity = record["id"]
    box = _read_box(record, width, height, path, report)
    if box is None:
        return None
    segmentation = _read_segmentation(record, width, height, path, report)
    if segmentation is None:
        return None
    area = record.get("area")
    if not isinstance(area, int | float) or not np.isfinite(area):
        area = (box[2] - box[0]) * (box[3] - box[1])
    ignore = bool(record.get("iscrowd")) or bool(record.get("ignore"))
    return ObjectRecord(identity, box, class_index, ignore, float(area), segmentation)


def _read_box(record: dict, width: int, height: int, path: Path, report: FaultReport) -> np.ndarray | None:
    """Returns the box clipped to the image, float32 XYXY, or None."""
    identity, found = record["id"], record.get("bbox")
    try:
        x, y, w, h = (float(number) for number in found)
    except (TypeError, ValueError):
        x = y = w = h = float("nan")
    if not (np.isfinite([x, y, w, h]).all() and w > 0 and h > 0):
        message = f"found bbox {found!r}, expected [x, y, width, height] with positive width and height"
        report.add("degenerate box", file=path, record_id=identity, message=message)
        return None
    excess = max(-x, -y, x + w - width, y + h - height)
    # In float32 from here on: a box must keep a positive side after rounding, too.
    box = np.array([max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)], np.float32)
    if not (box[2] > box[0] and box[3] > box[1]):
        message = f"bbox {found} does not touch its image of {width} x {height} (width x height)"
        report.add("box outside", file=path, record_id=identity, message=message)
        return None
    if excess > _BORDER_TOLERANCE:
        message = f"bbox {found} leaves its image of {width} x {height} by {excess:.2f} pixels"
        report.add("box partly outside", file=path, record_id=identity, message=message)
    return box


def _read_segmentation(record: dict, width: int, height: int, path: Path, report: FaultReport) -> Segmentation | None:
    """Returns polygons or run lengths, or None."""
    identity, found = record["id"], record.get("segmentation")
    if isinstance(found, dict):
        try:
            rle = parse_run_lengths(found)
            if (rle.height, rle.width) != (height, width):
                raise ValueError(f"mask of {rle.width} x {rle.height}, image of {width} x {height} (width x height)")
        except ValueError as error:
            report.add("bad mask", file=path, record_id=identity, message=str(error))
            return None
        return rle
    polygons = []
    for part in found if isinstance(found, list) else []:
        usable = isinstance(part, np.ndarray) and part.ndim == 1 and part.size >= 6 and part.size % 2 == 0
        if usable and np.isfinite(part).all():
            polygons.append(part.reshape(-1, 2))
        else:
            what = (
                f"{part.size} numbers, as {part.ravel()[:6].tolist()}"
                if isinstance(part, np.ndarray)
                else repr(part)[:60]
            )
            message = f"found {what}, expected finite x, y of at least three points"
            report.add("bad polygon", file=path, record_id=identity, message=message)
    if not polygons:
        message = f"found {'no' if found is None else type(found).__name__} segmentation without a usable polygon"
        report.add("empty segmentation", file=path, record_id=identity, message=message)
        return None
    return tuple(polygons)


def _build_records(
    images: dict[int, dict],
    objects: dict[int, list[ObjectRecord]],
    class_of: dict[int, int],
    images_dir: Path,
    path: Path,
    report: FaultReport,
    *,
    check_files: bool,
) -> list[ImageRecord]:
    finder = ImageFinder(images_dir, check_folder=check_files)
    records = []
    missing = []
    for image_id, image in images.items():
        found = finder.find(image)
        if found is None and check_files:
            missing.append(image_id)
            message = f"looked for {', '.join(str(c) for c in finder.candidates(image))} in {images_dir}"
            report.add("missing image", file=path, record_id=image_id, message=message)
            continue
        lists = (
            _class_list(image, key, class_of, path, report)
            for key in ("neg_category_ids", "not_exhaustive_category_ids")
        )
        records.append(
            ImageRecord(
                image_id,
                found or images_dir / finder.candidates(image)[0],
                image["width"],
                image["height"],
                *lists,
                pack_objects(objects.get(image_id, [])),
            )
        )
    if not records:
        raise AnnotationError(
            f"none of the {len(missing)} images of {path} is in {images_dir}: is it the right folder?\n"
            f"{report.summary()}"
        )
    return records


def _class_list(image: dict, key: str, class_of: dict[int, int], path: Path, report: FaultReport) -> np.ndarray:
    """Returns a list of category ids of an image as classes, int32."""
    classes = []
    listed = image.get(key) or []
    for category_id in listed if isinstance(listed, list) else [listed]:
        if _is_id(category_id) and category_id in class_of:
            classes.append(class_of[category_id])
        else:
            message = f"{key} of this image names category {category_id!r}, which the file does not define"
            report.add("unknown category", file=path, record_id=image["id"], message=message)
    return np.array(classes, np.int32)


def _finish_categories(listed: list[dict], objects: dict[int, list[ObjectRecord]]) -> list[Category]:
    """Adds counts and letters where the file has none."""
    image_counts = np.zeros(len(listed), np.int64)
    instance_counts = np.zeros(len(listed), np.int64)
    for of_image in objects.values():
        classes = np.array([o.class_index for o in of_image])
        image_counts[np.unique(classes)] += 1
        np.add.at(instance_counts, classes, 1)
    categories = []
    for index, record in enumerate(listed):
        counts = [record.get("image_count"), record.get("instance_count")]
        own = [int(image_counts[index]), int(instance_counts[index])]
        image_count, instance_count = (c if _is_id(c) and c >= 0 else o for c, o in zip(counts, own, strict=True))
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
