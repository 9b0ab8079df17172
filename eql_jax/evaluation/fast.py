"""The LVIS evaluation on columns: the official package's numbers in a small part of its time and memory.

I images, K classes, both by ascending id; a key is image * K + class. D detections that count, G objects.

The official package makes a dict of every detection, visits every pair of image and class for each area range, and
matches in Python loops over thresholds, detections and objects. Here the federated rules are set operations on keys,
overlaps are computed only where there are both objects and detections (`overlaps`), one pass over the few that overlap
enough matches for all thresholds and area ranges (`matching`), and curves are made per class (`accumulate`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from eql_jax.data.polygons import to_rle
from eql_jax.evaluation import boundary, matching, overlaps
from eql_jax.evaluation.accumulate import Outcomes
from eql_jax.evaluation.columns import ResultTable
from eql_jax.evaluation.ground_truth import GroundTruth
from eql_jax.evaluation.overlaps import Edges, Shapes
from eql_jax.evaluation.run_lengths import Measures, PackedMasks
from eql_jax.evaluation.selection import best_of_each


class _Axes(NamedTuple):
    """image_ids int64 [I] and class_ids int64 [K], both rising."""

    image_ids: np.ndarray
    class_ids: np.ndarray

    def keys(self, image_ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
        """Keys int64 [n] of image ids that are there and category ids, -1 where that is none of the K."""
        classes = np.searchsorted(self.class_ids, category_ids)
        known = self.class_ids[np.minimum(classes, len(self.class_ids) - 1)] == category_ids
        return np.where(known, np.searchsorted(self.image_ids, image_ids) * len(self.class_ids) + classes, -1)


class _Truth(NamedTuple):
    """Ground truth as columns.

    Attributes:
      axes: images and classes.
      sizes: height and width by image id.
      keys: int64 [G], rising; in one key the order is the file's.
      annotations: of the G objects.
      areas: float64 [G], the annotations' own.
      ignore: bool [G], marked as to be ignored.
      verified: int64, rising: the keys of classes that were looked for; None: all were.
      lenient: int64, rising: the keys of classes that are not exhaustively annotated.
    """

    axes: _Axes
    sizes: dict[int, tuple[int, int]]
    keys: np.ndarray
    annotations: list[dict[str, Any]]
    areas: np.ndarray
    ignore: np.ndarray
    verified: np.ndarray | None
    lenient: np.ndarray


def _truth_columns(ground_truth: GroundTruth) -> _Truth:
    images = ground_truth.dataset["images"]
    image_ids = np.sort(np.array([image["id"] for image in images], np.int64))
    axes = _Axes(image_ids, np.array(list(ground_truth.letters), np.int64))
    # The official package takes no object without area for one.
    annotations = [a for a in ground_truth.dataset["annotations"] if 0 < a["area"] < float("inf")]
    keys = axes.keys(*(np.array([a[name] for a in annotations], np.int64) for name in ("image_id", "category_id")))
    order = np.argsort(keys, kind="stable")
    annotations = [annotations[i] for i in order.tolist()]

    def keys_of_lists(name: str) -> np.ndarray:
        pairs = [(image["id"], category_id) for image in images for category_id in image[name]]
        listed = axes.keys(*np.array(pairs, np.int64).reshape(-1, 2).T)
        return np.unique(listed[listed >= 0])

    return _Truth(
        axes=axes,
        sizes={image["id"]: (image["height"], image["width"]) for image in images},
        keys=keys[order],
        annotations=annotations,
        areas=np.array([a["area"] for a in annotations], np.float64),
        ignore=np.array([a["ignore"] for a in annotations], bool),
        verified=np.union1d(keys_of_lists("neg_category_ids"), keys) if ground_truth.federated else None,
        lenient=keys_of_lists("not_exhaustive_category_ids"),
    )


def run_fast(
    ground_truth: GroundTruth, table: ResultTable, rows: np.ndarray, *, iou_type: str, max_detections: int
) -> Outcomes:
    """Matches results with objects.

    Args:
      ground_truth: for 'segm' and 'boundary', every annotation has a segmentation.
      table: all results; those that count have images of the ground truth, and boxes or masks as the type needs.
      rows: int64, rising, those that count before the limit.
      iou_type: 'bbox', 'segm' or 'boundary'.
      max_detections: the best so many of each image count, over all classes; -1: all.

    Raises:
      ValueError: a mask that is to be compared is damaged, or any mask's string is unreadable; the message names the
        result by its number.
    """
    truth = _truth_columns(ground_truth)
    rows = rows[best_of_each(table.image_ids[rows], table.scores[rows], max_detections)]
    keys = truth.axes.keys(table.image_ids[rows], table.category_ids[rows])
    wanted = keys >= 0 if truth.verified is None else _is_in(keys, truth.verified)
    rows, keys = rows[wanted], keys[wanted]
    if iou_type == "bbox":
        with np.errstate(over="ignore"):
            areas = table.boxes[rows, 2] * table.boxes[rows, 3]
    else:
        measures = table.masks.measure(rows)
        areas = measures.areas.astype(np.float64)
    order = np.flatnonzero((areas > 0) & (areas < np.inf))  # as above; NaN is out, too
    order = order[np.lexsort((-table.scores[rows[order]], keys[order]))]  # stable
    rows, keys, areas = rows[order], keys[order], areas[order]
    if iou_type == "bbox":
        found: np.ndarray | Shapes = table.boxes[rows]
        objects = np.array([a["bbox"] for a in truth.annotations], np.float64).reshape(-1, 4)
        edges = overlaps.box_overlaps(keys, found, truth.keys, objects)
    else:
        found = Shapes(table.masks, rows, Measures(*(values[order] for values in measures)))
        edges = _mask_edges(truth, keys, found, boundaries=iou_type == "boundary")

    counted = matching.states_in_range(truth.areas)
    counted[truth.ignore] = 0
    verdicts = matching.match(edges, counted, len(keys))
    # Where a detection without a match is neither right nor wrong.
    excused = ~matching.states_in_range(areas)
    excused[_is_in(keys, truth.lenient)] = matching.EVERYWHERE
    crowds = _crowds_by_key(ground_truth, truth, boxes=iou_type == "bbox")
    if crowds:
        excused |= matching.states_reached(overlaps.crowd_shares(keys, found, crowds))
    in_use = np.uint64(matching.EVERYWHERE)
    num_classes = len(truth.axes.class_ids)
    return Outcomes(
        classes=keys % num_classes,
        scores=table.scores[rows],
        right=verdicts.matched & ~verdicts.matched_ignored,
        wrong=in_use & ~verdicts.matched & ~excused,
        num_objects=matching.count_by_area(counted, truth.keys % num_classes, num_classes),
    )


def _is_in(keys: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Whether each key is among those listed, which rise."""
    if not len(listed):
        return np.zeros(len(keys), bool)
    return listed[np.minimum(np.searchsorted(listed, keys), len(listed) - 1)] == keys


