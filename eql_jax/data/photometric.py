"""Random brightness, contrast, saturation and hue: torchvision's ColorJitter, on uint8 RGB arrays with OpenCV.

Images are uint8 [H, W, 3] RGB. Grey is .299 R + .587 G + .114 B.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eql_jax.data.opencv import opencv


class PhotometricRanges(NamedTuple):
    """How far colours are changed; all 0: not at all.

    Attributes:
      brightness, contrast, saturation: the factor is drawn uniformly from 1 - x to 1 + x (0 <= x <= 1).
      hue: the shift is drawn uniformly from -x to x, in turns of the colour circle (0 <= x <= .5).
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


# What is done to one image: (name, factor or shift) in the order in which it is done.
ColourChanges = tuple[tuple[str, float], ...]


def draw_photometric(stream: np.random.Generator, ranges: PhotometricRanges) -> ColourChanges:
    """Draws the factors and their order. A range of 0 is left out."""
    changes = []
    for name, reach in ranges._asdict().items():
        middle = 0.0 if name == "hue" else 1.0
        value = float(stream.uniform(middle - reach, middle + reach))
        if reach:
            changes.append((name, value))
    return tuple(changes[i] for i in stream.permutation(len(changes)))


def change_colours(image: np.ndarray, changes: ColourChanges) -> None:
    """Changes an image in place; rows may lie apart in memory. What leaves 0..255 is clipped after each change."""
    for name, value in changes:
        if image.size:
            image[:] = _CHANGES[name](image, value)


def _brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Times the factor."""
    return _look_up(image, np.arange(256) * factor)


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from the mean grey of the image, or towards it."""
    cv2 = opencv()
    mean = np.floor(cv2.mean(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _look_up(image, mean + (np.arange(256) - mean) * factor)


def _saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from the grey of each pixel, or towards it."""
    cv2 = opencv()
    image = np.ascontiguousarray(image)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def _hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Round the colour circle of HSV, in steps of 1/256."""
    cv2 = opencv()
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV_FULL)
    table = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 3))
    table[:, 0] = (np.arange(256) + round(turns * 256)) % 256
    return cv2.cvtColor(cv2.LUT(hsv, table[None]), cv2.COLOR_HSV2RGB_FULL)


_CHANGES = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return opencv().LUT(np.ascontiguousarray(image), np.rint(table).clip(0, 255).astype(np.uint8))
