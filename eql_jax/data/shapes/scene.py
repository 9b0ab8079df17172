"""One picture: textured background, textured objects, and the polygons of what can be seen of each.

All sizes are shares of the picture's side. Everything is painted on a grid SUBPIXELS times finer than the picture, so
that edges are smooth and polygons are exact to a fraction of a pixel. Pixel (i, j) of the picture covers the square
from (i, j) to (i + 1, j + 1), as in COCO.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from eql_jax.data.shapes.polygons import mask_to_polygons
from eql_jax.data.shapes.textures import Palette, texture

SUBPIXELS = 4  # per pixel and axis
MAX_OBJECTS = 9
TRIES = 12  # positions tried for an object before it is made smaller
LEAST_SIZE = 0.06  # objects are not made smaller than this to fit them in


@dataclass(frozen=True)
class Difficulty:
    """What makes pictures easy or hard. Shares are of the picture's side, colour distances in 0..255 RGB (L2)."""

    size: tuple[float, float]  # of objects, drawn log-uniformly
    repeat: float  # probability that one more object of a class joins, each time
    overlap: float  # share of objects that may cover others
    visible: float  # least visible share of an object; those that would be covered more are put elsewhere
    truncate: float  # share of objects that may stick out of the picture
    jitter: float  # objects of a class are stretched by up to this share
    contrast: float  # least colour distance of an object to the background (and .6 of it to other objects)
    texture: float  # largest colour distance within a texture
    noise: float  # largest standard deviation of the sensor noise
    clutter: int  # most lines scratched into the background
    lookalikes: bool  # classes come in groups that resemble each other


DIFFICULTIES = {
    "normal": Difficulty(
        size=(0.17, 0.54), repeat=0.22, overlap=0.35, visible=0.6, truncate=0.1, jitter=0.1, contrast=110.0,
        texture=80.0, noise=8.0, clutter=0, lookalikes=False,
    ),
    "hard": Difficulty(
        size=(0.09, 0.42), repeat=0.35, overlap=0.8, visible=0.4, truncate=0.2, jitter=0.1, contrast=50.0,
        texture=150.0, noise=16.0, clutter=8, lookalikes=True,
    ),
}  # fmt: skip


class SceneObject(NamedTuple):
    """An object as it is annotated: class index, visible polygons (flat [x, y, ...] in pixels), visible share."""

    class_index: int
    polygons: list[list[float]]
    visible: float


class Scene(NamedTuple):
    """image uint8 [S, S, 3] RGB; objects in the order they were painted; labels uint8 [4S, 4S], 0 or 1 + object."""

    image: np.ndarray
    objects: list[SceneObject]
    labels: np.ndarray


class _Placed(NamedTuple):
    class_index: int
    mask: np.ndarray  # uint8 [h, w] in subpixels, before anything covers it
    top: int  # of the mask, in subpixels; negative where the object sticks out
    left: int


class _Layout(NamedTuple):
    placed: list[_Placed]  # in painting order
    labels: np.ndarray  # uint8 [4S, 4S]
    visible: np.ndarray  # float64 [objects], shares


class _Spot(NamedTuple):
    top: int
    left: int
    lost: np.ndarray  # int64 [1 + objects], subpixels it takes from the background and from each object


def draw_scene(
    rng: np.random.Generator, *, classes: list[int], contours: list[np.ndarray], size: int, difficulty: Difficulty
) -> Scene:
    """Draws a picture with at least one object of each of `classes` (distinct indices into `contours`).

    size: side of the square picture in pixels. Every object keeps at least `difficulty.visible` of its area in sight,
    so every class that was asked for is annotated.
    """
    # A crowded picture may have no room left for the last object: then again, with all objects a little smaller.
    for attempt in range(30):
        layout = _arrange(rng, classes, contours, size, difficulty, shrink=0.9**attempt)
        if layout is not None:
            break
    else:
        raise RuntimeError(f"no room for {len(classes)} classes in a picture of {size} pixels")
    image = _paint(rng, layout.placed, size, difficulty)
    objects = []
    for index, item in enumerate(layout.placed):
        window, _ = _windows(item.mask, item.top, item.left, layout.labels)
        top, left = max(item.top, 0), max(item.left, 0)
        polygons = mask_to_polygons(
            (window == index + 1).astype(np.uint8), offset=(left, top), scale=1 / SUBPIXELS, least_area=1.0
        )
        objects.append(SceneObject(item.class_index, polygons, float(layout.visible[index])))
    return Scene(image, objects, layout.labels)


# ------------------------------------------------------------------ where objects go


