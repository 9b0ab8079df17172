"""Polygons filled on small grids, all those of an image at once: cell for cell what pycocotools makes of each.

T points of P polygons; h, w size of a grid, N grids.

pycocotools walks along the outline in fifths of a cell and notes each row at which the walk enters or leaves a column;
a cell is inside when an odd number of these lie at or above it. Here only the places where an edge passes from one
column to the next are computed, of all edges in one go, and nothing in between: the answer is the same and a
hundred polygons take the time of a few calls of NumPy. COCO's C code (rleFrPoly of maskApi.c, P. Dollar and T.-Y. Lin)
is the reference, to the rounding.
"""

from __future__ import annotations

import numpy as np

_FINE = 5  # steps of the walk per cell


def fill_polygons(
    points: np.ndarray,
    sizes: np.ndarray,
    grids: np.ndarray,
    *,
    num_grids: int,
    height: int,
    width: int,
    mirror: bool = False,
) -> np.ndarray:
    """Fills polygons on grids; a grid with several polygons has their union.

    Args:
      points: float64 [T, 2], (x, y) in cells of the grid, of all polygons in turn. Anywhere in the plane.
      sizes: int [P], the points of each polygon; a polygon of none fills nothing.
      grids: int [P], rising: the grid of each polygon.
      num_grids: N.
      height, width: of every grid, cells.
      mirror: each grid is mirrored left to right afterwards.

    Returns:
      uint8 0/1 [N, height, width].
    """
    polygon, column, row = _crossings(np.asarray(points, np.float64), np.asarray(sizes, np.int64), height, width)
    if mirror:
        column = width - 1 - column
    stride = -(-width // 8) * 8
    changes = np.zeros((len(sizes), height, stride), np.uint8)
    np.bitwise_xor.at(changes.reshape(-1), (polygon * height + row) * stride + column, np.uint8(1))
    # The running parity down each column, of eight columns at a time.
    inside = np.bitwise_xor.accumulate(changes.view(np.uint64), axis=1).view(np.uint8)[:, :, :width]
    grids = np.asarray(grids, np.int64)
    if len(grids) == num_grids and np.array_equal(grids, np.arange(num_grids)):
        return inside
    union = np.zeros((num_grids, height, width), np.uint8)
    is_first = np.diff(grids, prepend=-1) > 0
    union[grids[is_first]] = inside[is_first]
    for i in np.flatnonzero(~is_first):  # the further parts: one in eight objects of LVIS has any
        union[grids[i]] |= inside[i]
    return union


def _crossings(
    points: np.ndarray, sizes: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Polygon, column and row of each cell at which the parity of its column changes, int64 [number]."""
    none = np.zeros(0, np.int64)
    if not len(points):
        return none, none, none
    start = (_FINE * points + 0.5).astype(np.int64)  # towards zero, as C does
    nonempty = sizes[sizes > 0]
    ends = np.cumsum(nonempty)
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = ends - nonempty
    end = start[following]
    # An edge passes from column k to what follows it where its x goes from 5 k + 2 to 5 k + 3.
    low = np.minimum(start[:, 0], end[:, 0])
    high = np.maximum(start[:, 0], end[:, 0])
    first = np.maximum(-((2 - low) // _FINE), 0)
    count = np.maximum(np.minimum((high - 3) // _FINE, width - 1) - first + 1, 0)
    total = int(count.sum())
    if not total:
        return none, none, none
    edge = np.repeat(np.arange(len(points)), count)
    column = np.arange(total) - np.repeat(np.cumsum(count) - count, count) + first[edge]

    span = np.abs(end - start)
    flat = span[:, 0] >= span[:, 1]
    # Walked in the direction in which the longer axis rises.
    turned = np.where(flat, start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])[:, None]
    start, end = np.where(turned, end, start), np.where(turned, start, end)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(flat, (end[:, 1] - start[:, 1]) / span[:, 0], (end[:, 0] - start[:, 0]) / span[:, 1])

    is_flat = flat[edge]
    x, y, slope = start[edge, 0], start[edge, 1], slope[edge]
    border = _FINE * column + 2
    # Flat edges: x is the walk's own count.
    step = border - x
    at_flat = np.minimum((y + slope * step + 0.5).astype(np.int64), (y + slope * (step + 1) + 0.5).astype(np.int64))
    # Steep edges: the step after which x, rounded, has passed the border. The division is off by one step where a
    # rounding of x decides, so the rounded x has the last word.
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.where(is_flat, 0, np.ceil((border + 0.5 - x) / slope) - 1)
    rising = slope > 0
    step += np.where(_passed(x, slope, step, border, rising), -1, 0)
    step += np.where(_passed(x, slope, step + 1, border, rising), 0, 1)
    at_steep = y + step.astype(np.int64)

    row = (np.where(is_flat, at_flat, at_steep) + 2) // _FINE
    row = np.maximum(row, 0)
    polygon = np.repeat(np.arange(len(sizes)), sizes)[edge]
    kept = row < height
    return polygon[kept], column[kept], row[kept]


def _passed(x: np.ndarray, slope: np.ndarray, step: np.ndarray, border: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """Whether the walk along a steep edge is beyond the border after `step` steps."""
    beyond = (x + slope * step + 0.5).astype(np.int64) > border
    return beyond == rising
