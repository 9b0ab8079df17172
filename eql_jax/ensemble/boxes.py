"""Which detections of an image are one object, and its box: non-maximum suppression and weighted boxes fusion.

N detections of one image, of all files; C clusters of them. Boxes are float64 XYXY in pixels. Detections meet only
those of their class. Both ways take the detections by falling score, of equal ones the first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eql_jax.data.segmentations import ranges


class Clusters(NamedTuple):
    """Detections that became one, cluster after cluster, each by falling score.

    Attributes:
      members: int64 [n], n <= N: the detections; the first of a cluster is its best.
      offsets: int64 [C + 1], cluster i is members[offsets[i]:offsets[i + 1]]; none is empty.
      boxes: float64 [C, 4].
      scores: float64 [C].
    """

    members: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """The best detection of each cluster, int64 [C]."""
        return self.members[self.offsets[:-1]]

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets)

    def select(self, index: np.ndarray) -> Clusters:
        """Some of the clusters, int64 [n], in this order."""
        sizes = self.sizes[index]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return Clusters(
            self.members[ranges(self.offsets[index], sizes)], offsets, self.boxes[index], self.scores[index]
        )


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes float64 [..., 4] with boxes [..., 4], broadcast; 0 where both have no area."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = np.maximum(sides, 0).prod(axis=-1)
    union = _areas(a) + _areas(b) - intersection
    # Rounding may leave the union a trifle smaller than the intersection.
    return np.minimum(np.divide(intersection, union, out=np.zeros_like(union), where=union > 0), 1)


def _order(classes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """By class, within it by falling score, of equal ones the first."""
    return np.lexsort((-scores, classes))


def suppress(
    boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, *, iou: float, members_iou: float | None = None
) -> Clusters:
    """Non-maximum suppression: the best detection stays, with its box and score, and those that overlap it go.

    Args:
      boxes: float64 [N, 4].
      classes: int64 [N].
      scores: float64 [N].
      iou: a detection goes where its IoU with one that stays is above this (with 1 none does).
      members_iou: those that go are members of the cluster of the best one that suppressed them, if their IoU with it
        is above this, too; None: every cluster has one member.
    """
    order = _order(classes, scores)
    left, right, overlap = _pairs(boxes[order], classes[order])
    above = overlap > iou
    left, right, overlap = left[above], right[above], overlap[above]
    owner = np.arange(len(order))
    joined = np.zeros(len(order), bool)  # suppressed, and a member of its owner's cluster
    alive = [True] * len(order)
    for i, j, value in zip(left.tolist(), right.tolist(), overlap.tolist(), strict=True):
        if alive[i] and alive[j]:
            alive[j] = False
            owner[j] = i
            joined[j] = members_iou is not None and value > members_iou
    alive = np.array(alive, bool)
    members = np.flatnonzero(alive | joined)
    members = members[np.argsort(owner[members], kind="stable")]  # the owner is the first of its own
    starts = np.flatnonzero(alive[members])
    best = order[members[starts]]
    return Clusters(order[members], np.append(starts, len(members)), boxes[best], scores[best])


def _pairs(boxes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs i < j of one class with their IoU, by i, then j; the classes are sorted."""
    ends = np.searchsorted(classes, classes, side="right")
    first = np.arange(len(classes))
    counts = ends - first - 1
    left, right = np.repeat(first, counts), ranges(first + 1, counts)
    return left, right, box_iou(boxes[left], boxes[right])


def fuse_boxes(
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    totals: np.ndarray,
    voters: np.ndarray,
    *,
    iou: float,
) -> Clusters:
    """Weighted boxes fusion (Solovyev et al. 2021, https://arxiv.org/abs/1910.13302, section 3).

    Each detection joins the cluster of its class whose box overlaps it most, if by more than `iou`, or begins one. The
    box of a cluster is the mean of its members' boxes, weighted by their scores, and moves whenever one joins. Its
    score is the mean of theirs, times min(members, files) / files, so that what a single file of many found counts
    less. With weights of the files, the scores are weighted ones, and the number of files is the sum of their weights:
    mean * min(members, voters) / totals.

    Args:
      boxes: float64 [N, 4].
      classes: int64 [N].
      scores: float64 [N], at least 0, each times the weight of its file.
      totals: float64 [N], > 0: the sum of the weights of all files for the class of the detection.
      voters: int64 [N]: how many files have a weight above 0 for it.
      iou: see above.
    """
    order = _order(classes, scores)
    clusters: list[np.ndarray] = []
    fused: list[np.ndarray] = []
    for start, end in _spans(classes[order]):
        rows = order[start:end]
        mine, boxes_of_mine = _fuse_class(boxes[rows], scores[rows], iou)
        clusters += [rows[cluster] for cluster in mine]
        fused.append(boxes_of_mine)
    sizes = np.array([len(cluster) for cluster in clusters], np.int64)
    members = np.concatenate([np.zeros(0, np.int64), *clusters])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    if not len(sizes):
        return Clusters(members, offsets, np.zeros((0, 4)), np.zeros(0))
    best = members[offsets[:-1]]
    means = np.add.reduceat(scores[members], offsets[:-1]) / sizes
    return Clusters(members, offsets, np.concatenate(fused), means * np.minimum(sizes, voters[best]) / totals[best])


def _spans(sorted_values: np.ndarray) -> list[tuple[int, int]]:
    """Where each value begins and ends."""
    starts = np.flatnonzero(np.diff(sorted_values, prepend=sorted_values[:1] - 1))
    return list(zip(starts.tolist(), [*starts.tolist(), len(sorted_values)][1:], strict=True))


def _fuse_class(boxes: np.ndarray, scores: np.ndarray, iou: float) -> tuple[list[list[int]], np.ndarray]:
    """Clusters, and their boxes float64 [c, 4], of detections of one class by falling score.

    Plain numbers: each step needs the boxes that the step before has moved, and NumPy's calls on a few boxes take
    longer than the loop. The arithmetic is that of `box_iou`.
    """
    clusters: list[list[int]] = []
    fused: list[tuple[float, float, float, float]] = []
    sums: list[list[float]] = []  # of coordinates times score, and of scores
    for row, ((x1, y1, x2, y2), score) in enumerate(zip(boxes.tolist(), scores.tolist(), strict=True)):
        area = (x2 - x1) * (y2 - y1)
        place, most = -1, iou
        for number, (left, top, right, bottom) in enumerate(fused):
            if left >= x2 or right <= x1 or top >= y2 or bottom <= y1:
                continue
            width = (right if right < x2 else x2) - (left if left > x1 else x1)
            height = (bottom if bottom < y2 else y2) - (top if top > y1 else y1)
            common = width * height
            overlap = common / ((right - left) * (bottom - top) + area - common)
            if overlap > 1:
                overlap = 1.0
            if overlap > most:
                place, most = number, overlap
        if place < 0:
            clusters.append([row])
            fused.append((x1, y1, x2, y2))
            sums.append([x1 * score, y1 * score, x2 * score, y2 * score, score])
            continue
        clusters[place].append(row)
        total = sums[place]
        for k, value in enumerate((x1, y1, x2, y2, 1.0)):
            total[k] += value * score
        if total[4] > 0:  # where all scores are 0, the first box stays
            fused[place] = (total[0] / total[4], total[1] / total[4], total[2] / total[4], total[3] / total[4])
    return clusters, np.array(fused)
