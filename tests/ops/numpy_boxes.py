"""Independent NumPy references that the tests of this folder share: plain loops in float32."""

import numpy as np


def iou(a, b):
    """[N, M] float32, as a sequence of single float32 operations."""
    w = np.maximum(np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0]), 0)
    h = np.maximum(np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1]), 0)
    common = w * h
    area_a, area_b = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]), (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    union = area_a[:, None] + area_b - common
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def greedy_nms(boxes, scores, *, iou_threshold, max_output, valid=None, groups=None):
    """Indices kept by textbook greedy NMS; a double threshold against float32 overlaps, as torchvision has it."""
    groups = np.zeros(len(boxes), int) if groups is None else groups
    valid = np.ones(len(boxes), bool) if valid is None else valid
    suppress = (iou(boxes, boxes).astype(np.float64) > iou_threshold) & (groups[:, None] == groups)
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if valid[i] and not any(suppress[i, j] for j in kept):
            kept.append(i)
    return np.array(kept[:max_output], int)


def random_boxes(rng, count, *, size=100.0, clusters=None):
    """Float32 boxes [count, 4] of 4 to 60 px; scattered round `clusters` prototypes if given, so that many overlap."""
    number = clusters or count
    centres, sides = rng.uniform(0, size, (number, 2)), np.exp(rng.uniform(np.log(4), np.log(60), (number, 2)))
    if clusters:
        of = rng.integers(0, clusters, count)
        centres = centres[of] + rng.normal(size=(count, 2)) * 0.08 * sides[of]
        sides = sides[of] * np.exp(0.1 * rng.normal(size=(count, 2)))
    return np.concatenate([centres - sides / 2, centres + sides / 2], 1).astype(np.float32)
