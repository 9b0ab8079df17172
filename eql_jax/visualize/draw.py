"""Draws masks, boxes and labels on a picture: class name, score and the class's frequency letter.

H W size of the image file. Objects are LVIS results or LVIS annotations: dicts with category_id, bbox (xywh, pixels of
the file), and where there is one a segmentation (polygons or RLE) and a score.

Small pictures are enlarged before anything is drawn, so that labels stay readable on images of 128 pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from eql_jax.data.polygons import decode_run_lengths, parse_run_lengths, to_rle

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2

LETTER_COLORS: dict[str, Color] = {"r": (226, 62, 62), "c": (230, 150, 24), "f": (46, 150, 92)}
_MASK_OPACITY = 0.42
_MAX_COVERED = 0.3  # of a label's area
_LABEL_BACKGROUND = (18, 20, 24, 205)
_TEXT = (255, 255, 255, 255)


class ClassLabel(NamedTuple):
    """What is written on an object: the class's name, its frequency letter ('' for none), and its colour's number."""

    name: str
    letter: str
    index: int


class _Style(NamedTuple):
    """Sizes in pixels of the enlarged picture."""

    font: ImageFont.ImageFont | ImageFont.FreeTypeFont
    line: int
    padding: int


def class_labels(ids: Sequence[int], names: Sequence[str], letters: Sequence[str]) -> dict[int, ClassLabel]:
    """Labels by category id, of classes listed by contiguous index (the `Classes` of a checkpoint, for one)."""
    columns = zip(ids, names, letters, strict=True)
    return {int(i): ClassLabel(name, letter, index) for index, (i, name, letter) in enumerate(columns)}


def class_color(index: int) -> Color:
    """A bright colour; neighbouring classes lie far apart on the colour circle."""
    hue = (0.57 + index * 0.61803398875) % 1.0
    saturation, value = ((0.75, 1.0), (0.55, 0.95), (0.9, 0.85))[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: Image.Image | np.ndarray,
    results: Sequence[Mapping[str, Any]],
    categories: Mapping[int, ClassLabel],
    *,
    score_threshold: float = 0.3,
    max_objects: int = 40,
    min_side: int = 640,
) -> Image.Image:
    """Draws the detections of one image.

    Args:
      image: RGB picture or uint8 [H, W, 3], in the size of the file.
      results: the image's LVIS results.
      categories: labels by category id (`class_labels`).
      score_threshold: detections below are not drawn.
      max_objects: the best so many are drawn.
      min_side: a picture whose longer side is smaller is enlarged to this.

    Returns:
      An RGB picture. Where nothing reaches the threshold, it says so and names the best score.
    """
    drawn = sorted((r for r in results if r["score"] >= score_threshold), key=lambda r: -r["score"])[:max_objects]
    note = ""
    if not drawn:
        best = max((r["score"] for r in results), default=None)
        note = f"nothing at {score_threshold:g} or above" + ("" if best is None else f"; best score {best:.3g}")
    return draw_objects(image, drawn, categories, min_side=min_side, note=note)


def draw_objects(
    image: Image.Image | np.ndarray,
    objects: Sequence[Mapping[str, Any]],
    categories: Mapping[int, ClassLabel],
    *,
    min_side: int = 640,
    note: str = "",
) -> Image.Image:
    """Draws all objects, results or annotations; see `draw_detections`. `note` is written into the upper left corner.

    Large objects are drawn first, so that small ones stay visible on top of them.

    Raises:
      KeyError: an object is of a category without a label.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image, np.uint8))
    picture = picture.convert("RGB")
    size = picture.size  # width, height of the file, in which objects are given
    scale = max(1.0, min_side / max(size))
    if scale > 1:
        picture = picture.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BICUBIC)
    style = _style(max(picture.size))
    missing = sorted({o["category_id"] for o in objects} - categories.keys())
    if missing:
        raise KeyError(f"no label for categories {missing[:5]}, which objects have; there are {len(categories)} labels")

    ordered = sorted(objects, key=lambda o: -o["bbox"][2] * o["bbox"][3])
    for thing in ordered:
        picture = _draw_mask(picture, thing, class_color(categories[thing["category_id"]].index), size, style)
    canvas = ImageDraw.Draw(picture)
    for thing in ordered:
        color = class_color(categories[thing["category_id"]].index)
        canvas.rectangle(_scaled_box(thing, picture, scale), outline=color, width=max(1, style.line - 1))
    overlay = Image.new("RGBA", picture.size)
    taken: list[Rectangle] = []
    # By falling score: the surest detection gets the best place for its label.
    for thing in sorted(objects, key=lambda o: -o.get("score", 0)):
        _draw_label(overlay, thing, categories[thing["category_id"]], _scaled_box(thing, picture, scale), style, taken)
    if note:
        _draw_text(overlay, note, (style.padding, style.padding), style)
    return Image.alpha_composite(picture.convert("RGBA"), overlay).convert("RGB")


