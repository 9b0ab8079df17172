"""Makes one results file of several: an ensemble of models, with experts for some classes.

    python -m eql_jax.ensemble --results A.json B.json --weights 1 1 --fuse wbf --out C.json
    python -m eql_jax.ensemble --results A.json RARE.json --experts RARE.json=r --expert_mode only \
        --annotations lvis_v1_val.json --evaluate --out C.json

CLASSES are category ids, names and frequency letters (r, c, f) with commas between them, or @FILE with one a line;
names and letters are looked up in --annotations. More in docs/ensembles.md.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eql_jax.data.validation import AnnotationError
from eql_jax.ensemble.errors import EnsembleError
from eql_jax.ensemble.fuse import DEFAULT_IOUS, METHODS, FuseOptions, Summary, fuse_files
from eql_jax.ensemble.known import Known, read_class_factors, read_class_list, read_known
from eql_jax.ensemble.report import compare, format_comparison, format_summary
from eql_jax.ensemble.spooled import spool
from eql_jax.ensemble.weights import EXPERT_MODES, ClassWeights, class_weights


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eql_jax.ensemble", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--results", required=True, nargs="+", metavar="FILE", help="results files (results.json), plain or .gz")
    add("--weights", nargs="+", type=float, metavar="W", help="of each file, multiplies its scores (1)")
    add("--out", required=True, type=Path, metavar="FILE", help="results file to write")
    add("--fuse", choices=METHODS, default="nms", help="non-maximum suppression or weighted boxes fusion (%(default)s)")
    ious = ", ".join(f"{value} for {name}" for name, value in DEFAULT_IOUS.items())
    add("--iou", type=float, help=f"detections of a class are one object above this IoU of their boxes ({ious})")
    add(
        "--average_masks",
        type=float,
        metavar="IOU",
        help="with nms: average the mask of a detection with those that it suppresses above this IoU of the boxes",
    )
    add("--max_detections", type=int, default=300, help="the best so many of each image (%(default)s)")
    add("--experts", nargs="+", default=[], metavar="FILE=CLASSES", help="results files that are experts for classes")
    add(
        "--expert_mode",
        choices=EXPERT_MODES,
        default="raise",
        help="an expert's weight is raised for its classes, or nothing but experts counts for them (%(default)s)",
    )
    add("--expert_weight", type=float, default=2.0, help="with raise: its weight is multiplied by this (%(default)s)")
    add(
        "--expert_elsewhere",
        type=float,
        default=1.0,
        metavar="W",
        help="an expert's weight for other classes is multiplied by this; 0: not used there (%(default)s)",
    )
    add(
        "--class_factors",
        nargs="+",
        default=[],
        metavar="FILE=FACTORS.json",
        help='re-score: multiply the scores of a results file by {"class": factor}',
    )
    add("--annotations", metavar="FILE", help="LVIS or COCO JSON of the images: results are checked against it")
    add("--evaluate", action="store_true", help="print the AP of every file and of the ensemble, by --annotations")
    return parser


def run(options: argparse.Namespace) -> Summary:
    """Does what the command line says. Raises EnsembleError, AnnotationError or OSError."""
    paths = options.results
    if options.evaluate and not options.annotations:
        raise EnsembleError("--evaluate needs --annotations, to evaluate by")
    if options.out.resolve() in [Path(path).resolve() for path in paths]:
        raise EnsembleError(f"--out {options.out} is one of the --results: choose another name")
    if options.out.suffix == ".gz":
        raise EnsembleError(f"--out {options.out}: results are written plain; choose a name without .gz")
    fusing = FuseOptions(options.fuse, options.iou, options.average_masks, options.max_detections)
    fusing.check()
    known = read_known(options.annotations) if options.annotations else None
    weights = make_weights(options, known)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    progress = sys.stderr.isatty()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(spool(path, options.out.parent, known=known, progress=progress)) for path in paths]
        summary = fuse_files(files, weights, fusing, options.out, same_images=known is None, progress=progress)
        with_masks = any(file.with_masks for file in files)
    print(format_summary(summary, paths, options.out))
    if options.evaluate:
        rows = compare([*paths, options.out], options.annotations, masks=with_masks, limit=options.max_detections)
        print(format_comparison(rows))
    return summary


def make_weights(options: argparse.Namespace, known: Known | None) -> ClassWeights:
    """The weights of the files by class. Raises EnsembleError or OSError."""
    paths = options.results
    weights = [1.0] * len(paths) if options.weights is None else options.weights
    if len(weights) != len(paths):
        raise EnsembleError(f"--weights: expected one for each of the {len(paths)} results files, found {len(weights)}")
    return class_weights(
        weights,
        experts=_by_file(
            "--experts", options.experts, paths, lambda text, where: read_class_list(text, known, where=where)
        ),
        mode=options.expert_mode,
        expert_weight=options.expert_weight,
        elsewhere=options.expert_elsewhere,
        factors=_by_file(
            "--class_factors", options.class_factors, paths, lambda text, _: read_class_factors(text, known)
        ),
    )


def _by_file(flag: str, values: Sequence[str], paths: Sequence[str], read: Callable[[str, str], Any]) -> dict[int, Any]:
    """What FILE=VALUE options say, by the number of the results file."""
    found: dict[int, Any] = {}
    for value in values:
        numbers = [i for i, path in enumerate(paths) if value.startswith(f"{path}=")]
        if not numbers:
            raise EnsembleError(f"{flag} {value}: expected FILE=VALUE with one of the --results, {', '.join(paths)}")
        number = max(numbers, key=lambda i: len(paths[i]))
        if number in found:
            raise EnsembleError(f"{flag}: {paths[number]} is there twice; give all of its classes at once")
        found[number] = read(value[len(paths[number]) + 1 :], f"{flag} {value}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 when the user has to put something right."""
    options = make_parser().parse_args(arguments)
    try:
        run(options)
    except (EnsembleError, AnnotationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