def _windows(mask: np.ndarray, top: int, left: int, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of labels and of the mask that lie on each other when the mask is put at (top, left)."""
    (h, w), side = mask.shape, labels.shape[0]
    y0, y1, x0, x1 = max(top, 0), min(top + h, side), max(left, 0), min(left + w, side)
    return labels[y0:y1, x0:x1], mask[y0 - top : y1 - top, x0 - left : x1 - left]


def _rotated_mask(rng: np.random.Generator, contour: np.ndarray, length: float, jitter: float) -> np.ndarray:
    """uint8 [h, w] mask of a contour at random rotation, mirrored or not, slightly stretched along a random axis."""
    axis, turn = rng.uniform(0, 2 * np.pi, 2)
    stretch = np.exp(rng.uniform(-jitter, jitter) / 2)
    flip = 1.0 if rng.random() < 0.5 else -1.0

    def rotation(angle: float) -> np.ndarray:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    matrix = rotation(turn) @ np.diag([stretch, flip / stretch]) @ rotation(axis)
    points = contour @ matrix.T * length
    points -= points.min(0)
    w, h = np.ceil(points.max(0)).astype(int) + 1
    mask = np.zeros((h, w), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    return mask


def _arrange(
    rng: np.random.Generator,
    classes: list[int],
    contours: list[np.ndarray],
    size: int,
    difficulty: Difficulty,
    *,
    shrink: float,
) -> _Layout | None:
    """Puts one object of each class, and some more of them, in the picture; None when a class found no place."""
    side = size * SUBPIXELS
    labels = np.zeros((side, side), np.uint8)
    more = [c for c in classes for _ in range(min(rng.geometric(1 - difficulty.repeat) - 1, 3))]
    needed = rng.permutation(classes).tolist()
    placed: list[_Placed] = []
    areas, in_sight = [], []  # subpixels of each object: all, and those not covered
    low, high = np.log(difficulty.size)
    for number, class_index in enumerate((needed + more)[: max(MAX_OBJECTS, len(needed))]):
        length = float(np.exp(rng.uniform(low, high))) * shrink
        may_cover, may_stick_out = rng.random() < difficulty.overlap, rng.random() < difficulty.truncate
        spot = None
        while spot is None and length >= LEAST_SIZE * shrink:
            mask = _rotated_mask(rng, contours[class_index], length * side, difficulty.jitter)
            spot = _find_spot(rng, mask, labels, areas, in_sight, difficulty.visible, may_cover, may_stick_out)
            if number >= len(needed):
                break  # one more of the same class is not squeezed in
            length *= 0.8
        if spot is None:
            if number < len(needed):
                return None
            continue
        in_sight = [seen - int(lost) for seen, lost in zip(in_sight, spot.lost[1:], strict=True)]
        window, part = _windows(mask, spot.top, spot.left, labels)
        placed.append(_Placed(class_index, mask, spot.top, spot.left))
        window[part > 0] = len(placed)
        areas.append(int(mask.sum()))
        in_sight.append(int(spot.lost.sum()))
    return _Layout(placed, labels, np.array(in_sight) / np.array(areas))


def _find_spot(
    rng: np.random.Generator,
    mask: np.ndarray,
    labels: np.ndarray,
    areas: list[int],
    in_sight: list[int],
    visible: float,
    may_cover: bool,
    may_stick_out: bool,
) -> _Spot | None:
    """Tries random positions until all objects, the new one too, keep their visible share; None when none does."""
    (h, w), side = mask.shape, labels.shape[0]
    out_y, out_x = (h // 3, w // 3) if may_stick_out else (-SUBPIXELS, -SUBPIXELS)
    if side - h + out_y <= -out_y or side - w + out_x <= -out_x:
        return None
    least = visible * mask.sum()
    for _ in range(TRIES):
        top, left = int(rng.integers(-out_y, side - h + out_y)), int(rng.integers(-out_x, side - w + out_x))
        window, part = _windows(mask, top, left, labels)
        if not may_cover and (window[::4, ::4] * part[::4, ::4]).any():
            continue  # seen with a sixteenth of the work
        lost = np.bincount(window[part > 0], minlength=len(areas) + 1)
        if lost.sum() < least or (not may_cover and lost[1:].any()):
            continue
        if all(seen - new >= visible * area for seen, new, area in zip(in_sight, lost[1:], areas, strict=True)):
            return _Spot(top, left, lost)
    return None


# ------------------------------------------------------------------ colours


def _paint(rng: np.random.Generator, placed: list[_Placed], size: int, difficulty: Difficulty) -> np.ndarray:
    """uint8 [S, S, 3]: background and objects in painting order. Colours and textures know nothing of classes."""
    pixel = size / 128  # textures keep their look at other sizes
    back = Palette.draw(rng, spread=difficulty.texture)
    canvas = texture(rng, height=size, width=size, palette=back, pixel=pixel)
    for _ in range(int(rng.integers(difficulty.clutter + 1))):
        ends = rng.integers(0, size, (2, 2)).tolist()
        colour = back.between(rng.uniform(-1, 2)).tolist()
        cv2.line(canvas, ends[0], ends[1], colour, int(rng.integers(1, 1 + round(3 * pixel))), cv2.LINE_AA)
    others: list[Palette] = []
    for item in placed:
        palette = Palette.draw(
            rng, spread=difficulty.texture, background=back, others=others, contrast=difficulty.contrast
        )
        others.append(palette)
        _blend(rng, canvas, item, palette, pixel)
    if difficulty.noise:
        sigma = rng.uniform(0, difficulty.noise)
        canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(sigma)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _blend(rng: np.random.Generator, canvas: np.ndarray, item: _Placed, palette: Palette, pixel: float) -> None:
    """Paints one object into the float32 canvas [S, S, 3], its edge pixels mixed by the share they are covered."""
    size = canvas.shape[0]
    top, left = item.top // SUBPIXELS, item.left // SUBPIXELS
    y, x = item.top - top * SUBPIXELS, item.left - left * SUBPIXELS
    h, w = item.mask.shape
    height, width = -(-(y + h) // SUBPIXELS), -(-(x + w) // SUBPIXELS)
    fine = np.zeros((height * SUBPIXELS, width * SUBPIXELS), np.float32)
    fine[y : y + h, x : x + w] = item.mask
    cover = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    skin = texture(rng, height=height, width=width, palette=palette, pixel=pixel)
    y0, y1, x0, x1 = max(top, 0), min(top + height, size), max(left, 0), min(left + width, size)
    cut = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    target = canvas[y0:y1, x0:x1]
    target += cover[cut][..., None] * (skin[cut] - target)
