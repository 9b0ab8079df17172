"""The sections of the page, as HTML of what `collect` and `examples` found. No reading, no drawing of its own."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from eql_jax.analysis.collect import ClassAP, Evaluation, Run
from eql_jax.analysis.examples import Example
from eql_jax.evaluation.tables import IOU_TYPE_NAMES
from eql_jax.training.config import differences, leaves
from eql_jax.visualize.page import data_uri, html_figure, html_table, picture_uri

_METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "AP50r", "AP50c", "AP50f", "APs", "APm", "APl")


def runs_section(runs: Sequence[Run]) -> str:
    """What the runs are, and what has to be known of each before its numbers are read."""
    head = ("run", "workdir", "config", "loss", "classes", "checkpoint of step", "devices", "commit")
    rows = []
    for run in runs:
        counts = ", ".join(f"{run.classes.letters.count(letter)} {letter}" for letter in "rcf")
        devices = ", ".join(sorted(set(run.versions.get("devices", [])))) or "?"
        commit = (run.versions.get("git_commit") or "?")[:10]
        loss = run.config.model.box_head.loss
        classes = f"{len(run.classes)}: {counts}"
        rows.append((run.name, run.workdir, run.config.name, loss, classes, run.model.step, devices, commit))
    notes = [note(f"{run.name}: {text}") for run in runs for text in run.notes]
    return f"<h2>Runs</h2>{_scrolled(html_table(head, rows))}{''.join(notes)}"


def config_section(runs: Sequence[Run]) -> str:
    """Fields of the config that differ between the runs, and all fields of each."""
    rows: dict[str, list[Any]] = {}
    for i, run in enumerate(runs[1:], start=1):
        for key, (of_first, of_this) in differences(runs[0].config, run.config).items():
            rows.setdefault(key, [of_first] * len(runs))[i] = of_this
    text = "<p>One run: nothing to compare with.</p>" if len(runs) == 1 else "<p>The configs are the same.</p>"
    if rows:
        table = [(key, *(_value(value) for value in rows[key])) for key in sorted(rows)]
        text = _scrolled(html_table(("field", *(run.name for run in runs)), table))
    whole = "".join(
        f"<details><summary>whole config of {html.escape(run.name)}</summary><pre>{html.escape(_config_text(run))}"
        "</pre></details>"
        for run in runs
    )
    return f"<h2>Config</h2>{text}{whole}"


def ap_section(runs: Sequence[Run]) -> str:
    """Tables of AP, a row for each run, for each folder of evaluations that a run has."""
    names = sorted({name for run in runs for name in run.evaluations}, key=lambda name: (name != "evaluation", name))
    parts = ["<h2>AP</h2>"]
    if not names:
        parts.append(note("no run has been evaluated"))
    for name in names:
        having = [(run, run.evaluations[name]) for run in runs if name in run.evaluations]
        parts.append(f"<h3>{html.escape(name)}</h3>")
        if len({one.num_images for _, one in having}) > 1:
            parts.append(note("the runs were evaluated on different numbers of images: these AP do not compare"))
        for iou_type in dict.fromkeys(t for _, one in having for t in one.metrics):
            rows = [
                (run.name, *(_shown_step(one), f"{one.num_images:,}"), *_ap_cells(one.metrics[iou_type]))
                for run, one in having
                if iou_type in one.metrics
            ]
            title = f"{IOU_TYPE_NAMES.get(iou_type, iou_type)}, percent"
            parts.append(_scrolled(html_table((title, "step", "images", *_METRICS), rows)) + "<br>")
        parts += [note(f"{run.name}: {text}") for run, one in having for text in one.notes]
    return "".join(parts)


def class_tables_section(
    runs: Sequence[Run],
    ranked: Mapping[str, tuple[Evaluation, Sequence[ClassAP], Sequence[ClassAP]]],
    pictures: Mapping[str, Sequence[Example]],
) -> str:
    """The best and worst classes of each run (by name; a run may be missing), with pictures where there are some."""
    parts = ["<h2>Best and worst classes</h2>"]
    parts.append(
        "<p>Pictures: on the left the class's detections, and those of other classes that lie on its objects; on the "
        "right its ground truth.</p>"
    )
    for run in runs:
        parts.append(f"<h3>{html.escape(run.name)}</h3>")
        if run.name not in ranked:
            parts.append(note("no evaluation with AP of each class"))
            continue
        evaluation, best, worst = ranked[run.name]
        shown = pictures.get(run.name, ())
        for title, classes in (("best", best), ("worst", worst)):
            parts.append(_scrolled(_class_table(f"{title} by AP of {evaluation.kind}", classes)))
            figures = [
                html_figure(picture_uri(e.picture, longest_side=1100), e.caption)
                for c in classes
                for e in shown
                if e.class_id == c.class_id
            ]
            parts.append(f'<div class="row wide">{"".join(figures)}</div>')
    return "".join(parts)


def _class_table(title: str, classes: Sequence[ClassAP]) -> str:
    kinds = [kind for kind in ("masks", "boxes") if classes and kind in classes[0].ap]
    head = (title, "letter", "training images", "training objects", "evaluated objects", *(f"AP {k}" for k in kinds))
    rows = [
        (
            c.name,
            c.letter,
            *("?" if n < 0 else f"{n:,}" for n in (c.train_images, c.train_instances)),
            f"{c.instances:,}",
            *(percent(c.ap[k]) for k in kinds),
        )
        for c in classes
    ]
    return html_table(head, rows)


def changes_section(
    first: Run, changes: Mapping[str, tuple[Sequence[tuple[ClassAP, ClassAP]], Sequence[tuple[ClassAP, ClassAP]]]]
) -> str:
    """Classes whose AP changed most from the first run to another: {name of the other: (rises, falls)}."""
    parts = [f"<h2>Classes that changed most against {html.escape(first.name)}</h2>"]
    for name, found in changes.items():
        for title, pairs in zip(("higher", "lower"), found, strict=True):
            if not pairs:
                parts.append(f"<p>{html.escape(name)}: no class is {title}.</p>")
                continue
            kind = "masks" if all("masks" in c.ap for c in pairs[0]) else "boxes"
            head = (f"{title} in {name}", "letter", "training images", first.name, name, "change")
            rows = [
                (
                    a.name,
                    a.letter,
                    "?" if a.train_images < 0 else f"{a.train_images:,}",
                    percent(a.ap[kind]),
                    percent(b.ap[kind]),
                    f"{100 * (b.ap[kind] - a.ap[kind]):+.1f}",
                )
                for a, b in pairs
            ]
            parts.append(_scrolled(html_table(head, rows)) + "<br>")
    return "".join(parts)


def figure_section(title: str, png: bytes | None, text: str, notes: Sequence[str] = ()) -> str:
    """A figure under a heading; without one only the notes, which say why."""
    image = "" if png is None else f'<div class="chart">{html_figure(data_uri(png, "image/png"), text)}</div>'
    return f"<h2>{html.escape(title)}</h2>{''.join(map(note, notes))}{image}"


def note(text: str) -> str:
    """A line that catches the eye."""
    return f'<p class="note">{html.escape(text)}</p>'


def percent(value: float) -> str:
    """'12.3', or '-' without ground truth."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _ap_cells(metrics: Mapping[str, float]) -> list[str]:
    return [percent(metrics[name]) if name in metrics else "" for name in _METRICS]


def _shown_step(evaluation: Evaluation) -> str:
    return "?" if evaluation.step is None else f"{evaluation.step:,}"


def _scrolled(table: str) -> str:
    return f'<div class="scroll">{table}</div>'


def _value(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 200 else text[:199] + "…"


def _config_text(run: Run) -> str:
    return "\n".join(f"{key} = {value!r}" for key, value in leaves(run.config))
