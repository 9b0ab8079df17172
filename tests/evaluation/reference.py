"""LVIS AP in plain NumPy, written from the protocol and sharing nothing with the official code: own IoU, own matching.

The protocol, in this order: the best 300 detections per image; those of no area go; those of classes that are neither
annotated nor verified absent in the image go; greedy matching per class and image by falling score; unmatched ones are
ignored where their class is not exhaustively annotated, or where their area is out of range. AP-fixed takes the best N
of every class over all images in place of the best 300 of every image. AP-pool ranks the detections of several classes
as if they were of one, once they are matched.
"""

import numpy as np
from pycocotools import mask as mask_utils

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


def to_mask(segmentation, height, width):
    """Polygons or compressed RLE as bool [height, width]."""
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    counts = segmentation["counts"]
    rle = {"size": segmentation["size"], "counts": counts.encode() if isinstance(counts, str) else counts}
    return np.asarray(mask_utils.decode([rle])[:, :, 0], bool)


def box_iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def mask_iou(a, b):
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def match(ious, truth_ignored, threshold):
    """Index of the matched object of each detection (in order of falling score), -1 for none."""
    free = np.ones(len(truth_ignored), bool)
    found = []
    for row in ious:
        best, choice = min(threshold, 1 - 1e-10), -1
        for wanted in (False, True):  # ignored objects only where no other fits
            for j in np.flatnonzero(free & (truth_ignored == wanted)):
                if row[j] >= best:
                    best, choice = row[j], j
            if choice >= 0:
                break
        if choice >= 0:
            free[choice] = False
        found.append(choice)
    return np.array(found, int)


def average_precision(scores, hits, ignored, num_truth):
    """The 101 precisions and the recall of one class, area range and threshold."""
    order = np.argsort(-scores, kind="stable")
    hits, ignored = hits[order], ignored[order]
    hits = hits[~ignored]
    if not len(hits):
        return np.zeros(101), 0.0
    true = np.cumsum(hits)
    precision = true / (np.arange(1, len(hits) + 1) + np.finfo(float).eps)
    recall = true / num_truth
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return np.where(at < len(precision), precision[np.minimum(at, len(precision) - 1)], 0.0), recall[-1]


def evaluate(dataset, results, *, masks, max_detections=300, detections_per_class=None, pools=None):
    """All metrics as a dict, and AP of each class by rising category id (-1 without ground truth).

    `pools`, lists of category ids, take the place of classes; the metrics with a letter are then -1.
    """
    if detections_per_class is not None:
        scores = np.array([r["score"] for r in results])
        classes = np.array([r["category_id"] for r in results])
        kept = np.zeros(len(results), bool)
        for category_id in np.unique(classes):
            mine = np.flatnonzero(classes == category_id)
            kept[mine[np.argsort(-scores[mine], kind="stable")[:detections_per_class]]] = True
        results = [r for r, keep in zip(results, kept, strict=True) if keep]
    images = {image["id"]: image for image in dataset["images"]}
    by_image = {image_id: [] for image_id in images}
    for result in results:
        by_image[result["image_id"]].append(result)
    truth = {image_id: [] for image_id in images}
    for annotation in dataset["annotations"]:
        if annotation["area"] > 0:
            truth[annotation["image_id"]].append(annotation)
    shapes = {}

    def shape(record):
        if not masks:
            return record["bbox"]
        if id(record) not in shapes:
            image = images[record["image_id"]]
            shapes[id(record)] = to_mask(record["segmentation"], image["height"], image["width"])
        return shapes[id(record)]

    def area(record):
        return np.count_nonzero(shape(record)) if masks else record["bbox"][2] * record["bbox"][3]

    categories = sorted(dataset["categories"], key=lambda c: c["id"])
    kept = {}
    for image_id, found in by_image.items():
        found = sorted(found, key=lambda r: -r["score"])
        kept[image_id] = [r for r in found[: max_detections if max_detections >= 0 else None] if area(r) > 0]
    ids = [c["id"] for c in categories]
    groups = [[i] for i in ids] if pools is None else pools
    precisions = {name: np.full((10, len(groups), 101), -1.0) for name in AREAS}
    recalls = {name: np.full((10, len(groups)), -1.0) for name in AREAS}
    for index, group in enumerate(groups):
        per_image = []
        for image_id in sorted(images):
            for category_id in sorted(group):
                image = images[image_id]
                objects = [a for a in truth[image_id] if a["category_id"] == category_id]
                if not objects and category_id not in image["neg_category_ids"]:
                    continue
                found = [r for r in kept[image_id] if r["category_id"] == category_id]
                iou = mask_iou if masks else box_iou
                ious = np.array([[iou(shape(r), shape(o)) for o in objects] for r in found]).reshape(
                    len(found), len(objects)
                )
                per_image.append((found, objects, ious, category_id in image["not_exhaustive_category_ids"]))
        for name, (low, high) in AREAS.items():
            out = [np.array([not low <= o["area"] <= high for o in objects], bool) for _, objects, _, _ in per_image]
            num_truth = sum(np.count_nonzero(~o) for o in out)
            if not num_truth:
                continue
            scores = np.array([r["score"] for found, _, _, _ in per_image for r in found])
            for t, threshold in enumerate(THRESHOLDS):
                hits, ignored = [], []
                for (found, _, ious, lenient), truth_ignored in zip(per_image, out, strict=True):
                    matched = match(ious, truth_ignored, threshold)
                    for r, j in zip(found, matched, strict=True):
                        hits.append(j >= 0)
                        ignored.append(truth_ignored[j] if j >= 0 else lenient or not low <= area(r) <= high)
                curve, recall = average_precision(scores, np.array(hits, bool), np.array(ignored, bool), num_truth)
                precisions[name][t, index], recalls[name][t, index] = curve, recall

    def mean(values):
        values = values[values > -1]
        return values.mean() if values.size else -1.0

    letters = np.array([c["frequency"] for c in categories] if pools is None else [""] * len(pools))
    metrics = {"AP": mean(precisions[""]), "AP50": mean(precisions[""][0]), "AP75": mean(precisions[""][5])}
    for letter in "rcf":
        metrics[f"AP{letter}"] = mean(precisions[""][:, letters == letter])
        metrics[f"AP50{letter}"] = mean(precisions[""][0, letters == letter])
    for name in AREAS:
        metrics[f"AR{name}@{max_detections}"] = mean(recalls[name])
        if name:
            metrics[f"AP{name}"] = mean(precisions[name])
    return metrics, np.array([mean(precisions[""][:, i]) for i in range(len(groups))])
