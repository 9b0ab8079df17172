"""Long-tailed data drawn on the spot for the examples of this folder; NumPy only."""

import numpy as np

NUM_CLASSES = 6  # K
COUNTS = np.array([160, 80, 40, 20, 10, 5])  # training pictures of each class
EMPTY = 150  # training pictures with nothing on them


def draw_pictures(counts: np.ndarray, empty: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and in it the stamp of a class, somewhere; or nothing.

    Args:
      counts: int [K], pictures of each class.
      empty: pictures with nothing on them.
      seed: of places and noise. The stamps are always the same.

    Returns:
      images float32 [N, 12, 12, 1]; labels int32 [N], 0..K-1, and K for nothing.
    """
    stamps = np.random.default_rng(7).normal(size=(len(counts), 6, 6))
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts) + 1), [*counts, empty]).astype(np.int32)
    images = 0.5 * rng.normal(size=(len(labels), 12, 12, 1))
    for image, label, (y, x) in zip(images, labels, rng.integers(0, 7, (len(labels), 2)), strict=True):
        if label < len(counts):
            image[y : y + 6, x : x + 6, 0] += stamps[label]
    return images.astype(np.float32), labels


def draw_proposals(shape: tuple[int, ...], seed: int, features: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """What a box head is given: features of proposals, three quarters of them background, the last slot empty.

    Objects lie around the mean of their class, background anywhere: it resembles every class now and then. (Were it one
    cluster, EQL's tail classes would only learn to tell objects from it, for no other row is a negative of theirs.)

    Args:
      shape: of the rows, such as (images, rows).
      seed: of the draw. The features' means per class are always the same.
      features: F.

    Returns:
      features float32 [*shape, F]; labels int32 [*shape], 0..K-1 as often as COUNTS says, K background, -1 empty.
    """
    means = np.random.default_rng(7).normal(size=(NUM_CLASSES, features))
    rng = np.random.default_rng(seed)
    labels = rng.choice(NUM_CLASSES, shape, p=COUNTS / COUNTS.sum())
    labels = np.where(rng.random(shape) < 0.75, NUM_CLASSES, labels).astype(np.int32)
    background = labels == NUM_CLASSES
    rows = np.where(background[..., None], rng.normal(size=(*shape, features)), means[labels * ~background])
    rows = rows + 0.7 * rng.normal(size=rows.shape)
    labels[..., -1] = -1
    return rows.astype(np.float32), labels
