"""Instance masks, from polygons or run lengths, cropped to their box and sampled at a fixed size.

H W image size, M side of the cropped mask, P points of a polygon. Boxes are XYXY in absolute pixels, pixel i covers
[i, i + 1). A cropped mask is relative to its box, so it stays the same when image and box are resized together; a
horizontal flip mirrors its columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eql_jax.data.rasterize import fill_polygons

# The least side of a box that polygons are scaled by, in pixels (detectron2's rasterize_polygons_within_box).
MIN_SIDE = 0.1


class RunLengths(NamedTuple):
    """A mask in COCO run lengths: pixels down the columns, runs of 0 and 1 in turn, beginning with 0.

    Attributes:
      height, width: size of the mask, pixels.
      counts: int64 [number of runs], sums to height * width.
    """

    height: int
    width: int
    counts: np.ndarray


def parse_run_lengths(rle: dict) -> RunLengths:
    """Reads COCO run lengths, compressed (`counts` is str or bytes) or not (`counts` is a list).

    Raises:
      ValueError: keys are missing, counts are negative or do not sum to height * width.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"run lengths need 'size' [height, width] and 'counts', got keys {sorted(rle)}") from error
    if isinstance(counts, str | bytes):
        counts = decompress_counts(counts)
    else:
        counts = np.asarray(counts)
        if counts.ndim != 1 or counts.dtype.kind not in "iu":
            raise ValueError(f"'counts' must be a list of integers or a string, got {str(rle['counts'])[:60]}")
        counts = counts.astype(np.int64)
    if height <= 0 or width <= 0 or counts.size == 0 or counts.min() < 0 or counts.sum() != height * width:
        raise ValueError(f"runs sum to {int(counts.sum())}, expected height * width = {height} * {width}")
    return RunLengths(height, width, counts)


def decompress_counts(counts: str | bytes) -> np.ndarray:
    """Decodes the string form of COCO run lengths to int64 [number of runs].

    Five bits a character (minus 48), the lowest first; 0x20 says that more follow, 0x10 of the last is the sign. From
    the fourth run on, the difference to the run two before is stored.

    Raises:
      ValueError: the string has characters outside the code or ends in the middle of a number.
    """
    raw = counts.encode() if isinstance(counts, str) else bytes(counts)
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        raise ValueError(f"compressed 'counts' are malformed: {raw[:40]!r}")
    last = (codes & 0x20) == 0
    number = np.concatenate([[0], np.cumsum(last)[:-1]])  # which number each character belongs to
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    position = np.arange(codes.size) - starts[number]
    if position.max() > 10:
        raise ValueError(f"compressed 'counts' hold a number of more than 55 bits: {raw[:40]!r}")
    values = np.zeros(number[-1] + 1, np.int64)
    np.add.at(values, number, (codes & 0x1F) << (5 * position))
    negative = (codes[last] & 0x10) != 0
    values -= negative.astype(np.int64) << (5 * (position[last] + 1))
    # x[i] += x[i - 2] for i > 2: running sums of the odd places from 1 on and of the even places from 2 on.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def decode_run_lengths(rle: RunLengths) -> np.ndarray:
    """Returns the mask, uint8 0/1 [H, W]."""
    values = np.arange(rle.counts.size, dtype=np.uint8) & 1
    return np.repeat(values, rle.counts).reshape(rle.width, rle.height).T


def to_rle(segmentation: list | dict, *, height: int, width: int) -> dict:
    """Segmentation of an annotation or a result (polygons, or run lengths of either form) as compressed run lengths.

    Args:
      segmentation: flat polygons of at least three points each, or {'size', 'counts'}; not checked here.
      height, width: of the image.
    """
    from pycocotools import mask as mask_api

    if isinstance(segmentation, list):
        return mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_api.frPyObjects(segmentation, height, width)
    return dict(segmentation)


def sample_run_lengths(rle: RunLengths, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The mask at all pairs of the given rows and columns, without decoding the rest of it.

    Args:
      rle: the mask.
      rows: int [h] and
      columns: int [w], inside the mask.

    Returns:
      uint8 0/1 [h, w].
    """
    positions = columns.astype(np.int64)[:, None] * rle.height + rows
    return (np.searchsorted(np.cumsum(rle.counts), positions, side="right") & 1).astype(np.uint8).T


def crop_mask(segmentation: tuple[np.ndarray, ...] | RunLengths, box: np.ndarray, *, mask_size: int) -> np.ndarray:
    """Crops a mask to its box and samples it on a grid of mask_size x mask_size cells.

    Cell (i, j) has its centre at (x1 + (j + .5) / M * w, y1 + (i + .5) / M * h). Polygons are shifted and scaled to the
    grid and filled there as pycocotools does, the union of all parts (detectron2's rasterize_polygons_within_box);
    nothing of full image size is made. Of run lengths the pixel under each cell centre is taken.

    `crops.crop_masks` does it for many masks of an image at once, faster.

    Args:
      segmentation: polygons, each float [P, 2] of (x, y) in the pixels of the box, or run lengths.
      box: float [4] XYXY.
      mask_size: M.

    Returns:
      uint8 0/1 [M, M].
    """
    x1, y1, x2, y2 = (float(side) for side in box)
    if isinstance(segmentation, RunLengths):
        centres = (np.arange(mask_size) + 0.5) / mask_size
        columns = np.clip(np.floor(x1 + centres * (x2 - x1)), 0, segmentation.width - 1).astype(np.int64)
        rows = np.clip(np.floor(y1 + centres * (y2 - y1)), 0, segmentation.height - 1).astype(np.int64)
        return sample_run_lengths(segmentation, rows, columns)
    scale = np.array([mask_size / max(x2 - x1, MIN_SIDE), mask_size / max(y2 - y1, MIN_SIDE)])
    points = (np.concatenate(segmentation).astype(np.float64) - (x1, y1)) * scale
    sizes = np.array([len(part) for part in segmentation])
    return fill_polygons(points, sizes, np.zeros(len(sizes), np.int64), num_grids=1, height=mask_size, width=mask_size)[
        0
    ]
