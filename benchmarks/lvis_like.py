"""Batches of noise images with objects like those of LVIS: how many, how large, of which class. NumPy only.

The distribution, all of it:

- Objects of an image: log-normal, rounded, cut to 1..300; the logarithm has mean 1.793 and deviation 1.1, which makes
  11 objects on average, 6 in the median image and more than 100 in one image of 200. LVIS v1's training counts are
  12.8 an annotated image, the paper says 11.2; images with up to 300 occur.
- Box size, the square root of its area in the resized image: log-normal with median 60 pixels at a shorter side of
  800 (in proportion at others) and deviation 1.0: 26 % below 32 pixels, 42 % from 32 to 96, 32 % above, before boxes
  are cut to the image. The 564 boxes of 40 images of LVIS v0.5 val give 24, 46 and 30 % at this side, with a median
  of 54.
- Width over height: log-normal around 1, deviation .75 (the same boxes: .75). Centres are uniform among those with
  the box inside the image. Masks are the ellipses in the boxes.
- Classes: by LVIS v1's training objects per class; K < 1203 classes are the K most frequent ones, by falling count.

Counts are drawn by quantiles (one from each of n equal shares of the distribution for n images), so that a few
batches already have about the mean of many.
"""

import statistics

import numpy as np

from eql_jax.data.categories import packaged_statistics

MAX_OBJECTS = 300
LOG_COUNT_MEAN, LOG_COUNT_DEVIATION = 1.793, 1.1
MEDIAN_SIZE, REFERENCE_SIDE, LOG_SIZE_DEVIATION = 60.0, 800.0, 1.0
LOG_ASPECT_DEVIATION = 0.75
MIN_SIDE = 2.0  # pixels


def object_counts(rng: np.random.Generator, images: int, *, limit: int = MAX_OBJECTS) -> np.ndarray:
    """Objects of each image, int64 [images] of 1..limit: a quantile from each of `images` equal shares, shuffled."""
    quantiles = (np.arange(images) + rng.uniform(0.001, 0.999, images)) / images
    inverse = statistics.NormalDist(LOG_COUNT_MEAN, LOG_COUNT_DEVIATION).inv_cdf
    counts = np.exp([inverse(q) for q in quantiles]).round().clip(1, limit).astype(np.int64)
    return rng.permutation(counts)


def object_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """float32 [count,4] XYXY inside an image of height x width pixels."""
    median = MEDIAN_SIZE * min(height, width) / REFERENCE_SIDE
    size = median * np.exp(rng.normal(0, LOG_SIZE_DEVIATION, count))
    half_aspect = np.exp(rng.normal(0, LOG_ASPECT_DEVIATION / 2, count))
    sides = np.stack([size * half_aspect, size / half_aspect], axis=-1).clip(MIN_SIDE, [width, height])
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


def class_shares(num_classes: int) -> np.ndarray:
    """Shares of the objects that each of num_classes classes has, float64 [K], falling; counts start over past 1203."""
    counts = np.sort(packaged_statistics("lvis_v1").instance_counts)[::-1]
    counts = np.resize(counts, num_classes).astype(np.float64)
    return counts / counts.sum()


def make_batch(
    *,
    batch: int,
    height: int,
    width: int,
    num_classes: int,
    max_objects: int = MAX_OBJECTS,
    mask_size: int = 112,
    objects: int = 0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """One training batch, with the keys of eql_jax.data.pipeline.

    objects: in every image; 0: LVIS's distribution.
    Returns image uint8 [B,H,W,3], image_size int32 [B,2], image_id uint32 [B], gt_boxes float32 [B,G,4], gt_classes
    int32 [B,G] (-1 padding), gt_ignore bool [B,G], gt_masks uint8 [B,G,M,M] cropped to the boxes and verified_classes
    bool [B,K], all False.

    Raises:
      ValueError: more objects than max_objects.
    """
    if objects > max_objects:
        raise ValueError(f"objects is {objects}; expected at most max_objects, {max_objects}")
    rng = np.random.default_rng(seed)
    counts = np.full(batch, objects) if objects else object_counts(rng, batch, limit=max_objects)
    shares = class_shares(num_classes)
    boxes = np.zeros((batch, max_objects, 4), np.float32)
    classes = np.full((batch, max_objects), -1, np.int32)
    masks = np.zeros((batch, max_objects, mask_size, mask_size), np.uint8)
    grid = (np.arange(mask_size) + 0.5) * (2 / max(mask_size, 1)) - 1
    ellipse = grid[:, None] ** 2 + grid**2 < 1
    for i, count in enumerate(counts):
        boxes[i, :count] = object_boxes(rng, count, height, width)
        classes[i, :count] = rng.choice(num_classes, count, p=shares)
        masks[i, :count] = ellipse
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
