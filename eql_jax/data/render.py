"""The pixels of a view: decoded, resized, mirrored and cut, with nothing made of what the canvas does not show.

Images are uint8 [H, W, 3] RGB.

Exact: Pillow's bilinear filter with antialias, byte for byte what detectron2 feeds its models. Of a crop only the part
that is shown is resized.

Fast: a JPEG that is enlarged is decoded and resized by OpenCV, whose bilinear filter differs from Pillow's by at most
one grey level (.28 on average at 1.5 times the size) and takes a seventh of its time; one that is reduced to half its
size or less is decoded at 1/2, 1/4 or 1/8 and resized from there, which loses some of the finest detail. Whatever else
there is goes the exact way: other formats, EXIF orientations, CMYK, damaged files.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from eql_jax.data.images import ImageError, encoded_file, read_reduced_image
from eql_jax.data.jpeg import is_plain_jpeg
from eql_jax.data.opencv import opencv
from eql_jax.data.records import ImageRecord
from eql_jax.data.views import View, Window


def draw_on_canvas(canvas: np.ndarray, record: ImageRecord, view: View, *, fast: bool) -> None:
    """Writes what the view shows to its canvas, uint8 [canvas height, canvas width, 3].

    Raises:
      ImageError: the file cannot be used; nothing was written.
    """
    window = view.window
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    window_pixels(record, view, window, fast=fast, out=canvas[rows, columns])


def draw_decoded(canvas: np.ndarray, image: Image.Image, view: View) -> None:
    """As `draw_on_canvas`, exact, for the whole of an image that is decoded already; `image` is not changed."""
    if view.cuts:
        raise ValueError(f"draw_decoded draws whole images; the canvas cuts off a part of {view}")
    _draw_whole(image, view, canvas[: view.scaled.height, : view.scaled.width])


def window_pixels(
    record: ImageRecord, view: View, window: Window, *, fast: bool, out: np.ndarray | None = None
) -> np.ndarray:
    """Returns what the view shows in a window of its canvas.

    Args:
      record: the image.
      view: how it lies on the canvas.
      window: a part of the canvas that the image covers (`view.window` or less).
      fast: the fast way, see above.
      out: uint8 [window.height, window.width, 3], rows may be apart: written to and returned.

    Raises:
      ImageError: the file cannot be used.
    """
    if out is None:
        out = np.empty((window.height, window.width, 3), np.uint8)
    if not out.size:
        return out
    try:
        if fast and _enlarges(view) and _suits_opencv(view, window) and _by_opencv(record, view, window, out):
            return out
        _by_pillow(record, view, window, out, reduce=fast)
    except ImageError as error:
        error.file = record.path
        raise
    return out


def _enlarges(view: View) -> bool:
    return view.scaled.height >= view.source.height and view.scaled.width >= view.source.width


def _suits_opencv(view: View, window: Window) -> bool:
    """OpenCV resizes the whole image; Pillow, at eight times the cost of a pixel, no more than the window."""
    return 8 * window.height * window.width >= view.scaled.height * view.scaled.width


def _by_pillow(record: ImageRecord, view: View, window: Window, out: np.ndarray, *, reduce: bool) -> None:
    at_least = view.scaled if reduce else None
    image, divisor = read_reduced_image(record.file, expected=view.source, at_least=at_least)
    size = (window.width, window.height)
    if size == view.scaled[::-1] and divisor == 1:
        return _draw_whole(image, view, out)
    box = [side / divisor for side in view.source_box(window)]
    _draw(image.resize(size, Image.Resampling.BILINEAR, box=box), view, out)


def _draw_whole(image: Image.Image, view: View, out: np.ndarray) -> None:
    if image.size != view.scaled[::-1]:
        image = image.resize(view.scaled[::-1], Image.Resampling.BILINEAR)
    _draw(image, view, out)


def _draw(resized: Image.Image, view: View, out: np.ndarray) -> None:
    if view.flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out[:] = np.asarray(resized)


def _by_opencv(record: ImageRecord, view: View, window: Window, out: np.ndarray) -> bool:
    """False: the file is not one for it, nothing was written."""
    encoded = encoded_file(record.file).getvalue()
    if not is_plain_jpeg(encoded, view.source):
        return False
    cv2 = opencv()
    rgb = getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR)  # OpenCV before 4.11 has no such flag
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), rgb | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return False
    if image is None or image.shape[:2] != view.source:
        return False
    if rgb == cv2.IMREAD_COLOR:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if view.flip:
        image = cv2.flip(image, 1)
    height, width = view.scaled
    if (window.height, window.width) == view.scaled:
        cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
        return True
    top, left = window.top + view.top, window.left + view.left
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    out[:] = image[top : top + window.height, left : left + window.width]
    return True
