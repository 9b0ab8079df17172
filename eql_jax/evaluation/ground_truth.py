"""The ground truth of an evaluation: any LVIS or COCO instance JSON as a data set that the official LVIS code takes.

A file that has no faults reaches the official code unchanged in everything it looks at, so its numbers are the official
ones. Beyond that:

* COCO files say nothing of which classes were looked for, because all were: every class counts as verified in every
  image. Crowd regions leave the ground truth and are handed over apart (`crowds`), because the LVIS rules know none.
* Faulty records are left out and counted in `notes`: they would crash the official code or, worse, would not.
* Where the file says which classes were looked for, those of a crowd region were, too.
* Annotations are numbered anew from 1: the official code takes a match with id 0 for no match.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eql_jax.data.polygons import parse_run_lengths, to_rle

LETTERS = ("r", "c", "f")  # rare, common, frequent: the order of the official package
_MAX_NAMED = 5  # ids that a note names of each kind of fault


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """What detections are measured against.

    Attributes:
      dataset: LVIS JSON with the keys that the official code reads: images, annotations, categories. The segmentation
        of an annotation is None where the file has no usable one.
      letters: 'r', 'c', 'f', or '' where unknown, by category id, for every category in ascending order of id.
      crowds: crowd annotations by (image id, category id).
      federated: whether the file says which classes were looked for in which image; else all were in all.
      notes: one sentence for each kind of fault found.
    """

    dataset: dict[str, Any]
    letters: dict[int, str]
    crowds: dict[tuple[int, int], list[dict[str, Any]]]
    federated: bool
    notes: tuple[str, ...]

    def for_masks(self) -> GroundTruth:
        """The same without the annotations that have no usable segmentation."""
        kept = [a for a in self.dataset["annotations"] if a["segmentation"] is not None]
        crowds = {key: [a for a in regions if a["segmentation"] is not None] for key, regions in self.crowds.items()}
        return dataclasses.replace(
            self,
            dataset={**self.dataset, "annotations": kept},
            crowds={key: regions for key, regions in crowds.items() if regions},
        )


class _Faults:
    """Counts faults by kind and remembers the first few ids of each."""

    def __init__(self) -> None:
        self._ids: dict[str, list[Any]] = collections.defaultdict(list)

    def add(self, kind: str, record_id: Any) -> None:
        self._ids[kind].append(record_id)

    def notes(self) -> tuple[str, ...]:
        notes = []
        for kind, ids in self._ids.items():
            named = ", ".join(map(repr, ids[:_MAX_NAMED])) + (", ..." if len(ids) > _MAX_NAMED else "")
            notes.append(f"{len(ids)} {kind}: {named}")
        return tuple(notes)


def _check_lists(dataset: Any, source: str) -> None:
    if not isinstance(dataset, Mapping):
        raise ValueError(f"{source}: expected an LVIS or COCO JSON object, found a {type(dataset).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(dataset.get(key), list):
            found = f"keys {sorted(dataset)}" if key not in dataset else f"a {type(dataset[key]).__name__} there"
            hint = "; a file without annotations (a test set) cannot be evaluated here" if key == "annotations" else ""
            raise ValueError(f"{source}: expected a list under '{key}', found {found}{hint}")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(values: Any, *, count: int | None = None) -> bool:
    """Whether `values` is a list of finite numbers (and of this length)."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iuf":
        return (count is None or len(values) == count) and bool(np.isfinite(values).all())
    try:
        return (count is None or len(values) == count) and all(map(math.isfinite, values))
    except TypeError:
        return False


def _usable_segmentation(segmentation: Any, image: Mapping[str, Any]) -> Any:
    """The segmentation without its faulty parts, or None where nothing is left.

    A polygon needs three points; pycocotools would take one of two points for a box.
    """
    if isinstance(segmentation, list):
        parts = [p for p in segmentation if _numbers(p) and len(p) >= 6 and len(p) % 2 == 0]
        return parts or None
    if isinstance(segmentation, dict):
        try:
            rle = parse_run_lengths(segmentation)  # pycocotools reads beyond its memory for some faulty ones
        except ValueError:
            return None
        return segmentation if (rle.height, rle.width) == (image["height"], image["width"]) else None
    return None


