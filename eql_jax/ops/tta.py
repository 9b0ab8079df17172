"""The geometry of test-time augmentation: between an image file and its resized, perhaps mirrored views.

Shapes: B images, n boxes of an image, D = max_detections. Boxes are float32 XYXY in absolute pixels, sizes are (height,
width) without padding.

The numbers are those of detectron2's GeneralizedRCNNWithTTA: a view is resized first and mirrored then, boxes are
scaled by the true ratio of the sizes on each axis, and a mirrored x is width - x.
"""

import jax.numpy as jnp
from jax import Array, lax

from eql_jax.ops import boxes as box_ops
from eql_jax.ops.detections import Detections
from eql_jax.ops.nms import nms

MIN_SCORE = 1e-8  # of merged boxes, strictly above, whatever threshold the views had


def mirror_image(image: Array, image_size: Array) -> Array:
    """An image [H, W, C] mirrored left to right within its own width; the padding stays right of it."""
    column, width = jnp.arange(image.shape[1]), image_size[1]
    return image[:, jnp.where(column < width, width - 1 - column, column)]


def mirror_boxes(boxes: Array, image_size: Array) -> Array:
    """Boxes [B, n, 4] of images of image_size [B, 2], mirrored left to right."""
    width = image_size[:, None, 1].astype(jnp.float32)
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)


def scale_boxes(boxes: Array, from_size: Array, to_size: Array) -> Array:
    """Boxes [B, n, 4] of images of from_size [B, 2] in the pixels of the same images at to_size [B, 2]."""
    ratio = to_size.astype(jnp.float32) / from_size.astype(jnp.float32)
    return boxes * ratio[:, None, jnp.array([1, 0, 1, 0])]


def boxes_from_view(boxes: Array, view_size: Array, file_size: Array, mirrored: Array) -> Array:
    """Boxes [B, n, 4] of a view in the pixels of the image file; mirrored: bool scalar, the view is."""
    boxes = jnp.where(mirrored, mirror_boxes(boxes, view_size), boxes)
    return scale_boxes(boxes, view_size, file_size)


def boxes_to_view(boxes: Array, view_size: Array, file_size: Array, mirrored: Array) -> Array:
    """The inverse of `boxes_from_view`."""
    boxes = scale_boxes(boxes, file_size, view_size)
    return jnp.where(mirrored, mirror_boxes(boxes, view_size), boxes)


def merge_detections(
    boxes: Array, scores: Array, classes: Array, file_size: Array, *, iou_threshold: float, max_detections: int
) -> Detections:
    """One set of detections of an image from those of all its views.

    Args:
      boxes: [n, 4] in pixels of the file, all views one after the other.
      scores: [n]; 0 in padding. Of equal scores the earlier goes first.
      classes: int [n]; -1 in padding.
      file_size: [2] (height, width).
      iou_threshold: of NMS within a class; an IoU strictly above it suppresses.
      max_detections: D.

    Returns:
      `Detections`: boxes clipped to the image, possibly of size 0; proposal_index is the row of the input.
    """
    boxes, scores = lax.stop_gradient((boxes, scores))
    usable = (scores > MIN_SCORE) & (classes >= 0) & jnp.all(jnp.isfinite(boxes), axis=-1)
    boxes = box_ops.clip_boxes(boxes, file_size)
    kept = nms(boxes, scores, iou_threshold=iou_threshold, max_output=max_detections, valid=usable, groups=classes)
    take = kept.indices
    return Detections(
        boxes=jnp.where(kept.valid[:, None], boxes[take], 0),
        scores=jnp.where(kept.valid, scores[take], 0),
        classes=jnp.where(kept.valid, classes[take], -1).astype(jnp.int32),
        proposal_index=jnp.where(kept.valid, take, -1).astype(jnp.int32),
        exact=jnp.array(True),
    )
