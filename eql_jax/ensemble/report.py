"""What an ensemble did, and what it is worth, as text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from eql_jax.ensemble.errors import EnsembleError
from eql_jax.ensemble.fuse import Summary
from eql_jax.evaluation.evaluator import evaluate
from eql_jax.evaluation.tables import IOU_TYPE_NAMES

_COLUMNS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "APs", "APm", "APl")


class ComparisonRow(NamedTuple):
    """Metrics of one results file, by IoU type ('bbox', 'segm'), as shares of 1; -1 without ground truth."""

    path: str
    metrics: dict[str, dict[str, float]]


def format_summary(summary: Summary, paths: Sequence[str], out: str | os.PathLike[str]) -> str:
    """A line for each file that was read, and one for that which was written."""
    lines = []
    for path, read, used, lacking in zip(paths, summary.read, summary.used, summary.lacking, strict=True):
        absent = f"; none in {lacking} of the images" if lacking else ""
        lines.append(f"{path}: {read} detections, {used} of them in the ensemble{absent}")
    lines.append(f"{out}: {summary.written} detections in {summary.images} images")
    return "\n".join(lines)


def compare(
    paths: Sequence[str | os.PathLike[str]], annotations: str | os.PathLike[str], *, masks: bool, limit: int
) -> list[ComparisonRow]:
    """Evaluates results files, one after the other.

    Args:
      paths: of them.
      annotations: LVIS or COCO JSON.
      masks: whether to evaluate masks beside boxes.
      limit: of detections per image.

    Raises:
      EnsembleError, OSError: see `evaluate`.
    """
    iou_types = ("bbox", "segm") if masks else ("bbox",)
    rows = []
    for path in map(str, paths):
        try:
            found = evaluate(annotations, path, iou_types=iou_types, max_detections=limit)
        except ValueError as error:
            raise EnsembleError(f"{path} cannot be evaluated by {annotations}: {error}") from error
        rows.append(ComparisonRow(path, found.metrics))
    return rows


def format_comparison(rows: Sequence[ComparisonRow]) -> str:
    """A table in percent, boxes above masks; '-': no ground truth."""
    width = max(len(row.path) for row in rows) + 2
    lines = []
    for iou_type in rows[0].metrics:
        lines += ["", f"{IOU_TYPE_NAMES[iou_type]:{width}}" + "".join(f"{name:>7}" for name in _COLUMNS)]
        for row in rows:
            values = [row.metrics[iou_type][name] for name in _COLUMNS]
            cells = ["-" if value < 0 else f"{100 * value:.1f}" for value in values]
            lines.append(f"{row.path:{width}}" + "".join(f"{cell:>7}" for cell in cells))
    return "\n".join(lines)
