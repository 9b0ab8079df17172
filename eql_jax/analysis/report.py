"""From runs to the page: reads their data, runs the pass, draws, and writes index.html with the PNG files beside it."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eql_jax.analysis import examples, figures, page
from eql_jax.analysis.collect import Evaluation, Run
from eql_jax.analysis.gradients import Findings
from eql_jax.analysis.model_pass import Classifier, make_classifier, run_pass
from eql_jax.training.errors import UserError
from eql_jax.training.inputs import load_training, load_validation
from eql_jax.visualize.page import html_page

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for: batches of the pass (0: none), its split ('train' or 'val') and cascade stage; how many best
    and worst classes, and images of each; the score from which a detection counts."""

    batches: int = 8
    split: str = "train"
    stage: int = 0
    classes: int = 5
    images: int = 1
    score_threshold: float = 0.3


def write_report(
    runs: Sequence[Run], out: Path, options: Options, *, progress: Callable[[Any, str], Any] = lambda x, _: x
) -> Path:
    """Writes out/index.html and the figures; returns the page's path.

    What a run lacks is noted on the page (and in run.notes); what is wrong with the whole is raised.

    Args:
      runs: of `collect_runs`.
      out: folder, made where it is missing.
      options: see there.
      progress: wraps the iterator of the batches of a run, given with its name.
    """
    out.mkdir(parents=True, exist_ok=True)
    body = [*_training_sections(runs, out), *_class_sections(runs, out, options)]
    body += _pass_sections(runs, out, options, progress)
    # At the end, because it shows the notes of all.
    sections = [page.runs_section(runs), page.config_section(runs), *body]
    path = out / "index.html"
    path.write_text(html_page(f"Analysis of {', '.join(run.name for run in runs)}", sections), encoding="utf-8")
    return path


def primary_evaluation(run: Run) -> Evaluation | None:
    """The evaluation that classes are ranked by: `evaluation` of training, else the first other one; with classes."""
    having = [one for one in run.evaluations.values() if one.classes]
    return next((one for one in having if one.name == "evaluation"), having[0] if having else None)


def _training_sections(runs: Sequence[Run], out: Path) -> list[str]:
    figure = figures.training_curves([r.name for r in runs], [r.train for r in runs], [r.evaluated for r in runs])
    notes = [f"{run.name}: no metrics.jsonl with a line in it" for run in runs if not run.train and not run.evaluated]
    png = None if figure is None else figures.save(figure, out / "training_curves.png")
    text = "Training and evaluations during it. Thin: as logged, each point a mean since the last; thick: running mean."
    return [page.figure_section("Training", png, text, notes), page.ap_section(runs)]


# ---------------------------------------------------------------------------------------------------- classes
def _class_sections(runs: Sequence[Run], out: Path, options: Options) -> list[str]:
    evaluated = {run.name: one for run in runs if (one := primary_evaluation(run)) is not None}
    ranked = {name: (one, *examples.best_and_worst(one, options.classes)) for name, one in evaluated.items()}
    pictures = {}
    for run in runs:
        if run.name in ranked and options.images:
            draw = functools.partial(_draw, run, ranked[run.name], options)
            pictures[run.name] = _noted(run, "no pictures of classes", draw, [])
    sections = [_ap_figure(runs, evaluated, out), page.class_tables_section(runs, ranked, pictures)]
    others = {run.name: evaluated[run.name] for run in runs[1:] if run.name in evaluated}
    if runs[0].name in evaluated and others:
        first = evaluated[runs[0].name]
        changes = {name: examples.largest_changes(first, one, options.classes) for name, one in others.items()}
        sections.append(page.changes_section(runs[0], changes))
    return sections


def _draw(run: Run, ranked: tuple, options: Options) -> list[examples.Example]:
    evaluation, best, worst = ranked
    annotations = load_validation(run.config, run.classes)
    return examples.draw_examples(
        run,
        evaluation,
        annotations,
        [*best, *worst],
        per_class=options.images,
        score_threshold=options.score_threshold,
    )


def _ap_figure(runs: Sequence[Run], evaluated: dict[str, Evaluation], out: Path) -> str:
    """AP against training images, of masks where all runs have them."""
    kind = "masks" if all(one.kind == "masks" for one in evaluated.values()) else "boxes"
    counts, ap, notes = [], [], []
    for run in runs:
        classes = evaluated[run.name].classes if run.name in evaluated else ()
        images = np.array([c.train_images for c in classes])
        if not (images > 0).any():
            why = "its classes.csv has no training images" if classes else "no evaluation with AP of each class"
            notes.append(f"{run.name}: {why}")
            classes = ()
        counts.append(images[: len(classes)])
        ap.append(np.array([c.ap[kind] for c in classes]))
    png = None
    if any(len(one) for one in counts):
        png = figures.save(
            figures.ap_by_frequency([run.name for run in runs], counts, ap, kind), out / "ap_by_frequency.png"
        )
    text = f"AP of {kind} of each class; the line goes through means of ten groups of classes by training images."
    return page.figure_section("AP against frequency", png, text, notes)


