"""Sizes, random choices and box arithmetic of the training augmentation.

G objects of an image. Boxes are float32 XYXY in absolute pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Size(NamedTuple):
    """Height and width, pixels."""

    height: int
    width: int


class Augmentation(NamedTuple):
    """The random choices for one image at one step."""

    shorter_side: int
    flip: bool


def output_size(height: int, width: int, *, shorter_side: int, longest_side: int) -> Size:
    """Size after resizing the shorter side to shorter_side, or the longer one to longest_side if that is less.

    detectron2's ResizeShortestEdge: the scale is shorter_side / min(h, w); when the longer side then exceeds
    longest_side, both are scaled down; each is rounded with int(x + .5). Neither becomes less than 1.
    """
    scale = shorter_side / min(height, width)
    # The shorter side is set, not multiplied, as in detectron2: the float product may be off by one ulp.
    new_height, new_width = (shorter_side, scale * width) if height < width else (scale * height, shorter_side)
    if max(new_height, new_width) > longest_side:
        scale = longest_side / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return Size(max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5)))


def fit_size(size: Size, bucket: Size) -> Size:
    """Scales a size down, aspect kept, until it fits the bucket. A size that fits is returned as it is."""
    scale = min(bucket.height / size.height, bucket.width / size.width)
    if scale >= 1:
        return size
    # The side that decides comes out as the bucket's, whichever way its product is rounded.
    return Size(max(1, int(size.height * scale + 1e-6)), max(1, int(size.width * scale + 1e-6)))


def random_stream(*words: int) -> np.random.Generator:
    """A random generator fixed by integers (any sign, up to 64 bits), equal on every host and platform."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(word) % 2**64 for word in words])))


def draw_augmentation(
    *, seed: int, step: int, row: int, image_id: int, shorter_sides: tuple[int, ...], flip: bool
) -> Augmentation:
    """Draws shorter side and flip of one image.

    Fixed by (seed, step, row of the global batch, image id), so the same on any number of hosts. The row only tells
    apart the copies of an image that a small data set puts twice into one batch.
    """
    stream = random_stream(seed, step, row, image_id)
    side = shorter_sides[int(stream.integers(len(shorter_sides)))]
    return Augmentation(int(side), bool(stream.integers(2)) if flip else False)


def resize_boxes(boxes: np.ndarray, *, old: Size, new: Size, flip: bool) -> np.ndarray:
    """Scales boxes per axis, mirrors them when flip, and clips them to the image. Float32 [G, 4]."""
    scale = np.array([new.width / old.width, new.height / old.height] * 2)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * scale
    if flip:
        boxes[:, [0, 2]] = new.width - boxes[:, [2, 0]]
    limit = np.array([new.width, new.height] * 2, np.float64)
    return np.clip(boxes, 0, limit).astype(np.float32)
