"""Resizing on the device against Pillow, and by hand."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from eql_jax.ops.resize import resize_images

SOURCE, TARGET = (96, 120), (160, 200)
SIZES = [
    ((96, 120), (160, 200)),
    ((90, 61), (150, 102)),
    ((96, 120), (33, 41)),
    ((70, 120), (70, 120)),
    ((1, 3), (1, 3)),
]


@functools.cache
def compiled():
    return jax.jit(functools.partial(resize_images, canvas_size=TARGET))


@pytest.mark.parametrize("smooth", [False, True])
def test_equals_pillow(smooth):
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (len(SIZES), *SOURCE, 3), np.uint8)  # what is around an image must not matter
    if smooth:
        y, x = np.mgrid[: SOURCE[0], : SOURCE[1]]
        canvas[:] = np.stack([128 + 100 * np.sin(x / 9 + y / 5), x * y % 256, 2 * x], axis=-1)
    old, new = np.array(SIZES, np.int32).swapaxes(0, 1)
    resized = np.asarray(compiled()(canvas, old, new))
    assert resized.shape == (len(SIZES), *TARGET, 3) and resized.dtype == np.uint8
    for image, out, ((h, w), (height, width)) in zip(canvas, resized, SIZES, strict=True):
        expected = np.asarray(Image.fromarray(image[:h, :w]).resize((width, height), Image.Resampling.BILINEAR))
        difference = np.abs(out[:height, :width].astype(int) - expected)
        assert difference.max() <= 1 and (difference > 0).mean() <= 0.01
        assert not out[height:].any() and not out[:, width:].any()


def test_by_hand():
    """Doubled, a row 0, 100 has its centres at -.25, .25, .75 and 1.25 of the old ones; halved, the mean with weights
    3, 3, 1 of the pixels 1/2, 1/2 and 3/2 away from a centre that is between two, of a triangle two pixels wide."""
    row = np.zeros((1, 1, 4, 1), np.uint8)
    row[0, 0, :2, 0] = 0, 100
    resize = jax.jit(functools.partial(resize_images, row, canvas_size=(1, 4)))
    doubled = resize(np.array([[1, 2]]), np.array([[1, 4]]))
    assert np.asarray(doubled)[0, 0, :, 0].tolist() == [0, 25, 75, 100]
    halved = resize(np.array([[1, 4]]), np.array([[1, 2]]))
    assert np.asarray(halved)[0, 0, :, 0].tolist() == [43, 14, 0, 0]  # 300 / 7 and 100 / 7 = 14.29


def test_faults():
    sizes = np.ones((1, 2), np.int32)
    with pytest.raises(ValueError, match=r"float32.*expected uint8"):
        resize_images(jax.numpy.zeros((1, 4, 4, 3)), sizes, sizes, canvas_size=(4, 4))
    with pytest.raises(ValueError, match="16384"):
        resize_images(jax.numpy.zeros((1, 1, 20000, 3), "uint8"), sizes, sizes, canvas_size=(4, 4))
