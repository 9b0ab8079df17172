"""What an evaluation found, as a table for the console, a CSV of the classes and a JSON of the metrics.

The console shows percent, as papers do; files hold shares of 1. No ground truth is '-' on the console, an empty cell in
the CSV (pandas reads NaN) and null in the JSON.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eql_jax.evaluation.evaluator import EvaluationResult

IOU_TYPE_NAMES = {"bbox": "boxes", "segm": "masks", "boundary": "boundary"}
_COLUMNS = ("all", "rare", "common", "frequent", "small", "medium", "large")
# Which metric stands under which column; {n} is the limit of detections per image.
_ROWS = {
    "AP": ("AP", "APr", "APc", "APf", "APs", "APm", "APl"),
    "AP50": ("AP50", "AP50r", "AP50c", "AP50f", None, None, None),
    "AP75": ("AP75", None, None, None, None, None, None),
    "AR": ("AR@{n}", None, None, None, "ARs@{n}", "ARm@{n}", "ARl@{n}"),
}
_LABEL_WIDTH, _COLUMN_WIDTH = 14, 9


def _line(label: str, cells: list[str]) -> str:
    return (label.ljust(_LABEL_WIDTH) + "".join(cell.rjust(_COLUMN_WIDTH) for cell in cells)).rstrip()


def format_table(result: EvaluationResult) -> str:
    """The table of each IoU type by frequency and size, in percent, with the notes of the evaluation below it.

    Where there are groups by number of training images, they follow in columns of their own.
    """
    limit = f"at most {result.max_detections} an image" if result.max_detections >= 0 else "no limit per image"
    if result.detections_per_class is not None:
        limit = f"AP-fixed: the best {result.detections_per_class} of each class"
    lines = [
        f"{result.num_images} images, {result.num_annotations} objects, {result.num_detections} detections ({limit}). "
        "Percent; '-': no ground truth.",
        "",
        _line("", list(_COLUMNS)),
    ]
    annotated = [c for c in result.classes if c.instances]
    counts = [len(annotated), *(sum(c.frequency == letter for c in annotated) for letter in "rcf")]
    lines.append(_line("classes", [str(count) for count in counts]))
    lines += _metric_lines(result.metrics, result.max_detections)
    lines += _group_lines(result)
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


def format_pooled_table(result: EvaluationResult) -> str:
    """The table of AP-pool; rare, common and frequent are pools of their own. The evaluation was asked for pools."""
    lines = ["AP-pool: the detections of all classes ranked together. Percent; '-': no ground truth.", ""]
    lines += [_line("", list(_COLUMNS)), *_metric_lines(result.pooled, result.max_detections)]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _metric_lines(metrics: Mapping[str, Mapping[str, float]], max_detections: int) -> list[str]:
    lines = []
    for iou_type, values in metrics.items():
        lines.append("-" * (_LABEL_WIDTH + _COLUMN_WIDTH * len(_COLUMNS)))
        for row, names in _ROWS.items():
            cells = []
            for name in names:
                cells.append("" if name is None else _percent(values[name.format(n=max_detections)]))
            lines.append(_line(f"{IOU_TYPE_NAMES[iou_type]} {row}", cells))
    return lines


def _group_lines(result: EvaluationResult) -> list[str]:
    """AP of the groups of classes by number of training images."""
    if not result.groups:
        return []
    annotated = {c.class_id for c in result.classes if c.instances}
    rule = "-" * (_LABEL_WIDTH + _COLUMN_WIDTH * len(result.groups))
    lines = [rule, _line("group", [str(i + 1) for i in range(len(result.groups))])]
    lines.append(_line("classes", [str(len(annotated.intersection(group.class_ids))) for group in result.groups]))
    lines.append(_line("images up to", [str(group.most) for group in result.groups]))
    lines.append(_line("images from", [str(group.fewest) for group in result.groups]))
    for iou_type, values in result.metrics.items():
        for row, name in (("AP", "AP"), ("AP50", "AP50_")):
            cells = [_percent(values[f"{name}{i + 1}"]) for i in range(len(result.groups))]
            lines.append(_line(f"{IOU_TYPE_NAMES[iou_type]} {row}", cells))
    return lines


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"


def write_class_csv(
    path: str | os.PathLike[str],
    result: EvaluationResult,
    *,
    train_image_counts: Mapping[int, int] | None = None,
    train_instance_counts: Mapping[int, int] | None = None,
    ap_fixed: EvaluationResult | None = None,
) -> None:
    """Writes a row per class.

    Columns: class_id, name, frequency, train_images, train_instances, instances (those evaluated on), where there are
    groups by number of training images image_count_group (1: most images), and AP and AP50
    of boxes, masks and boundaries, as far as they were evaluated, as shares of 1; with `ap_fixed` the same once more,
    such as masks_AP_fixed. A cell without a value is empty. AP-pool has no value for a class.

    Args:
      path: the file to write.
      result: the evaluation.
      train_image_counts: training images that hold the class, by category id.
      train_instance_counts: training instances, by category id.
      ap_fixed: an evaluation of the same classes with `detections_per_class`.
    """
    measured = [("", result)] + ([] if ap_fixed is None else [("_fixed", ap_fixed)])
    head = ["class_id", "name", "frequency", "train_images", "train_instances", "instances"]
    group_of = {class_id: i + 1 for i, group in enumerate(result.groups) for class_id in group.class_ids}
    if group_of:
        head.append("image_count_group")
    for suffix, evaluated in measured:
        head += [f"{IOU_TYPE_NAMES[t]}_{name}{suffix}" for t in evaluated.metrics for name in ("AP", "AP50")]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for index, c in enumerate(result.classes):
            row: list[Any] = [c.class_id, c.name, c.frequency]
            row += [(counts or {}).get(c.class_id, "") for counts in (train_image_counts, train_instance_counts)]
            row.append(c.instances)
            if group_of:
                row.append(group_of[c.class_id])
            for _, evaluated in measured:
                of_class = evaluated.classes[index]
                for iou_type in evaluated.metrics:
                    row += ["" if v < 0 else f"{v:.6f}" for v in (of_class.ap[iou_type], of_class.ap50[iou_type])]
            writer.writerow(row)


def write_metrics_json(
    path: str | os.PathLike[str],
    result: EvaluationResult,
    *,
    extra: Mapping[str, Any] | None = None,
    ap_fixed: EvaluationResult | None = None,
    ap_pool: EvaluationResult | None = None,
) -> None:
    """Writes the metrics, what they were measured on, and `extra` (the step, say) as JSON; null: no ground truth.

    With `ap_fixed`, an evaluation with `detections_per_class`, the same of it goes under that key; with `ap_pool`, one
    that was asked for pools, these metrics of it under that one.
    """
    content = {**(extra or {}), **_measured(result, result.metrics)}
    for key, evaluated in (("ap_fixed", ap_fixed), ("ap_pool", ap_pool)):
        if evaluated is not None:
            metrics = evaluated.metrics if key == "ap_fixed" else evaluated.pooled
            limit = {"detections_per_class": evaluated.detections_per_class}
            content[key] = {**limit, **_measured(evaluated, metrics)}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _measured(result: EvaluationResult, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    groups = [{"classes": len(g.class_ids), "images_from": g.fewest, "images_up_to": g.most} for g in result.groups]
    return {
        "num_images": result.num_images,
        "num_annotations": result.num_annotations,
        "num_detections": result.num_detections,
        "max_detections": result.max_detections,
        "notes": list(result.notes),
        **({"image_count_groups": groups} if groups else {}),
        "metrics": {t: {name: None if v < 0 else v for name, v in m.items()} for t, m in metrics.items()},
    }
