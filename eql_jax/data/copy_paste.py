"""Copy-paste (Ghiasi et al. 2021, arXiv 2012.07177): objects of other images are set into an image, with their masks.

What a pasted object covers is taken out of the masks below it, boxes are those of what is left, and objects of which
nearly nothing is left are dropped. Only masks that meet a pasted one are filled at the size of their box; nothing is
made of full image size but one byte a pixel that says who owns it.

N objects, H W canvas. Boxes are XYXY in absolute pixels of the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from eql_jax.data.images import ImageError
from eql_jax.data.opencv import opencv
from eql_jax.data.placement import Placed
from eql_jax.data.polygons import RunLengths, sample_run_lengths
from eql_jax.data.rasterize import fill_polygons
from eql_jax.data.records import ImageRecord
from eql_jax.data.render import window_pixels
from eql_jax.data.views import Window

# An object is dropped when the pasted ones leave less of it than this share of its pixels, or this many.
MIN_VISIBLE_SHARE = 0.05
MIN_VISIBLE_PIXELS = 4

_FILLED_TOGETHER = 1 << 22  # pixels


class Paste(NamedTuple):
    """Objects of one image to be set into another. They do not cover each other, but whatever was pasted before.

    Attributes:
      index: position of their image in the data set, for reports.
      record: that image.
      placed: they, in a view of their image whose canvas is the part of the canvas that the other image covers.
    """

    index: int
    record: ImageRecord
    placed: Placed


class Pasted(NamedTuple):
    """What is on a canvas after pasting.

    Attributes:
      layers: what is left of the image's own objects, then of those of each paste; boxes are those of visible parts.
      owners: uint8 [H, W], the layer that each pixel shows.
    """

    layers: list[Placed]
    owners: np.ndarray


def paste_objects(
    canvas: np.ndarray,
    own: Placed,
    pastes: Sequence[Paste],
    *,
    fast: bool,
    on_error: Callable[[Paste, ImageError], None],
) -> Pasted:
    """Sets objects into a canvas, in place, one paste after the other.

    Args:
      canvas: uint8 [H, W, 3], written to.
      own: the objects that are there.
      pastes: at most 255.
      fast: see `render`.
      on_error: told of a paste whose image file cannot be used; it is left out.
    """
    owners = np.zeros(canvas.shape[:2], np.uint8)
    layers = [own]
    for layer, paste in enumerate(pastes, start=1):
        try:
            layers.append(_set_in(canvas, owners, layer, paste, fast=fast))
        except ImageError as error:
            layers.append(paste.placed.select(np.zeros(0, np.int64)))
            on_error(paste, error)
    return Pasted([_visible(placed, layer, owners) for layer, placed in enumerate(layers)], owners)


def hide_covered(mask: np.ndarray, box: np.ndarray, owners: np.ndarray, layer: int) -> None:
    """Takes what later layers own out of a mask on its grid, in place: each cell by the pixel under its centre.

    Args:
      mask: uint8 0/1 [M, M], cropped to its box.
      box: float [4].
      owners: uint8 [H, W].
      layer: whose the mask is.
    """
    x1, y1, x2, y2 = box.tolist()
    centres = (np.arange(len(mask)) + 0.5) / len(mask)
    columns = np.minimum((x1 + centres * (x2 - x1)).astype(np.int64), owners.shape[1] - 1)
    rows = np.minimum((y1 + centres * (y2 - y1)).astype(np.int64), owners.shape[0] - 1)
    mask &= owners[rows[:, None], columns] <= layer


def fill_on_canvas(placed: Placed, row: int) -> tuple[Window, np.ndarray]:
    """The mask of an object at the size of the canvas, within its box; all of the box where there are no masks.

    Returns:
      The window around its box, and uint8 0/1 [window height, window width].
    """
    x1, y1 = np.floor(placed.boxes[row, :2]).astype(int).tolist()
    x2, y2 = np.ceil(placed.boxes[row, 2:]).astype(int).tolist()
    window = Window(y1, x1, y2 - y1, x2 - x1)
    if placed.objects.segmentations is None:
        return window, np.ones((window.height, window.width), np.uint8)
    segmentation = placed.objects.segmentations[int(placed.indices[row])]
    view = placed.view
    if isinstance(segmentation, RunLengths):
        centres = view.file_boxes(np.array([[x1, y1, x2, y2]]))[0]
        across = (np.arange(window.width) + 0.5) / window.width
        down = (np.arange(window.height) + 0.5) / window.height
        columns = centres[0] + (across[::-1] if view.flip else across) * (centres[2] - centres[0])
        rows = centres[1] + down * (centres[3] - centres[1])
        columns = np.clip(columns.astype(np.int64), 0, segmentation.width - 1)
        rows = np.clip(rows.astype(np.int64), 0, segmentation.height - 1)
        return window, np.ascontiguousarray(sample_run_lengths(segmentation, rows, columns))
    sizes = np.array([len(part) for part in segmentation])
    points = view.points(np.concatenate(segmentation)) - (x1, y1)
    # Some parts at a time: each is filled by itself, and an object of hundreds of parts may be as large as the canvas.
    together = max(1, _FILLED_TOGETHER // max(1, window.height * window.width))
    mask = np.zeros((window.height, window.width), np.uint8)
    ends = np.cumsum(sizes)
    for first in range(0, len(sizes), together):
        some = sizes[first : first + together]
        part = points[ends[first] - sizes[first] : ends[first + len(some) - 1]]
        filled = fill_polygons(
            part, some, np.arange(len(some)), num_grids=len(some), height=window.height, width=window.width
        )
        mask |= np.bitwise_or.reduce(filled, axis=0)
    return window, mask


def _set_in(canvas: np.ndarray, owners: np.ndarray, layer: int, paste: Paste, *, fast: bool) -> Placed:
    """Returns the objects of which there is a pixel to set in."""
    boxes = paste.placed.boxes
    if not len(boxes):
        return paste.placed
    left, top = np.floor(boxes[:, :2].min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(boxes[:, 2:].max(axis=0)).astype(int).tolist()
    around = Window(top, left, bottom - top, right - left)
    pixels = window_pixels(paste.record, paste.placed.view, around, fast=fast)
    drawn = np.zeros(len(boxes), bool)
    for row in range(len(boxes)):
        window, mask = fill_on_canvas(paste.placed, row)
        owners[_slices(window)][mask > 0] = layer
        drawn[row] = mask.any()
    shown = (owners[_slices(around)] == layer).view(np.uint8)
    opencv().copyTo(pixels, shown, canvas[_slices(around)])
    return paste.placed.select(drawn)


def _visible(placed: Placed, layer: int, owners: np.ndarray) -> Placed:
    """What others leave of the objects of a layer."""
    boxes, altered = placed.boxes.copy(), placed.altered.copy()
    kept = np.ones(len(boxes), bool)
    starts = np.floor(boxes[:, :2]).astype(int).tolist()
    ends = np.ceil(boxes[:, 2:]).astype(int).tolist()
    for row, ((x1, y1), (x2, y2)) in enumerate(zip(starts, ends, strict=True)):
        # Pixels of earlier layers cannot cover this one.
        if not (owners[y1:y2, x1:x2] > layer).any():
            continue
        window, mask = fill_on_canvas(placed, row)
        seen = mask.astype(bool) & (owners[_slices(window)] <= layer)
        area, left_over = int(mask.sum()), int(seen.sum())
        if not area:  # too thin for the centre of a pixel: it is gone when all that its box touches is
            kept[row] = (owners[y1:y2, x1:x2] <= layer).any()
            continue
        if left_over == area:
            continue
        if left_over < max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * area):
            kept[row] = False
            continue
        columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
        boxes[row, :2] = np.maximum(boxes[row, :2], [x1 + columns[0], y1 + rows[0]])
        boxes[row, 2:] = np.minimum(boxes[row, 2:], [x1 + columns[-1] + 1, y1 + rows[-1] + 1])
        altered[row] = True
    return placed._replace(boxes=boxes, altered=altered).select(kept)


def _slices(window: Window) -> tuple[slice, slice]:
    top, left, height, width = window
    return slice(top, top + height), slice(left, left + width)
