"""The figures as matplotlib draws them, from plain arrays. K classes of a run; runs may have different ones.

Figures are made without pyplot, so that no display and no global state is touched; matplotlib is imported when the
first is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eql_jax.analysis.groups import GROUPS, Confusion
from eql_jax.visualize.draw import LETTER_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POSITIVE, _NEGATIVE = "#1f5fbf", "#c8402f"
_RUN_COLORS = ("#1f5fbf", "#d1650f", "#2a8a57", "#8b3fae", "#b5122b", "#12848c", "#7a5a10", "#5c5f66")
_LETTER_NAMES = {"f": "frequent", "c": "common", "r": "rare"}
_WIDTH, _PANEL = 11.0, 3.3  # inches: of a figure, and the height of a panel
_DOTS_PER_INCH = 110


class Panel(NamedTuple):
    """What figures by class need of a run: name, K frequency letters, the classes in the order to draw, its colour."""

    name: str
    letters: Sequence[str]
    order: np.ndarray
    color: str


def save(figure: Figure, path: Path) -> bytes:
    """Writes a PNG file and returns what is in it."""
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    return path.read_bytes()


def run_color(index: int) -> str:
    """The colour of a run by its place on the command line."""
    return _RUN_COLORS[index % len(_RUN_COLORS)]


# ---------------------------------------------------------------------------------------------------- by class
def gradient_norms(panels: Sequence[Panel], norms: Sequence[tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Figure 1 of the paper, a panel for each run, all on one logarithmic scale.

    norms: of each run the norms [K] of positives' and negatives' gradients. Zeros have no place on the scale: they are
      not drawn as dots, but count for the running mean.
    """
    figure, axes = _stack(len(panels))
    for ax, panel, (positive, negative) in zip(axes, panels, norms, strict=True):
        for values, color, label in ((positive, _POSITIVE, "positives"), (negative, _NEGATIVE, "negatives")):
            _class_series(ax, values[panel.order], color, label)
        if (positive > 0).any() or (negative > 0).any():
            ax.set_yscale("log", nonpositive="mask")
        ax.set_ylabel("L2 norm of the gradient")
        _class_axis(ax, panel, f"{panel.name}: gradient of each class's weights")
    return figure


def positive_probabilities(panels: Sequence[Panel], values: Sequence[np.ndarray]) -> Figure:
    """Figure 2 of the paper: mean score [K] of each class's positives, NaN for none.

    Runs whose classes come in the same order share a panel.
    """
    return _overlaid(panels, values, "mean score of positives for their class", bottom=0)


def weight_norms(panels: Sequence[Panel], values: Sequence[np.ndarray]) -> Figure:
    """L2 norm [K] of each class's weights in the classifier. Panels as in `positive_probabilities`."""
    return _overlaid(panels, values, "L2 norm of the class's weights", bottom=None)


def _overlaid(panels: Sequence[Panel], values: Sequence[np.ndarray], title: str, *, bottom: float | None) -> Figure:
    together: list[list[int]] = []
    for i, panel in enumerate(panels):
        same = (g for g in together if _same_axis(panels[g[0]], panel))
        group = next(same, None)
        if group is None:
            together.append([i])
        else:
            group.append(i)
    figure, axes = _stack(len(together))
    for ax, group in zip(axes, together, strict=True):
        for i in group:
            _class_series(ax, values[i][panels[i].order], panels[i].color, panels[i].name)
        ax.set_ylim(bottom=bottom)
        _class_axis(ax, panels[group[0]], title)
    return figure


def _same_axis(a: Panel, b: Panel) -> bool:
    return np.array_equal(a.order, b.order) and list(a.letters) == list(b.letters)


