"""Ensembles in plain loops over detections and full canvases, to hold the package against. Shares no code with it."""

import numpy as np
from pycocotools import mask as mask_utils


def iou(a, b):
    """Of two boxes x1, y1, x2, y2."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return min(common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common), 1.0)


def canvas(result):
    rle = result["segmentation"]
    return mask_utils.decode({"size": rle["size"], "counts": rle["counts"].encode()})


def encoded(mask):
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def average(masks, weights):
    """The pixels that masks of at least half of the weight have; if there are none, the first mask."""
    weights = [1.0] * len(masks) if sum(weights) == 0 else weights
    total = sum(w * m.astype(np.float64) for w, m in zip(weights, masks, strict=True))
    found = total >= sum(weights) / 2 - 1e-9 * max(weights)
    return found if found.any() else masks[0]


def corners(result):
    x, y, w, h = result["bbox"]
    return (x, y, x + w, y + h)


def ensemble(files, weight_of, *, method, iou_threshold, average_iou=None, limit=300, factor_of=lambda f, c: 1.0):
    """Results by image id, each image's by falling score.

    Args:
      files: lists of results.
      weight_of, factor_of: (number of the file, category id) -> weight, and what its scores are multiplied with.
    """
    by_image = {}
    for file, results in enumerate(files):
        for result in results:
            by_image.setdefault(result["image_id"], []).append((file, result))
    found = {}
    for image_id, pairs in by_image.items():
        out = []
        for category in sorted({r["category_id"] for _, r in pairs}):
            weights = [weight_of(f, category) for f in range(len(files))]
            items = []
            for place, (file, result) in enumerate(pairs):
                if result["category_id"] == category and weights[file] > 0:
                    score = result["score"] * (weights[file] * factor_of(file, category))
                    items.append((score, place, corners(result), result))
            items.sort(key=lambda item: -item[0])  # stable
            if method == "nms":
                out += suppressed(items, iou_threshold, average_iou)
            else:
                out += fused(items, iou_threshold, sum(w > 0 for w in weights), sum(weights))
        out.sort(key=lambda item: (-item[0], item[1]))
        found[image_id] = [result for _, _, result in out[:limit]]
    return found


def finish(members, box, score):
    first = members[0][3]
    result = {"image_id": first["image_id"], "category_id": first["category_id"], "score": score, "bbox": box}
    if "segmentation" in first:
        result["segmentation"] = first["segmentation"]
        if len(members) > 1:
            mask = average([canvas(m[3]) for m in members], [m[0] for m in members])
            result["segmentation"] = encoded(mask)
    return (score, members[0][1], result)


def suppressed(items, threshold, average_iou):
    left, out = list(items), []
    while left:
        best = left.pop(0)
        members, rest = [best], []
        for other in left:
            overlap = iou(best[2], other[2])
            if overlap <= threshold:
                rest.append(other)
            elif average_iou is not None and overlap > average_iou:
                members.append(other)
        left = rest
        out.append(finish(members, best[3]["bbox"], best[0]))
    return out


def fused(items, threshold, voters, total):
    clusters, boxes = [], []
    for item in items:
        overlaps = [iou(box, item[2]) for box in boxes]
        place = int(np.argmax(overlaps)) if overlaps else -1
        if place < 0 or overlaps[place] <= threshold:
            clusters.append([item])
            boxes.append(item[2])
            continue
        clusters[place].append(item)
        weights = np.array([m[0] for m in clusters[place]])
        if weights.sum() > 0:
            boxes[place] = tuple((weights[:, None] * np.array([m[2] for m in clusters[place]])).sum(0) / weights.sum())
    out = []
    for members, box in zip(clusters, boxes, strict=True):
        score = sum(m[0] for m in members) / len(members) * min(len(members), voters) / total
        xywh = members[0][3]["bbox"] if len(members) == 1 else [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        out.append(finish(members, xywh, score))
    return out
