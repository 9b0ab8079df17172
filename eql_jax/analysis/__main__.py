"""Compares training runs, or looks into one: an HTML page, and its figures as PNG files.

    python -m eql_jax.analysis --workdir=runs/sigmoid --workdir=runs/eql --out=analysis [--batches=20]
        [--split=val] [--checkpoint=latest]

The page has the differences between the configs, training curves, AP side by side, the best and worst classes with
pictures, and the figures of the paper: the gradient of the classifier's weights by class (Figure 1), the scores of
positives (Figure 2); also the norms of these weights, AP against frequency, and what frequency groups are taken for.

Figures 1 and 2 need a pass of the checkpoint over --batches batches of training. The data is that of the run's config,
by paths relative to where the command runs; --config.data.train_annotations=... and the like change it for all runs.
What a run lacks is noted on the page. Exit status: 0, or 2 when something is to be put right by the user.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

SPLITS = ("train", "val")


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it overrides the configs."""
    parser = argparse.ArgumentParser(
        prog="python -m eql_jax.analysis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workdir", action="append", required=True, type=Path, help="of a run; once for each run to be compared"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for index.html and the PNG files")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest or a step, of every run")
    parser.add_argument("--batches", type=int, default=8, help="batches to look at; 0: none (%(default)s)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="which images they are of (%(default)s)")
    parser.add_argument("--stage", type=int, default=0, help="of a cascade: the stage that is looked at (%(default)s)")
    parser.add_argument("--classes", type=int, default=5, help="how many best and worst classes (%(default)s)")
    parser.add_argument("--images", type=int, default=1, help="pictures of each of them; 0: none (%(default)s)")
    parser.add_argument(
        "--score_threshold",
        type=float,
        default=0.3,
        help="from which a detection is drawn, and a RoI counts as an object in the confusion (%(default)s)",
    )
    options, overrides = parser.parse_known_args(arguments)
    for name in ("batches", "stage", "classes", "images"):
        if getattr(options, name) < 0:
            parser.error(f"--{name} is {getattr(options, name)}, expected 0 or more")
    if not 0 <= options.score_threshold <= 1:
        parser.error(f"--score_threshold is {options.score_threshold}, expected a score in [0, 1]")
    return options, overrides


def analyse(options: argparse.Namespace, overrides: Sequence[str]) -> Path:
    """Reads the runs and writes the page; returns its path. Raises UserError for what the user can put right."""
    # Here and not above: jax and flax take seconds, after the command line has been looked at.
    from tqdm import tqdm

    from configs import base
    from eql_jax.analysis.collect import collect_runs
    from eql_jax.analysis.report import Options, write_report
    from eql_jax.training.compatibility import check_architecture
    from eql_jax.training.config import load_config

    runs = collect_runs(options.workdir, checkpoint=options.checkpoint)
    if overrides:
        for run in runs:
            config = load_config(run.config, overrides, base=base.get_config())
            check_architecture(run.config, config, where=f"checkpoint of step {run.model.step} in {run.workdir}")
            run.model = run.model._replace(config=config)
            run.notes.append(f"read with {' '.join(overrides)}")

    def progress(batches, name):
        return tqdm(batches, desc=name, total=options.batches, unit="batch", disable=not sys.stderr.isatty())

    wanted = ("batches", "split", "stage", "classes", "images", "score_threshold")
    return write_report(
        runs, options.out, Options(**{name: getattr(options, name) for name in wanted}), progress=progress
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options, overrides = parse_arguments(arguments)
    from eql_jax.data.validation import AnnotationError
    from eql_jax.training.errors import UserError
    from eql_jax.training.xla_flags import set_xla_flags

    logging.basicConfig(format="%(message)s")
    try:
        set_xla_flags()
        print(f"written: {analyse(options, overrides)}")
    except (UserError, AnnotationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
