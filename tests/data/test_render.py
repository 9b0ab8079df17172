"""Pixels: crops against the whole, the fast way against the exact one, colours against Pillow."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from eql_jax.data.images import ImageError
from eql_jax.data.jpeg import is_plain_jpeg
from eql_jax.data.photometric import PhotometricRanges, change_colours, draw_photometric
from eql_jax.data.records import ImageRecord, empty_objects
from eql_jax.data.render import draw_on_canvas, window_pixels
from eql_jax.data.transforms import Size, random_stream
from eql_jax.data.views import View, Window, jittered_view

SOURCE = Size(241, 323)
UP, DOWN, EIGHTH = Size(362, 485), Size(180, 241), Size(29, 39)


def picture(size=SOURCE):
    """Smooth waves of three colours with a few sharp edges, as photographs have them."""
    y, x = np.mgrid[: size.height, : size.width]
    waves = [128 + 90 * np.sin(x / a + y / b) for a, b in ((11, 17), (23, -9), (-7, 31))]
    pixels = np.stack(waves, axis=2).astype(np.uint8)
    pixels[60:90, 100:200] = (250, 10, 40)
    return pixels


def record_of(tmp_path, pixels, *, name="picture.jpg", encoded=None, **kwargs):
    path = tmp_path / name
    if encoded is None:
        Image.fromarray(pixels).save(path, **({"quality": 92} if name.endswith("jpg") else {}) | kwargs)
    none = np.zeros(0, np.int32)
    return ImageRecord(1, path, pixels.shape[1], pixels.shape[0], none, none, empty_objects(), encoded)


def canvas_pixels(record, view, *, fast):
    canvas = np.zeros((*view.canvas, 3), np.uint8)
    draw_on_canvas(canvas, record, view, fast=fast)
    return canvas


def whole(size, *, flip=False, canvas=None):
    return View(SOURCE, size, flip, 0, 0, canvas or size)


def difference(a, b):
    return np.abs(a.astype(int) - b)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("size", "worst"), [(UP, 1), (SOURCE, 0), (DOWN, 1), (EIGHTH, 1)])
def test_a_crop_is_a_part_of_the_whole(tmp_path, fast, flip, size, worst):
    """Windows on canvases that begin within, before and after the image; the rest of the canvas is black."""
    record = record_of(tmp_path, picture())
    full = canvas_pixels(record, whole(size, flip=flip), fast=fast)
    assert full.shape == (*size, 3)
    for top, left, height, width in ((5, 7, 20, 21), (0, 0, 11, 500), (-3, -4, 500, 30), (size.height - 9, 3, 40, 9)):
        view = View(SOURCE, size, flip, top, left, Size(height, width))
        got = canvas_pixels(record, view, fast=fast)
        expected = np.zeros((height, width, 3), np.uint8)
        rows, columns = np.arange(height) + top, np.arange(width) + left
        y, x = (rows >= 0) & (rows < size.height), (columns >= 0) & (columns < size.width)
        expected[np.ix_(y, x)] = full[np.ix_(rows[y], columns[x])]
        window = view.window
        assert (window.height, window.width) == (y.sum(), x.sum())
        # Pillow takes the crop's corners as float32: a rounding now and then. Of a small window of an enlarged image it
        # makes the pixels in fast mode, too, so they differ from OpenCV's there.
        assert difference(got, expected).max() <= worst
        assert difference(got, expected).mean() < (0.35 if fast and size == UP else 0.05)
        inner = Window(window.top + 1, window.left + 2, window.height - 2, window.width - 5)
        part = window_pixels(record, view, inner, fast=fast)
        same = got[inner.top : inner.top + inner.height, inner.left : inner.left + inner.width]
        assert difference(part, same).max() <= worst
    outside = View(SOURCE, size, flip, 1000, 0, Size(8, 8))
    assert not canvas_pixels(record, outside, fast=fast).any()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [UP, SOURCE, DOWN, EIGHTH])
def test_exact_pixels_are_those_of_pillow(tmp_path, size, flip):
    record = record_of(tmp_path, picture())
    with Image.open(record.path) as opened:
        expected = np.asarray(opened.convert("RGB").resize((size.width, size.height), Image.Resampling.BILINEAR))
    got = canvas_pixels(record, whole(size, flip=flip), fast=False)
    np.testing.assert_array_equal(got, expected[:, ::-1] if flip else expected)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("size", "worst", "mean"), [(UP, 1, 0.5), (SOURCE, 0, 0), (DOWN, 0, 0), (Size(121, 162), 40, 2), (EIGHTH, 40, 3)]
)
def test_fast_pixels_are_nearly_the_exact_ones(tmp_path, size, worst, mean, flip):
    record = record_of(tmp_path, picture())
    view = whole(size, flip=flip, canvas=Size(size.height + 3, size.width + 5))
    exact, fast = (canvas_pixels(record, view, fast=fast) for fast in (False, True))
    assert difference(exact, fast).max() <= worst
    assert difference(exact, fast).mean() <= mean
    assert not fast[size.height :].any() and not fast[:, size.width :].any()
    encoded = record._replace(encoded=record.path.read_bytes())
    np.testing.assert_array_equal(canvas_pixels(encoded, view, fast=True), fast)
    if size == EIGHTH:
        assert (exact != fast).any()  # it was decoded at a quarter


def test_reduced_decoding_shifts_nothing(tmp_path):
    """At 1/8 the decoded picture ends beyond a side that does not divide by 8: an edge stays where it is."""
    size = Size(57, 1001)
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:, 900:] = 255
    record = record_of(tmp_path, pixels, quality=98)
    view = View(size, Size(7, 120), False, 0, 0, Size(7, 120))
    fast = canvas_pixels(record, view, fast=True)[3, :, 0].astype(float)
    edge = 120 - fast.sum() / 255
    assert edge == pytest.approx(900 * 120 / 1001, abs=0.05)


@pytest.mark.parametrize("kind", ["png", "orientation", "grey", "cmyk", "progressive"])
def test_whatever_the_file_the_fast_way_has_it(tmp_path, kind):
    pixels = picture()
    exif = Image.Exif()
    exif[0x0112] = 3
    if kind == "grey":
        record = record_of(tmp_path, pixels)
        Image.fromarray(pixels).convert("L").save(record.path)
    elif kind == "cmyk":
        record = record_of(tmp_path, pixels)
        Image.fromarray(pixels).convert("CMYK").save(record.path)
    else:
        options = {"orientation": {"exif": exif}, "progressive": {"progressive": True}}.get(kind, {})
        record = record_of(tmp_path, pixels, name="a.png" if kind == "png" else "a.jpg", **options)
    for size in (UP, EIGHTH):
        exact, fast = (canvas_pixels(record, whole(size), fast=fast) for fast in (False, True))
        limit = 0 if kind in ("png", "orientation") else 1 if size == UP else 60
        assert difference(exact, fast).max() <= limit
        assert difference(exact, fast).mean() <= 3


def test_damaged_files_are_found_in_the_fast_way(tmp_path):
    """OpenCV would fill the rest with grey."""
    record = record_of(tmp_path, picture())
    data = record.path.read_bytes()
    for damaged, kind in ((data[: len(data) // 2], "unreadable image"), (b"no image", "unreadable image")):
        for size in (UP, EIGHTH):
            with pytest.raises(ImageError) as error:
                canvas_pixels(record._replace(encoded=damaged), whole(size), fast=True)
            assert (error.value.kind, error.value.file) == (kind, record.path)
    with pytest.raises(ImageError) as error:
        canvas_pixels(record._replace(path=tmp_path / "none.jpg"), whole(UP), fast=True)
    assert error.value.kind == "missing image"
    other = whole(UP)._replace(source=Size(240, 323))
    for size in (UP, EIGHTH):
        with pytest.raises(ImageError, match="the file is 323 x 241, the JSON says 323 x 240") as error:
            canvas_pixels(record._replace(height=240), other._replace(scaled=size), fast=True)
        assert error.value.kind == "size mismatch"
    # Bytes after the end are no damage.
    longer = record._replace(encoded=data + b"\0\0")
    expected = canvas_pixels(record, whole(UP), fast=False)
    np.testing.assert_array_equal(canvas_pixels(longer, whole(UP), fast=True), expected)


def test_jitter_beyond_the_canvas(tmp_path):
    """The canvas is filled where the image is larger than it, and black at the right or bottom where it is not."""
    record = record_of(tmp_path, np.full((*SOURCE, 3), 200, np.uint8))
    for fast in (False, True):
        large = jittered_view(SOURCE, canvas=Size(64, 64), scale=2.0, flip=True, down=1, right=0)
        assert (difference(canvas_pixels(record, large, fast=fast), 200) <= 1).all()
        small = jittered_view(SOURCE, canvas=Size(64, 64), scale=0.5, flip=False, down=1, right=1)
        pixels = canvas_pixels(record, small, fast=fast)
        assert small.scaled == (24, 32)
        assert (difference(pixels[:24, :32], 200) <= 1).all()
        assert not pixels[24:].any() and not pixels[:, 32:].any()


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.3, 2.0])
@pytest.mark.parametrize(
    ("name", "enhancer"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_colours_against_pillow(name, enhancer, factor):
    """torchvision's ColorJitter on a PIL image is these; they cut off where we round."""
    pixels = picture()
    expected = np.asarray(enhancer(Image.fromarray(pixels)).enhance(factor))
    canvas = np.zeros((300, 400, 3), np.uint8)
    canvas[: SOURCE.height, : SOURCE.width] = pixels
    change_colours(canvas[: SOURCE.height, : SOURCE.width], ((name, factor),))
    assert difference(canvas[: SOURCE.height, : SOURCE.width], expected).max() <= 1
    assert not canvas[SOURCE.height :].any() and not canvas[:, SOURCE.width :].any()


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.0, 0.1, 0.5])
def test_hue_against_pillow(turns):
    pixels = picture()
    hsv = np.array(Image.fromarray(pixels).convert("HSV"))
    hsv[..., 0] += np.uint8(round(turns * 256) % 256)
    expected = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    change_colours(pixels, (("hue", turns),))
    assert difference(pixels, expected).max() <= 16  # both keep the hue in 256 steps, rounded or cut off
    assert difference(pixels, expected).mean() < 2


