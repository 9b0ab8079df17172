"""A training batch of noise and ellipses; benchmarks have objects like those of LVIS (benchmarks/lvis_like.py)."""

import numpy as np


def synthetic_batch(
    *,
    batch: int,
    height: int,
    width: int,
    num_classes: int,
    objects: int,
    max_objects: int,
    mask_size: int,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """A training batch of noise images with `objects` ellipses each, of LVIS-like sizes (log-uniform from 16 px up)."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.uniform(np.log(16), np.log(min(height, width) / 1.5), (batch, objects, 2)))
    centre = rng.uniform(size / 2, np.array([width, height]) - size / 2)
    boxes = np.zeros((batch, max_objects, 4), np.float32)
    boxes[:, :objects] = np.concatenate([centre - size / 2, centre + size / 2], axis=-1)
    classes = np.full((batch, max_objects), -1, np.int32)
    classes[:, :objects] = rng.integers(0, num_classes, (batch, objects))
    yy, xx = np.mgrid[:mask_size, :mask_size] * (2 / mask_size) - 1
    masks = np.zeros((batch, max_objects, mask_size, mask_size), np.uint8)
    masks[:, :objects] = xx**2 + yy**2 < 1
    return {
        "image": rng.integers(0, 256, (batch, height, width, 3), np.uint8),
        "image_size": np.tile(np.array([height, width], np.int32), (batch, 1)),
        "image_id": np.arange(batch, dtype=np.uint32),
        "gt_boxes": boxes,
        "gt_classes": classes,
        "gt_ignore": np.zeros((batch, max_objects), bool),
        "gt_masks": masks,
        "verified_classes": np.zeros((batch, num_classes), bool),
    }
