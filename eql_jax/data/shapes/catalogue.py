"""Which contour is which class.

Classes are picked one after the other from the candidates of all families, each time the one whose nearest already
picked neighbour is farthest away (Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985), in a
descriptor that neither rotation nor reflection nor scale changes. So the first 40 classes are as distinct as 40 can be,
the first 1203 as distinct as 1203 can be, and class i is the same shape whatever the number of classes and the seed.
"""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from eql_jax.data.shapes.families import candidates

MAX_CLASSES = 1203  # as many as LVIS v1 has
RINGS, RAYS, ORDERS = 12, 64, 10  # polar samples of the descriptor and the angular frequencies kept
LOOKALIKES = 4  # classes of a group of look-alikes
LEAST_DISTANCE = 220.0  # of two look-alikes, in descriptor units; the first 40 classes are over 400 apart


class ShapeClass(NamedTuple):
    """A class: unique name, WordNet-like synset, what it looks like, float64 [P, 2] contour of unit size."""

    name: str
    synset: str
    text: str
    contour: np.ndarray


def descriptor(contour: np.ndarray) -> np.ndarray:
    """int32 [RINGS * ORDERS] description of a [P, 2] contour; rotating or mirroring it changes rounding only.

    The filled shape is sampled on rings around its centroid, and of each ring the magnitudes of the lowest angular
    Fourier coefficients are kept. Small differences are blurred away, as they are in pictures of small objects. Integer
    values make the distances, and with them the choice of the classes, exact.
    """
    side = 128
    # At unit size radii are about .5; tips beyond .77 are cut off.
    points = np.round(contour * (side * 0.65 * 16) + (side / 2 - 0.5) * 16).astype(np.int32)
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, 4)
    mask = cv2.blur(mask, (7, 7))
    centre = (side / 2 - 0.5, side / 2 - 0.5)
    polar = cv2.warpPolar(mask, (RINGS, RAYS), centre, side / 2, cv2.WARP_POLAR_LINEAR)  # [RAYS, RINGS]
    waves = np.abs(np.fft.rfft(polar / 255.0, axis=0)[:ORDERS]) / RAYS
    waves[1:] *= 2  # a coefficient stands for its conjugate too
    # Nine teeth or ten are not to be told apart in a small picture: the finer the wave, the less it counts.
    waves /= 1 + (np.arange(ORDERS)[:, None] / 4) ** 2
    area = np.sqrt((np.arange(RINGS) + 0.5) / RINGS)  # outer rings are longer
    return np.round(1000 * waves * area).astype(np.int32).ravel()


@lru_cache(maxsize=1)
def _descriptors() -> np.ndarray:
    """float64 [candidates, RINGS * ORDERS]; sums of squares of these integers are exact whatever their order."""
    return np.stack([descriptor(c.contour) for c in candidates()]).astype(np.float64)


def _distances(table: np.ndarray, index: int) -> np.ndarray:
    """Exact squared distances [n] of all rows to one row."""
    squares = np.einsum("nd,nd->n", table, table)
    return squares + squares[index] - 2 * (table @ table[index])


def _farthest_points(table: np.ndarray, count: int) -> list[int]:
    names = np.array([c.family for c in candidates()])
    allowed, used = np.ones(len(table), bool), dict.fromkeys(names.tolist(), 0)
    picked: list[int] = []
    nearest = np.full(len(table), np.inf)
    while len(picked) < count:
        # Variety first: no family provides more than 2 of the first 40 classes or 4 of the first 80.
        few = 2 if len(picked) < 40 else 4 if len(picked) < 80 else len(table)
        if len(picked) in (0, 40, 80):
            allowed[:] = [used[name] < few for name in names.tolist()]
        index = int(np.where(allowed, nearest, -1.0).argmax())
        picked.append(index)
        used[names[index]] += 1
        if used[names[index]] >= few:
            allowed[names == names[index]] = False
        np.minimum(nearest, _distances(table, index), out=nearest)
    return picked


def _groups(table: np.ndarray, count: int) -> list[int]:
    """Groups of look-alikes: the farthest points and, next to each, its nearest free neighbours."""
    free = np.ones(len(table), bool)
    picked = []
    for index in _farthest_points(table, -(-count // LOOKALIKES)):
        if not free[index]:  # already in the group of an earlier one
            continue
        near = _distances(table, index)
        # Not too near: two classes must differ by more than the noise.
        order = [i for i in np.argsort(near, kind="stable").tolist() if free[i]]
        group = [index]
        for i in order:
            if len(group) == LOOKALIKES:
                break
            if all(((table[i] - table[j]) ** 2).sum() > LEAST_DISTANCE**2 for j in group):
                group.append(i)
        picked += group
        free[group] = False
    rest = [i for i in _farthest_points(table, min(len(table), count + len(picked))) if free[i]]
    return (picked + rest)[:count]


def shape_classes(count: int, *, lookalikes: bool = False) -> list[ShapeClass]:
    """Returns the first `count` classes; with `lookalikes` classes come in groups of four that resemble each other.

    Raises ValueError when count is not in 1..MAX_CLASSES.
    """
    if not 1 <= count <= MAX_CLASSES:
        raise ValueError(f"shape classes: {count} asked for, there are 1 to {MAX_CLASSES}")
    table, pool = _descriptors(), candidates()
    numbers: dict[str, int] = {}
    classes = []
    for index in (_groups if lookalikes else _farthest_points)(table, count):
        candidate = pool[index]
        number = numbers[candidate.family] = numbers.get(candidate.family, 0) + 1
        name, synset = f"{candidate.family}_{number}", f"{candidate.family}.n.{number:02d}"
        classes.append(ShapeClass(name, synset, candidate.text, candidate.contour))
    return classes
