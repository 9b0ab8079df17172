"""LVIS average precision of boxes and masks, by the official `lvis` package.

K classes, T = 10 IoU thresholds .50:.05:.95, R = 101 recall points, A = 4 area ranges (all, small, medium, large).

All matching, curves and means are the official code's; this module feeds it. Three things are added around it, none of
which changes a number on an LVIS file:

* only the pairs of image and class that hold something are visited (the official loop makes 95 million visits on LVIS
  v1 and keeps three dictionaries of 24 million keys, nearly all of them of nothing);
* crowd regions, which only COCO has, follow COCO's rule: a detection that matches no object and lies in a crowd region
  of its class (intersection over its own area at least the IoU threshold) is neither right nor wrong;
* AP50 is also reported for rare, common and frequent classes.

AP-fixed (Dave et al. 2021, https://arxiv.org/abs/2102.01066) is the same code on other detections: the best N of each
class over the whole data set, however many an image has. The limit per image makes classes compete for places, so that
AP depends on how the scores of one class compare with another's; AP-fixed takes every class by itself.

-1 stands for "no ground truth", as in the official package, and all values are shares of 1.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eql_jax.data.json_file import read_annotation_json
from eql_jax.evaluation import lvis_api
from eql_jax.evaluation.ground_truth import LETTERS, GroundTruth, prepare_ground_truth

IOU_TYPES = ("bbox", "segm")
AP_FIXED_DETECTIONS = 10_000  # of each class: what Dave et al. take for LVIS
_COPIED = ("image_id", "category_id", "score")


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
      metrics: by IoU type ('bbox', 'segm'): AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AP50r, AP50c, AP50f,
        AR@n, ARs@n, ARm@n and ARl@n, with n the limit of detections per image (AR@-1: no limit). Shares of 1; -1: no
        ground truth.
      classes: one `ClassResult` per category, by ascending id.
      num_images, num_annotations, num_detections: what was evaluated (detections before the limits).
      max_detections: the limit per image, -1 for none.
      detections_per_class: the limit per class of AP-fixed, None for none.
      notes: what was left out or looks wrong, one sentence each.
    """

    metrics: dict[str, dict[str, float]]
    classes: tuple[ClassResult, ...]
    num_images: int
    num_annotations: int
    num_detections: int
    max_detections: int
    detections_per_class: int | None
    notes: tuple[str, ...]

    def flat(self) -> dict[str, float]:
        """All metrics in one dict, keys such as 'segm/AP50r'."""
        return {f"{iou_type}/{name}": v for iou_type, values in self.metrics.items() for name, v in values.items()}


class _Sparse(dict):
    """Stands in for the official list of visits: position -> result, None where nothing was visited."""

    def __missing__(self, position: int) -> None:
        return None

    def __bool__(self) -> bool:  # the official code asks whether evaluation has run, not whether it found anything
        return True


@functools.cache
def _evaluation_class() -> type:
    """`LVISEval` with the additions that this module's head lists; made late because `lvis` is imported late."""
    from pycocotools import mask as mask_utils

    class Evaluation(lvis_api.load().LVISEval):
        def __init__(self, lvis_gt, lvis_dt, iou_type: str, *, ground_truth: GroundTruth, max_detections: int) -> None:
            super().__init__(lvis_gt, lvis_dt, iou_type)
            self.ground_truth = ground_truth
            self.params.max_dets = max_detections
            self._crowd_overlap: dict[tuple[int, int], np.ndarray] = {}

        def _prepare_freq_group(self) -> list[list[int]]:
            letters = [self.ground_truth.letters[category_id] for category_id in self.params.cat_ids]
            return [[i for i, letter in enumerate(letters) if letter == group] for group in LETTERS]

        def evaluate(self) -> None:
            params = self.params
            self._prepare()
            # The dictionaries may hold empty lists, because reading a missing key makes one.
            pairs = {p for p, v in self._gts.items() if v} | {p for p, v in self._dts.items() if v}
            image_position = {image_id: i for i, image_id in enumerate(params.img_ids)}
            class_position = {category_id: i for i, category_id in enumerate(params.cat_ids)}
            num_areas, num_images = len(params.area_rng), len(params.img_ids)
            self.eval_imgs = _Sparse()
            for image_id, category_id in sorted(pairs):
                self.ious = {(image_id, category_id): self.compute_iou(image_id, category_id)}
                for area_index, area_range in enumerate(params.area_rng):
                    position = (class_position[category_id] * num_areas + area_index) * num_images
                    position += image_position[image_id]
                    self.eval_imgs[position] = self.evaluate_img(image_id, category_id, area_range)

        def evaluate_img(self, img_id: int, cat_id: int, area_rng: Sequence[float]) -> dict[str, Any] | None:
            found = super().evaluate_img(img_id, cat_id, area_rng)
            crowds = self.ground_truth.crowds.get((img_id, cat_id))
            if not crowds or found is None or not found["dt_ids"]:
                return found
            if (img_id, cat_id) not in self._crowd_overlap:
                self._crowd_overlap[img_id, cat_id] = self._overlap_with_crowds(img_id, cat_id, crowds)
            thresholds = np.minimum(self.params.iou_thrs, 1 - 1e-10)
            in_crowd = self._crowd_overlap[img_id, cat_id][None, :] >= thresholds[:, None]
            found["dt_ignore"] = found["dt_ignore"] | ((found["dt_matches"] == 0) & in_crowd)
            return found

        def _overlap_with_crowds(self, img_id: int, cat_id: int, crowds: list[dict[str, Any]]) -> np.ndarray:
            """The largest share of each detection, by falling score, that lies in one crowd region."""
            key = "segmentation" if self.params.iou_type == "segm" else "bbox"
            detections = self._dts[img_id, cat_id]
            order = np.argsort([-d["score"] for d in detections], kind="mergesort")
            regions = [dict(crowd) for crowd in crowds]
            if key == "segmentation":
                self._to_mask(regions, self.lvis_gt)
            overlap = mask_utils.iou([detections[i][key] for i in order], [r[key] for r in regions], [1] * len(regions))
            return overlap.max(axis=1)

    return Evaluation


