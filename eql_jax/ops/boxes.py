"""Box arithmetic: areas, overlaps, the (dx, dy, dw, dh) coding and clipping.

Shapes: N, M, P boxes, K classes. A box is float32 (x1, y1, x2, y2) in absolute pixels, x2 and y2 exclusive: its width
is x2 - x1, with no + 1.

The overlaps equal those of plain float32 arithmetic bit for bit (see `exact_product`), so that thresholds and ties fall
as they do in NumPy and in detectron2.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

# exp() of a larger log-scale would blow a stride-16 cell up to over 1000 pixels (detectron2: _DEFAULT_SCALE_CLAMP).
MAX_LOG_SCALE = math.log(1000.0 / 16)


def exact_product(a: Array, b: Array) -> Array:
    """Returns `a * b` rounded to its type even where the compiler would like to fuse it with a following sum.

    XLA contracts `c - a * b` into one multiply-add of higher precision in one fusion and not in another, so the same
    overlap computed twice may differ in its last bit. That breaks tests for equality ("is this the best anchor of the
    object?") and decisions at a threshold. A minimum that never changes a finite value stands between product and sum.
    """
    product = a * b
    return jnp.minimum(product, jnp.finfo(product.dtype).max)


def area(boxes: Array) -> Array:
    """Areas [...] in square pixels of boxes [..., 4]; not clamped, so an inverted box gives a meaningless value."""
    return exact_product(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1])


def intersection(a: Array, b: Array) -> Array:
    """Areas [...] of the common parts of boxes a [..., 4] and b [..., 4], broadcast against each other."""
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    return exact_product(jnp.maximum(width, 0), jnp.maximum(height, 0))


def pairwise_iou(a: Array, b: Array) -> Array:
    """Intersection over union [N, M] of boxes a [N, 4] and b [M, 4]; 0 where they do not meet, empty boxes included."""
    common = intersection(a[:, None], b[None])
    union = area(a)[:, None] + area(b)[None] - common
    return jnp.where(common > 0, common / jnp.where(common > 0, union, 1), 0)


def pairwise_ioa(a: Array, b: Array) -> Array:
    """Intersection over the area of a, [N, M], of boxes a [N, 4] and b [M, 4]; 0 where they do not meet."""
    common = intersection(a[:, None], b[None])
    return jnp.where(common > 0, common / jnp.where(common > 0, area(a)[:, None], 1), 0)


def encode_boxes(boxes: Array, proposals: Array, *, weights: tuple[float, float, float, float]) -> Array:
    """Deltas that carry proposals onto boxes (R-CNN, appendix C; detectron2 Box2BoxTransform.get_deltas).

    Args:
      boxes: [..., 4] targets.
      proposals: [..., 4] anchors or proposals, broadcast against `boxes`.
      weights: factors of (dx, dy, dw, dh): (1, 1, 1, 1) in the RPN, (10, 10, 5, 5) in the box head.

    Returns:
      [..., 4] float32 (dx, dy, dw, dh). A row where either box has a side <= 0 (padding) is 0, never NaN, so that it
      can be masked out of a loss without poisoning the gradient; detectron2 refuses such rows.
    """
    source_size = proposals[..., 2:] - proposals[..., :2]
    target_size = boxes[..., 2:] - boxes[..., :2]
    source_centre = proposals[..., :2] + 0.5 * source_size
    target_centre = boxes[..., :2] + 0.5 * target_size
    proper = jnp.all((source_size > 0) & (target_size > 0), axis=-1, keepdims=True)
    source_size = jnp.where(proper, source_size, 1)
    target_size = jnp.where(proper, target_size, 1)
    shift = (target_centre - source_centre) / source_size
    scale = jnp.log(target_size / source_size)
    deltas = jnp.concatenate([shift, scale], axis=-1) * jnp.asarray(weights, jnp.float32)
    return jnp.where(proper, deltas, 0)


def decode_boxes(
    deltas: Array,
    boxes: Array,
    *,
    weights: tuple[float, float, float, float],
    max_log_scale: float = MAX_LOG_SCALE,
) -> Array:
    """Boxes that deltas carry anchors or proposals to (detectron2 Box2BoxTransform.apply_deltas). Not clipped.

    Args:
      deltas: [..., 4], or class-specific [P, K, 4].
      boxes: [..., 4] of the shape of `deltas`, or [P, 4] for class-specific deltas.
      weights: the factors the deltas were encoded with.
      max_log_scale: dw and dh, after division by their weights, are clamped to this from above.

    Returns:
      float32 of the shape of `deltas`.
    """
    deltas = deltas.astype(jnp.float32)
    boxes = boxes.astype(jnp.float32)
    if deltas.ndim == boxes.ndim + 1:
        boxes = boxes[..., None, :]
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    deltas = deltas / jnp.asarray(weights, jnp.float32)
    new_centre = deltas[..., :2] * size + centre
    new_size = jnp.exp(jnp.minimum(deltas[..., 2:], max_log_scale)) * size
    return jnp.concatenate([new_centre - 0.5 * new_size, new_centre + 0.5 * new_size], axis=-1)


def clip_boxes(boxes: Array, image_size: Array) -> Array:
    """Boxes [..., 4] cut to the image: x to [0, w], y to [0, h]. `image_size` is (h, w), any integer or float type."""
    height, width = jnp.asarray(image_size[0], boxes.dtype), jnp.asarray(image_size[1], boxes.dtype)
    limit = jnp.stack([width, height, width, height])
    return jnp.clip(boxes, 0, limit)


def nonempty(boxes: Array, *, min_size: float = 0.0) -> Array:
    """Bool [...]: both sides of boxes [..., 4] are longer than `min_size` pixels (strictly) and all corners finite."""
    size = boxes[..., 2:] - boxes[..., :2]
    return jnp.all(size > min_size, axis=-1) & jnp.all(jnp.isfinite(boxes), axis=-1)


def float32_at_most(value: float) -> np.float32:
    """The largest float32 that does not exceed `value`.

    torchvision compares float32 overlaps with a double threshold. `overlap > float32_at_most(threshold)` decides the
    same in float32, also for thresholds such as 0.3 whose nearest float32 lies above them.
    """
    nearest = np.float32(value)
    return np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > value else nearest