def test_hue_by_hand():
    """Red turned by a third is green."""
    red = np.array([[[255, 0, 0]]], np.uint8)
    change_colours(red, (("hue", 1 / 3),))
    assert difference(red[0, 0], np.array([0, 255, 0])).max() <= 3


def test_colours_in_turn_and_draws():
    """One after the other, in the order drawn; factors uniform; ranges of 0 draw nothing."""
    pixels, once = picture(), picture()
    change_colours(pixels, (("brightness", 0.5), ("contrast", 1.5)))
    change_colours(once, (("brightness", 0.5),))
    change_colours(once, (("contrast", 1.5),))
    np.testing.assert_array_equal(pixels, once)
    ranges = PhotometricRanges(brightness=0.4, hue=0.1)
    draws = [draw_photometric(random_stream(1, i), ranges) for i in range(600)]
    assert {tuple(name for name, _ in draw) for draw in draws} == {("brightness", "hue"), ("hue", "brightness")}
    factors, shifts = (np.array([dict(draw)[name] for draw in draws]) for name in ("brightness", "hue"))
    assert 0.6 <= factors.min() < 0.63 and 1.37 < factors.max() <= 1.4 and abs(factors.mean() - 1) < 0.04
    assert -0.1 <= shifts.min() < -0.09 and 0.09 < shifts.max() <= 0.1
    assert draw_photometric(random_stream(1), PhotometricRanges()) == ()
    change_colours(np.zeros((0, 5, 3), np.uint8), (("contrast", 1.5),))  # nothing to do, no error