def _select_results(
    results: Iterable[Mapping[str, Any]], ground_truth: GroundTruth, *, all_images: bool, iou_type: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Copies of the results that this evaluation can use, with the keys it needs and no other, and notes."""
    key = "bbox" if iou_type == "bbox" else "segmentation"
    sizes = {image["id"]: [image["height"], image["width"]] for image in ground_truth.dataset["images"]}
    known_classes = ground_truth.letters.keys()
    kept: list[dict[str, Any]] = []
    other_classes, other_sizes = 0, set()
    for number, result in enumerate(results):
        if "image_id" not in result or "score" not in result or "category_id" not in result:
            raise ValueError(f"result {number}: expected image_id, category_id and score, found keys {sorted(result)}")
        if result["image_id"] not in sizes:
            if all_images:
                raise ValueError(
                    f"result {number}: image {result['image_id']} is not among the {len(sizes)} annotated images; the "
                    "results belong to another data set or split"
                )
            continue
        if result.get(key) is None:
            raise ValueError(
                f"result {number} (image {result['image_id']}) has no '{key}', so iou_type '{iou_type}' cannot be "
                f"evaluated; found keys {sorted(result)}"
            )
        if iou_type == "segm" and not (isinstance(result[key], Mapping) and {"size", "counts"} <= result[key].keys()):
            raise ValueError(
                f"result {number} (image {result['image_id']}): expected run lengths with 'size' and 'counts' as its "
                f"segmentation, found {str(result[key])[:60]}"
            )
        if iou_type == "segm" and list(result[key]["size"]) != sizes[result["image_id"]]:
            other_sizes.add(result["image_id"])
            continue
        other_classes += result["category_id"] not in known_classes
        # One key only: with a box beside the mask, the official code would take the box's area for the mask's.
        kept.append({**{name: result[name] for name in _COPIED}, key: result[key]})
    notes = []
    if other_classes:
        notes.append(
            f"{other_classes} {iou_type} detections are of categories that the annotations do not have, and count only "
            "for the limit per image"
        )
    if other_sizes:
        notes.append(
            f"detections in {len(other_sizes)} images have masks of another size than the annotations say, and were "
            f"left out: {sorted(other_sizes)[:5]}"
        )
    return kept, notes


def _best_of_each_class(results: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The `count` results of highest score of each category, in the order they came in; of equal ones the first."""
    order = sorted(range(len(results)), key=lambda i: -results[i]["score"])  # stable
    taken: collections.Counter[int] = collections.Counter()
    kept = []
    for index in order:
        category_id = results[index]["category_id"]
        if taken[category_id] < count:
            taken[category_id] += 1
            kept.append(index)
    return [results[index] for index in sorted(kept)]


def _run_official(
    ground_truth: GroundTruth, results: list[dict[str, Any]], *, iou_type: str, max_detections: int
) -> Any:
    """The official evaluation, done: `results` holds its numbers, `eval` its curves.

    Those are precision [T, R, K, A] and recall [T, K, A] in float64, classes by ascending id, -1 without ground truth.
    """
    lvis_gt = lvis_api.make_ground_truth(ground_truth.dataset)
    lvis_dt = lvis_api.make_results(lvis_gt, results, max_detections=max_detections)
    evaluation = _evaluation_class()(
        lvis_gt, lvis_dt, iou_type, ground_truth=ground_truth, max_detections=max_detections
    )
    evaluation.run()
    return evaluation


def _read(annotations: Any) -> tuple[Mapping[str, Any], str]:
    """The contents of an annotation JSON and its name for messages; an `Annotations` object knows its file as `raw`."""
    if isinstance(annotations, Mapping):
        return annotations, "annotations"
    path = annotations if isinstance(annotations, (str, os.PathLike)) else annotations.raw
    return read_annotation_json(path), os.fspath(path)


def evaluate(
    annotations: Any,
    results: Sequence[Mapping[str, Any]],
    *,
    iou_types: Sequence[str] = IOU_TYPES,
    max_detections: int = 300,
    detections_per_class: int | None = None,
    image_ids: Iterable[int] | None = None,
    letters: Mapping[int, str] | None = None,
    fallback_letters: Mapping[int, str] | None = None,
) -> EvaluationResult:
    """Evaluates results against LVIS v0.5, LVIS v1 or COCO annotations.

    Args:
      annotations: path of the JSON, its contents, or an `Annotations` object.
      results: LVIS result dicts (`eql_jax.evaluation.results`); they are not changed. None at all give zeros.
      iou_types: 'bbox' and 'segm', or one of them. For masks the area of the mask decides on small, medium and large,
        whether the result has a box or not, as in detectron2.
      max_detections: the best so many of each image count, over all classes and before anything else; -1: all. Of
        equal scores at the limit the first in `results` stay.
      detections_per_class: AP-fixed: the best so many of each class over all images count (10,000 in the paper); None:
        all. It goes with max_detections=-1. Detections are cut before anything else, with those of no area and those in
        images where nobody looked for their class among them; of equal scores at the limit the first in `results` stay,
        as in the paper's code. What a model or a file has cut per image before remains cut, and AP-fixed of 300
        detections an image says little: keep many more (`model.test.detections_per_image` of a config).
      image_ids: evaluate these images only, and skip the results of others.
      letters: frequency letters ('r', 'c', 'f') by category id, in place of the file's field `frequency`.
      fallback_letters: the same for categories without that field, all those of COCO. A class that gets no letter
        counts for the means over all classes only.

    Raises:
      FileNotFoundError: there is no such annotation file.
      ValueError: the annotations cannot be used (see `read_annotation_json` and `prepare_ground_truth`), an IoU type is
        unknown, a result lacks what it needs or is of an unknown image, or `detections_per_class` is below 1 or comes
        with a limit per image.
      ImportError: the `lvis` package is missing.
    """
    if not iou_types or any(iou_type not in IOU_TYPES for iou_type in iou_types):
        raise ValueError(f"iou_types: expected some of {IOU_TYPES}, found {tuple(iou_types)}")
    if detections_per_class is not None and detections_per_class < 1:
        raise ValueError(f"detections_per_class: expected at least 1, or None for no limit, got {detections_per_class}")
    if detections_per_class is not None and max_detections != -1:
        raise ValueError(
            f"detections_per_class {detections_per_class} with max_detections {max_detections}: AP-fixed has no limit "
            "per image; pass max_detections=-1"
        )
    dataset, source = _read(annotations)
    image_ids = None if image_ids is None else list(image_ids)
    metrics: dict[str, dict[str, float]] = {}
    per_class: dict[str, np.ndarray] = {}
    notes: dict[str, None] = {}  # a set that keeps its order
    for iou_type in iou_types:
        ground_truth = prepare_ground_truth(
            dataset,
            image_ids=image_ids,
            letters=letters,
            fallback_letters=fallback_letters,
            masks=iou_type == "segm",
            source=source,
        )
        selected, result_notes = _select_results(results, ground_truth, all_images=image_ids is None, iou_type=iou_type)
        notes.update(dict.fromkeys([*ground_truth.notes, *result_notes]))
        counted = selected
        if detections_per_class is not None:
            counted = _best_of_each_class(selected, detections_per_class)
        evaluation = _run_official(ground_truth, counted, iou_type=iou_type, max_detections=max_detections)
        values = dict(evaluation.results)
        for group, letter in enumerate(LETTERS):
            values[f"AP50{letter}"] = evaluation._summarize("ap", iou_thr=0.5, freq_group_idx=group)
        metrics[iou_type] = {name: float(value) for name, value in values.items()}
        per_class[iou_type] = evaluation.eval["precision"][:, :, :, 0]  # [T, R, K]

    instances = {category_id: 0 for category_id in ground_truth.letters}
    for annotation in ground_truth.dataset["annotations"]:
        instances[annotation["category_id"]] += 1
    names = {category["id"]: category["name"] for category in ground_truth.dataset["categories"]}
    classes = tuple(
        ClassResult(
            class_id=category_id,
            name=names[category_id],
            frequency=letter,
            instances=instances[category_id],
            ap={t: _mean_precision(p[:, :, index]) for t, p in per_class.items()},
            ap50={t: _mean_precision(p[:1, :, index]) for t, p in per_class.items()},
        )
        for index, (category_id, letter) in enumerate(ground_truth.letters.items())
    )
    return EvaluationResult(
        metrics=metrics,
        classes=classes,
        num_images=len(ground_truth.dataset["images"]),
        num_annotations=len(ground_truth.dataset["annotations"]),
        num_detections=len(selected),
        max_detections=max_detections,
        detections_per_class=detections_per_class,
        notes=tuple(notes),
    )


def _mean_precision(precision: np.ndarray) -> float:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else -1.0
