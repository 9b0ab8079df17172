"""The detections of several files become those of one, image by image.

F files, n detections that they have in an image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from eql_jax.data.segmentations import ranges
from eql_jax.ensemble.boxes import Clusters, fuse_boxes, suppress
from eql_jax.ensemble.errors import EnsembleError
from eql_jax.ensemble.masks import average_masks, encode_runs
from eql_jax.ensemble.spooled import ImageResults, SpooledResults
from eql_jax.ensemble.weights import ClassWeights
from eql_jax.evaluation.columns import Result
from eql_jax.evaluation.results import ResultWriter
from eql_jax.evaluation.run_lengths import PackedMasks, Runs

METHODS = ("nms", "wbf")
DEFAULT_IOUS = {"nms": 0.5, "wbf": 0.55}  # detectron2's, and the paper's of weighted boxes fusion


class FuseOptions(NamedTuple):
    """How detections are fused.

    Attributes:
      method: 'nms' or 'wbf'.
      iou: detections of a class are one object above it; None: `DEFAULT_IOUS`.
      average_iou: of 'nms': the mask of what stays is averaged with those that it suppressed by an IoU of the boxes
        above this; None: it keeps its own. 'wbf' averages the masks of all members.
      max_detections: the best so many of every image are written.
    """

    method: str = "nms"
    iou: float | None = None
    average_iou: float | None = None
    max_detections: int = 300

    def check(self) -> None:
        """Raises EnsembleError for an option that is out of its range."""
        if self.method not in METHODS:
            raise EnsembleError(f"method: expected one of {METHODS}, found {self.method!r}")
        for name, value in (("iou", self.iou), ("average_iou", self.average_iou)):
            if value is not None and not 0 <= value <= 1:
                raise EnsembleError(f"{name}: expected a share from 0 to 1, found {value}")
        if self.method != "nms" and self.average_iou is not None:
            raise EnsembleError("average_iou is for the method 'nms'; 'wbf' averages the masks of all members")
        if self.max_detections < 1:
            raise EnsembleError(f"max_detections: expected at least 1, found {self.max_detections}")


class FusedImage(NamedTuple):
    """results: by falling score. used: int64 [F], how many detections of each file are in them."""

    results: list[Result]
    used: np.ndarray


class Summary(NamedTuple):
    """What an ensemble did.

    Attributes:
      images: with detections.
      read: of each file.
      used: of each file: detections that are in those written, alone or as members of a cluster.
      lacking: of each file: images that others have detections in and it has none.
      written: detections.
    """

    images: int
    read: list[int]
    used: list[int]
    lacking: list[int]
    written: int


def fuse_image(
    image_id: int, parts: Sequence[ImageResults], weights: ClassWeights, options: FuseOptions, *, names: Sequence[str]
) -> FusedImage:
    """Fuses what the files have for one image.

    A detection that is alone in its cluster is written as it came, but for its score, unless weights and factors are 1.
    Fused boxes are rounded to 1/1000 of a pixel, changed scores to 9 digits. Of equal scores the first file's first
    detection goes first.

    Args:
      image_id: of the image.
      parts: of the F files; masks are of all or of none.
      weights: of the F files.
      options: how.
      names: of the F files, for messages.

    Raises:
      EnsembleError: a file has a detection twice, masks are of different sizes or damaged.
    """
    for part, name in zip(parts, names, strict=True):
        _check_twice(part, image_id, name)
    joined = _join(parts)
    file = np.repeat(np.arange(len(parts)), [len(part.classes) for part in parts])
    row = weights.rows(joined.classes)
    weight, factor = weights.weights[row, file], weights.factors[row, file]
    scores = joined.scores * (weight * factor)
    taken = np.flatnonzero(weight > 0)
    xyxy = joined.boxes.copy()
    xyxy[:, 2:] += xyxy[:, :2]
    iou = DEFAULT_IOUS[options.method] if options.iou is None else options.iou
    if options.method == "nms":
        clusters = suppress(xyxy[taken], joined.classes[taken], scores[taken], iou=iou, members_iou=options.average_iou)
    else:
        totals, voters = weights.weights.sum(axis=1)[row], (weights.weights > 0).sum(axis=1)[row]
        clusters = fuse_boxes(xyxy[taken], joined.classes[taken], scores[taken], totals[taken], voters[taken], iou=iou)
    clusters = clusters._replace(members=taken[clusters.members])
    clusters = clusters.select(np.lexsort((clusters.best, -clusters.scores))[: options.max_detections])
    masks = _masks(image_id, joined.masks, clusters, scores, _Names(names, file, joined.numbers))
    used = np.bincount(file[clusters.members], minlength=len(parts))
    return FusedImage(_results(image_id, joined, clusters, masks, fused_boxes=options.method == "wbf"), used)


def fuse_files(
    files: Sequence[SpooledResults],
    weights: ClassWeights,
    options: FuseOptions,
    out: str | os.PathLike[str],
    *,
    same_images: bool = True,
    progress: bool = False,
) -> Summary:
    """Fuses results files to one, by rising image id; memory holds one image at a time.

    Args:
      files: F of them.
      weights: of the F files.
      options: how.
      out: the results file to write; under its name there is all of it or nothing.
      same_images: whether it is an error if the files have detections in different images.
      progress: whether to show a bar.

    Raises:
      EnsembleError: an option is out of its range, some files have masks and others not, the images differ, or see
        `fuse_image`.
    """
    options.check()
    with_masks = {file.with_masks: file.path for file in files if file.size}
    if len(with_masks) > 1:
        raise EnsembleError(
            f"{with_masks[False]} has boxes alone, {with_masks[True]} has masks: expected masks in all files or in none"
        )
    image_ids = np.unique(np.concatenate([file.image_ids for file in files]))
    if same_images:
        _check_images(files, image_ids)
    names = [file.path for file in files]
    used = np.zeros(len(files), np.int64)
    with ResultWriter(out) as writer:
        bar = tqdm(image_ids.tolist(), unit="image", desc="fuse", disable=not progress, leave=False)
        for image_id in bar:
            fused = fuse_image(image_id, [file.read(image_id) for file in files], weights, options, names=names)
            writer.write(fused.results)
            used += fused.used
    return Summary(
        images=len(image_ids),
        read=[file.size for file in files],
        used=used.tolist(),
        lacking=[len(image_ids) - len(file.image_ids) for file in files],
        written=writer.count,
    )


def _check_images(files: Sequence[SpooledResults], image_ids: np.ndarray) -> None:
    for file in files:
        lacking = np.setdiff1d(image_ids, file.image_ids)
        if len(lacking):
            other = next(other for other in files if lacking[0] in other.image_ids)
            raise EnsembleError(
                f"{file.path}: no results for {len(lacking)} of {len(image_ids)} images, such as image {lacking[0]}, "
                f"which {other.path} has (result {other.first_number(lacking[0])}). Expected results for the same "
                "images; if a model may have found nothing in some, say by --annotations which images there are"
            )


class _Names(NamedTuple):
    """Names detections of an image for messages."""

    paths: Sequence[str]
    file: np.ndarray
    numbers: np.ndarray

    def __call__(self, row: int) -> str:
        return f"{self.paths[self.file[row]]}: result {self.numbers[row]}"


def _join(parts: Sequence[ImageResults]) -> ImageResults:
    starts = np.cumsum([0, *(len(part.masks.text) for part in parts)])
    offsets = [part.masks.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
    masks = PackedMasks(
        np.concatenate([part.masks.text for part in parts]),
        np.append(np.concatenate(offsets), starts[-1]),
        np.concatenate([part.masks.sizes for part in parts]),
    )
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ImageResults._fields[:-1])
    return ImageResults(*columns, masks)


def _check_twice(part: ImageResults, image_id: int, name: str) -> None:
    values = np.column_stack([part.classes.astype(np.float64), part.scores, part.boxes])
    order = np.lexsort(values.T[::-1])
    same = np.flatnonzero((values[order[1:]] == values[order[:-1]]).all(axis=1))
    if len(same):
        first, second = part.numbers[order[same[0]]], part.numbers[order[same[0] + 1]]
        raise EnsembleError(
            f"{name}: result {second} (image {image_id}) has the class, score and box of result {first}: expected each "
            "detection once. Was the file put together from parts that overlap?"
        )


def _masks(
    image_id: int, masks: PackedMasks, clusters: Clusters, scores: np.ndarray, name: _Names
) -> list[dict] | None:
    """The segmentation of each cluster; None where there are none."""
    if not masks.sizes.any():
        return None
    members = clusters.members
    sizes = masks.sizes[members]
    other = np.flatnonzero((sizes != sizes[0]).any(axis=1)) if len(sizes) else ()
    if len(other):
        raise EnsembleError(
            f"{name(members[other[0]])} (image {image_id}): expected a mask of {_by(sizes[0])} pixels, as that of "
            f"{name(members[0])}, found {_by(sizes[other[0]])}"
        )
    runs = masks.decode(members)
    pixels = np.diff(np.concatenate([[0], np.cumsum(runs.lengths)])[runs.offsets])
    damaged = np.flatnonzero(runs.bad | (pixels != sizes.astype(np.int64).prod(axis=1)))
    if len(damaged):
        row = members[damaged[0]]
        raise EnsembleError(
            f"{name(row)} (image {image_id}): its run lengths are damaged, they do not fill {_by(masks.sizes[row])} "
            "pixels; write the results again"
        )
    strings = [rle["counts"].decode("ascii") for rle in masks.rles(clusters.best)]
    several = np.flatnonzero(clusters.sizes > 1)
    if len(several):
        place = ranges(clusters.offsets[several], clusters.sizes[several])
        chosen = _select_runs(runs, place)
        averaged = average_masks(chosen, scores[members[place]], clusters.sizes[several], int(pixels[0]))
        for cluster, string in zip(several.tolist(), encode_runs(averaged).strings(), strict=True):
            strings[cluster] = string
    size = sizes[0].tolist() if len(sizes) else []
    return [{"size": size, "counts": string} for string in strings]


def _select_runs(runs: Runs, index: np.ndarray) -> Runs:
    counts = np.diff(runs.offsets)[index]
    lengths = runs.lengths[ranges(runs.offsets[index], counts)]
    return Runs(lengths, np.concatenate([[0], np.cumsum(counts)]), runs.bad[index])


def _by(size: np.ndarray) -> str:
    return " x ".join(map(str, size.tolist()))


def _results(
    image_id: int, joined: ImageResults, clusters: Clusters, masks: list[dict] | None, *, fused_boxes: bool
) -> list[Result]:
    best = clusters.best
    boxes = joined.boxes[best]
    if fused_boxes:
        fused = np.flatnonzero(clusters.sizes > 1)
        corners = clusters.boxes[fused]
        boxes[fused] = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).round(3)
    kept = joined.scores[best]
    scores = [
        new if new == old else float(f"{new:.9g}")
        for new, old in zip(clusters.scores.tolist(), kept.tolist(), strict=True)
    ]
    results: list[Result] = [
        {"image_id": image_id, "category_id": category, "score": score, "bbox": box}
        for category, score, box in zip(joined.classes[best].tolist(), scores, boxes.tolist(), strict=True)
    ]
    if masks is not None:
        for result, mask in zip(results, masks, strict=True):
            result["segmentation"] = mask
    return results
