"""Reading image files with Pillow, whose bytes detectron2's are too.

H W image size. Images are uint8 [H, W, 3] RGB.

Pillow and not tf.image: the bilinear filter with antialias of both differs by up to 1 in 14 % of the values, Pillow's
is the one published numbers rest on, and it takes half the processor time (13 against 22 ms from 640x480 to 1067x800).
Pillow releases the interpreter lock while it decodes and resizes, so threads run it in parallel.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from eql_jax.data.files import ReadError, as_path, read_file
from eql_jax.data.records import ImageRecord
from eql_jax.data.transforms import Size

_EXIF_ORIENTATION = 0x0112

# Corrupt EXIF data is no reason to worry the user. Here and not around each read: `warnings.catch_warnings` is not
# thread-safe.
warnings.filterwarnings("ignore", message="(Possibly c|C)orrupt EXIF data", category=UserWarning)


ImageFile = str | os.PathLike | IO[bytes]


class ImageError(ValueError):
    """An image file cannot be used. `kind` is a kind of `validation.FAULT_KINDS`, `file` the path where it is known."""

    def __init__(self, kind: str, message: str, *, file: str | os.PathLike | None = None):
        super().__init__(message)
        self.kind = kind
        self.file = file


def read_size(file: ImageFile) -> Size:
    """Returns height and width from the file's header, EXIF orientation applied.

    Raises:
      ImageError: the file is missing or no image.
    """
    try:
        with Image.open(file if isinstance(file, str | Path) else encoded_file(file)) as image:
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
            if turned and image.format == "TIFF":  # those Pillow turns itself, when it decodes them
                image.load()
                turned = False
            width, height = image.size
            return Size(width, height) if turned else Size(height, width)
    except FileNotFoundError as error:
        raise ImageError("missing image", "no such file") from error
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and more
        raise ImageError("unreadable image", _reason(error)) from error


def read_image(file: ImageFile, *, expected: Size | None = None) -> Image.Image:
    """Decodes an image file to RGB; grey, palette, CMYK, 16-bit and transparent files are converted.

    The EXIF orientation is applied, as detectron2 does. When `expected` (the JSON's size) is that of the stored pixels
    and not that of the turned picture, the annotator saw the stored pixels and the orientation is ignored.

    Raises:
      ImageError: the file is missing, truncated or no image, or its size is not the expected one.
      ReadError: the file is there, and cannot be read now (see `files.read_file`); whether it is an image is unknown.
    """
    return _read(file, expected, None)[0]


def read_reduced_image(file: ImageFile, *, expected: Size, at_least: Size | None) -> tuple[Image.Image, int]:
    """As `read_image`, but a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still `at_least` as large;
    None: at its full size.

    libjpeg leaves out the high frequencies of each block then, which takes less time than decoding them and gives other
    pixels than decoding and shrinking.

    Returns:
      The image, and what its sides are divided by (1, 2, 4 or 8); a side that does not divide is rounded up.
    """
    return _read(file, expected, at_least)


def _read(file: ImageFile, expected: Size | None, at_least: Size | None) -> tuple[Image.Image, int]:
    divisor = 1
    file = encoded_file(file)
    try:
        with Image.open(file) as opened:
            if at_least is not None and expected == (opened.height, opened.width) and _is_upright_jpeg(opened):
                full = opened.size
                opened.draft(None, (at_least.width, at_least.height))
                divisor = max(d for d in (1, 2, 4, 8) if opened.size == tuple(-(-side // d) for side in full))
            opened.load()
            stored = size = expected if divisor > 1 else Size(opened.height, opened.width)
            image = opened
            if opened.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                turned = ImageOps.exif_transpose(opened)
                if expected is None or expected == (turned.height, turned.width) or expected != stored:
                    image, size = turned, Size(turned.height, turned.width)
            image = _to_rgb(image)
    except Exception as error:
        raise ImageError("unreadable image", _reason(error)) from error
    if expected is not None and expected != size:
        raise ImageError(
            "size mismatch",
            f"the file is {size.width} x {size.height}, the JSON says {expected.width} x {expected.height} "
            "(width x height)",
        )
    return image, divisor


def read_record_image(record: ImageRecord) -> Image.Image:
    """Decodes the image of a record, see `read_image`; the error's `file` is the record's path."""
    try:
        return read_image(record.file, expected=Size(record.height, record.width))
    except ImageError as error:
        error.file = record.path
        raise


def encoded_file(file: ImageFile) -> IO[bytes]:
    """The file's bytes, in memory: a read that fails is then told from a picture that is damaged.

    Raises:
      ImageError: there is no such file, or it must not be read.
      ReadError: see `files.read_file`.
    """
    if isinstance(file, io.IOBase):
        return file
    try:
        return io.BytesIO(read_file(as_path(file)))
    except FileNotFoundError as error:
        raise ImageError("missing image", "no such file") from error
    except OSError as error:
        if isinstance(error, ReadError):
            raise
        raise ImageError("unreadable image", _reason(error)) from error


def _is_upright_jpeg(image: Image.Image) -> bool:
    return image.format == "JPEG" and image.getexif().get(_EXIF_ORIENTATION, 1) == 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey to 255 instead of scaling it.
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