def test_plain_jpegs(tmp_path):
    """Baseline, progressive, grey, with a comment, with fill bytes; not: turned, CMYK, cut off, another size, PNG."""

    def encode(mode="RGB", form="JPEG", **options):
        buffer = io.BytesIO()
        Image.fromarray(picture()).convert(mode).save(buffer, format=form, **options)
        return buffer.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encode()
    for good in (
        plain,
        encode(progressive=True),
        encode("L"),
        encode(comment=b"a" * 9000),
        b"\xff\xd8\xff" + plain[2:],
    ):
        assert is_plain_jpeg(good, SOURCE)
        assert not is_plain_jpeg(good, Size(*SOURCE[::-1]))
        assert not is_plain_jpeg(good[:-300], SOURCE)
    for bad in (
        encode(exif=exif),
        encode("CMYK"),
        encode(form="PNG"),
        b"",
        b"\xff\xd8\xff\xd9",
        plain[:9] + b"\xff\xd9",
    ):
        assert not is_plain_jpeg(bad, SOURCE)


def test_encoded_bytes_need_no_file(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, format="JPEG")
    record = record_of(tmp_path, picture(), encoded=buffer.getvalue())
    assert not record.path.exists()
    for fast in (False, True):
        assert canvas_pixels(record, whole(UP), fast=fast).any()