def _clean_images(dataset: Mapping[str, Any], faults: _Faults) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for record in dataset["images"]:
        image_id = _record_id(record)
        if not _is_id(image_id):
            faults.add("images without a usable id, left out", image_id)
        elif image_id in images:
            faults.add("images with an id that was there before, left out", image_id)
        elif not (_numbers([record.get("height"), record.get("width")]) and min(record["height"], record["width"]) > 0):
            faults.add("images without height and width, left out", image_id)
        else:
            images[image_id] = record
    return images


def _record_id(record: Any) -> Any:
    return record.get("id") if isinstance(record, dict) else None


def _clean_annotation(
    record: dict[str, Any], images: Mapping[int, Any], categories: Mapping[int, Any], *, masks: bool, faults: _Faults
) -> dict[str, Any] | None:
    """One annotation with all keys that the official code reads, or None where it cannot be used."""
    record_id = record.get("id")
    if not _is_id(record.get("category_id")) or record["category_id"] not in categories:
        faults.add("annotations of an unknown category, left out", record_id)
        return None
    segmentation = _usable_segmentation(record.get("segmentation"), images[record["image_id"]])
    if segmentation is None and masks:
        faults.add("annotations without a usable segmentation, left out of the mask evaluation", record_id)
    box, area = record.get("bbox"), record.get("area")
    if not _numbers(box, count=4) or not _numbers([area]):
        measured = _measure(segmentation, images[record["image_id"]])
        if not _numbers(box, count=4):
            if measured is None:
                faults.add("annotations without a usable box, left out", record_id)
                return None
            faults.add("annotations without a usable box, which was taken from their mask", record_id)
            box = measured["bbox"]
        if not _numbers([area]):
            faults.add("annotations without a usable area, which was taken from their mask or box", record_id)
            area = box[2] * box[3] if measured is None else measured["area"]
    clean = {"image_id": record["image_id"], "category_id": record["category_id"], "bbox": box, "area": area}
    clean["segmentation"] = segmentation
    clean["ignore"] = int(bool(record.get("ignore", 0)))
    clean["iscrowd"] = int(bool(record.get("iscrowd", 0)))
    return clean


def _measure(segmentation: Any, image: Mapping[str, Any]) -> dict[str, Any] | None:
    from pycocotools import mask as mask_utils

    if segmentation is None:
        return None
    rle = to_rle(segmentation, height=image["height"], width=image["width"])
    return {"bbox": mask_utils.toBbox(rle).tolist(), "area": float(mask_utils.area(rle))}


def _clean_letters(
    categories: Mapping[int, Any], letters: Mapping[int, str], fallback_letters: Mapping[int, str]
) -> dict[int, str]:
    for category_id, letter in (*letters.items(), *fallback_letters.items()):
        if letter not in (*LETTERS, ""):
            raise ValueError(f"letters: category {category_id} has {letter!r}; expected one of {LETTERS}, or ''")
    found = {}
    for category_id in sorted(categories):
        letter = letters.get(category_id, categories[category_id]["frequency"])
        found[category_id] = letter if letter in LETTERS else fallback_letters.get(category_id, "")
    return found


