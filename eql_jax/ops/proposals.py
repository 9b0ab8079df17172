"""From the outputs of the region proposal network to the proposals of one image.

Shapes: n_l anchors of level l, P = post_nms proposals.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from eql_jax.ops import boxes as box_ops
from eql_jax.ops.nms import nms
from eql_jax.ops.topk import top_k

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class Proposals(NamedTuple):
    """Proposals of one image by falling logit, padded.

    Attributes:
      boxes: float32 [P, 4], clipped to the image; 0 in padding.
      logits: float32 [P]; -inf in padding.
      valid: bool [P], a prefix.
      level: int32 [P], place of the RPN level in the list; -1 in padding.
    """

    boxes: Array
    logits: Array
    valid: Array
    level: Array


def select_proposals(
    logits: Sequence[Array],
    deltas: Sequence[Array],
    anchors: Sequence[Array],
    image_size: Array,
    *,
    pre_nms: int,
    post_nms: int,
    iou_threshold: float,
    min_size: float = 0.0,
) -> Proposals:
    """The best proposals of an image (detectron2 `find_top_rpn_proposals`).

    On every level the `pre_nms` highest logits are decoded, clipped to the image and dropped if a side is not longer
    than `min_size`; NMS works within each level; of what all levels keep, the `post_nms` highest logits remain.

    Args:
      logits: per level [n_l], any float type.
      deltas: per level [n_l, 4], coded with weights (1, 1, 1, 1).
      anchors: per level [n_l, 4].
      image_size: (h, w) of the image without its padding.
      pre_nms: candidates per level.
      post_nms: P, proposals per image.
      iou_threshold: of NMS; an IoU strictly above it suppresses.
      min_size: pixels.

    Returns:
      `Proposals`, without gradient.

    Raises:
      ValueError: if the three lists differ in length or in the number of anchors of a level.
    """
    shapes = [[x.shape[0] for x in levels] for levels in (logits, deltas, anchors)]
    if not shapes[0] == shapes[1] == shapes[2]:
        raise ValueError(
            f"logits, deltas and anchors must agree level by level, got rows {shapes[0]}, {shapes[1]} and {shapes[2]}; "
            "anchors are made for the shapes of the feature maps, in the order (row, column, anchor)"
        )
    boxes, scores, levels = [], [], []
    for level, (level_logits, level_deltas, level_anchors) in enumerate(zip(logits, deltas, anchors, strict=True)):
        best = top_k(level_logits.astype(jnp.float32), pre_nms)
        chosen = lax.stop_gradient(level_deltas)[best.indices]
        boxes.append(box_ops.decode_boxes(chosen, jnp.asarray(level_anchors)[best.indices], weights=RPN_WEIGHTS))
        scores.append(best.values)
        levels.append(jnp.full(best.indices.shape, level, jnp.int32))
    boxes, scores, levels = jnp.concatenate(boxes), jnp.concatenate(scores), jnp.concatenate(levels)

    # Tested before clipping, which would turn an infinite corner into the image's edge.
    usable = jnp.all(jnp.isfinite(boxes), axis=-1) & jnp.isfinite(scores)
    boxes = box_ops.clip_boxes(boxes, image_size)
    usable &= box_ops.nonempty(boxes, min_size=min_size)
    # Greedy NMS over all levels at once, by falling logit, with levels as groups: its first P are the best P of the
    # levels' own results, and it stops when it has them.
    kept = nms(boxes, scores, iou_threshold=iou_threshold, max_output=post_nms, valid=usable, groups=levels)
    return Proposals(
        boxes=jnp.where(kept.valid[:, None], boxes[kept.indices], 0),
        logits=jnp.where(kept.valid, scores[kept.indices], -jnp.inf),
        valid=kept.valid,
        level=jnp.where(kept.valid, levels[kept.indices], -1),
    )
