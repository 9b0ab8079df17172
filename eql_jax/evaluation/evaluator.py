"""LVIS average precision of boxes, masks and boundaries.

K classes, T = 10 IoU thresholds .50:.05:.95, R = 101 recall points, A = 4 area ranges (all, small, medium, large).

Two backends give the same numbers, to the last digit of a curve: `fast`, on columns (`fast.py`), and `official`, the
`lvis` package (`official.py`). Beyond what the package does:

* crowd regions, which only COCO has, follow COCO's rule: a detection that matches no object and lies in a crowd region
  of its class (intersection over its own area at least the IoU threshold) is neither right nor wrong;
* AP50 is also reported for rare, common and frequent classes;
* AP and AP50 of groups of classes by number of training images (`image_groups`), where they are asked for;
* boundary AP (Cheng et al. 2021, https://arxiv.org/abs/2103.16562), by the fast backend in any case.

AP-fixed (Dave et al. 2021, https://arxiv.org/abs/2102.01066) is the same code on other detections: the best N of each
class over the whole data set, however many an image has. The limit per image makes classes compete for places, so that
AP depends on how the scores of one class compare with another's; AP-fixed takes every class by itself.

AP-pool, of the same paper, does compare scores across classes: detections are matched class by class as ever, and then
those of all classes rank together in one curve. Frequent classes have most of its objects, so that their detections
decide it; the pools of rare, common and frequent classes rank the detections of those classes only.

-1 stands for "no ground truth", as in the official package, and all values are shares of 1.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eql_jax.data.json_file import read_annotation_json
from eql_jax.data.records import Annotations
from eql_jax.evaluation.accumulate import (
    Curves,
    class_curves,
    mean_of_valid,
    pooled_curves,
    summarize,
    summarize_pools,
)
from eql_jax.evaluation.columns import ResultTable
from eql_jax.evaluation.fast import run_fast
from eql_jax.evaluation.ground_truth import GroundTruth, prepare_ground_truth
from eql_jax.evaluation.image_groups import ClassGroup, group_classes, group_metrics
from eql_jax.evaluation.official import run_official
from eql_jax.evaluation.selection import best_of_each, result_dicts, select

IOU_TYPES = ("bbox", "segm")
BOUNDARY = "boundary"
BACKENDS = ("fast", "official")
AP_FIXED_DETECTIONS = 10_000  # of each class: what Dave et al. take for LVIS


@dataclasses.dataclass(frozen=True)
class ClassResult:
    """One class: `ap` and `ap50` by IoU type, -1 without ground truth; `instances` is the number of annotations."""

    class_id: int
    name: str
    frequency: str
    instances: int
    ap: dict[str, float]
    ap50: dict[str, float]


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
      metrics: by IoU type ('bbox', 'segm', 'boundary'): AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AP50r, AP50c,
        AP50f, AR@n, ARs@n, ARm@n and ARl@n, with n the limit of detections per image (AR@-1: no limit), and where there
        are groups AP1 .. and AP50_1 .. of each. Shares of 1; -1: no ground truth.
      classes: one `ClassResult` per category, by ascending id.
      num_images, num_annotations, num_detections: what was evaluated (detections before the limits); where boxes and
        masks are, those of the boxes, which need no usable mask. So are `instances` of the classes.
      max_detections: the limit per image, -1 for none.
      detections_per_class: the limit per class of AP-fixed, None for none.
      notes: what was left out or looks wrong, one sentence each.
      groups: of classes by number of training images, those with most first; empty where they were not asked for.
      pooled: the same metrics of AP-pool, by IoU type, those with a letter of the pool of these classes; empty where it
        was not asked for.
      curves: by IoU type, precision [T, R, K, A] and recall [T, K, A], float64, -1 without ground truth.
    """

    metrics: dict[str, dict[str, float]]
    classes: tuple[ClassResult, ...]
    num_images: int
    num_annotations: int
    num_detections: int
    max_detections: int
    detections_per_class: int | None
    notes: tuple[str, ...]
    groups: tuple[ClassGroup, ...] = ()
    pooled: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    curves: dict[str, Curves] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def flat(self) -> dict[str, float]:
        """All metrics in one dict, keys such as 'segm/AP50r'."""
        return {f"{iou_type}/{name}": v for iou_type, values in self.metrics.items() for name, v in values.items()}