def side_by_side(pictures: Sequence[Image.Image], titles: Sequence[str], *, gap: int = 8) -> Image.Image:
    """Puts pictures of one size next to each other, a title above each."""
    style = _style(max(pictures[0].size))
    head = _text_size("Ag", style.font)[1] + 3 * style.padding
    width, height = pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + gap) - gap, height + head), (255, 255, 255))
    canvas = ImageDraw.Draw(sheet)
    for column, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left = column * (width + gap)
        canvas.text((left + style.padding, head // 2), title, fill=(30, 30, 30), font=style.font, anchor="lm")
        sheet.paste(picture, (left, head))
    return sheet


def _style(longest_side: int) -> _Style:
    points = min(max(longest_side // 44, 13), 28)
    return _Style(font=ImageFont.load_default(points), line=max(2, round(points / 7)), padding=max(2, points // 4))


def _text_size(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width of the text, and a height that is the same for all texts."""
    width = font.getbbox(text)[2]
    return int(np.ceil(width)), int(np.ceil(font.getbbox("Ágy")[3]))


def _scaled_box(thing: Mapping[str, Any], picture: Image.Image, scale: float) -> Rectangle:
    """The box in pixels of the enlarged picture, inside of it and never inside out."""
    x, y, w, h = (float(v) * scale for v in thing["bbox"])
    x1, y1 = min(max(x, 0), picture.width - 1), min(max(y, 0), picture.height - 1)
    return x1, y1, max(x1, min(x + w, picture.width - 1)), max(y1, min(y + h, picture.height - 1))


def _decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray | None:
    """The mask, bool [H, W], or None where there is none, it is damaged or it belongs to another size."""
    from pycocotools import mask as mask_utils

    width, height = size
    if isinstance(segmentation, Mapping):
        try:
            rle = parse_run_lengths(segmentation)  # pycocotools writes beyond its memory for some damaged ones
        except ValueError:
            return None
        return decode_run_lengths(rle).astype(bool) if (rle.height, rle.width) == (height, width) else None
    if isinstance(segmentation, list):
        segmentation = [part for part in segmentation if len(part) >= 6]
    if not segmentation:
        return None
    return mask_utils.decode(to_rle(segmentation, height=height, width=width)).astype(bool)


def _draw_mask(
    picture: Image.Image, thing: Mapping[str, Any], color: Color, size: tuple[int, int], style: _Style
) -> Image.Image:
    """Tints the object's pixels and draws its contour."""
    mask = _decode(thing.get("segmentation"), size)
    if mask is None or not mask.any():
        return picture
    shape = Image.fromarray(mask.astype(np.uint8) * 255)
    if shape.size != picture.size:
        # Enlarged with a soft edge that is cut at the middle: contours come out smooth and not as stairs.
        shape = shape.resize(picture.size, Image.Resampling.BICUBIC)
        shape = shape.filter(ImageFilter.GaussianBlur(0.5 * picture.width / size[0])).point(lambda v: 255 * (v >= 128))
    left, top, right, bottom = shape.getbbox() or (0, 0, 1, 1)
    area = (max(left - 2, 0), max(top - 2, 0), min(right + 2, picture.width), min(bottom + 2, picture.height))
    shape = shape.crop(area)
    inner = np.asarray(shape.filter(ImageFilter.MinFilter(2 * style.line - 1))) > 0
    filled = np.asarray(shape) > 0
    pixels = np.asarray(picture.crop(area), np.float32).copy()
    paint = np.array(color, np.float32)
    pixels[filled] = (1 - _MASK_OPACITY) * pixels[filled] + _MASK_OPACITY * paint
    edge = filled & ~inner
    pixels[edge] = 0.25 * pixels[edge] + 0.75 * paint
    picture.paste(Image.fromarray(pixels.round().astype(np.uint8)), area[:2])
    return picture


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _shorten(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    if _text_size(text, font)[0] <= width:
        return text
    while len(text) > 1 and _text_size(text + "…", font)[0] > width:
        text = text[:-1]
    return text + "…"


def _draw_text(overlay: Image.Image, text: str, corner: tuple[float, float], style: _Style) -> None:
    text = _shorten(text, overlay.width - 4 * style.padding, style.font)
    width, height = _text_size(text, style.font)
    canvas = ImageDraw.Draw(overlay)
    x, y = corner
    box = (x, y, x + width + 2 * style.padding, y + height + style.padding)
    canvas.rounded_rectangle(box, radius=style.padding, fill=_LABEL_BACKGROUND)
    canvas.text((x + style.padding, (box[1] + box[3]) / 2), text, fill=_TEXT, font=style.font, anchor="lm")


def _draw_label(
    overlay: Image.Image,
    thing: Mapping[str, Any],
    label: ClassLabel,
    box: Rectangle,
    style: _Style,
    taken: list[Rectangle],
) -> None:
    """Writes 'name score' and a badge with the frequency letter where it covers other labels least.

    In a crowd there may be no such place: the label is then left out, rather than two made unreadable.
    """
    pad = style.padding
    score = f" {thing['score']:.2f}" if "score" in thing else ""
    badge = _text_size("m", style.font)[0] + pad if label.letter else 0
    room = overlay.width - 4 * pad - badge - _text_size(score, style.font)[0]
    text = _shorten(label.name.replace("_", " "), room, style.font) + score
    text_width, text_height = _text_size(text, style.font)
    width, height = text_width + 3 * pad + badge + (pad if badge else 0), text_height + pad

    x1, y1, x2, y2 = box
    corners = [(x1, y1 - height), (x1, y1), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2), (x1, y2 - height)]
    corners += [(x2 - width, y1), (x2 - width, y2 - height)]
    corners += [(x1, y1 + k * height) for k in (1, 2, -2, 3, -3)]
    places = []
    for x, y in corners:
        x = min(max(x, 0), max(overlay.width - width, 0))
        y = min(max(y, 0), max(overlay.height - height, 0))
        places.append((x, y, x + width, y + height))
    covered = [sum(_overlap(place, other) for other in taken) for place in places]
    if min(covered) > _MAX_COVERED * width * height:
        return
    place = places[int(np.argmin(covered))]  # the first of equal ones
    taken.append(place)

    canvas = ImageDraw.Draw(overlay)
    left, top, right, bottom = place
    canvas.rounded_rectangle(place, radius=pad, fill=_LABEL_BACKGROUND)
    canvas.rectangle((left, top + pad / 2, left + pad, bottom - pad / 2), fill=(*class_color(label.index), 255))
    middle = (top + bottom) / 2
    canvas.text((left + 2 * pad, middle), text, fill=_TEXT, font=style.font, anchor="lm")
    if badge:
        chip = (right - pad - badge, top + pad / 2, right - pad / 2, bottom - pad / 2)
        canvas.rounded_rectangle(chip, radius=pad, fill=(*LETTER_COLORS.get(label.letter, (110, 110, 110)), 255))
        canvas.text(((chip[0] + chip[2]) / 2, middle), label.letter, fill=_TEXT, font=style.font, anchor="mm")
