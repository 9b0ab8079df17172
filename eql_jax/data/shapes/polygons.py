"""From a mask to the polygons COCO and LVIS store, which know no holes."""

import cv2
import numpy as np

TOLERANCE = 0.75  # grid cells by which a polygon may leave the edge of the mask: enough to smooth its stairs


def edge_corners(mask: np.ndarray) -> np.ndarray:
    """uint8 [h + 2, w + 2] mask of the corners of the set cells of a uint8 [h, w] mask: (x, y) is at (y + 1, x + 1).

    cv2.findContours runs through cell centres, half a cell inside of the edge. A cell covers [i, i + 1], so the outline
    of its corners is the edge itself.
    """
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return cv2.dilate(padded, np.ones((2, 2), np.uint8), anchor=(1, 1))  # grown by one to the right and down


def mask_to_polygons(
    mask: np.ndarray, *, offset: tuple[int, int], scale: float, least_area: float
) -> list[list[float]]:
    """Traces a uint8 0/1 [h, w] mask along the edges of its cells.

    A region with a hole is cut in two through the middle of the hole, as often as there are holes. Parts smaller than
    `least_area` (in units of the result) are left out unless there is no larger one; gaps one cell wide are closed.

    Args:
      offset: (x, y) of the mask's first cell on the grid.
      scale: size of a grid cell in the result's units.

    Returns:
      Flat polygons [x1, y1, x2, y2, ...], at least 3 points each, rounded to .01, the largest first; none overlap.

    Raises ValueError when the mask is empty.
    """
    if not mask.any():
        raise ValueError(f"mask of shape {mask.shape} is empty: there is nothing to trace")
    rings: list[np.ndarray] = []
    _trace(mask, 0, rings)
    if not rings:  # nothing wider than the tolerance
        y, x = np.nonzero(mask)
        x0, y0, x1, y1 = x.min(), y.min(), x.max() + 1, y.max() + 1
        rings = [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])]
    areas = [cv2.contourArea(ring.astype(np.float32)) * scale**2 for ring in rings]
    order = sorted(range(len(rings)), key=lambda i: -areas[i])
    kept = [i for i in order if areas[i] >= least_area] or order[:1]
    return [np.round((rings[i] + np.array(offset)) * scale, 2).ravel().tolist() for i in kept]


def _trace(mask: np.ndarray, left: int, rings: list[np.ndarray]) -> None:
    """Appends the int64 [P, 2] outlines of all parts of a mask whose first column is at x = left."""
    contours, tree = cv2.findContours(edge_corners(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return
    for contour, (_, _, _, parent) in zip(contours, tree[0], strict=True):
        if parent >= 0:  # a hole; its contour runs through the cells around it
            x = contour[:, 0, 0]
            cut = int(x.min() + x.max()) // 2 - 1  # column of the mask, not of the padded one
            _trace(np.ascontiguousarray(mask[:, :cut]), left, rings)
            _trace(np.ascontiguousarray(mask[:, cut:]), left + cut, rings)
            return
    for contour in contours:
        ring = cv2.approxPolyDP(contour, TOLERANCE, True)[:, 0]
        if len(ring) >= 3:
            rings.append(ring.astype(np.int64) + [left - 1, -1])
