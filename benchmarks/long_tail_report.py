"""Tables and plots of a long-tail study: means and spreads over seeds of what its runs reached.

A row is a finished run: {'arm': .., 'seed': .., 'steps': .., 'bbox/AP': .., ...}, APs as shares of 1. Every AP is there
twice, since the limit of detections an image is where a class that is scored low loses: 'bbox/AP' with a quarter as
many as there are classes, the proportion of LVIS (300, 1203), and 'bbox/AP@all' with as many as the model gives.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.long_tail_arms import ARMS, DETECTIONS, SWEEP, Scale, paper_tail_ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = ("AP", "APr", "APc", "APf")
TYPES = {"bbox": "boxes", "segm": "masks"}
ENDS = ("", "@all")  # of the keys: the limits of detections
METRICS = tuple(f"{kind}/{group}{end}" for end in ENDS for kind in TYPES for group in GROUPS)
COSTS = ("seconds", "cpu_seconds", "config", "device", "jax", "commit")
COLORS = {"AP": "#3c4048", "APr": "#c8402f", "APc": "#d1a10f", "APf": "#1f5fbf"}
BASE = "sigmoid"  # what the other arms are compared with


def limits(scale: Scale) -> dict[str, int]:
    """{end of the key: detections an image}."""
    return dict(zip(ENDS, (scale.few, DETECTIONS), strict=True))


class Spread(NamedTuple):
    """Mean and standard deviation (of the sample; 0 of a single value) over seeds, in percent, and how many seeds.

    NaN where there is no AP: no class of the group has ground truth.
    """

    mean: float
    deviation: float
    seeds: int

    def text(self, form: str = "{:.1f}") -> str:
        """'20.0 ± 10.0'; `form` is of the mean."""
        if math.isnan(self.mean):
            return "-"
        return form.format(self.mean) + (f" ± {self.deviation:.1f}" if self.seeds > 1 else "")


def spreads(rows: Sequence[Mapping]) -> dict[str, dict[str, Spread]]:
    """{arm: {metric: Spread}}, arms in the order of ARMS."""
    found = {}
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if own:
            found[arm] = {key: _spread([row[key] for row in own]) for key in METRICS}
    return found


def _spread(values: Sequence[float]) -> Spread:
    if min(values) < 0:  # no class of the group has ground truth
        return Spread(math.nan, math.nan, len(values))
    percent = [100 * value for value in values]
    return Spread(statistics.fmean(percent), statistics.stdev(percent) if len(percent) > 1 else 0.0, len(percent))


def differences(rows: Sequence[Mapping]) -> dict[str, dict[str, Spread]]:
    """{arm: {metric: Spread}} of an arm minus BASE of the same seed, over the seeds that both have."""
    base = {row["seed"]: row for row in rows if row["arm"] == BASE}
    found = {}
    for arm in ARMS:
        pairs = [(row, base[row["seed"]]) for row in rows if row["arm"] == arm and row["seed"] in base]
        if pairs and arm != BASE:
            found[arm] = {key: _difference([(own[key], other[key]) for own, other in pairs]) for key in METRICS}
    return found


def _difference(pairs: Sequence[tuple[float, float]]) -> Spread:
    if min(map(min, pairs)) < 0:
        return Spread(math.nan, math.nan, len(pairs))
    percent = [100 * (own - other) for own, other in pairs]
    return Spread(statistics.fmean(percent), statistics.stdev(percent) if len(percent) > 1 else 0.0, len(percent))


def write_report(out: Path, rows: Sequence[Mapping], scale: Scale) -> None:
    """Writes results.csv, table.md and, for each limit of detections, groups.png and with arms of the sweep sweep.png
    (groups@all.png and so on)."""
    found = spreads(rows)
    with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("arm", "seed", "steps", *METRICS, *COSTS), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    (out / "table.md").write_text(markdown(rows, scale), encoding="utf-8")
    for end in ENDS if found else ():
        draw_groups(found, end, out / f"groups{end}.png")
        if len([arm for arm in SWEEP if arm in found]) > 1:
            draw_sweep(found, end, out / f"sweep{end}.png")


def markdown(rows: Sequence[Mapping], scale: Scale) -> str:
    """For each limit of detections a table with a line for each arm, mean ± standard deviation over seeds in percent,
    and one of the differences to the base."""
    tables = []
    for end, limit in limits(scale).items():
        tables.append(_table(f"{limit} detections an image, percent", spreads(rows), end, "{:.1f}"))
        title = f"{limit} detections an image, minus {ARMS[BASE].title} of the same seed, points"
        tables.append(_table(title, differences(rows), end, "{:+.1f}"))
    return "\n".join(tables)


def _table(title: str, found: Mapping[str, Mapping[str, Spread]], end: str, form: str) -> str:
    columns = [(kind, group) for kind in TYPES for group in GROUPS]
    head = ["arm", "seeds", *(f"{TYPES[kind]} {group}" for kind, group in columns)]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for arm, values in found.items():
        seeds = next(iter(values.values())).seeds
        cells = (values[f"{kind}/{group}{end}"].text(form) for kind, group in columns)
        lines.append(" | ".join([ARMS[arm].title, str(seeds), *cells]))
    return f"{title}:\n\n" + "".join(f"| {line} |\n" for line in lines)


# ---------------------------------------------------------------------------------------------------- plots
def draw_groups(found: Mapping[str, Mapping[str, Spread]], end: str, path: Path) -> None:
    """AP of all, rare, common and frequent classes of every arm under a limit, with the spread of seeds; boxes and
    masks."""

    def panel(ax: Axes, kind: str) -> None:
        for i, group in enumerate(GROUPS):
            at = [n + (i - 1.5) * 0.2 for n in range(len(found))]
            values = [one[f"{kind}/{group}{end}"] for one in found.values()]
            options = {"yerr": [v.deviation for v in values], "capsize": 2, "error_kw": {"linewidth": 0.8}}
            ax.bar(at, [v.mean for v in values], 0.18, color=COLORS[group], label=group, **options)
        ax.set_xticks(range(len(found)), [ARMS[arm].title for arm in found], rotation=30, ha="right")

    _draw(panel, path, width=max(6.0, 1.1 * len(found)))


def draw_sweep(found: Mapping[str, Mapping[str, Spread]], end: str, path: Path) -> None:
    """AP of EQL under a limit of detections against the tail ratio of its threshold; ratio 0 is the sigmoid loss."""
    arms = [arm for arm in SWEEP if arm in found]
    ratios = [100 * paper_tail_ratio(ARMS[arm].paper_lambda) for arm in arms]

    def panel(ax: Axes, kind: str) -> None:
        for group in GROUPS:
            values = [found[arm][f"{kind}/{group}{end}"] for arm in arms]
            options = {"yerr": [v.deviation for v in values], "capsize": 2, "linewidth": 1.5, "markersize": 4}
            ax.errorbar(ratios, [v.mean for v in values], marker="o", color=COLORS[group], label=group, **options)
        ax.set_xlabel("tail ratio of the paper's lambda on LVIS v0.5, %")

    _draw(panel, path, width=6.0)


def _draw(panel, path: Path, *, width: float) -> None:
    """A figure with a panel for boxes and one for masks below it; matplotlib is imported here."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, (kind, title) in zip(figure.subplots(2, 1, sharex=True), TYPES.items(), strict=True):
        panel(ax, kind)
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_ylabel("AP, %")
        ax.set_ylim(0, max(1, ax.get_ylim()[1]))  # at least one point: all may be 0
        ax.grid(color="#e4e6ea", linewidth=0.7, axis="y")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(ncols=4, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0.2, 1.12))
    for ax in figure.axes[:-1]:
        ax.set_xlabel("")
    figure.savefig(path, dpi=90)
