"""Which ground truth an anchor or proposal belongs to, and whether it counts as object, background or neither.

Shapes: N anchors or proposals of one image, G ground-truth boxes (padded).

Memory is O(N): the N x G overlaps (a third of a gigabyte for a large image) never exist. A loop goes over the ground
truth that is there and keeps the running best of every box.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from eql_jax.ops import boxes as box_ops

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
# Ground truths handled at a time. Measured on CPU (268k anchors, 20 objects): 64, 29, 26, 34 ms for 1, 2, 4, 8.
_CHUNK = 4
# A box with at least this share of its area in an ignore region is no proof of background.
_IGNORE_SHARE = 0.5


class Matches(NamedTuple):
    """The outcome of matching N boxes.

    Attributes:
      labels: int32 [N]: 1 object, 0 background, -1 takes no part.
      matched_index: int32 [N] into the ground truth: the one of highest IoU, of equal ones the first. Meaningless (but
        in range) for boxes that meet none.
      iou: float32 [N] with that ground truth; 0 if there is none.
    """

    labels: Array
    matched_index: Array
    iou: Array


@custom_vmap
def _batch_max(value: Array) -> Array:
    """The identity; under vmap the maximum over the batch, the same for all.

    As the bound of a loop this keeps the loop's predicate unbatched. A batched one would make XLA select between old
    and new state of every image at every step, which costs as much as the step.
    """
    return value


@_batch_max.def_vmap
def _batch_max_rule(axis_size, in_batched, value):
    del axis_size
    return _batch_max(jnp.max(value) if in_batched[0] else value), False


def match_boxes(
    boxes: Array,
    gt_boxes: Array,
    *,
    gt_valid: Array,
    gt_ignore: Array | None = None,
    boxes_valid: Array | None = None,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool = False,
) -> Matches:
    """Labels boxes by their overlap with the ground truth (detectron2 Matcher; Faster R-CNN, section 3.1.2).

    A box is an object if its best IoU is at least `positive_iou`, background if it is below `negative_iou`, and takes
    no part in between. Anchors are matched with (0.7, 0.3, low_quality=True), proposals with (0.5, 0.5).

    Args:
      boxes: [N, 4] anchors or proposals.
      gt_boxes: [G, 4], G may be 0.
      gt_valid: bool [G], False for padding, which never matches.
      gt_ignore: bool [G], crowd and ignore regions. They never make a box positive, but a box that has half of its area
        or more in one of them and is not positive is labelled -1.
      boxes_valid: bool [N]; other boxes are labelled -1 and are nobody's best.
      positive_iou, negative_iou: thresholds, negative_iou <= positive_iou.
      low_quality: also make positive, for every ground truth, the boxes of its highest IoU, all of them if several
        share it exactly. They keep their own best ground truth as match, which may be another. A ground truth that
        meets no box makes none positive (detectron2 would take every box of IoU 0).

    Returns:
      `Matches`, without gradient.

    Raises:
      ValueError: if the thresholds are in the wrong order.
    """
    if negative_iou > positive_iou:
        raise ValueError(f"negative_iou must not exceed positive_iou, got {negative_iou} and {positive_iou}")
    boxes, gt_boxes = lax.stop_gradient((boxes.astype(jnp.float32), gt_boxes.astype(jnp.float32)))
    count, gt_count = boxes.shape[0], gt_boxes.shape[0]
    if boxes_valid is None:
        boxes_valid = jnp.ones(count, bool)
    if gt_ignore is None:
        gt_ignore = jnp.zeros(gt_count, bool)
    if count == 0 or gt_count == 0:
        labels = jnp.where(boxes_valid, NEGATIVE, IGNORED).astype(jnp.int32)
        return Matches(labels, jnp.zeros(count, jnp.int32), jnp.zeros(count, jnp.float32))

    pad = -gt_count % _CHUNK
    gt_boxes = jnp.pad(gt_boxes, ((0, pad), (0, 0)))
    is_object = jnp.pad(gt_valid & ~gt_ignore, (0, pad))
    is_ignore = jnp.pad(gt_valid & gt_ignore, (0, pad))
    used = jnp.max(jnp.where(is_object | is_ignore, jnp.arange(gt_count + pad) + 1, 0))
    chunks = _batch_max((used + _CHUNK - 1) // _CHUNK)

    # Coordinates as four contiguous vectors: a [N, 4] array would be read with a stride at every step of the loop.
    corners = lax.optimization_barrier(jnp.transpose(boxes))
    areas = lax.optimization_barrier(box_ops.area(boxes))

    def step(chunk, state):
        best, index, lowest, ignored = state
        start = chunk * _CHUNK
        gt = lax.dynamic_slice_in_dim(gt_boxes, start, _CHUNK)
        real = lax.dynamic_slice_in_dim(is_object, start, _CHUNK)
        ignore = lax.dynamic_slice_in_dim(is_ignore, start, _CHUNK)
        common = _intersection_rows(corners, gt)  # [chunk, N]
        union = areas + box_ops.area(gt)[:, None] - common
        iou = jnp.where(common > 0, common / jnp.where(common > 0, union, 1), 0)
        highest = jnp.max(jnp.where(boxes_valid, iou, 0), axis=1)
        for k in range(_CHUNK):
            if low_quality:
                lowest = jnp.where(real[k] & (highest[k] > 0) & (iou[k] == highest[k]), 1, lowest)
            better = real[k] & (iou[k] > best)
            best = jnp.where(better, iou[k], best)
            index = jnp.where(better, start + k, index)
            ignored = jnp.where(ignore[k] & (common[k] > 0) & (common[k] >= _IGNORE_SHARE * areas), 1, ignored)
        return best, index, lowest, ignored

    # int32 flags: with bools in the state the CPU compiler stops vectorising the whole step.
    flags = jnp.zeros(count, jnp.int32)
    start = (jnp.full(count, -1, jnp.float32), jnp.zeros(count, jnp.int32), flags, flags)
    best, index, lowest, ignored = lax.fori_loop(0, chunks, step, start)

    best = jnp.maximum(best, 0)
    positive = (best >= positive_iou) | (lowest > 0)
    negative = (best < negative_iou) & (ignored == 0)
    labels = jnp.where(positive, POSITIVE, jnp.where(negative, NEGATIVE, IGNORED))
    labels = jnp.where(boxes_valid, labels, IGNORED).astype(jnp.int32)
    return Matches(labels, index, best)


def _intersection_rows(corners: Array, gt: Array) -> Array:
    """Common areas [C, N] of boxes given as `corners` [4, N] with `gt` [C, 4]; `boxes.intersection`, transposed."""
    width = jnp.minimum(corners[2], gt[:, 2, None]) - jnp.maximum(corners[0], gt[:, 0, None])
    height = jnp.minimum(corners[3], gt[:, 3, None]) - jnp.maximum(corners[1], gt[:, 1, None])
    return box_ops.exact_product(jnp.maximum(width, 0), jnp.maximum(height, 0))
