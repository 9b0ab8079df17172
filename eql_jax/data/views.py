"""How an image comes to lie on its canvas: the one description that pixels, boxes and masks all follow.

    file --scale per axis--> scaled image --mirror--> --shift--> canvas, all outside of it cut off

G objects. Boxes are XYXY in absolute pixels; positions are continuous, pixel i covers [i, i + 1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eql_jax.data.transforms import Size, fit_size, output_size


class Window(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


class View(NamedTuple):
    """An image on a canvas.

    Attributes:
      source: size of the image file.
      scaled: size that the whole of it is resized to.
      flip: it is mirrored left to right after that.
      top, left: the pixel of the scaled and mirrored image that lies on the canvas's first pixel; less than 0 where the
        image begins further down or right.
      canvas: what lies outside is cut off.
    """

    source: Size
    scaled: Size
    flip: bool
    top: int
    left: int
    canvas: Size

    @property
    def window(self) -> Window:
        """The part of the canvas that the image covers."""
        top, left = max(0, -self.top), max(0, -self.left)
        height = min(self.canvas.height, self.scaled.height - self.top) - top
        width = min(self.canvas.width, self.scaled.width - self.left) - left
        return Window(top, left, max(0, height), max(0, width))

    @property
    def cuts(self) -> bool:
        """Whether a part of the image lies outside of the canvas."""
        return (self.window.height, self.window.width) != self.scaled

    def points(self, points: np.ndarray) -> np.ndarray:
        """Where points of the file lie on the canvas, or beyond it: float64 [..., 2] (x, y) -> the same."""
        moved = np.asarray(points, np.float64) * self._scale
        if self.flip:
            moved[..., 0] = self.scaled.width - moved[..., 0]
        return moved - (self.left, self.top)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Where boxes of the file lie on the canvas, or beyond it: float [G, 4] -> float64 [G, 4]."""
        corners = self.points(np.asarray(boxes).reshape(-1, 2, 2)).reshape(-1, 4)
        return corners[:, [2, 1, 0, 3]] if self.flip else corners

    def clip(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the canvas, clipped to the part of it that the image covers: float64 [G, 4] -> the same."""
        top, left, height, width = self.window
        return np.clip(boxes, [left, top, left, top], [left + width, top + height, left + width, top + height])

    def file_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the canvas in the pixels of the file, the inverse of `boxes`: float [G, 4] -> float64 [G, 4]."""
        corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2) + (self.left, self.top)
        if self.flip:
            corners[..., 0] = self.scaled.width - corners[:, ::-1, 0]
        return (corners / self._scale).reshape(-1, 4)

    def source_box(self, window: Window) -> tuple[float, float, float, float]:
        """The box of the file (x1, y1, x2, y2) that a window of the canvas shows, clipped to the file."""
        top, left, height, width = window
        box = self.file_boxes(np.array([[left, top, left + width, top + height]]))[0]
        limit = [self.source.width, self.source.height] * 2
        return tuple(np.clip(box, 0, limit).tolist())

    @property
    def _scale(self) -> np.ndarray:
        return np.array([self.scaled.width / self.source.width, self.scaled.height / self.source.height])


def resized_view(source: Size, *, canvas: Size, shorter_side: int, longest_side: int, flip: bool) -> View:
    """The whole image at the canvas's top left, resized by its shorter side (`transforms.output_size`), and scaled
    down further where it would not fit."""
    scaled = fit_size(output_size(*source, shorter_side=shorter_side, longest_side=longest_side), canvas)
    return View(source, scaled, flip, 0, 0, canvas)


def jittered_view(source: Size, *, canvas: Size, scale: float, flip: bool, down: float, right: float) -> View:
    """Large-scale jitter (Ghiasi et al. 2021): resized to fit `scale` times the canvas, then cut to the canvas.

    The sizes are those of detectron2's ResizeScale and FixedSizeCrop: both sides times
    min(scale H / height, scale W / width), rounded to the nearest, ties to even. An image larger than the canvas is
    shifted by the shares `down` and `right` (0..1) of what is too much, rounded; a smaller one lies at the top left.
    """
    factor = min(canvas.height * scale / source.height, canvas.width * scale / source.width)
    scaled = Size(*(max(1, int(np.round(side * factor))) for side in source))
    top = int(np.round(max(scaled.height - canvas.height, 0) * down))
    left = int(np.round(max(scaled.width - canvas.width, 0) * right))
    return View(source, scaled, flip, top, left, canvas)
