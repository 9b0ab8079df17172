"""Closed contours: what makes a usable one, unit size, and tracing them from masks.

A contour is float64 [P, 2] (x, y), one closed ring that does not cross itself, last point not repeated.
"""

import cv2
import numpy as np

from eql_jax.data.shapes.polygons import edge_corners

# A candidate is dropped below these: it would vanish at the sizes that are drawn.
MIN_FILL = 0.14  # area over squared diameter
MIN_WIDTH = 0.15  # 2 area / perimeter over diameter: the mean width of a long shape, .5 for a disc


def normalised(points: np.ndarray) -> np.ndarray | None:
    """Moves the centroid of [P, 2] points to 0 and scales to unit size; None where the shape is too thin to be seen.

    The unit is the geometric mean of the longest extent and of the diameter of the disc of equal area, so that neither
    long nor compact shapes stand out by size.
    """
    x, y = points[:, 0], points[:, 1]
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    cross = x * y2 - x2 * y
    area = cross.sum() / 2
    hull = cv2.convexHull(points.astype(np.float32))[:, 0].astype(np.float64)
    diameter = np.sqrt(((hull[:, None] - hull[None]) ** 2).sum(-1).max())
    perimeter = np.hypot(x2 - x, y2 - y).sum()
    if abs(area) < MIN_FILL * diameter**2 or 2 * abs(area) < MIN_WIDTH * diameter * perimeter:
        return None
    centroid = np.array([((x + x2) * cross).sum(), ((y + y2) * cross).sum()]) / (6 * area)
    return (points - centroid) / np.sqrt(diameter * np.sqrt(4 * abs(area) / np.pi))


def has_hairs(contour: np.ndarray) -> bool:
    """Whether a normalised [P, 2] contour has parts thinner than .06 and longer than .12, unseen on small objects."""
    unit = 64
    mask = np.zeros((3 * unit, 3 * unit), np.uint8)
    cv2.fillPoly(mask, [np.round((contour + 1.5) * unit * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    near = cv2.dilate(opened, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (17, 17)))
    return bool((mask > near).any())


def trace(mask: np.ndarray, *, tolerance: float) -> np.ndarray:
    """Outline float64 [P, 2], along the pixel edges, of the largest connected part of a uint8 mask, holes filled."""
    rings, _ = cv2.findContours(edge_corners(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    ring = cv2.approxPolyDP(max(rings, key=cv2.contourArea), tolerance, True)
    return ring[:, 0].astype(np.float64) - 1
