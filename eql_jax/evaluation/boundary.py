"""Boundary IoU (Cheng et al. 2021, https://arxiv.org/abs/2103.16562): how well the outlines of two masks agree.

E edges: a detection and an object whose masks overlap. The boundary of a mask is what lies within d pixels of its
outline, on its inside, with d 2 % of the image's diagonal. The IoU that counts is the smaller one of the masks' and
the boundaries', so that a mask of a large object needs its outline right, and one of a small object, which is all
boundary, is judged as ever. What lies outside of the image counts as outside of the mask: borders are outlines.

The IoUs are those of the authors' code (https://github.com/bowenc0221/boundary-iou-api). There, masks are eroded on
the canvas of the whole image; a mask is zero outside of its box, and so here the box is all that is decoded, eroded and
compared. What follows is as for masks, the `lvis` package's rules, by which an area range holds both its ends; the
authors' LVIS evaluation leaves the upper one out, so that an object of just 32 * 32 or 96 * 96 pixels counts for one
of APs, APm and APl there, and for two here.
"""

from __future__ import annotations

import numpy as np

from eql_jax.evaluation.overlaps import LOWEST, Edges, Shapes
from eql_jax.evaluation.run_lengths import crop_of

DILATION = 0.02  # of the image's diagonal
_BLOCK_BYTES = 1 << 26  # of the masks in their boxes that are held at a time
_EDGE_BYTES = 1 << 15  # that an edge counts beyond its masks' boxes: many small ones are held, too


def width_of_boundary(sizes: np.ndarray) -> np.ndarray:
    """Pixels that the boundary is wide, int64 [n], in images of these heights and widths, int [n, 2]; at least one."""
    sizes = np.asarray(sizes, np.int64)
    return np.maximum(1, np.round(DILATION * np.sqrt((sizes**2).sum(axis=-1))).astype(np.int64))


def boundary_of(mask: np.ndarray, pixels: int) -> np.ndarray:
    """What an erosion by `pixels` takes from a mask; uint8 0/1 [h, w], zero beyond its sides.

    Raises:
      ImportError: OpenCV is missing; the message says how to install it.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError("Boundary AP needs OpenCV: pip install opencv-python-headless") from error
    square = np.ones((3, 3), np.uint8)
    return mask - cv2.erode(mask, square, iterations=pixels, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def with_boundaries(edges: Edges, detections: Shapes, objects: Shapes) -> Edges:
    """The edges with the smaller one of mask and boundary IoU, without those that are then below the lowest threshold.

    Args:
      edges: of masks, sorted by detection.
      detections, objects: their masks.
    """
    ious = edges.ious.copy()
    # A mask of at most twice the width, one way or the other, is all boundary: where both are, the masks' IoU stands.
    widths = width_of_boundary(detections.sizes(edges.detections))
    sides = np.maximum(detections.sides(edges.detections), objects.sides(edges.objects))
    wide = np.flatnonzero(sides > 2 * widths)
    held = detections.extents(edges.detections[wide]) + objects.extents(edges.objects[wide]) + _EDGE_BYTES
    cuts = np.flatnonzero(np.diff(np.cumsum(held) // _BLOCK_BYTES, prepend=-1))[1:]
    for part in np.split(wide, cuts):
        found = _Boundaries(detections, edges.detections[part])
        annotated = _Boundaries(objects, edges.objects[part])
        for e, d, g in zip(part.tolist(), edges.detections[part].tolist(), edges.objects[part].tolist(), strict=True):
            ious[e] = min(ious[e], _iou(*found[d], *annotated[g]))
    kept = np.flatnonzero(ious >= LOWEST)
    return Edges(edges.detections[kept], edges.objects[kept], ious[kept])


class _Boundaries:
    """The boundaries of some masks in their boxes, each made when it is first asked for."""

    def __init__(self, shapes: Shapes, index: np.ndarray) -> None:
        self._index = np.unique(index)
        self._boxes = shapes.measures.boxes[self._index]
        sizes = shapes.sizes(self._index)
        self._heights, self._widths = sizes[:, 0].tolist(), width_of_boundary(sizes).tolist()
        self._runs = shapes.masks.decode(shapes.rows[self._index])
        self._made: dict[int, tuple[np.ndarray, list[int], int]] = {}

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[int], int]:
        """Boundary uint8 [h, w], its box [x1, y1, x2, y2] and its area."""
        if index not in self._made:
            i = int(np.searchsorted(self._index, index))
            lengths = self._runs.lengths[self._runs.offsets[i] : self._runs.offsets[i + 1]]
            boundary = np.ascontiguousarray(crop_of(lengths, self._boxes[i], self._heights[i]))
            if min(boundary.shape) > 2 * self._widths[i]:
                boundary = boundary_of(boundary, self._widths[i])
            self._made[index] = boundary, self._boxes[i].tolist(), int(np.count_nonzero(boundary))
        return self._made[index]


def _iou(a: np.ndarray, box_a: list[int], area_a: int, b: np.ndarray, box_b: list[int], area_b: int) -> float:
    """IoU of two masks that lie in boxes; 0 where they do not meet."""
    x1, y1 = max(box_a[0], box_b[0]), max(box_a[1], box_b[1])
    x2, y2 = min(box_a[2], box_b[2]), min(box_a[3], box_b[3])
    if x1 >= x2 or y1 >= y2:
        return 0.0
    common = int(
        np.count_nonzero(
            a[y1 - box_a[1] : y2 - box_a[1], x1 - box_a[0] : x2 - box_a[0]]
            & b[y1 - box_b[1] : y2 - box_b[1], x1 - box_b[0] : x2 - box_b[0]]
        )
    )
    return common / (area_a + area_b - common)
