"""Sizes of resized images, and random streams."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Size(NamedTuple):
    """Height and width, pixels."""

    height: int
    width: int


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