# ---------------------------------------------------------------------------------------------------- the pass
@dataclasses.dataclass(frozen=True)
class _Inside:
    """What was seen of a run's classifier."""

    panel: figures.Panel
    weights: np.ndarray | None
    findings: Findings | None


def _pass_sections(runs: Sequence[Run], out: Path, options: Options, progress: Callable[[Any, str], Any]) -> list[str]:
    inside: dict[str, _Inside] = {}
    for i, run in enumerate(runs):
        color = figures.run_color(i)
        look = functools.partial(_look, run, color, options, progress)
        found = _noted(run, "its classifier was not looked into", look, None)
        if found is not None:
            inside[run.name] = found
    seen = {name: one for name, one in inside.items() if one.findings is not None}
    where = _where(runs, options)
    missing = [f"{run.name}: was not looked into, see the note under Runs" for run in runs if run.name not in seen]
    if not options.batches:
        missing = ["--batches=0: no batch was looked at"]
    columns = [
        f"{name}: the loss has no column of logits for each class, so that there are no weights of a class"
        for name, one in inside.items()
        if one.weights is None
    ]
    with_norms = {name: one for name, one in seen.items() if one.findings.positive is not None}
    empty = [
        f"{name}: {int((one.findings.positives == 0).sum())} of {len(one.findings.positives)} classes have no positive "
        "RoI in these batches"
        for name, one in seen.items()
        if (one.findings.positives == 0).any()
    ]

    def save(draw: Callable, chosen: dict[str, _Inside], file: str, *values: Sequence) -> bytes | None:
        if not chosen:
            return None
        return figures.save(draw([one.panel for one in chosen.values()], *values), out / file)

    norms = [(one.findings.positive, one.findings.negative) for one in with_norms.values()]
    weights = {name: one for name, one in inside.items() if one.weights is not None}
    confusion = None
    if seen:
        drawn = figures.confusions(list(seen), [one.findings.confusion for one in seen.values()])
        confusion = figures.save(drawn, out / "confusion.png")
    return [
        page.figure_section(
            "Gradient of the classifier (Figure 1 of the paper)",
            save(figures.gradient_norms, with_norms, "gradient_norms.png", norms),
            f"L2 norm of the gradient of each class's weights, in the mean over batches; apart for RoIs of the class "
            f"(positives) and all others, background among them (negatives). {where}",
            [*missing, *columns, *empty],
        ),
        page.figure_section(
            "Score of positives (Figure 2 of the paper)",
            save(
                figures.positive_probabilities,
                seen,
                "positive_probabilities.png",
                [one.findings.probability for one in seen.values()],
            ),
            f"Mean score that RoIs of a class get for it. {where}",
            [*missing, *empty],
        ),
        page.figure_section(
            "Weights of the classifier",
            save(figures.weight_norms, weights, "weight_norms.png", [one.weights for one in weights.values()]),
            "L2 norm of each class's weights (without bias), of the parameters that are evaluated: the moving average "
            "of them where the run has one.",
            columns,
        ),
        page.figure_section(
            "Confusion between frequency groups",
            confusion,
            f"What RoIs of rare, common and frequent classes and of background are taken for: their best class, or "
            f"background where no class has a score of {options.score_threshold:g}. Right of the line: those that get "
            f"the very class they are of. {where}",
            missing,
        ),
    ]


def _look(run: Run, color: str, options: Options, progress: Callable[[Any, str], Any]) -> _Inside:
    classifier = make_classifier(run, options.stage)
    panel = figures.Panel(run.name, run.classes.letters, run.order, color)
    weights = classifier.weight_norms(run.model.params)

    run_over = functools.partial(_run_pass, run, classifier, options, progress)
    findings = _noted(run, "no pass over batches", run_over, None) if options.batches else None
    return _Inside(panel, weights, findings)


def _run_pass(run: Run, classifier: Classifier, options: Options, progress: Callable[[Any, str], Any]) -> Findings:
    if options.split == "train":
        annotations, _ = load_training(run.config)
    else:
        annotations = load_validation(run.config, run.classes)
    return run_pass(
        classifier,
        run,
        annotations,
        batches=options.batches,
        score_threshold=options.score_threshold,
        progress=lambda batches: progress(batches, run.name),
    )


def _where(runs: Sequence[Run], options: Options) -> str:
    text = f"RoIs as in training, of {options.batches} batches of {options.split} images"
    cascades = [run.name for run in runs if run.config.model.cascade.ious]
    if cascades:
        text += f"; of a cascade ({', '.join(cascades)}) stage {options.stage}"
    return text + "."


def _noted(run: Run, what: str, action: Callable[[], Any], otherwise: Any) -> Any:
    """What the action returns; where the run lacks what it takes, a note and `otherwise`."""
    try:
        return action()
    except (UserError, OSError) as error:
        LOG.warning("%s: %s: %s", run.name, what, error)
        run.notes.append(f"{what}: {error}")
        return otherwise
