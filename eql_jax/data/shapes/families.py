"""Families of closed contours, the raw material of the classes.

Every family is a function (rng, index) -> (points, text), where `index` counts the family's candidates and text says in
words what was drawn. `candidates()` lists those of all families, always the same ones, cleaned and normalised.

The superformula is that of J. Gielis, "A generic geometric transformation that unifies a wide range of natural and
abstract shapes", American Journal of Botany 90(3), 2003.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from eql_jax.data.shapes.contours import has_hairs, normalised, trace

CANVAS = 256  # side of the canvas on which composed shapes are painted before their outline is traced
UNIT = 100.0  # canvas pixels of the length 1

Points = np.ndarray  # float64 [P, 2]
Family = Callable[[np.random.Generator, int], tuple[Points, str]]


class Candidate(NamedTuple):
    """One possible class: float64 [P, 2] contour, centroid at 0, sqrt(diameter x equivalent diameter) = 1."""

    family: str
    text: str
    contour: Points


@lru_cache(maxsize=1)
def candidates() -> tuple[Candidate, ...]:
    """All candidates of all families in a fixed order, about 3,000; takes about a second."""
    found = []
    for number, (name, (family, count)) in enumerate(FAMILIES.items()):
        for index in range(count):
            points, text = family(np.random.default_rng([number, index]), index)
            contour = normalised(points)
            if contour is not None and not has_hairs(contour):
                found.append(Candidate(name, text, contour))
    return tuple(found)


# ------------------------------------------------------------------ helpers


def _polar(radius: np.ndarray) -> Points:
    angle = np.arange(len(radius)) * (2 * np.pi / len(radius))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _angles(count: int = 128) -> np.ndarray:
    return np.arange(count) * (2 * np.pi / count)


def _arc(radius: float, start: float, end: float, count: int = 48) -> Points:
    angle = np.linspace(start, end, count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _empty() -> np.ndarray:
    return np.zeros((CANVAS, CANVAS), np.uint8)


def _pixels(points: Points) -> np.ndarray:
    return np.round(np.asarray(points) * UNIT + CANVAS / 2).astype(np.int32)


def _strokes(lines: list[Points], width: float) -> Points:
    canvas = _empty()
    thickness = max(1, round(width * UNIT))
    for line in lines:
        cv2.polylines(canvas, [_pixels(line)], False, 1, thickness)
    return trace(canvas, tolerance=1.2)


# ------------------------------------------------------------------ families


def _superformula(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    m = 1 + index % 10
    n1 = float(np.exp(rng.uniform(np.log(0.3), np.log(12))))
    n2, n3 = np.exp(rng.uniform(np.log(0.3), np.log(14), 2))
    if rng.random() < 0.4:
        n3 = n2
    angle = m * _angles(160) / 4
    radius = (np.abs(np.cos(angle)) ** n2 + np.abs(np.sin(angle)) ** n3) ** (-1 / n1)
    return _polar(radius / radius.max()), f"superformula m={m} n1={n1:.2f} n2={n2:.2f} n3={n3:.2f}"


def _polygon(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    sides = 3 + index % 6
    stretch = 1 + 0.35 * (index // 6)
    return _polar(np.ones(sides)) * [stretch, 1], f"regular polygon of {sides} sides, stretched {stretch:.2f} times"


def _star(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    tips = 3 + index % 7
    inner = rng.uniform(0.25, 0.72)
    radius = np.ones(2 * tips)
    radius[1::2] = inner
    return _polar(radius), f"star of {tips} tips, inner radius {inner:.2f}"


def _pinwheel(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    blades = 2 + index % 5
    inner, lean = rng.uniform(0.2, 0.6), rng.uniform(0.55, 1.1)
    step = 2 * np.pi / blades
    rows = []
    for blade in range(blades):
        start = blade * step
        rows += [(inner, start), (1.0, start + lean * step), (inner * 1.25, start + 0.75 * step)]
    radius, angle = np.array(rows).T
    painted = _empty()
    for blade in range(blades):
        part = slice(3 * blade, 3 * blade + 3)
        corner = np.stack([radius[part] * np.cos(angle[part]), radius[part] * np.sin(angle[part])], axis=1)
        cv2.fillPoly(painted, [_pixels(np.concatenate([corner, [[0, 0]]]))], 1)
    cv2.circle(painted, (CANVAS // 2, CANVAS // 2), round(inner * UNIT), 1, -1)
    return trace(painted, tolerance=1.0), f"pinwheel of {blades} blades, hub {inner:.2f}, lean {lean:.2f}"


def _cross(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    arms = 3 + index % 4
    width, flare = rng.uniform(0.16, 0.5), rng.uniform(0.5, 1.8)
    painted = _empty()
    for arm in range(arms):
        angle = 2 * np.pi * arm / arms
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        inner, outer = across * width / 2, across * width / 2 * flare
        cv2.fillPoly(painted, [_pixels(np.stack([inner, along + outer, along - outer, -inner]))], 1)
    return trace(painted, tolerance=1.0), f"cross of {arms} arms, width {width:.2f}, flare {flare:.2f}"


def _arrow(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    head, shaft = rng.uniform(0.35, 0.9), rng.uniform(0.12, 0.3)
    start, barb = rng.uniform(-0.2, 0.6), rng.uniform(0.0, 0.3)
    right = [(1, 0), (start - barb, head), (start, shaft), (-1, shaft)]
    if index % 2:  # two heads
        start = max(start, 0.3)
        right = [(1, 0), (start - min(barb, 0.2), head), (start, shaft)]
        right += [(-x, y) for x, y in reversed(right)]
    left = [(x, -y) for x, y in reversed(right) if y > 0]
    kind = "double arrow" if index % 2 else "arrow"
    return np.array(right + left, float), f"{kind}, head {head:.2f}, shaft {shaft:.2f}, barb {barb:.2f}"


def _heart(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    t = _angles()
    stretch, notch = rng.uniform(0.7, 1.6), rng.uniform(0.7, 1.6)
    y = 13 * np.cos(t) - notch * (5 * np.cos(2 * t) + 2 * np.cos(3 * t)) - np.cos(4 * t)
    return np.stack([16 * stretch * np.sin(t) ** 3, -y], axis=1), f"heart, width {stretch:.2f}, notch {notch:.2f}"


def _crescent(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    radius, shift = rng.uniform(0.6, 1.1), rng.uniform(0.35, 0.9)
    painted = _empty()
    centre = CANVAS // 2
    cv2.circle(painted, (centre, centre), round(UNIT), 1, -1)
    cv2.circle(painted, (centre + round(shift * UNIT), centre), round(radius * UNIT), 0, -1)
    return trace(painted, tolerance=1.0), f"crescent, cut by a disc of radius {radius:.2f} at {shift:.2f}"


def _gear(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    teeth = 5 + index % 6
    depth, duty = rng.uniform(0.18, 0.45), rng.uniform(0.3, 0.7)
    step = 2 * np.pi / teeth
    offset = np.array([-0.5 * duty, -0.38 * duty, 0.38 * duty, 0.5 * duty]) * step
    angle = (np.arange(teeth)[:, None] * step + offset).ravel()
    radius = np.tile([1 - depth, 1, 1, 1 - depth], teeth)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return points, f"gear of {teeth} teeth, depth {depth:.2f}, duty {duty:.2f}"


def _flower(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    petals = 3 + index % 6
    depth, sharp = rng.uniform(0.15, 0.42), rng.uniform(0.4, 1.0)
    wave = np.abs(np.cos(petals * _angles(192) / 2)) ** (2 * sharp)
    return _polar(1 - 2 * depth * (1 - wave)), f"flower of {petals} petals, depth {depth:.2f}, sharpness {sharp:.2f}"


def _sector(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    span, inner = rng.uniform(0.5, 1.85) * np.pi, max(0.0, rng.uniform(-0.5, 0.75))
    inside = _arc(inner, span, 0) if inner > 0 else np.zeros((1, 2))
    return np.concatenate([_arc(1, 0, span), inside]), f"sector of {np.degrees(span):.0f} degrees, hole {inner:.2f}"


def _drop(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    t, power, stretch = _angles(), rng.uniform(0.6, 2.5), rng.uniform(0.5, 1.1)
    points = np.stack([np.cos(t), stretch * np.sin(t) * np.abs(np.sin(t / 2)) ** power], axis=1)
    return points, f"drop, power {power:.2f}, width {stretch:.2f}"


def _bar(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    aspect, power = rng.uniform(1.0, 4.5), np.exp(rng.uniform(np.log(0.6), np.log(6)))
    t = _angles()
    c, s = np.cos(t), np.sin(t)
    points = np.stack([aspect * np.sign(c) * np.abs(c) ** (2 / power), np.sign(s) * np.abs(s) ** (2 / power)], axis=1)
    return points, f"superellipse, aspect {aspect:.2f}, power {power:.2f}"


def _quadrangle(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    a, b, c = rng.uniform(0.15, 1.0), rng.uniform(0.3, 1.2), rng.uniform(-0.7, 0.7)
    if index % 3 == 0:
        return np.array([(-1, b), (-a, -b), (a, -b), (1, b)]), f"trapezium, top {a:.2f}, height {b:.2f}"
    if index % 3 == 1:
        return np.array([(0, 1), (b * 0.8, c), (0, -1), (-b * 0.8, c)]), f"kite, width {b:.2f}, at {c:.2f}"
    return np.array([(0, 0.2 * b), (1, 1), (0, -1), (-1, 1)]), f"dart, notch {0.2 * b:.2f}"


def _chevron(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    height, width = rng.uniform(0.3, 1.4), rng.uniform(0.35, 0.8)
    points = [(-1, height), (0, 0), (1, height), (1, height + width), (0, width), (-1, height + width)]
    return np.array(points), f"chevron, height {height:.2f}, width {width:.2f}"


def _bolt(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    tips, width = 1 + index % 3, rng.uniform(0.35, 0.5)
    x = np.linspace(-1, 1, tips + 2)
    y = np.where(np.arange(tips + 2) % 2, 1, -1) * rng.uniform(0.35, 0.8)
    return _strokes([np.stack([x, y], axis=1)], width), f"zigzag of {tips} turns, width {width:.2f}"


def _spiral(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    turns, width = rng.uniform(0.9, 1.4), rng.uniform(0.28, 0.36)
    t = np.linspace(0.12, 1, 60)
    angle = 2 * np.pi * turns * t
    line = np.stack([t * np.cos(angle), t * np.sin(angle)], axis=1)
    return _strokes([line], width), f"spiral of {turns:.2f} turns, width {width:.2f}"


def _ribbon(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    t, width = np.linspace(0, 1, 40), rng.uniform(0.28, 0.45)
    bends = rng.uniform(-1, 1, 4)
    heading = np.cumsum(sum(b * np.cos(np.pi * k * t) for k, b in enumerate(bends))) * rng.uniform(0.12, 0.3)
    line = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
    line -= (line.max(0) + line.min(0)) / 2
    line *= 0.95 / np.abs(line).max()
    return _strokes([line], width), f"ribbon, width {width:.2f}, bends {np.round(bends, 2).tolist()}"


# Strokes between the points of a 3 x 3 grid, numbered 0..8 by rows; no letter encloses an area.
_LETTERS = {
    "C": ["2068"], "E": ["2068", "35"], "F": ["206", "34"], "H": ["06", "28", "35"], "J": ["0", "2863"],
    "K": ["06", "246", "48"], "L": ["068"], "M": ["60428"], "N": ["6082"], "S": ["203586"], "T": ["02", "17"],
    "U": ["0682"], "V": ["072"], "W": ["06482"], "X": ["08", "26"], "Y": ["04", "24", "47"], "Z": ["0268"],
}  # fmt: skip


def _letter(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    name = sorted(_LETTERS)[index % len(_LETTERS)]
    aspect, width = rng.uniform(0.65, 1.0), rng.uniform(0.32, 0.5)
    grid = np.array([(x * aspect, y) for y in (-0.9, 0, 0.9) for x in (-0.9, 0, 0.9)])
    lines = [grid[[int(c) for c in stroke]] for stroke in _LETTERS[name] if len(stroke) > 1]
    return _strokes(lines, width), f"letter {name}, aspect {aspect:.2f}, stroke {width:.2f}"


def _free_polyominoes(cells: int) -> list[tuple[tuple[int, int], ...]]:
    """All polyominoes of so many cells, one of each up to rotation and reflection, sorted."""

    def canonical(shape) -> tuple[tuple[int, int], ...]:
        forms = []
        for flip in (1, -1):
            form = [(x * flip, y) for x, y in shape]
            for _ in range(4):
                form = [(-y, x) for x, y in form]
                left, top = min(x for x, _ in form), min(y for _, y in form)
                forms.append(tuple(sorted((x - left, y - top) for x, y in form)))
        return min(forms)

    grown = {((0, 0),)}
    for _ in range(cells - 1):
        steps = ((1, 0), (-1, 0), (0, 1), (0, -1))
        grown = {
            canonical((*shape, (x + dx, y + dy)))
            for shape in grown for x, y in shape for dx, dy in steps if (x + dx, y + dy) not in shape
        }  # fmt: skip
    return sorted(grown)


@lru_cache(maxsize=1)
def _polyominoes() -> tuple[tuple[tuple[int, int], ...], ...]:
    return tuple(shape for cells in (3, 4, 5, 6) for shape in _free_polyominoes(cells))


def _polyomino(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    shape = _polyominoes()[index]
    mask = np.zeros((6, 6), np.uint8)
    for x, y in shape:
        mask[y, x] = 1
    points = trace(np.kron(mask, np.ones((16, 16), np.uint8)), tolerance=1.0)
    return points, f"polyomino of {len(shape)} cells, {' '.join(f'{x}{y}' for x, y in shape)}"


def _irregular(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    corners = 5 + index % 6
    angle = (np.arange(corners) + rng.uniform(-0.38, 0.38, corners)) * (2 * np.pi / corners)
    radius = rng.uniform(0.3, 1.0, corners)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return points, f"irregular polygon of {corners} corners"


def _blob(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    order = np.arange(1, 7)
    amplitude = rng.uniform(0, 1, 6) / order**0.7
    amplitude *= rng.uniform(0.35, 0.8) / amplitude.sum()
    phase = rng.uniform(0, 2 * np.pi, 6)
    radius = 1 + (amplitude[:, None] * np.cos(order[:, None] * _angles() + phase[:, None])).sum(0)
    return _polar(radius), f"Fourier blob, amplitudes {np.round(amplitude, 2).tolist()}"


def _compound(rng: np.random.Generator, index: int) -> tuple[Points, str]:
    painted = _empty()
    parts = 2 + index % 3
    names, position = [], np.zeros(2)
    for part in range(parts + 1):
        w, h, turn = rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6), rng.uniform(0, np.pi)
        kind = ("disc", "box", "wedge")[int(rng.integers(3))]
        outline = {"disc": _polar(np.ones(40)), "box": _polar(np.ones(4)) * 1.2, "wedge": _polar(np.ones(3)) * 1.3}
        c, s = np.cos(turn), np.sin(turn)
        cut = part == parts  # the last part is taken away
        outline = outline[kind] * [w, h] * (0.6 if cut else 1.0) @ np.array([[c, s], [-s, c]]) + position
        cv2.fillPoly(painted, [_pixels(outline)], 0 if cut else 1)
        position = np.clip(position + rng.uniform(-0.6, 0.6, 2), -0.6, 0.6)
        names.append(f"{'less ' if cut else ''}{kind}")
    # Rubs off hairs and the points at which parts only touch.
    painted = cv2.morphologyEx(painted, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13)))
    if not painted.any():
        return np.zeros((3, 2)), ""
    return trace(painted, tolerance=1.0), "compound of " + ", ".join(names)


# name: (function, candidates)
FAMILIES: dict[str, tuple[Family, int]] = {
    "bar": (_bar, 60),
    "polygon": (_polygon, 12),
    "star": (_star, 140),
    "pinwheel": (_pinwheel, 100),
    "cross": (_cross, 160),
    "arrow": (_arrow, 120),
    "heart": (_heart, 40),
    "crescent": (_crescent, 80),
    "gear": (_gear, 120),
    "flower": (_flower, 120),
    "sector": (_sector, 100),
    "drop": (_drop, 50),
    "quadrangle": (_quadrangle, 90),
    "chevron": (_chevron, 50),
    "bolt": (_bolt, 60),
    "spiral": (_spiral, 60),
    "ribbon": (_ribbon, 300),
    "letter": (_letter, 136),
    "polyomino": (_polyomino, 54),
    "superformula": (_superformula, 700),
    "irregular": (_irregular, 500),
    "blob": (_blob, 350),
    "compound": (_compound, 600),
}
