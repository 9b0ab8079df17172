"""The classes that a run is best and worst at, and pictures of them: ground truth beside detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from eql_jax.analysis.collect import ClassAP, Evaluation, Run
from eql_jax.data.images import ImageError, read_record_image
from eql_jax.data.records import Annotations, ImageRecord, evenly_spaced
from eql_jax.evaluation.result_reader import read_results
from eql_jax.training.errors import UserError, user_input
from eql_jax.visualize import class_labels, draw_detections, draw_objects, side_by_side
from eql_jax.visualize.ground_truth import record_objects

_TAKEN_FOR = 0.5  # IoU from which a detection of another class is drawn


class Example(NamedTuple):
    """A picture of a class: the class's detections and ground truth side by side."""

    class_id: int
    picture: Image.Image
    caption: str


def best_and_worst(evaluation: Evaluation, count: int) -> tuple[list[ClassAP], list[ClassAP]]:
    """`count` classes of the highest and of the lowest AP among those with ground truth, no class in both.

    Of equal AP, the best is the class with the fewest training images and the worst the one with the most.
    """
    known = [c for c in evaluation.classes if np.isfinite(c.ap[evaluation.kind])]
    ranked = sorted(known, key=lambda c: (-c.ap[evaluation.kind], c.train_images, c.class_id))
    count = min(count, len(ranked) // 2)
    return ranked[:count], ranked[::-1][:count]


def largest_changes(
    first: Evaluation, other: Evaluation, count: int
) -> tuple[list[tuple[ClassAP, ClassAP]], list[tuple[ClassAP, ClassAP]]]:
    """The classes that both evaluated (by id and name) whose AP rises most from `first` to `other`, and falls most."""
    kind = first.kind if first.kind == other.kind else "boxes"
    of_other = {(c.class_id, c.name): c for c in other.classes}
    pairs = [(c, of_other[c.class_id, c.name]) for c in first.classes if (c.class_id, c.name) in of_other]
    change = {a.class_id: b.ap[kind] - a.ap[kind] for a, b in pairs}
    ranked = sorted(
        (pair for pair in pairs if np.isfinite(change[pair[0].class_id])), key=lambda pair: -change[pair[0].class_id]
    )
    rises = [pair for pair in ranked if change[pair[0].class_id] > 0]
    falls = [pair for pair in ranked[::-1] if change[pair[0].class_id] < 0]
    return rises[:count], falls[:count]


def draw_examples(
    run: Run,
    evaluation: Evaluation,
    annotations: Annotations,
    classes: Sequence[ClassAP],
    *,
    per_class: int,
    score_threshold: float,
) -> list[Example]:
    """Draws images with objects of some classes.

    On the left are the detections of the class, and those of other classes that lie on its objects (what these were
    taken for); on the right its ground truth.

    Args:
      run: names and letters of classes are read.
      evaluation: its results.json is read.
      annotations: the evaluation set.
      classes: of which to draw images.
      per_class: images of each, spread over those that have the class.
      score_threshold: of the detections drawn.

    Raises:
      UserError: no results.json, a damaged one, or none of its images is among the annotations.
    """
    chosen = {c.class_id: _images_with(annotations, c.class_id, per_class) for c in classes}
    wanted = {int(annotations.index.ids[i]) for positions in chosen.values() for i in positions}
    results = _results_of(evaluation, wanted, annotations)
    labels = class_labels(run.classes.ids, run.classes.names, run.classes.letters)
    examples = []
    for c in classes:
        for position in chosen[c.class_id]:
            record = annotations.images[position]
            try:
                image = read_record_image(record)
            except ImageError:
                continue  # the evaluation has told of it
            objects = [o for o in record_objects(record, annotations.class_ids) if o["category_id"] == c.class_id]
            shown = [r for r in results[record.id] if r["category_id"] in labels and _concerns(r, c.class_id, objects)]
            left = draw_detections(image, shown, labels, score_threshold=score_threshold)
            titles = [f"detections, score {score_threshold:g} and above", "ground truth"]
            picture = side_by_side([left, draw_objects(image, objects, labels)], titles)
            examples.append(Example(c.class_id, picture, _caption(c, evaluation.kind, record, results[record.id])))
    return examples


def _images_with(annotations: Annotations, class_id: int, count: int) -> list[int]:
    """Positions of images with an object of the class."""
    index = annotations.index
    objects = np.flatnonzero((annotations.class_ids[index.classes] == class_id) & ~index.ignore)
    images = np.unique(np.searchsorted(index.offsets, objects, side="right") - 1)
    return evenly_spaced(images.tolist(), count)


def _results_of(
    evaluation: Evaluation, image_ids: set[int], annotations: Annotations
) -> dict[int, list[dict[str, Any]]]:
    path = evaluation.folder / "results.json"
    found: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in image_ids}
    known, met, any_result = set(annotations.index.ids.tolist()), False, False
    with user_input():
        for result in read_results(path):
            any_result = True
            image_id = result.get("image_id")
            met = met or image_id in known
            if image_id in found:
                found[image_id].append(result)
    if any_result and not met:
        raise UserError(f"none of the images of {path} is in {annotations.raw}; it is of another evaluation set")
    return found


def _concerns(result: dict[str, Any], class_id: int, objects: Sequence[dict[str, Any]]) -> bool:
    if result["category_id"] == class_id:
        return True
    return any(_iou(result["bbox"], thing["bbox"]) >= _TAKEN_FOR for thing in objects)


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two boxes x, y, width, height."""
    width = max(min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]), 0)
    both = width * height
    return both / max(a[2] * a[3] + b[2] * b[3] - both, 1e-9)


def _caption(c: ClassAP, kind: str, record: ImageRecord, results: Sequence[dict[str, Any]]) -> str:
    scores = [r["score"] for r in results if r["category_id"] == c.class_id]
    best = f"best score {max(scores):.2g}" if scores else "not detected"
    images = "" if c.train_images < 0 else f", {c.train_images:,} training images"
    return f"{c.name} ({c.letter}), AP {100 * c.ap[kind]:.1f}{images}; image {record.id}: {best}"
