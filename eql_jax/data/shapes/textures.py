"""Colours and textures. Nothing here knows a class, so that nothing but shape tells classes apart."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

CANDIDATES = 16  # palettes tried until one has the contrast asked for; else the best of them is taken


class Palette(NamedTuple):
    """The two colours a texture mixes, float32 [3] RGB in 0..255 each."""

    first: np.ndarray
    second: np.ndarray

    def between(self, share: float) -> np.ndarray:
        """Colour float32 [3] at a share of the way from first to second; may lie outside, cut to 0..255."""
        return np.clip(self.first + np.float32(share) * (self.second - self.first), 0, 255)

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        *,
        spread: float,
        background: "Palette | None" = None,
        others: "list[Palette] | tuple[Palette, ...]" = (),
        contrast: float = 0.0,
    ) -> "Palette":
        """Draws two random colours at most `spread` apart.

        They are at least `contrast` from the background's and .6 of it from those of `others`, if one of a few draws
        is; else the draw that comes nearest is taken.
        """
        first = rng.uniform(15, 240, (CANDIDATES, 3))
        step = rng.normal(size=(CANDIDATES, 3))
        step *= rng.uniform(0.15, 1, (CANDIDATES, 1)) * spread / np.sqrt((step**2).sum(1, keepdims=True))
        pairs = np.stack([first, np.clip(first + step, 5, 250)], axis=1).astype(np.float32)  # [candidates, 2, 3]
        choice = 0
        if background is not None:
            avoid = np.array([background, *others]).reshape(-1, 3)
            distances = np.sqrt(((pairs[:, :, None] - avoid) ** 2).sum(-1)).min(1)  # [candidates, colours]
            wanted = np.full(len(avoid), 0.6 * contrast)
            wanted[:2] = contrast
            # The first that satisfies all, or else the best.
            choice = int(np.minimum((distances / wanted).min(1), 1.0).argmax())
        return cls(*pairs[choice])


def texture(rng: np.random.Generator, *, height: int, width: int, palette: Palette, pixel: float) -> np.ndarray:
    """float32 [height, width, 3] RGB mix of the palette's colours by a random pattern.

    pixel: picture pixels per pixel of a picture of 128; patterns are scaled by it.
    """
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    share = pattern(rng, height, width, pixel).astype(np.float32)
    return palette.first + share[..., None] * (palette.second - palette.first)


# ------------------------------------------------------------------ patterns, float [height, width] in 0..1

Pattern = Callable[[np.random.Generator, int, int, float], np.ndarray]


def _plain(rng: np.random.Generator, height: int, width: int, pixel: float) -> np.ndarray:
    return np.zeros((height, width), np.float32)


def _along(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Position of every pixel along a random direction, in pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    y = np.arange(height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    return y + np.arange(width, dtype=np.float32) * np.float32(np.cos(angle))


def _gradient(rng: np.random.Generator, height: int, width: int, pixel: float) -> np.ndarray:
    along = _along(rng, height, width)
    low, high = along.min(), along.max()
    return (along - low) / max(high - low, 1e-3)


def _stripes(rng: np.random.Generator, height: int, width: int, pixel: float) -> np.ndarray:
    period, phase = rng.uniform(4, 18) * pixel, rng.uniform(0, 2 * np.pi)
    wave = np.sin(_along(rng, height, width) * np.float32(2 * np.pi / period) + np.float32(phase))
    return 0.5 + 0.5 * (np.sign(wave) if rng.random() < 0.5 else wave)


def _lattice(rng: np.random.Generator, height: int, width: int, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Phases, in radians, of every pixel along the two axes of a turned square lattice."""
    angle, (first, second) = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    c, s = (np.array([np.cos(angle), np.sin(angle)]) * (2 * np.pi / period)).astype(np.float32)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    return c * x + s * y + first, c * y - s * x + second


def _checks(rng: np.random.Generator, height: int, width: int, pixel: float) -> np.ndarray:
    u, v = _lattice(rng, height, width, rng.uniform(6, 18) * pixel)
    return (np.sin(u) > 0) != (np.sin(v) > 0)


def _dots(rng: np.random.Generator, height: int, width: int, pixel: float) -> np.ndarray:
    u, v = _lattice(rng, height, width, rng.uniform(5, 14) * pixel)
    return np.clip((np.cos(u) + np.cos(v) - np.float32(rng.uniform(0, 1))) * 2, 0, 1)


def _clouds(rng: np.random.Generator, height: int, width: int, pixel: float) -> np.ndarray:
    cell = rng.uniform(4, 30) * pixel
    grid = rng.random((2 + int(height / cell), 2 + int(width / cell)), dtype=np.float32)
    return np.clip(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _grain(rng: np.random.Generator, height: int, width: int, pixel: float) -> np.ndarray:
    cell = max(1.0, rng.uniform(1, 3) * pixel)
    grid = rng.random((1 + int(height / cell), 1 + int(width / cell)), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)


PATTERNS: tuple[Pattern, ...] = (_plain, _gradient, _stripes, _checks, _dots, _clouds, _grain)