def _mask_edges(truth: _Truth, keys: np.ndarray, found: Shapes, *, boundaries: bool) -> Edges:
    # Only objects that have detections of their class need their masks.
    met = np.flatnonzero(_is_in(truth.keys, np.unique(keys)))
    rles = []
    for i in met.tolist():
        height, width = truth.sizes[truth.annotations[i]["image_id"]]
        rles.append(to_rle(truth.annotations[i]["segmentation"], height=height, width=width))
    masks = PackedMasks.from_rles(rles)
    every = np.arange(len(met))
    objects = Shapes(masks, every, masks.measure(every))
    edges = overlaps.mask_overlaps(keys, found, truth.keys[met], objects)
    if boundaries:
        edges = boundary.with_boundaries(edges, found, objects)
    return edges._replace(objects=met[edges.objects])


def _crowds_by_key(ground_truth: GroundTruth, truth: _Truth, *, boxes: bool) -> dict[int, list[Any]]:
    """Crowd regions by key, as boxes or run lengths."""
    crowds = {}
    for (image_id, category_id), regions in ground_truth.crowds.items():
        height, width = truth.sizes[image_id]
        key = int(truth.axes.keys(np.array([image_id]), np.array([category_id]))[0])
        crowds[key] = [r["bbox"] if boxes else to_rle(r["segmentation"], height=height, width=width) for r in regions]
    return crowds
