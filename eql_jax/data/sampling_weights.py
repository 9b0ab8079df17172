"""How often an image is to be drawn, from the classes of its objects: repeat factors, class-aware probabilities.

Both take the classes of all images as one ragged array, as `ImageIndex` has them: the objects of image i are
classes[offsets[i] : offsets[i + 1]], in any order, classes repeated or not.
"""

from __future__ import annotations

import numpy as np

from eql_jax.data.records import present_classes


def repeat_factors(classes: np.ndarray, offsets: np.ndarray, *, num_classes: int, threshold: float) -> np.ndarray:
    """Repeat factor of each image (Gupta, Dollar, Girshick 2019; detectron2's RepeatFactorTrainingSampler).

    f_c is the share of the given images that contain class c, r_c = max(1, sqrt(threshold / f_c)), and an image's
    factor is the largest r_c of its classes, 1 for an image without.

    Args:
      classes: int [T], of the objects of the images that are trained on: what was filtered out is no part of f_c.
      offsets: int64 [N + 1].
      num_classes: K.
      threshold: share of images below which a class is repeated.

    Returns:
      float64 [N], each >= 1.

    Raises:
      ValueError: offsets do not fit the classes, or a class is not among 0 .. K - 1.
    """
    image, of_image = present_classes(classes, offsets, num_classes)
    images = len(offsets) - 1
    share = np.maximum(np.bincount(of_image, minlength=num_classes), 1) / max(images, 1)
    factors = np.ones(images)
    np.maximum.at(factors, image, np.sqrt(threshold / share)[of_image])
    return factors


def class_aware_probabilities(classes: np.ndarray, offsets: np.ndarray, *, num_classes: int) -> np.ndarray:
    """Probability of each image under class-aware sampling (Shen, Lin, Huang, ECCV 2016, arXiv 1512.05830).

    A class is drawn uniformly among the C that have an image, then one of its n_c images uniformly, so

        p_i = 1 / C  sum over the classes c of image i of  1 / n_c

    Args:
      classes: int [T].
      offsets: int64 [N + 1].
      num_classes: K.

    Returns:
      float64 [N], sums to 1; 0 for an image without classes.

    Raises:
      ValueError: no image has a class, offsets do not fit the classes, or a class is not among 0 .. K - 1.
    """
    image, of_image = present_classes(classes, offsets, num_classes)
    images = len(offsets) - 1
    counts = np.bincount(of_image, minlength=num_classes)
    if not of_image.size:
        raise ValueError(f"class-aware sampling got {images} images without a class; expected some with")
    return np.bincount(image, weights=1 / counts[of_image], minlength=images) / np.count_nonzero(counts)
