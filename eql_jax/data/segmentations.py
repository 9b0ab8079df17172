"""The instance masks of an image, packed: exact, and a tenth of the memory of one array per polygon.

P points of a polygon, G objects of an image. The coordinates of an annotation file are decimal numbers, those of LVIS
with two places. An int32 of hundredths holds such a number in half the space of a float64 and gives the very same
float64 back: both are the double nearest to the decimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eql_jax.data.polygons import RunLengths

Segmentation = tuple[np.ndarray, ...] | RunLengths

_PARTS_PER_PIXEL = 100.0  # hundredths


class Packed(NamedTuple):
    """The arrays of a `Segmentations`, for writing them to a file and reading them back.

    Attributes:
      coordinates: int32 hundredths of a pixel or float64 pixels, x and y of every point of every polygon in turn.
      points: int32, the number of points of each polygon.
      polygons: int32 [G], the number of polygons of each object; 0: it has run lengths.
      runs: int32, the runs of all objects that have run lengths, one after the other.
      num_runs: int32 [G], the number of runs of each object.
      height, width: of the masks in run lengths; 0 where there are none.
    """

    coordinates: np.ndarray
    points: np.ndarray
    polygons: np.ndarray
    runs: np.ndarray
    num_runs: np.ndarray
    height: int
    width: int


class Polygons(NamedTuple):
    """P polygons of N masks.

    Attributes:
      points: float64 [T, 2] (x, y) in pixels of the file, of all polygons in turn.
      sizes: int64 [P], the number of points of each.
      masks: int64 [P], rising: which of the N masks each belongs to.
    """

    points: np.ndarray
    sizes: np.ndarray
    masks: np.ndarray


class Segmentations(Sequence):
    """G masks: `segmentations[i]` is a tuple of polygons float64 [P, 2] of (x, y) pixels, or `RunLengths`."""

    __slots__ = ("packed",)

    def __init__(self, packed: Packed):
        self.packed = packed

    @classmethod
    def pack(cls, segmentations: Sequence[Segmentation]) -> Segmentations:
        """Packs masks. Those in run lengths must be of one size, that of their image.

        Raises:
          ValueError: run lengths of two sizes.
        """
        parts = [() if isinstance(s, RunLengths) else s for s in segmentations]
        flat = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygons in parts for polygon in polygons]
        rles = [s for s in segmentations if isinstance(s, RunLengths)]
        sizes = {(rle.height, rle.width) for rle in rles}
        if len(sizes) > 1:
            raise ValueError(f"the masks of an image have one size, found (height, width) {sorted(sizes)}")
        height, width = sizes.pop() if sizes else (0, 0)
        return cls(
            Packed(
                coordinates=pack_numbers(np.concatenate(flat).ravel() if flat else np.zeros(0)),
                points=np.array([len(polygon) for polygon in flat], np.int32),
                polygons=np.array([len(polygons) for polygons in parts], np.int32),
                runs=np.concatenate([rle.counts for rle in rles]).astype(np.int32) if rles else np.zeros(0, np.int32),
                num_runs=np.array([s.counts.size if isinstance(s, RunLengths) else 0 for s in segmentations], np.int32),
                height=height,
                width=width,
            )
        )

    def __len__(self) -> int:
        return self.packed.polygons.size

    def __getitem__(self, i: int | slice) -> Segmentation | list[Segmentation]:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        p = self.packed
        i = range(len(self))[i]  # IndexError, and negative numbers, as of a list
        count = int(p.polygons[i])
        if not count:
            start = int(p.num_runs[:i].sum())
            return RunLengths(p.height, p.width, p.runs[start : start + int(p.num_runs[i])].astype(np.int64))
        first = int(p.polygons[:i].sum())
        start = 2 * int(p.points[:first].sum())
        sizes = 2 * p.points[first : first + count]
        numbers = p.coordinates[start : start + int(sizes.sum())]
        if numbers.dtype != np.float64:
            numbers = numbers / _PARTS_PER_PIXEL
        if count == 1:
            return (numbers.reshape(-1, 2),)
        return tuple(part.reshape(-1, 2) for part in np.split(numbers, np.cumsum(sizes[:-1])))

    def select(self, indices: np.ndarray) -> Segmentations:
        """Some of the masks, in their order.

        Args:
          indices: int [N], rising.
        """
        p = self.packed
        polygon = ranges((np.cumsum(p.polygons) - p.polygons)[indices], p.polygons[indices].astype(np.int64))
        point = ranges((np.cumsum(p.points, dtype=np.int64) - p.points)[polygon], p.points[polygon].astype(np.int64))
        run = ranges((np.cumsum(p.num_runs) - p.num_runs)[indices], p.num_runs[indices].astype(np.int64))
        return Segmentations(
            p._replace(
                coordinates=p.coordinates.reshape(-1, 2)[point].ravel(),
                points=p.points[polygon],
                polygons=p.polygons[indices],
                runs=p.runs[run],
                num_runs=p.num_runs[indices],
            )
        )

    def polygons_of(self, indices: np.ndarray) -> Polygons:
        """The polygons of some of the masks, all in one array; masks in run lengths have none.

        Args:
          indices: int [N] objects.
        """
        p = self.packed
        counts = p.polygons[indices].astype(np.int64)
        mask = np.repeat(np.arange(len(indices)), counts)
        polygon = ranges((np.cumsum(p.polygons) - p.polygons)[indices], counts)
        sizes = p.points[polygon].astype(np.int64)
        point = ranges((np.cumsum(p.points, dtype=np.int64) - p.points)[polygon], sizes)
        points = p.coordinates.reshape(-1, 2)[point]
        return Polygons(points if points.dtype == np.float64 else points / _PARTS_PER_PIXEL, sizes, mask)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, .. of each range in turn, int64 [sum of counts]; starts and counts int [n]."""
    return np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)


def pack_numbers(numbers: np.ndarray) -> np.ndarray:
    """As int32 hundredths where these give every number back to the last bit, else unchanged (float64)."""
    scaled = np.rint(numbers * _PARTS_PER_PIXEL)
    if np.abs(scaled).max(initial=0) < 2**31:
        hundredths = scaled.astype(np.int32)
        if np.array_equal(hundredths / _PARTS_PER_PIXEL, numbers):
            return hundredths
    return numbers
