"""Anchor boxes of a feature pyramid, as NumPy constants.

Shapes: N anchors of an image, all levels concatenated, in the order level -> (row, column, anchor of the cell).

Anchors depend on static shapes alone: make them at trace time and they become constants of the compiled programme.
"""

import math
from collections.abc import Sequence

import numpy as np


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float], *, rounded: bool = False) -> np.ndarray:
    """Anchors of one cell, centred on (0, 0).

    Args:
      sizes: square roots of the areas, in pixels.
      aspect_ratios: height / width.
      rounded: round the corners to whole pixels (halves to even), as torchvision's AnchorGenerator does.

    Returns:
      float32 [len(sizes) * len(aspect_ratios), 4], the size outermost.
    """
    anchors = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            anchors.append((-width / 2, -height / 2, width / 2, height / 2))
    anchors = np.asarray(anchors, np.float32)
    return np.round(anchors) if rounded else anchors


def level_anchors(
    feature_shape: tuple[int, int],
    *,
    stride: int,
    sizes: Sequence[float],
    aspect_ratios: Sequence[float],
    rounded: bool = False,
) -> np.ndarray:
    """Anchors of one level: float32 [h * w * A, 4] for a feature map (h, w), A = len(sizes) * len(aspect_ratios).

    The first cell is centred on pixel (0, 0), not on half a stride (detectron2 ANCHOR_GENERATOR.OFFSET 0). Anchors that
    reach outside the image are kept.
    """
    rows, columns = feature_shape
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1).astype(np.float32) * np.float32(stride)
    return (shifts[:, :, None] + cell_anchors(sizes, aspect_ratios, rounded=rounded)).reshape(-1, 4)


def pyramid_anchors(
    feature_shapes: Sequence[tuple[int, int]],
    *,
    strides: Sequence[int],
    sizes: Sequence[float | Sequence[float]],
    aspect_ratios: Sequence[float],
    rounded: bool = False,
) -> list[np.ndarray]:
    """Anchors of every level, finest first; `np.concatenate` of the list gives the [N, 4] of an image.

    Args:
      feature_shapes: (h, w) of every level.
      strides: pixels between cells, one per level.
      sizes: one size, or a sequence of sizes, per level. One level with several sizes is the C4 layout.
      aspect_ratios: height / width, the same on every level.
      rounded: see `cell_anchors`.

    Returns:
      A float32 [h * w * A, 4] per level.

    Raises:
      ValueError: if the three sequences differ in length.
    """
    if not len(feature_shapes) == len(strides) == len(sizes):
        raise ValueError(
            f"anchors need one stride and one size (or sequence of sizes) per level, got {len(feature_shapes)} feature "
            f"shapes {tuple(feature_shapes)}, {len(strides)} strides {tuple(strides)} and {len(sizes)} sizes "
            f"{tuple(sizes)}; wrap several sizes of one level in a tuple of their own"
        )
    return [
        level_anchors(
            tuple(shape),
            stride=stride,
            sizes=size if isinstance(size, Sequence) else (size,),
            aspect_ratios=aspect_ratios,
            rounded=rounded,
        )
        for shape, stride, size in zip(feature_shapes, strides, sizes, strict=True)
    ]
