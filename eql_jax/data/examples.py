"""One image of a batch: decoded, augmented, padded, with its ground truth.

H W bucket size, G padded objects, K classes, M side of the cropped masks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eql_jax.data.crops import crop_masks
from eql_jax.data.images import read_record_image, resize_and_pad
from eql_jax.data.records import ImageRecord
from eql_jax.data.transforms import Augmentation, Size, fit_size, output_size, resize_boxes

# Types of the arrays, in the order of the batch.
EVAL_DTYPES = {"image": "uint8", "image_size": "int32", "original_size": "int32", "image_id": "int64"}
TRAIN_DTYPES = EVAL_DTYPES | {
    "gt_boxes": "float32",
    "gt_classes": "int32",
    "gt_ignore": "bool",
    "gt_masks": "uint8",
    "verified_classes": "bool",
}


class ExampleShape(NamedTuple):
    """The padded sizes of ground truth: G objects, M x M masks, K classes."""

    max_objects: int
    mask_size: int
    num_classes: int


def eval_example(record: ImageRecord, *, bucket: Size, shorter_side: int, longest_side: int) -> dict[str, np.ndarray]:
    """Reads and resizes an image for evaluation or prediction.

    Returns:
      image uint8 [H, W, 3], image_size int32 [2], original_size int32 [2] (both height, width), image_id int64 [].

    Raises:
      ImageError: the file cannot be used.
    """
    return _pixels(record, bucket, shorter_side, longest_side, flip=False)


def train_example(
    record: ImageRecord, *, bucket: Size, augmentation: Augmentation, longest_side: int, shape: ExampleShape
) -> dict[str, np.ndarray]:
    """Reads, resizes and flips an image and makes its ground truth.

    Of more than G objects those with the largest boxes are kept, in the file's order.

    Returns:
      As `eval_example`, and gt_boxes float32 [G, 4], gt_classes int32 [G] (-1 padding), gt_ignore bool [G], gt_masks
      uint8 [G, M, M] and verified_classes bool [K] (annotated or verified absent in this image).

    Raises:
      ImageError: the file cannot be used.
    """
    side, flip = augmentation
    example = _pixels(record, bucket, side, longest_side, flip=flip)
    objects = record.objects
    chosen = largest_objects(objects.boxes, shape.max_objects)
    n = chosen.size

    boxes = np.zeros((shape.max_objects, 4), np.float32)
    classes = np.full(shape.max_objects, -1, np.int32)
    ignore = np.zeros(shape.max_objects, bool)
    masks = np.zeros((shape.max_objects, shape.mask_size, shape.mask_size), np.uint8)
    boxes[:n] = resize_boxes(
        objects.boxes[chosen], old=Size(record.height, record.width), new=Size(*example["image_size"]), flip=flip
    )
    classes[:n] = objects.classes[chosen]
    ignore[:n] = objects.ignore[chosen]
    # Box and mask scale together, so the crops are taken in the pixels of the file.
    masks[:n] = crop_masks(objects.segmentations, chosen, objects.boxes[chosen], mask_size=shape.mask_size, mirror=flip)
    verified = np.zeros(shape.num_classes, bool)
    verified[objects.classes] = True
    verified[record.neg_classes] = True
    return example | {
        "gt_boxes": boxes,
        "gt_classes": classes,
        "gt_ignore": ignore,
        "gt_masks": masks,
        "verified_classes": verified,
    }


def padding_example(*, bucket: Size) -> dict[str, np.ndarray]:
    """A row of an evaluation batch without an image: zeros, image_id -1, sizes those of the bucket (so never 0)."""
    return {
        "image": np.zeros((*bucket, 3), np.uint8),
        "image_size": np.array(bucket, np.int32),
        "original_size": np.array(bucket, np.int32),
        "image_id": np.array(-1, np.int64),
    }


def largest_objects(boxes: np.ndarray, max_objects: int) -> np.ndarray:
    """Returns the indices of at most max_objects boxes, those of largest area, rising. Ties keep the earlier."""
    if len(boxes) <= max_objects:
        return np.arange(len(boxes))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.sort(np.argsort(-areas, kind="stable")[:max_objects])


def _pixels(
    record: ImageRecord, bucket: Size, shorter_side: int, longest_side: int, *, flip: bool
) -> dict[str, np.ndarray]:
    image = read_record_image(record)
    wanted = output_size(image.height, image.width, shorter_side=shorter_side, longest_side=longest_side)
    size = fit_size(wanted, bucket)
    return {
        "image": resize_and_pad(image, size=size, bucket=bucket, flip=flip),
        "image_size": np.array(size, np.int32),
        "original_size": np.array([image.height, image.width], np.int32),
        "image_id": np.array(record.id, np.int64),
    }