def prepare_ground_truth(
    dataset: Mapping[str, Any],
    *,
    image_ids: Iterable[int] | None = None,
    letters: Mapping[int, str] | None = None,
    fallback_letters: Mapping[int, str] | None = None,
    masks: bool = True,
    source: str = "annotations",
) -> GroundTruth:
    """Makes the ground truth from an LVIS or COCO instance JSON.

    Args:
      dataset: the JSON's contents (`eql_jax.data.json_file.read_annotation_json`); it is not changed.
      image_ids: evaluate these images only; None: all.
      letters: frequency letters by category id, in place of the file's.
      fallback_letters: the same, for categories that have no letter in the file (COCO has none). Classes without any
        letter count for the means over all classes, and for none of APr, APc and APf.
      masks: whether masks are evaluated; a note then says which annotations have no usable one (see `for_masks`).
      source: what messages call the data set: the path of its file.

    Raises:
      ValueError: a list is missing, there is no usable image or category, no image at all or an image id that the file
        lacks is asked for, or a letter is none of r, c, f.
    """
    _check_lists(dataset, source)
    faults = _Faults()
    categories: dict[int, dict[str, Any]] = {}
    for record in dataset["categories"]:
        category_id = _record_id(record)
        if not _is_id(category_id) or category_id in categories:
            faults.add("categories without an id of their own, left out", category_id)
        else:
            categories[category_id] = {"id": category_id, "name": str(record.get("name", category_id))}
            categories[category_id]["frequency"] = record.get("frequency")
    images = _clean_images(dataset, faults)
    if not images or not categories:
        raise ValueError(f"{source}: found {len(images)} usable images and {len(categories)} categories; need one each")
    all_images = images
    if image_ids is not None:
        images = _select_images(images, image_ids, source)

    # LVIS says which classes were verified in which image; in COCO all were in all.
    federated = any("neg_category_ids" in image for image in images.values())
    crowds: dict[tuple[int, int], list[dict[str, Any]]] = collections.defaultdict(list)
    kept = []
    seen: set[Any] = set()
    for record in dataset["annotations"]:
        if not isinstance(record, dict) or not _is_id(record.get("image_id")) or record["image_id"] not in all_images:
            faults.add("annotations of an image that is not there, left out", _record_id(record))
            continue
        if record["image_id"] not in images:
            continue  # of an image that is not evaluated
        if _is_id(record.get("id")):
            if record["id"] in seen:
                faults.add("annotations with an id that was there before, left out", record["id"])
                continue
            seen.add(record["id"])
        annotation = _clean_annotation(record, images, categories, masks=masks, faults=faults)
        if annotation is None:
            continue
        if annotation["iscrowd"]:
            crowds[annotation["image_id"], annotation["category_id"]].append(annotation)
            continue
        annotation["id"] = len(kept) + 1
        kept.append(annotation)

    all_classes = frozenset(categories)
    # Not in the way of an object of the class: the list says what was looked for, and what is there is found.
    of_crowds: dict[int, set[int]] = collections.defaultdict(set)
    for image_id, category_id in crowds:
        of_crowds[image_id].add(category_id)
    clean_images = [
        {
            "id": image_id,
            "height": int(image["height"]),
            "width": int(image["width"]),
            "neg_category_ids": _id_set(image.get("neg_category_ids")) | of_crowds[image_id]
            if federated
            else all_classes,
            "not_exhaustive_category_ids": _id_set(image.get("not_exhaustive_category_ids")),
        }
        for image_id, image in images.items()
    ]
    return GroundTruth(
        dataset={"images": clean_images, "annotations": kept, "categories": list(categories.values())},
        letters=_clean_letters(categories, letters or {}, fallback_letters or {}),
        crowds=dict(crowds),
        federated=federated,
        notes=faults.notes(),
    )


def _select_images(images: dict[int, Any], image_ids: Iterable[int], source: str) -> dict[int, Any]:
    wanted = {int(image_id) for image_id in image_ids}
    if not wanted:
        raise ValueError(f"{source}: image_ids is empty; name at least one image to evaluate, or pass None for all")
    unknown = sorted(wanted - images.keys())
    if unknown:
        raise ValueError(f"{source}: asked to evaluate {len(unknown)} images that it lacks, among them {unknown[:5]}")
    return {image_id: image for image_id, image in images.items() if image_id in wanted}


def _id_set(ids: Sequence[int] | None) -> frozenset[int]:
    return frozenset(i for i in ids if _is_id(i)) if isinstance(ids, list) else frozenset()
