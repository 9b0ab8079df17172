"""What is done to a training image and to one that is evaluated: crop, flip, colours, AutoAugment, Cutout.

H W size of the file, S of the batch. Images are uint8 [H, W, 3] RGB; Pillow's where it does the work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from eql_jax.classification.auto_augment import Colour, auto_augment
from eql_jax.data.photometric import PhotometricRanges, change_colours, draw_photometric
from eql_jax.data.transforms import Size, output_size

CROPS = ("none", "padded", "resized")
_LEAST_AREA, _ASPECTS, _TRIES = 0.08, (3 / 4, 4 / 3), 10  # of the random part that is resized (Szegedy et al. 2015)


class Recipe(NamedTuple):
    """`config.data` of a classification config, read once.

    Attributes:
      size: S.
      crop: of CROPS.
      pad: pixels of `fill` on each side before a 'padded' crop.
      flip: mirror half of the images.
      colours: how far brightness, contrast, saturation and hue vary.
      policy: AutoAugment's, '' for none.
      cutout: side of the square that is blotted out, 0 for none.
      fill: what pads and blots out: the pixel mean, which the model sees as zero.
    """

    size: int
    crop: str
    pad: int
    flip: bool
    colours: PhotometricRanges
    policy: str
    cutout: int
    fill: Colour

    @classmethod
    def of(cls, config: ConfigDict) -> Recipe:
        """From a whole config."""
        d = config.data
        return cls(
            size=d.image_size,
            crop=d.crop,
            pad=d.pad,
            flip=d.flip,
            colours=PhotometricRanges(**d.photometric),
            policy=d.auto_augment,
            cutout=d.cutout,
            fill=tuple(round(c) for c in config.model.pixel_mean),
        )


def train_image(image: Image.Image, recipe: Recipe, stream: np.random.Generator) -> np.ndarray:
    """uint8 [S, S, 3]; the stream fixes every draw. The order is AutoAugment's: crop, flip, policy, Cutout.

    Raises:
      ValueError: the image is not of the size S, and recipe.crop is not 'resized'.
    """
    image = _CROPS[recipe.crop](image, recipe, stream)
    if recipe.flip and stream.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if any(recipe.colours):
        pixels = np.array(image)
        change_colours(pixels, draw_photometric(stream, recipe.colours))
        image = Image.fromarray(pixels)
    if recipe.policy:
        image = auto_augment(image, stream, policy=recipe.policy, fill=recipe.fill)
    pixels = np.asarray(image)
    return cutout(pixels, stream, side=recipe.cutout, fill=recipe.fill) if recipe.cutout else pixels


def eval_image(image: Image.Image, recipe: Recipe) -> np.ndarray:
    """uint8 [S, S, 3]: the image as it is; with crop 'resized' its middle, the shorter side made 8/7 S before.

    That is 256 for an S of 224. Raises as `train_image`.
    """
    if recipe.crop != "resized":
        return np.asarray(_as_it_is(image, recipe))
    shorter = round(recipe.size * 8 / 7)
    size = output_size(image.height, image.width, shorter_side=shorter, longest_side=10**9)
    image = image.resize((size.width, size.height), Image.Resampling.BILINEAR)
    left, top = (image.width - recipe.size) // 2, (image.height - recipe.size) // 2
    return np.asarray(image.crop((left, top, left + recipe.size, top + recipe.size)))


def cutout(pixels: np.ndarray, stream: np.random.Generator, *, side: int, fill: Colour) -> np.ndarray:
    """A copy of uint8 [H, W, 3] with a square of `fill` (DeVries & Taylor 2017, arXiv 1708.04552).

    Its middle is any pixel with the same probability, so that a part of the square may lie outside.
    """
    pixels = pixels.copy()
    y, x = (int(stream.integers(n)) for n in pixels.shape[:2])
    top, left = y - side // 2, x - side // 2
    pixels[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = fill
    return pixels


# ---------------------------------------------------------------------------------------------------- crops
def _as_it_is(image: Image.Image, recipe: Recipe, stream: np.random.Generator | None = None) -> Image.Image:
    del stream
    if image.size != (recipe.size, recipe.size):
        raise ValueError(
            f"an image is {image.width} x {image.height}; data.crop {recipe.crop!r} expects data.image_size, "
            f"{recipe.size} x {recipe.size}. 'resized' takes any"
        )
    return image


def _padded(image: Image.Image, recipe: Recipe, stream: np.random.Generator) -> Image.Image:
    """A random S x S of the image with `pad` pixels of `fill` around."""
    _as_it_is(image, recipe)
    left, top = (int(n) for n in stream.integers(0, 2 * recipe.pad + 1, 2))
    canvas = Image.new("RGB", image.size, recipe.fill)
    canvas.paste(image, (recipe.pad - left, recipe.pad - top))
    return canvas


def _resized(image: Image.Image, recipe: Recipe, stream: np.random.Generator) -> Image.Image:
    """A random part, of 8 to 100 % of the area and aspect 3:4 to 4:3, resized to S x S."""
    box = random_part(Size(image.height, image.width), stream)
    return image.resize((recipe.size, recipe.size), Image.Resampling.BILINEAR, box=box)


def random_part(size: Size, stream: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random part; the largest in the middle that has an allowed aspect, if ten draws
    fit nowhere (torchvision's RandomResizedCrop)."""
    low, high = np.log(_ASPECTS)
    # All draws at once, so that how many are used does not move what is drawn later.
    areas, aspects = stream.uniform(_LEAST_AREA, 1, _TRIES), np.exp(stream.uniform(low, high, _TRIES))
    across, down = stream.random(2)
    widths = np.rint(np.sqrt(size.height * size.width * areas * aspects)).astype(int)
    heights = np.rint(np.sqrt(size.height * size.width * areas / aspects)).astype(int)
    for width, height in zip(widths.tolist(), heights.tolist(), strict=True):
        if 0 < width <= size.width and 0 < height <= size.height:
            left, top = int(across * (size.width - width + 1)), int(down * (size.height - height + 1))
            return left, top, left + width, top + height
    width = min(size.width, round(size.height * _ASPECTS[1]))
    height = min(size.height, round(size.width / _ASPECTS[0]))
    left, top = (size.width - width) // 2, (size.height - height) // 2
    return left, top, left + width, top + height


_CROPS = {"none": _as_it_is, "padded": _padded, "resized": _resized}
