"""Resized pixels: byte for byte Pillow's, and within one grey level of antialiased bilinear written out in NumPy."""

import numpy as np
import pytest
from PIL import Image

from eql_jax.data.examples import ExampleShape, eval_example, train_example
from eql_jax.data.images import read_image
from eql_jax.data.records import ImageRecord, empty_objects
from eql_jax.data.transforms import Size
from eql_jax.data.views import resized_view
from tests.data.conftest import resize_and_pad

# (height, width) of the picture, shorter and longest side asked for, size that comes out: down by 1.6 to 8.6, up by 1.5
# to 3.4, one with the longer side as the limit, one that stays as it is.
CASES = [
    (Size(301, 199), 64, 128, (97, 64)),
    (Size(199, 301), 127, 333, (127, 192)),
    (Size(169, 500), 80, 133, (45, 133)),
    (Size(550, 641), 64, 128, (64, 75)),
    (Size(37, 53), 64, 128, (64, 92)),
    (Size(53, 37), 127, 333, (182, 127)),
    (Size(63, 101), 63, 128, (63, 101)),
]


def draw(size, channels, seed=0):
    """Noise in the left half, one-pixel stripes and a ramp in the right one: every filter gives its own picture."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (*size, channels), np.uint8)
    y, x = np.mgrid[: size.height, : size.width]
    half = size.width // 2
    picture[:, half:, 0] = (255 * ((x + y) % 2))[:, half:]
    if channels > 2:
        picture[:, half:, 1] = (255 * x // size.width)[:, half:]
    return picture


def triangle_weights(old, new, *, antialias=True):
    """[new, old]: weights of the old pixels in each new one, a triangle as wide as a new pixel where that is larger."""
    scale = old / new
    centre = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(old) + 0.5 - centre[:, None])
    weights = np.maximum(0, 1 - distance / (max(scale, 1) if antialias else 1))
    return weights / weights.sum(axis=1, keepdims=True)


def numpy_resize(picture, new, **kwargs):
    """Bilinear, [h, w, c] -> float64 [*new, c]."""
    rows = triangle_weights(picture.shape[0], new[0], **kwargs)
    columns = triangle_weights(picture.shape[1], new[1], **kwargs)
    return np.einsum("yh,hwc,xw->yxc", rows, picture.astype(np.float64), columns, optimize=True)


def write(tmp_path, picture, mode):
    """Saves the picture, and returns its record and its RGB, which is what a resize has to start from."""
    path = tmp_path / "picture.png"
    pixels = picture[..., 0] if mode == "L" else picture
    Image.fromarray(pixels).save(path)
    assert Image.open(path).mode == mode
    none = np.zeros(0, np.int32)
    record = ImageRecord(1, path, picture.shape[1], picture.shape[0], none, none, empty_objects())
    return record, np.repeat(picture, 3, axis=2) if mode == "L" else picture[..., :3]


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("RGBA", 4)])
@pytest.mark.parametrize(("size", "shorter", "longest", "new"), CASES)
def test_pipeline_gives_the_bytes_of_pillow(tmp_path, mode, channels, size, shorter, longest, new):
    """From the file to the batch, plain and mirrored; colour conversion, too, comes before the resize."""
    record, rgb = write(tmp_path, draw(size, channels), mode)
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize(new[::-1], Image.Resampling.BILINEAR))
    bucket = Size(longest + 3, longest + 5)
    shape = ExampleShape(max_objects=2, mask_size=8, num_classes=3)
    example = {
        flip: train_example(
            record,
            view=resized_view(size, canvas=bucket, shorter_side=shorter, longest_side=longest, flip=flip),
            shape=shape,
        )
        for flip in (False, True)
    }
    example["evaluation"] = eval_example(record, bucket=bucket, shorter_side=shorter, longest_side=longest)
    for key, got in example.items():
        assert got["image"].shape == (*bucket, 3)
        assert tuple(got["image_size"]) == new
        height, width = new
        valid = got["image"][:height, :width]
        np.testing.assert_array_equal(valid, expected[:, ::-1] if key is True else expected)
        assert not got["image"][height:].any() and not got["image"][:, width:].any()


@pytest.mark.parametrize(("size", "shorter", "longest", "new"), CASES)
def test_bilinear_with_antialias_in_numpy(size, shorter, longest, new):
    """Pillow rounds between its two passes and works with weights of 22 bits: at most one level apart."""
    picture = draw(size, 3)
    got = resize_and_pad(Image.fromarray(picture), size=Size(*new), bucket=Size(*new)).astype(np.float64)
    expected = np.rint(numpy_resize(picture, new))
    assert np.abs(got - expected).max() <= 1
    assert (got != expected).mean() < 0.25
    if min(size) > 1.5 * min(new):  # what the test would see without the antialiasing
        assert np.abs(numpy_resize(picture, new, antialias=False) - got).max() > 60


def test_weights_by_hand():
    """Four pixels to two: the triangle of a new one has its top between two old ones and reaches two each way."""
    np.testing.assert_allclose(triangle_weights(4, 2), [[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]])
    columns = np.array([[7, 0, 70, 210]], np.uint8)
    picture = Image.fromarray(np.repeat(np.repeat(columns, 3, axis=0)[..., None], 3, axis=2))
    got = resize_and_pad(picture, size=Size(3, 2), bucket=Size(3, 2))
    np.testing.assert_array_equal(got[..., 0], np.tile([13, 120], (3, 1)))


def test_a_jpeg_is_decoded_at_full_size(tmp_path):
    """Pillow can decode a JPEG at a half or a quarter of its size, which is faster and gives other pixels."""
    path = tmp_path / "picture.jpg"
    Image.fromarray(draw(Size(333, 251), 3)).save(path, quality=90)
    with Image.open(path) as opened:
        decoded = np.asarray(opened.convert("RGB"))
    expected = np.asarray(Image.fromarray(decoded).resize((40, 53), Image.Resampling.BILINEAR))
    got = resize_and_pad(read_image(path), size=Size(53, 40), bucket=Size(53, 40))
    np.testing.assert_array_equal(got, expected)