def _class_series(ax: Axes, values: np.ndarray, color: str, label: str) -> None:
    """Dots of the classes, and a line of their running mean."""
    x = np.arange(len(values))
    size = np.clip(1500 / max(len(values), 1), 4, 22)
    ax.scatter(x, values, s=size, color=color, alpha=0.45, linewidths=0)
    ax.plot(x, running_mean(values, max(len(values) // 12, 3)), color=color, linewidth=1.8, label=label)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the finite ones among the `width` nearest values (fewer at the ends); NaN where there are none."""
    known = np.isfinite(values)
    half = width // 2
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    total, count = sums[high] - sums[low], counts[high] - counts[low]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _class_axis(ax: Axes, panel: Panel, title: str) -> None:
    """Title, legend, and under the axis a strip in the colours of the frequency letters."""
    count = len(panel.order)
    letters = np.asarray(panel.letters)[panel.order]
    for letter, name in _LETTER_NAMES.items():
        where = np.flatnonzero(letters == letter)
        # A strip, not shaded panels: letters go by images, the order by objects, and they do not agree everywhere.
        if len(where):
            ax.broken_barh(
                [(i - 0.5, 1) for i in where],
                (-0.035, 0.03),
                facecolors=_hex(LETTER_COLORS[letter]),
                transform=ax.get_xaxis_transform(),
                clip_on=False,
                label=f"{name} ({len(where)})",
            )
    ax.set_xlim(-0.5 - count * 0.005, count - 0.5 + count * 0.005)
    ax.tick_params(axis="x", length=0, pad=12)
    ax.set_title(title, loc="left", fontsize=11)
    ax.set_xlabel("classes, from the most to the fewest training objects")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)


# ---------------------------------------------------------------------------------------------------- frequency
def ap_by_frequency(names: Sequence[str], counts: Sequence[np.ndarray], ap: Sequence[np.ndarray], kind: str) -> Figure:
    """AP of each class against its training images, and for each run a line through the means of ten groups.

    Args:
      names: of the runs, in the order of the command line.
      counts: of each run [n] training images of its classes; n is 0 for a run without any.
      ap: likewise [n] AP in shares of 1, NaN without ground truth.
      kind: 'masks' or 'boxes', for the axis.
    """
    figure, (ax,) = _stack(1, height=4.2)
    for i, (name, images, values) in enumerate(zip(names, counts, ap, strict=True)):
        known = np.isfinite(values) & (images > 0)
        if not known.any():
            continue
        ax.scatter(images[known], 100 * values[known], s=16, color=run_color(i), alpha=0.35, linewidths=0)
        x, y = group_means(images[known], 100 * values[known], groups=10)
        ax.plot(x, y, color=run_color(i), linewidth=2, marker="o", markersize=4, label=name)
    for border in (10.5, 100.5):
        ax.axvline(border, color="#999", linestyle="--", linewidth=0.8)
    ax.set_xscale("log")
    ax.set_ylim(bottom=-0.02 * ax.get_ylim()[1])
    ax.set_xlabel("training images with the class (dashed: LVIS's borders of rare, common and frequent)")
    ax.set_ylabel(f"AP of {kind}, percent")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)
    return figure


def group_means(counts: np.ndarray, values: np.ndarray, *, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Geometric mean of the counts and mean of the values in as many groups of neighbours by count, equally large."""
    order = np.argsort(counts, kind="stable")
    parts = [part for part in np.array_split(order, groups) if part.size]
    x = np.array([np.exp(np.log(counts[part]).mean()) for part in parts])
    return x, np.array([values[part].mean() for part in parts])


def confusions(names: Sequence[str], found: Sequence[Confusion]) -> Figure:
    """For each run a matrix of shares: true group down, predicted group across; beside it the share that is right."""
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure, axes = _new_figure(rows, columns, size=(4.6 * columns, 3.9 * rows))
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    for ax, name, confusion in zip(axes, names, found, strict=False):
        ax.grid(False)
        shares = np.concatenate([confusion.shares, confusion.right_shares[:, None]], axis=1)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), share in np.ndenumerate(shares):
            text = "–" if np.isnan(share) else f"{100 * share:.1f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=10, color="white" if share > 0.6 else "black")
        ax.axvline(3.5, color="white", linewidth=4)
        ax.set_xticks(range(5), ["rare", "common", "freq.", "backgr.", "right\nclass"], fontsize=9)
        totals = confusion.counts.sum(axis=1)
        ax.set_yticks(range(4), [f"{g}\n{n:,} RoIs" for g, n in zip(GROUPS, totals, strict=True)], fontsize=9)
        ax.set_title(name, loc="left", fontsize=11)
        ax.set_xlabel("predicted, percent of the row")
    return figure


# ---------------------------------------------------------------------------------------------------- training
def training_curves(
    names: Sequence[str],
    train: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]],
    evaluated: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]],
) -> Figure | None:
    """Losses, gradient norm, learning rate and AP by step, one small panel for each; None without any curve.

    train, evaluated: of each run {metric: (steps, values)}.
    """
    losses = sorted({key for curves in train for key in curves if key.startswith("loss_")})
    wanted = ["loss", *losses, "grad_norm", "learning_rate", "num_foreground"]
    panels = [(key, train, 1.0) for key in wanted if any(key in curves for curves in train)]
    for key in ("segm/AP", "bbox/AP", "segm/APr", "bbox/APr"):
        if any(key in curves for curves in evaluated):
            panels.append((key, evaluated, 100.0))
    if not panels:
        return None
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure, axes = _new_figure(rows, columns, size=(3.4 * columns, 2.3 * rows + 0.5))
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (key, curves, factor) in zip(axes, panels, strict=False):
        for i in range(len(names)):
            if key in curves[i]:
                _curve(ax, *curves[i][key], color=run_color(i), factor=factor, dotted=curves is evaluated)
        if curves is evaluated:
            ax.set_ylim(bottom=0)
        ax.set_title(f"{key}, percent" if curves is evaluated else key, loc="left", fontsize=10)
        ax.set_xlabel("step", fontsize=9)
    handles = [_handle(run_color(i), name) for i, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(names), 4), fontsize=9, frameon=False)
    return figure


def _curve(ax: Axes, steps: np.ndarray, values: np.ndarray, *, color: str, factor: float, dotted: bool) -> None:
    values = np.where(np.isfinite(values), values, np.nan) * factor
    if dotted or len(values) < 40:
        ax.plot(steps, values, color=color, linewidth=1.5, marker="o" if dotted else None, markersize=4)
    else:
        ax.plot(steps, values, color=color, linewidth=0.6, alpha=0.35)
        ax.plot(steps, running_mean(values, len(values) // 20), color=color, linewidth=1.6)


# ---------------------------------------------------------------------------------------------------- matplotlib
def _stack(count: int, *, height: float = _PANEL) -> tuple[Figure, list[Axes]]:
    """Panels above each other that share the scale of y."""
    return _new_figure(count, 1, size=(_WIDTH, height * count), sharey=True)


def _new_figure(
    rows: int, columns: int, *, size: tuple[float, float], sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for ax in axes:
        ax.grid(color="#e4e6ea", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
    return figure, axes


def _handle(color: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linewidth=2, label=label)


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
