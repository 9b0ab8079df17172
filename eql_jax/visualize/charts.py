"""Two charts of a long-tailed data set, as SVG text: images per class, and the tail ratio against the threshold.

K classes. The SVG stands in an HTML page as it is; nothing is loaded from elsewhere.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from eql_jax.visualize.draw import LETTER_COLORS

_WIDTH, _HEIGHT = 1120, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 40
_GREY, _BLUE = "#777", "#1f5fbf"
# Image counts at which LVIS's letters change, and what the line says.
_BORDERS = ((10, "10: rare up to here"), (100, "100: common up to here"))
# Tail ratios at which the paper found good thresholds.
_GOOD_RATIOS = (0.02, 0.10)


def class_histogram(
    names: Sequence[str],
    letters: Sequence[str],
    image_counts: np.ndarray,
    *,
    tail: np.ndarray,
    sampled: np.ndarray | None = None,
) -> str:
    """Training images of each class, from the most to the least frequent, on a logarithmic axis.

    Args:
      names, letters: K names and frequency letters.
      image_counts: [K] training images with each class; classes of none stand at the foot.
      tail: bool [K]; the bars of these classes are dark.
      sampled: [K] expected images with each class in as many draws as there are images, drawn as a line.

    Returns:
      An <svg> element.
    """
    order = np.argsort(-image_counts, kind="stable")
    top = max(int(image_counts.max(initial=1)), 10, math.ceil(sampled.max(initial=1)) if sampled is not None else 1)
    decades = math.ceil(math.log10(top * 1.05))
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(order), 1)

    def y(count: float) -> float:
        # Half an image is the foot, so that a class of one image has a bar to be seen.
        share = (math.log10(max(count, 0.5)) - math.log10(0.5)) / (decades - math.log10(0.5))
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    foot = y(0.5)
    parts = [_grid_line(y(10**d), f"{10**d:,}") for d in range(decades + 1)]
    for position, index in enumerate(order):
        color = _hex(LETTER_COLORS.get(letters[index], (110, 110, 110)))
        count = int(image_counts[index])
        title = f"{names[index]} ({letters[index]}): {count:,} images" + (", tail" if tail[index] else "")
        parts.append(
            f'<rect x="{_LEFT + position * step:.2f}" y="{y(count):.1f}" width="{max(step * 0.92, 0.5):.2f}" '
            f'height="{foot - y(count):.1f}" fill="{color}" fill-opacity="{1 if tail[index] else 0.45}">'
            f"<title>{html.escape(title)}</title></rect>"
        )
    for count, text in _BORDERS:
        if count < 10**decades:
            parts.append(_line(_LEFT, y(count), _WIDTH - _RIGHT, y(count), color="#333", dashed=True))
            parts.append(_text(_WIDTH - _RIGHT, y(count) - 4, text, anchor="end"))
    if sampled is not None:
        points = " ".join(f"{_LEFT + (p + 0.5) * step:.2f},{y(sampled[i]):.1f}" for p, i in enumerate(order))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_BLUE}" stroke-width="1"/>')
    key = "; blue: expected in as many draws as there are images, under the sampler" if sampled is not None else ""
    parts.append(_text(_LEFT, 18, f"images per class (dark: tail){key}", size=13))
    parts.append(_text(_WIDTH / 2, _HEIGHT - 10, f"{len(order)} classes, by number of images", anchor="middle"))
    return _svg(parts)


def tail_ratio_chart(thresholds: np.ndarray, ratios: np.ndarray, *, threshold: float, ratio: float) -> str:
    """The tail ratio TR against the threshold lambda, with one pair of them marked and the paper's good range shaded.

    Args:
      thresholds: [N] > 0, rising.
      ratios: [N] tail ratios, shares in 0..1.
      threshold, ratio: the pair to mark.

    Returns:
      An <svg> element.
    """
    low, high = math.log10(thresholds[0]), math.log10(thresholds[-1])

    def x(value: float) -> float:
        share = (math.log10(min(max(value, thresholds[0]), thresholds[-1])) - low) / max(high - low, 1e-9)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(share: float) -> float:
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<rect x="{_LEFT}" y="{y(_GOOD_RATIOS[1]):.1f}" width="{_WIDTH - _LEFT - _RIGHT}" '
        f'height="{y(_GOOD_RATIOS[0]) - y(_GOOD_RATIOS[1]):.1f}" fill="#2e965c" fill-opacity="0.16"/>'
    ]
    parts += [_grid_line(y(share), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)]
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        parts.append(_line(x(10**exponent), _TOP, x(10**exponent), _HEIGHT - _BOTTOM, color="#ddd"))
        parts.append(_text(x(10**exponent), _HEIGHT - _BOTTOM + 16, f"{10.0**exponent:g}", anchor="middle"))
    points = " ".join(f"{x(a):.2f},{y(b):.2f}" for a, b in zip(thresholds, ratios, strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke="#222" stroke-width="1.5"/>')
    parts.append(_line(x(threshold), _TOP, x(threshold), _HEIGHT - _BOTTOM, color=_BLUE, dashed=True))
    parts.append(f'<circle cx="{x(threshold):.1f}" cy="{y(ratio):.1f}" r="4" fill="{_BLUE}"/>')
    anchor = "end" if x(threshold) > _WIDTH / 2 else "start"
    shift = -8 if anchor == "end" else 8
    label = f"lambda {threshold:g}: tail ratio {100 * ratio:.2f} %"
    parts.append(_text(x(threshold) + shift, _TOP + 14, label, anchor=anchor, color=_BLUE))
    parts.append(_text(_LEFT, 18, "tail ratio by lambda (green: 2 to 10 %, where the paper found it good)", size=13))
    parts.append(_text(_WIDTH / 2, _HEIGHT - 8, "lambda, a share of images", anchor="middle"))
    return _svg(parts)


def _svg(parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )


def _grid_line(y: float, label: str) -> str:
    return _line(_LEFT, y, _WIDTH - _RIGHT, y, color="#ddd") + _text(_LEFT - 6, y + 4, label, anchor="end")


def _line(x1: float, y1: float, x2: float, y2: float, *, color: str, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{dashes}/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11, color: str = _GREY) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}">'
        f"{html.escape(text)}</text>"
    )


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
