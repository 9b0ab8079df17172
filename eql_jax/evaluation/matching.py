"""Which detections are right: the greedy matching of the LVIS protocol, all thresholds and area ranges in one pass.

T = 10 IoU thresholds, A = 4 area ranges, D detections, G objects, E edges (a detection and an object of its image and
class that overlap enough).

The protocol, for each image, class, threshold and area range: detections choose by falling score. Each takes, of the
objects that are free and overlap it by the threshold or more, the one of the largest IoU, and of equal ones the last;
objects that are ignored (outside of the area range, or marked) only where no other is left. A detection that takes an
ignored object, or takes none and is outside of the range or of a class that is not exhaustively annotated in the image,
is neither right nor wrong.

The T * A matchings run as one: a state is a bit in an integer, and where an object is taken in some of them and free in
others, one operation on the integers decides for all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eql_jax.evaluation.overlaps import Edges

THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = ((0, 1e5**2), (0, 32**2), (32**2, 96**2), (96**2, 1e5**2))  # all, small, medium, large; pixels
NUM_THRESHOLDS, NUM_AREAS = len(THRESHOLDS), len(AREA_RANGES)

# Bit a * T + t of a state belongs to area range a and threshold t.
_EVERY_AREA = sum(1 << (a * NUM_THRESHOLDS) for a in range(NUM_AREAS))
_EVERY_THRESHOLD = (1 << NUM_THRESHOLDS) - 1
EVERYWHERE = _EVERY_AREA * _EVERY_THRESHOLD
# By the number of thresholds that an overlap reaches: the states in which it does, uint64 [T + 1].
_REACHED = np.array([_EVERY_AREA * ((1 << n) - 1) for n in range(NUM_THRESHOLDS + 1)], np.uint64)


class Verdicts(NamedTuple):
    """States of D detections as bits, uint64 [D]: taken an object; taken one that is ignored."""

    matched: np.ndarray
    matched_ignored: np.ndarray


def states_reached(overlaps: np.ndarray) -> np.ndarray:
    """The states whose threshold the overlaps reach, uint64, of float64."""
    return _REACHED[np.searchsorted(np.minimum(THRESHOLDS, 1 - 1e-10), overlaps, side="right")]


def states_in_range(areas: np.ndarray) -> np.ndarray:
    """The states whose area range the areas lie in, both ends included, uint64, of float64."""
    states = np.zeros(len(areas), np.uint64)
    for a, (low, high) in enumerate(AREA_RANGES):
        inside = ~((areas < low) | (areas > high))
        states[inside] |= np.uint64(_EVERY_THRESHOLD << (a * NUM_THRESHOLDS))
    return states


def match(edges: Edges, counted: np.ndarray, num_detections: int) -> Verdicts:
    """Matches detections with objects.

    Args:
      edges: of overlaps from the lowest threshold on. Detections are numbered image by image and class by class by
        falling score, objects in the order of the annotations.
      counted: uint64 [G], the states in which an object is not ignored.
      num_detections: D.
    """
    matched, matched_ignored = (np.zeros(num_detections, np.uint64) for _ in range(2))
    if not len(edges.ious):
        return Verdicts(matched, matched_ignored)
    # Of each detection the objects of largest IoU first, of equal IoU the last first.
    order = np.lexsort((-edges.objects, -edges.ious, edges.detections))
    detections = edges.detections[order]
    objects, reached = edges.objects[order].tolist(), states_reached(edges.ious[order]).tolist()
    starts = np.flatnonzero(np.diff(detections, prepend=-1))
    free = {g: EVERYWHERE for g in objects}
    is_counted = dict(zip(np.unique(edges.objects).tolist(), counted[np.unique(edges.objects)].tolist(), strict=True))
    all_matched, all_ignored = [], []
    ends = [*starts.tolist(), len(objects)]
    for start, end in zip(ends, ends[1:], strict=False):
        looking, ignored = EVERYWHERE, 0
        for e in range(start, end):
            g = objects[e]
            taken = looking & reached[e] & free[g] & is_counted[g]
            if taken:
                looking ^= taken
                free[g] ^= taken
        for e in range(start, end):
            g = objects[e]
            taken = looking & reached[e] & free[g] & ~is_counted[g]
            if taken:
                looking ^= taken
                free[g] ^= taken
                ignored |= taken
        all_matched.append(EVERYWHERE ^ looking)
        all_ignored.append(ignored)
    matched[detections[starts]] = all_matched
    matched_ignored[detections[starts]] = all_ignored
    return Verdicts(matched, matched_ignored)


def count_by_area(counted: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Objects of each class that are not ignored, int64 [K, A].

    Args:
      counted: uint64 [G], the states in which an object is not ignored; the same for all thresholds.
      classes: int64 [G].
      num_classes: K.
    """
    counts = np.zeros((num_classes, NUM_AREAS), np.int64)
    for a in range(NUM_AREAS):
        inside = (counted >> np.uint64(a * NUM_THRESHOLDS)) & np.uint64(1) == 1
        counts[:, a] = np.bincount(classes[inside], minlength=num_classes)
    return counts