def _read(annotations: Any) -> tuple[Mapping[str, Any], str]:
    """The contents of an annotation JSON and its name for messages."""
    if isinstance(annotations, Mapping):
        return annotations, "annotations"
    if isinstance(annotations, Annotations):
        return annotations.dataset(), str(annotations.raw)
    return read_annotation_json(annotations), str(annotations)


def evaluate(
    annotations: Any,
    results: ResultTable | str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    *,
    iou_types: Sequence[str] = IOU_TYPES,
    max_detections: int = 300,
    detections_per_class: int | None = None,
    pooled: bool = False,
    image_ids: Iterable[int] | None = None,
    letters: Mapping[int, str] | None = None,
    fallback_letters: Mapping[int, str] | None = None,
    image_counts: Mapping[int, int] | None = None,
    image_count_groups: int = 0,
    backend: str = "fast",
) -> EvaluationResult:
    """Evaluates results against LVIS v0.5, LVIS v1 or COCO annotations.

    Args:
      annotations: path of the JSON, its contents, or an `Annotations` object.
      results: the path of a results file, a `ResultTable`, or LVIS result dicts (`eql_jax.evaluation.results`), which
        are not changed. None at all give zeros.
      iou_types: some of 'bbox', 'segm' and 'boundary'. For masks and boundaries the area of the mask decides on small,
        medium and large, whether the result has a box or not, as in detectron2.
      max_detections: the best so many of each image count, over all classes and before anything else; -1: all. Of
        equal scores at the limit the first in `results` stay.
      detections_per_class: AP-fixed: the best so many of each class over all images count (10,000 in the paper); None:
        all. It goes with max_detections=-1. Detections are cut before anything else, with those of no area and those in
        images where nobody looked for their class among them; of equal scores at the limit the first in `results` stay,
        as in the paper's code. What a model or a file has cut per image before remains cut, and AP-fixed of 300
        detections an image says little: keep many more (`model.test.detections_per_image` of a config).
      pooled: report AP-pool as well, of the same detections; the paper's has the limits of AP-fixed.
      image_ids: evaluate these images only, and skip the results of others.
      letters: frequency letters ('r', 'c', 'f') by category id, in place of the file's field `frequency`.
      fallback_letters: the same for categories without that field, all those of COCO. A class that gets no letter
        counts for the means over all classes only.
      image_counts: training images of each class by category id; needed for groups only.
      image_count_groups: report AP of this many groups of classes by number of training images; 0: of none.
      backend: 'fast', or 'official' for the `lvis` package; boundary and pooled numbers are the fast one's always.

    Raises:
      FileNotFoundError: there is no such annotation or results file.
      ValueError: the annotations cannot be used (see `read_annotation_json` and `prepare_ground_truth`), an IoU type is
        or the backend is unknown, a result lacks what it needs, is of an unknown image or has a damaged mask,
        `max_detections` is below -1, `detections_per_class` is below 1 or comes with a limit per image, or there are
        more groups than classes or than `image_groups.MAX_GROUPS`.
      ImportError: the `lvis` package is asked for and missing, or for boundaries OpenCV.
    """
    known = (*IOU_TYPES, BOUNDARY)
    if not iou_types or any(iou_type not in known for iou_type in iou_types):
        raise ValueError(f"iou_types: expected some of {known}, found {tuple(iou_types)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, found {backend!r}")
    if max_detections < -1:
        raise ValueError(f"max_detections: expected at least 0, or -1 for no limit, got {max_detections}")
    if detections_per_class is not None and detections_per_class < 1:
        raise ValueError(f"detections_per_class: expected at least 1, or None for no limit, got {detections_per_class}")
    if detections_per_class is not None and max_detections != -1:
        raise ValueError(
            f"detections_per_class {detections_per_class} with max_detections {max_detections}: AP-fixed has no limit "
            "per image; pass max_detections=-1"
        )
    dataset, source = _read(annotations)
    image_ids = None if image_ids is None else list(image_ids)
    prepared = prepare_ground_truth(
        dataset,
        image_ids=image_ids,
        letters=letters,
        fallback_letters=fallback_letters,
        masks=any(iou_type != "bbox" for iou_type in iou_types),
        source=source,
    )
    del dataset
    groups = ()
    if image_count_groups:
        groups = group_classes(list(prepared.letters), image_counts or {}, image_count_groups)
    table = _table(results)
    category_letters = list(prepared.letters.values())
    metrics: dict[str, dict[str, float]] = {}
    pools: dict[str, dict[str, float]] = {}
    curves: dict[str, Curves] = {}
    num_detections = 0
    notes = dict.fromkeys(prepared.notes)  # a set that keeps its order
    for_masks = prepared.for_masks()
    for iou_type in iou_types:
        masks = iou_type != "bbox"
        ground_truth = for_masks if masks else prepared
        selected, result_notes = select(table, ground_truth, all_images=image_ids is None, iou_type=iou_type)
        num_detections = max(num_detections, len(selected))
        notes.update(dict.fromkeys(result_notes))
        counted = selected
        if detections_per_class is not None:
            best = best_of_each(table.category_ids[selected], table.scores[selected], detections_per_class)
            counted = selected[best]
        official = backend == "official" and iou_type in IOU_TYPES
        if official:
            dicts = result_dicts(table, counted, masks=masks)
            evaluation = run_official(ground_truth, dicts, iou_type=iou_type, max_detections=max_detections)
            metrics[iou_type] = {name: float(value) for name, value in evaluation.results.items()}
            curves[iou_type] = Curves(evaluation.eval["precision"], evaluation.eval["recall"])
        if pooled or not official:
            outcomes = run_fast(ground_truth, table, counted, iou_type=iou_type, max_detections=max_detections)
        if not official:
            curves[iou_type] = class_curves(outcomes)
            metrics[iou_type] = summarize(curves[iou_type], category_letters, max_detections)
        metrics[iou_type] |= group_metrics(curves[iou_type], list(prepared.letters), groups)
        if pooled:
            pools[iou_type] = summarize_pools(pooled_curves(outcomes, category_letters), max_detections)

    ground_truth = prepared if "bbox" in iou_types else for_masks
    return EvaluationResult(
        metrics=metrics,
        classes=_class_results(ground_truth, curves),
        num_images=len(ground_truth.dataset["images"]),
        num_annotations=len(ground_truth.dataset["annotations"]),
        num_detections=num_detections,
        max_detections=max_detections,
        detections_per_class=detections_per_class,
        notes=tuple(notes),
        groups=groups,
        pooled=pools,
        curves=curves,
    )


def _table(results: ResultTable | str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> ResultTable:
    if isinstance(results, ResultTable):
        return results
    if isinstance(results, (str, os.PathLike)):
        return ResultTable.from_file(results)
    return ResultTable.from_results(results)


def _class_results(ground_truth: GroundTruth, curves: Mapping[str, Curves]) -> tuple[ClassResult, ...]:
    instances = dict.fromkeys(ground_truth.letters, 0)
    for annotation in ground_truth.dataset["annotations"]:
        instances[annotation["category_id"]] += 1
    names = {category["id"]: category["name"] for category in ground_truth.dataset["categories"]}
    precision = {iou_type: c.precision[..., 0] for iou_type, c in curves.items()}  # [T, R, K]
    return tuple(
        ClassResult(
            class_id=category_id,
            name=names[category_id],
            frequency=letter,
            instances=instances[category_id],
            ap={t: mean_of_valid(p[:, :, index]) for t, p in precision.items()},
            ap50={t: mean_of_valid(p[:1, :, index]) for t, p in precision.items()},
        )
        for index, (category_id, letter) in enumerate(ground_truth.letters.items())
    )
