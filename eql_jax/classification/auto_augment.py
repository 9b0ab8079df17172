"""AutoAugment (Cubuk et al. 2019, arXiv 1805.09501): the policies found on CIFAR-10 and ImageNet, with Pillow.

The tables are those of the paper's appendix. Operations have the strength that the paper's Table 6 gives for level 9 of
0..9 and less in proportion; those that go both ways (shear, translation, rotation, the enhancements) get a random sign,
as in torchvision. What lies outside of the image is filled with a given colour.

Not from a library: docs/classification.md says which were looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Colour = tuple[int, int, int]


class Step(NamedTuple):
    """An operation, the probability that it is done, and its level 0..9 (without meaning where there is only one)."""

    operation: str
    probability: float
    level: int


def _policy(table: str) -> tuple[tuple[Step, Step], ...]:
    """Reads 'name probability level + name probability level' lines."""
    pairs = []
    for line in table.strip().splitlines():
        first, second = (Step(name, float(p), int(level)) for name, p, level in map(str.split, line.split("+")))
        pairs.append((first, second))
    return tuple(pairs)


POLICIES = {
    "cifar10": _policy("""
        invert       .1 7 + contrast     .2 6
        rotate       .7 2 + translate_x  .3 9
        sharpness    .8 1 + sharpness    .9 3
        shear_y      .5 8 + translate_y  .7 9
        autocontrast .5 8 + equalize     .9 2
        shear_y      .2 7 + posterize    .3 7
        color        .4 3 + brightness   .6 7
        sharpness    .3 9 + brightness   .7 9
        equalize     .6 5 + equalize     .5 1
        contrast     .6 7 + sharpness    .6 5
        color        .7 7 + translate_x  .5 8
        equalize     .3 7 + autocontrast .4 8
        translate_y  .4 3 + sharpness    .2 6
        brightness   .9 6 + color        .2 8
        solarize     .5 2 + invert       .0 3
        equalize     .2 0 + autocontrast .6 0
        equalize     .2 8 + equalize     .6 4
        color        .9 9 + equalize     .6 6
        autocontrast .8 4 + solarize     .2 8
        brightness   .1 3 + color        .7 0
        solarize     .4 5 + autocontrast .9 3
        translate_y  .9 9 + translate_y  .7 9
        autocontrast .9 2 + solarize     .8 3
        equalize     .8 8 + invert       .1 3
        translate_y  .7 9 + autocontrast .9 1
    """),
    "imagenet": _policy("""
        posterize    .4 8 + rotate       .6 9
        solarize     .6 5 + autocontrast .6 5
        equalize     .8 8 + equalize     .6 3
        posterize    .6 7 + posterize    .6 6
        equalize     .4 7 + solarize     .2 4
        equalize     .4 4 + rotate       .8 8
        solarize     .6 3 + equalize     .6 7
        posterize    .8 5 + equalize    1.0 2
        rotate       .2 3 + solarize     .6 8
        equalize     .6 8 + posterize    .4 6
        rotate       .8 8 + color        .4 0
        rotate       .4 9 + equalize     .6 2
        equalize     .0 7 + equalize     .8 8
        invert       .6 4 + equalize    1.0 8
        color        .6 4 + contrast    1.0 8
        rotate       .8 8 + color       1.0 2
        color        .8 8 + solarize     .8 7
        sharpness    .4 7 + invert       .6 8
        shear_x      .6 5 + equalize    1.0 9
        color        .4 0 + equalize     .6 3
        equalize     .4 7 + solarize     .2 4
        solarize     .6 5 + autocontrast .6 5
        invert       .6 4 + equalize    1.0 8
        color        .6 4 + contrast    1.0 8
        equalize     .8 8 + equalize     .6 3
    """),
}

_SHEAR, _ROTATION, _ENHANCEMENT = 0.3, 30.0, 0.9  # at level 9: slope, degrees, distance of the factor to 1
_TRANSLATION = 150 / 331  # share of the side: the paper's 150 pixels of the 331 that its ImageNet models see


def auto_augment(image: Image.Image, stream: np.random.Generator, *, policy: str, fill: Colour) -> Image.Image:
    """Draws one of the policy's pairs and does its steps, each with its probability. RGB in and out, same size.

    Args:
      stream: as many numbers are drawn from it whatever comes of them.
      policy: a key of POLICIES.
      fill: colour of what comes into sight.
    """
    pairs = POLICIES[policy]
    pair = pairs[int(stream.integers(len(pairs)))]
    done, signs = stream.random(2), stream.integers(0, 2, 2) * 2 - 1
    for step, chance, sign in zip(pair, done, signs, strict=True):
        if chance < step.probability:
            image = OPERATIONS[step.operation](image, step.level / 9, int(sign), fill)
    return image


# ---------------------------------------------------------------------------------------------------- operations
# Each takes (image, strength in 0..1, sign, fill). Positive signs move what is seen to the right and down, turn it
# counterclockwise, and strengthen colours, contrast, brightness and edges.
Operation = Callable[[Image.Image, float, int, Colour], Image.Image]


def _affine(image: Image.Image, coefficients: tuple[float, ...], fill: Colour) -> Image.Image:
    """Pixel (x, y) of the result is pixel (a x + b y + c, d x + e y + f) of the image, the nearest one."""
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST, fillcolor=fill)


def _shear_x(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return _affine(image, (1, -sign * strength * _SHEAR, 0, 0, 1, 0), fill)


def _shear_y(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return _affine(image, (1, 0, 0, -sign * strength * _SHEAR, 1, 0), fill)


def _translate_x(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return _affine(image, (1, 0, -sign * int(strength * _TRANSLATION * image.width), 0, 1, 0), fill)


def _translate_y(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, -sign * int(strength * _TRANSLATION * image.height)), fill)


def _rotate(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return image.rotate(sign * strength * _ROTATION, fillcolor=fill)


def _enhance(kind: type) -> Operation:
    return lambda image, strength, sign, fill: kind(image).enhance(1 + sign * strength * _ENHANCEMENT)


OPERATIONS: dict[str, Operation] = {
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _enhance(ImageEnhance.Brightness),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    # 8 bits down to 4, and the threshold 256 (nothing is inverted) down to 0
    "posterize": lambda image, strength, sign, fill: ImageOps.posterize(image, 8 - round(4 * strength)),
    "solarize": lambda image, strength, sign, fill: ImageOps.solarize(image, round(256 * (1 - strength))),
    "autocontrast": lambda image, strength, sign, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign, fill: ImageOps.equalize(image),
    "invert": lambda image, strength, sign, fill: ImageOps.invert(image),
}
