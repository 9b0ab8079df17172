"""The official `lvis` package at work, with what COCO files need.

K classes, T = 10 IoU thresholds .50:.05:.95, R = 101 recall points, A = 4 area ranges (all, small, medium, large).

All matching, curves and means are the official code's. Two things are added around it, neither of which changes a
number on an LVIS file:

* only the pairs of image and class that hold something are visited (the official loop makes 95 million visits on LVIS
  v1 and keeps three dictionaries of 24 million keys, nearly all of them of nothing);
* crowd regions, which only COCO has, follow COCO's rule: a detection that matches no object and lies in a crowd region
  of its class (intersection over its own area at least the IoU threshold) is neither right nor wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from eql_jax.evaluation import lvis_api
from eql_jax.evaluation.ground_truth import LETTERS, GroundTruth


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


def run_official(
    ground_truth: GroundTruth, results: list[dict[str, Any]], *, iou_type: str, max_detections: int
) -> Any:
    """The official evaluation, done: `results` holds its metrics, `eval` its curves.

    Those are precision [T, R, K, A] and recall [T, K, A] in float64, classes by ascending id, -1 without ground truth.

    Args:
      ground_truth: it is not changed.
      results: dicts with a box or a mask; keys are added to them.
      iou_type: 'bbox' or 'segm'.
      max_detections: the best so many of each image count; -1: all.
    """
    annotations = [dict(a) for a in ground_truth.dataset["annotations"]]  # the official code writes into them
    lvis_gt = lvis_api.make_ground_truth({**ground_truth.dataset, "annotations": annotations})
    lvis_dt = lvis_api.make_results(lvis_gt, results, max_detections=max_detections)
    evaluation = _evaluation_class()(
        lvis_gt, lvis_dt, iou_type, ground_truth=ground_truth, max_detections=max_detections
    )
    evaluation.run()
    for group, letter in enumerate(LETTERS):
        evaluation.results[f"AP50{letter}"] = evaluation._summarize("ap", iou_thr=0.5, freq_group_idx=group)
    return evaluation
