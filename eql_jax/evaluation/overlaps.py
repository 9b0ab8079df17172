"""Intersection over union of detections with the objects of their image and class, where it can make a match.

D detections and G objects, both sorted by key (image and class); E edges. Masks and boxes go through `pycocotools`, in
C and with the very arithmetic of the official package. What keeps the number of its calls down:

* only keys that have both objects and detections are visited;
* masks whose areas and boxes show that their IoU is below the lowest threshold are not compared: the intersection is at
  most the area of the smaller mask and at most that of the two boxes' intersection. These are integers, so the bound is
  exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from eql_jax.data.segmentations import ranges
from eql_jax.evaluation.run_lengths import Measures, PackedMasks

LOWEST = 0.5  # of the IoU thresholds
_BLOCK_PAIRS = 1 << 20  # of a detection and an object, looked at together


class Edges(NamedTuple):
    """Detections and objects that overlap by LOWEST or more: int64 [E], int64 [E], float64 [E]."""

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray


class Shapes(NamedTuple):
    """Masks with what their run lengths measure; row i of all is detection or object i."""

    masks: PackedMasks
    rows: np.ndarray  # int64, where in `masks` each is
    measures: Measures

    def select(self, index: np.ndarray) -> Shapes:
        return Shapes(self.masks, self.rows[index], Measures(*(values[index] for values in self.measures)))

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """Height and width of their images, int32 [n, 2]."""
        return self.masks.sizes[self.rows[index]]

    def sides(self, index: np.ndarray) -> np.ndarray:
        """The shorter sides of their boxes, int64 [n]."""
        boxes = self.measures.boxes[index]
        return (boxes[:, 2:] - boxes[:, :2]).min(axis=1)

    def extents(self, index: np.ndarray) -> np.ndarray:
        """The areas of their boxes, int64 [n]."""
        boxes = self.measures.boxes[index]
        return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)

    def rles(self, part: slice) -> list[dict[str, Any]]:
        return self.masks.rles(self.rows[part])

    def check(self) -> None:
        """Raises ValueError where a mask is damaged, naming it as the result that its row in `masks` is."""
        damaged = self.rows[self.masks.damaged(self.rows)]
        if len(damaged):
            raise self.masks.fault(damaged, len(self.rows))


class _Groups(NamedTuple):
    """Detections start[i]:end[i] and objects first[i]:last[i] share a key."""

    start: np.ndarray
    end: np.ndarray
    first: np.ndarray
    last: np.ndarray

    @property
    def pairs(self) -> np.ndarray:
        return (self.end - self.start) * (self.last - self.first)


def _groups(detection_keys: np.ndarray, object_keys: np.ndarray) -> _Groups:
    keys = np.intersect1d(detection_keys, object_keys)
    return _Groups(
        np.searchsorted(detection_keys, keys, side="left"),
        np.searchsorted(detection_keys, keys, side="right"),
        np.searchsorted(object_keys, keys, side="left"),
        np.searchsorted(object_keys, keys, side="right"),
    )


def _blocks(groups: _Groups) -> Iterator[_Groups]:
    """The groups in parts of about `_BLOCK_PAIRS` pairs."""
    block = np.cumsum(groups.pairs) // _BLOCK_PAIRS
    cuts = np.flatnonzero(np.diff(block, prepend=-1)).tolist()
    for start, end in zip(cuts, [*cuts, len(block)][1:], strict=True):
        yield _Groups(*(values[start:end] for values in groups))


def _pairs(groups: _Groups) -> tuple[np.ndarray, np.ndarray]:
    """Detection and object of each pair, int64: group after group, all objects of a detection after each other."""
    counts = groups.last - groups.first
    detections = ranges(groups.start, groups.end - groups.start)
    first, counts = (np.repeat(v, groups.end - groups.start) for v in (groups.first, counts))
    return np.repeat(detections, counts), ranges(first, counts)


def _edges(detection_keys: np.ndarray, object_keys: np.ndarray, compare: Callable[[slice, slice], np.ndarray]) -> Edges:
    """Edges by rising key and detection; `compare` gives the IoUs of some detections (rows) and objects (columns)."""
    found: list[Edges] = []
    for groups in _blocks(_groups(detection_keys, object_keys)):
        ious = [
            compare(slice(start, end), slice(first, last)).ravel()
            for start, end, first, last in zip(*(v.tolist() for v in groups), strict=True)
        ]
        ious = np.concatenate(ious)
        kept = np.flatnonzero(ious >= LOWEST)
        detections, objects = _pairs(groups)
        found.append(Edges(detections[kept], objects[kept], ious[kept]))
    return _joined(found)


def _joined(parts: Sequence[Edges]) -> Edges:
    if not parts:
        return Edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Edges(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def box_overlaps(
    detection_keys: np.ndarray, detections: np.ndarray, object_keys: np.ndarray, objects: np.ndarray
) -> Edges:
    """IoU of boxes.

    Args:
      detection_keys, object_keys: int64 [D] and [G], rising.
      detections, objects: float64 [D, 4] and [G, 4], x, y, width, height.
    """
    from pycocotools import mask as mask_api

    def compare(rows: slice, columns: slice) -> np.ndarray:
        return mask_api.iou(detections[rows], objects[columns], [0] * (columns.stop - columns.start))

    return _edges(detection_keys, object_keys, compare)


def mask_overlaps(detection_keys: np.ndarray, detections: Shapes, object_keys: np.ndarray, objects: Shapes) -> Edges:
    """IoU of masks; keys as in `box_overlaps`. Raises ValueError where a detection to compare is damaged."""
    from pycocotools import mask as mask_api

    near_detections, near_objects = _near(detection_keys, detections, object_keys, objects)
    compared_detections, compared_objects = detections.select(near_detections), objects.select(near_objects)
    compared_detections.check()

    def compare(rows: slice, columns: slice) -> np.ndarray:
        found, annotated = compared_detections.rles(rows), compared_objects.rles(columns)
        return mask_api.iou(found, annotated, [0] * len(annotated))

    edges = _edges(detection_keys[near_detections], object_keys[near_objects], compare)
    return Edges(near_detections[edges.detections], near_objects[edges.objects], edges.ious)


def _near(
    detection_keys: np.ndarray, detections: Shapes, object_keys: np.ndarray, objects: Shapes
) -> tuple[np.ndarray, np.ndarray]:
    """The detections and objects, int64, rising, that may have a partner of IoU 1/2 or more."""
    near_detections = np.zeros(len(detection_keys), bool)
    near_objects = np.zeros(len(object_keys), bool)
    for groups in _blocks(_groups(detection_keys, object_keys)):
        d, g = _pairs(groups)
        found, annotated = detections.measures.boxes[d], objects.measures.boxes[g]
        sides = np.minimum(found[:, 2:], annotated[:, 2:]) - np.maximum(found[:, :2], annotated[:, :2])
        sides = np.maximum(sides, 0)
        areas = detections.measures.areas[d], objects.measures.areas[g]
        intersection = np.minimum(np.minimum(*areas), sides[:, 0] * sides[:, 1])
        near = 3 * intersection >= areas[0] + areas[1]  # intersection / union is at least 1/2
        near_detections[d[near]] = True
        near_objects[g[near]] = True
    return np.flatnonzero(near_detections), np.flatnonzero(near_objects)


def crowd_shares(
    detection_keys: np.ndarray,
    detections: np.ndarray | Shapes,
    crowds: dict[int, list[Any]],
) -> np.ndarray:
    """The largest share of each detection that lies in one crowd region of its image and class, float64 [D].

    Args:
      detection_keys: int64 [D], rising.
      detections: float64 [D, 4] boxes or masks.
      crowds: the regions by key, boxes or compressed run lengths.

    Raises:
      ValueError: a mask is damaged.
    """
    from pycocotools import mask as mask_api

    shares = np.zeros(len(detection_keys))
    for key, regions in crowds.items():
        rows = slice(*(int(np.searchsorted(detection_keys, key, side=side)) for side in ("left", "right")))
        if rows.start == rows.stop:
            continue
        if isinstance(detections, np.ndarray):
            found, regions = detections[rows], np.array(regions, np.float64)
        else:
            part = detections.select(np.arange(rows.start, rows.stop))
            part.check()
            found = part.rles(slice(None))
        shares[rows] = mask_api.iou(found, regions, [1] * len(regions)).max(axis=1)
    return shares
