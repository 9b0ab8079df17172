"""Where the objects of an image come to lie on a canvas: boxes of what is left of them, and which are gone.

N objects, T points of P polygons. Boxes are XYXY in absolute pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eql_jax.data.polygons import RunLengths
from eql_jax.data.records import Objects
from eql_jax.data.segmentations import Polygons
from eql_jax.data.views import View

# An object that the canvas's border cuts is left out when less than this remains of its box's width or height, pixels.
MIN_CUT_SIDE = 1.0


class Placed(NamedTuple):
    """Objects of an image on a canvas.

    Attributes:
      objects: all objects of the image.
      view: how the image lies on the canvas.
      indices: int64 [N], those of the objects that are there, rising.
      boxes: float32 [N, 4] on the canvas. An object that the border cuts has the box of what is left of its mask,
        clipped to the box the file states; the others have the file's.
      altered: bool [N], the box is not the file's.
    """

    objects: Objects
    view: View
    indices: np.ndarray
    boxes: np.ndarray
    altered: np.ndarray

    def select(self, rows: np.ndarray) -> Placed:
        """Some of the objects."""
        return self._replace(indices=self.indices[rows], boxes=self.boxes[rows], altered=self.altered[rows])

    def file_boxes(self) -> np.ndarray:
        """The boxes in the pixels of the file, float64 [N, 4]: where the crops of the masks are taken."""
        boxes = self.objects.boxes[self.indices].astype(np.float64)
        if self.altered.any():
            boxes[self.altered] = self.view.file_boxes(self.boxes[self.altered])
        return boxes


def place_objects(objects: Objects, view: View, indices: np.ndarray | None = None) -> Placed:
    """Returns the objects (some of the image's, or all) that are seen in the view.

    Where the canvas cuts nothing off, these are all of them, with boxes scaled, mirrored and clipped to the image. An
    object that is cut is left out when none of its mask remains, or less than `MIN_CUT_SIDE` of the width or height of
    its box. Its box is that of the mask that remains; without masks, what remains of the box.
    """
    indices = np.arange(objects.size) if indices is None else indices
    whole = view.boxes(objects.boxes[indices])
    boxes = view.clip(whole)
    if not view.cuts or not indices.size:
        return Placed(objects, view, indices, boxes.astype(np.float32), np.zeros(indices.size, bool))
    top, left, height, width = view.window
    rect = np.array([left, top, left + width, top + height], np.float64)
    # The image's own border is no cut: there the boxes of the file end, but for rounding.
    edges = np.array([-view.left, -view.top, view.scaled.width - view.left, view.scaled.height - view.top])
    sides = np.array([-1, -1, 1, 1])
    altered = (((whole - rect) * sides > 0) & (rect != edges)).any(axis=1)
    if altered.any() and objects.segmentations is not None:
        cut = np.flatnonzero(altered)
        boxes[cut] = _intersect(boxes[cut], visible_boxes(objects, indices[cut], view, rect))
    left_over = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    kept = ~altered | (left_over >= MIN_CUT_SIDE)
    return Placed(objects, view, indices[kept], boxes[kept].astype(np.float32), altered[kept])


def visible_boxes(objects: Objects, indices: np.ndarray, view: View, rect: np.ndarray) -> np.ndarray:
    """Boxes of the parts of masks that lie in a rectangle of the canvas.

    Args:
      objects: of an image.
      indices: int [N], which of them.
      view: how the image lies on the canvas.
      rect: float64 [4] XYXY on the canvas.

    Returns:
      float64 [N, 4] on the canvas; x2 < x1 where nothing lies in the rectangle.
    """
    polygons = objects.segmentations.polygons_of(indices)
    boxes = polygon_extents(polygons._replace(points=view.points(polygons.points)), rect, count=len(indices))
    for row in np.flatnonzero(objects.segmentations.packed.polygons[indices] == 0):
        file_rect = view.file_boxes(rect[None])[0]
        box = run_length_extent(objects.segmentations[int(indices[row])], file_rect)
        boxes[row] = _nothing(1)[0] if box is None else _intersect(view.boxes(box[None]), rect)[0]
    return boxes


def polygon_extents(polygons: Polygons, rect: np.ndarray, *, count: int) -> np.ndarray:
    """Bounding boxes of the parts of polygons that lie in a rectangle.

    The corners of such a part are points of the outline within the rectangle, the points where it crosses the border,
    and corners of the rectangle that lie within the polygon; its box is that of all these.

    Args:
      polygons: P polygons of `count` masks.
      rect: float64 [4] XYXY, in their pixels.
      count: N.

    Returns:
      float64 [N, 4]; x2 < x1 for a mask that has no part there.
    """
    points, sizes, masks = polygons
    boxes = _nothing(count)
    if not len(points):
        return boxes
    ends = np.cumsum(sizes)
    following = np.arange(1, len(points) + 1)
    following[ends[sizes > 0] - 1] = (ends - sizes)[sizes > 0]
    delta = points[following] - points
    of_point = np.repeat(masks, sizes)

    # The share (enter .. leave) of each edge that lies in the rectangle, axis by axis (Liang and Barsky 1984).
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (rect[:2] - points) / delta, (rect[2:] - points) / delta
    still = delta == 0
    outside = still & ((points < rect[:2]) | (points > rect[2:]))
    enter = np.where(still, 0, np.minimum(first, second)).max(axis=1).clip(min=0)
    leave = np.where(still, 1, np.maximum(first, second)).min(axis=1).clip(max=1)
    seen = (enter <= leave) & ~outside.any(axis=1)
    shares = np.stack([enter[seen], leave[seen]])[..., None]
    on_edge = np.clip(points[seen] + shares * delta[seen], rect[:2], rect[2:])  # [2, edges, 2]
    np.minimum.at(boxes[:, :2], of_point[seen], on_edge.min(axis=0))
    np.maximum.at(boxes[:, 2:], of_point[seen], on_edge.max(axis=0))

    # Corners within: an odd number of edges to their right.
    corners = rect[[[0, 1], [2, 1], [2, 3], [0, 3]]]
    y, next_y = points[:, 1], points[following, 1]
    for corner in corners:
        spans = (y > corner[1]) != (next_y > corner[1])
        x = points[spans, 0] + (corner[1] - y[spans]) / delta[spans, 1] * delta[spans, 0]
        polygon = np.repeat(np.arange(len(sizes)), sizes)[spans]
        within = masks[np.bincount(polygon[x > corner[0]], minlength=len(sizes)) % 2 == 1]
        boxes[within, :2] = np.minimum(boxes[within, :2], corner)
        boxes[within, 2:] = np.maximum(boxes[within, 2:], corner)
    return boxes


def run_length_extent(rle: RunLengths, rect: np.ndarray) -> np.ndarray | None:
    """Bounding box of the part of a mask whose pixels' centres lie in a rectangle, float64 [4], None where there is
    none. Nothing is decoded: runs are cut at the ends of columns.

    Args:
      rle: the mask.
      rect: float [4] XYXY, in its pixels.
    """
    ends = np.cumsum(rle.counts)
    starts, ends = (ends - rle.counts)[1::2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    first, last = starts // rle.height, (ends - 1) // rle.height
    spans = last - first + 1
    run = np.repeat(np.arange(starts.size), spans)
    column = np.arange(run.size) - np.repeat(np.cumsum(spans) - spans, spans) + first[run]
    top = np.maximum(starts[run] - column * rle.height, 0)
    bottom = np.minimum(ends[run] - column * rle.height, rle.height)
    top = np.maximum(top, np.ceil(rect[1] - 0.5))
    bottom = np.minimum(bottom, np.ceil(rect[3] - 0.5))
    kept = (column + 0.5 >= rect[0]) & (column + 0.5 < rect[2]) & (bottom > top)
    if not kept.any():
        return None
    column = column[kept]
    return np.array([column.min(), top[kept].min(), column.max() + 1, bottom[kept].max()], np.float64)


def _nothing(count: int) -> np.ndarray:
    return np.tile(np.array([np.inf, np.inf, -np.inf, -np.inf]), (count, 1))


def _intersect(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], axis=-1)
