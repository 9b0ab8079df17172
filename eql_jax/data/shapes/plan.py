"""Which classes are in which image: long-tailed as LVIS v1 is, or balanced.

K classes, N images. A plan is a boolean [N, K] table: image n holds class k. It is made before any picture is drawn, so
that the image counts of the finished annotations are those planned, exactly.
"""

import json
from functools import lru_cache
from importlib import resources

import numpy as np

MEAN_CLASSES = 360952 / 99388  # distinct classes an image of LVIS v1 train holds on average, 3.63
MAX_SHARE = 0.9  # of the images, for the most frequent class
MAX_CLASSES_PER_IMAGE = 7


@lru_cache(maxsize=1)
def lvis_image_counts() -> np.ndarray:
    """int64 [1203] image counts of the classes of LVIS v1 train, ascending."""
    text = resources.files("eql_jax.data").joinpath("counts/lvis_v1.json").read_text(encoding="utf-8")
    table = json.loads(text)
    column = table["columns"].index("image_count")
    return np.sort(np.array([row[column] for row in table["categories"]], np.int64))


def long_tail_counts(*, num_classes: int, num_images: int) -> np.ndarray:
    """int64 [K] image counts, ascending: evenly spaced quantiles of LVIS v1, scaled to the number of images.

    Scaled so that an image holds as many distinct classes as in LVIS v1 (before rounding and clipping to 1 and nine
    tenths of the images). Raises ValueError when the images cannot hold so many.
    """
    sorted_counts = lvis_image_counts()
    at = ((np.arange(num_classes) + 0.5) / num_classes * len(sorted_counts)).astype(np.int64)
    quantiles = sorted_counts[at].astype(np.float64)
    counts = np.round(quantiles * (num_images * MEAN_CLASSES / quantiles.sum())).astype(np.int64)
    counts = np.clip(counts, 1, max(1, int(MAX_SHARE * num_images)))
    return _checked(counts, num_images, "train_images")


def balanced_counts(*, num_classes: int, num_images: int) -> np.ndarray:
    """int64 [K] image counts, all equal. Raises ValueError when the images cannot hold one of every class."""
    each = round(num_images * MEAN_CLASSES / num_classes)
    counts = np.full(num_classes, np.clip(each, 1, max(1, int(MAX_SHARE * num_images))), np.int64)
    return _checked(counts, num_images, "val_images")


def _checked(counts: np.ndarray, num_images: int, argument: str) -> np.ndarray:
    least = -(-int(counts.sum()) // MAX_CLASSES_PER_IMAGE)
    if num_images < least:
        raise ValueError(
            f"{argument}={num_images} images cannot hold {len(counts)} classes at {MAX_CLASSES_PER_IMAGE} classes an "
            f"image: name at least {least} images, or fewer classes"
        )
    return counts


def spread(rng: np.random.Generator, *, counts: np.ndarray, num_images: int) -> np.ndarray:
    """Returns a bool [N, K] plan with exactly counts[k] images of class k.

    Images hold about the mean number of classes, give or take two, at most MAX_CLASSES_PER_IMAGE, and at least one
    where there are enough incidences. Which classes meet in an image is random.
    """
    mean = counts.sum() / num_images
    room = np.maximum(rng.uniform(mean - 1.8, mean + 1.8, num_images), 0.3)
    plan = np.zeros((num_images, len(counts)), bool)
    sizes = np.zeros(num_images, np.int64)
    for k in np.argsort(-counts, kind="stable"):
        # Weighted sampling without replacement (Efraimidis and Spirakis, 2006), the weight being the room that is left.
        key = rng.exponential(size=num_images) / np.maximum(room - sizes, 0.02)
        key[sizes >= MAX_CLASSES_PER_IMAGE] = np.inf
        chosen = np.argsort(key, kind="stable")[: counts[k]]
        plan[chosen, k] = True
        sizes[chosen] += 1
    _level(rng, plan, sizes)
    return plan


def _level(rng: np.random.Generator, plan: np.ndarray, sizes: np.ndarray) -> None:
    """Moves incidences, in place, from the fullest images to empty ones and out of those that are too full."""
    while True:
        low, high = int(sizes.argmin()), int(sizes.argmax())
        if not (sizes[low] == 0 and sizes[high] > 1) and sizes[high] <= MAX_CLASSES_PER_IMAGE:
            return
        movable = np.flatnonzero(plan[high] & ~plan[low])
        k = int(rng.choice(movable))  # never empty: high holds more classes than low
        plan[high, k], plan[low, k] = False, True
        sizes[high] -= 1
        sizes[low] += 1
