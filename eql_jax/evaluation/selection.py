"""Which results count in an evaluation, as rows of the table that holds them all.

N results of a table; rows are int64, rising. The order of the table decides between equal scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eql_jax.evaluation.columns import NO_MASK, RUN_LENGTHS, ResultTable
from eql_jax.evaluation.ground_truth import GroundTruth


def select(
    table: ResultTable, ground_truth: GroundTruth, *, all_images: bool, iou_type: str
) -> tuple[np.ndarray, list[str]]:
    """The rows that an evaluation can use, and notes on those that it cannot.

    Args:
      table: all results.
      ground_truth: what they are measured against.
      all_images: whether an image that the ground truth lacks is a fault, or one that is not evaluated.
      iou_type: 'bbox' needs a box of every result, 'segm' and 'boundary' a mask.

    Raises:
      ValueError: an image is unknown, or a result lacks its box or mask; the message names the result by its number.
    """
    images = ground_truth.dataset["images"]
    masks = iou_type != "bbox"
    ids = np.array([image["id"] for image in images], np.int64)
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids, table.image_ids, sorter=order), len(ids) - 1)
    image = order[place]
    known = ids[image] == table.image_ids
    if all_images and not known.all():
        number = int(np.flatnonzero(~known)[0])
        raise ValueError(
            f"result {number}: image {table.image_ids[number]} is not among the {len(images)} annotated images; the "
            "results belong to another data set or split"
        )
    rows = np.flatnonzero(known)
    _check_shapes(table, rows, iou_type)
    notes = []
    other_sizes: list[int] = []
    if masks:
        sizes = np.array([[record["height"], record["width"]] for record in images], np.int64)
        same = (table.masks.sizes[rows] == sizes[image[rows]]).all(axis=1)
        other_sizes = np.unique(table.image_ids[rows[~same]]).tolist()
        rows = rows[same]
    other_classes = np.count_nonzero(~np.isin(table.category_ids[rows], list(ground_truth.letters)))
    if other_classes:
        notes.append(
            f"{other_classes} detections with a {'mask' if masks else 'box'} are of categories that the annotations do "
            "not have, and count only for the limit per image"
        )
    if other_sizes:
        notes.append(
            f"detections in {len(other_sizes)} images have masks of another size than the annotations say, and were "
            f"left out: {other_sizes[:5]}"
        )
    return rows, notes


def _check_shapes(table: ResultTable, rows: np.ndarray, iou_type: str) -> None:
    masks = iou_type != "bbox"
    if masks:
        faulty = rows[table.mask_kind[rows] != RUN_LENGTHS]
    else:
        faulty = rows[~table.has_box[rows]]
    if not len(faulty):
        return
    number = int(faulty[0])
    where = f"result {number} (image {table.image_ids[number]})"
    if masks and table.mask_kind[number] != NO_MASK:
        raise ValueError(
            f"{where}: expected run lengths with 'size' and 'counts' (a string) as its segmentation, found something "
            f"else, as in {len(faulty)} of {len(rows)} results"
        )
    raise ValueError(
        f"{where} has no '{'segmentation' if masks else 'bbox'}', so iou_type '{iou_type}' cannot be evaluated; "
        f"{len(faulty)} of {len(rows)} results have none"
    )


def best_of_each(groups: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Positions, rising, of the `count` highest scores of every group; of equal ones the first.

    Args:
      groups: int64 [N], image or category ids.
      scores: float64 [N].
      count: -1: all.
    """
    if count < 0:
        return np.arange(len(groups))
    order = np.lexsort((-scores, groups))  # stable
    in_order = groups[order]
    place = np.arange(len(order)) - np.searchsorted(in_order, in_order, side="left")
    return np.sort(order[place < count])


def result_dicts(table: ResultTable, rows: np.ndarray, *, masks: bool) -> list[dict[str, Any]]:
    """Results as the official code takes them, with the box or the mask and not both.

    With a box beside the mask, it would take the box's area for the mask's.

    Raises:
      ValueError: a mask is damaged, whether it will be compared with another or not; the message names the result by
        its number.
    """
    if masks:
        damaged = rows[table.masks.damaged(rows)]
        if len(damaged):
            raise table.masks.fault(damaged, len(rows))
    unused = "bbox" if masks else "segmentation"
    found: list[Mapping[str, Any]] = [table.result(row) for row in rows.tolist()]
    return [{key: value for key, value in result.items() if key != unused} for result in found]
