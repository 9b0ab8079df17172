"""The augmentation of training: what may be drawn, and how each image is seen.

Every choice is drawn from a stream fixed by (seed, step, row of the global batch, image id) and its purpose: the same
on any number of hosts, and from whatever step training resumes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from eql_jax.data.photometric import PhotometricRanges
from eql_jax.data.transforms import Size
from eql_jax.data.views import View, jittered_view, resized_view

# Words that keep the random streams of an image's row apart; the view's has none.
COLOURS, PASTES, PASTED_VIEW = 1, 2, 3

MAX_PASTES = 255  # a byte counts them


class CopyPaste(NamedTuple):
    """What is pasted, see config.data.copy_paste.

    Attributes:
      probability: that anything is pasted into an image; 0: off.
      source: 'batch': objects of another image of the batch; 'bank': objects of drawn classes, from the whole data set.
      max_objects: at least 1, at most so many are pasted.
      scale: (min, max) factor on the size of what is pasted, uniform.
      class_power: 'bank': a class is drawn with a weight of (its number of images) ** -class_power. 0: all alike.
    """

    probability: float
    source: str
    max_objects: int
    scale: tuple[float, float]
    class_power: float


class Recipe(NamedTuple):
    """The augmentation of training.

    Attributes:
      shorter_sides, longest_side: multi-scale training; one of the sides is drawn.
      scale_jitter: (min, max) of large-scale jitter, which takes the place of these; None: off.
      flip: half of the images are mirrored.
      colours: see `photometric`.
      copy_paste: see `CopyPaste`.
      fast_pixels: see `render`.
    """

    shorter_sides: tuple[int, ...]
    longest_side: int
    scale_jitter: tuple[float, float] | None
    flip: bool
    colours: PhotometricRanges
    copy_paste: CopyPaste
    fast_pixels: bool


def read_recipe(data: ConfigDict) -> Recipe:
    """Reads config.data.

    Raises:
      ValueError: a value is out of range.
    """
    sides = (data.shorter_side,) if isinstance(data.shorter_side, int) else tuple(data.shorter_side)
    if not sides or min(sides) < 1:
        raise ValueError(f"data.shorter_side must be one or more positive integers, got {sides}")
    jitter = _range(data.scale_jitter, "data.scale_jitter") if data.scale_jitter else None
    paste = data.copy_paste
    if paste.source not in ("batch", "bank"):
        raise ValueError(f"data.copy_paste.source is {paste.source!r}, expected 'batch' or 'bank'")
    if not 1 <= paste.max_objects <= MAX_PASTES:
        raise ValueError(f"data.copy_paste.max_objects is {paste.max_objects}, expected 1 to {MAX_PASTES}")
    return Recipe(
        shorter_sides=sides,
        longest_side=data.longest_side,
        scale_jitter=jitter,
        flip=data.flip,
        colours=PhotometricRanges(**data.photometric),
        copy_paste=CopyPaste(
            probability=paste.probability,
            source=paste.source,
            max_objects=paste.max_objects,
            scale=_range(paste.scale, "data.copy_paste.scale"),
            class_power=paste.class_power,
        ),
        fast_pixels=data.fast_pixels,
    )


def draw_view(stream: np.random.Generator, recipe: Recipe, source: Size, canvas: Size) -> View:
    """Draws how an image is seen.

    Args:
      stream: of the image's row.
      recipe: says what may be drawn.
      source: size of the image file.
      canvas: the bucket.
    """
    if recipe.scale_jitter is None:
        side = recipe.shorter_sides[int(stream.integers(len(recipe.shorter_sides)))]
        flip = bool(stream.integers(2)) if recipe.flip else False
        return resized_view(source, canvas=canvas, shorter_side=int(side), longest_side=recipe.longest_side, flip=flip)
    scale = float(stream.uniform(*recipe.scale_jitter))
    flip = bool(stream.integers(2)) if recipe.flip else False
    down, right = stream.random(2).tolist()
    return jittered_view(source, canvas=canvas, scale=scale, flip=flip, down=down, right=right)


def _range(values: tuple[float, ...], name: str) -> tuple[float, float]:
    if len(values) != 2 or not 0 < values[0] <= values[1]:
        raise ValueError(f"{name} is {tuple(values)}, expected (smallest, largest) with 0 < smallest <= largest")
    return float(values[0]), float(values[1])
