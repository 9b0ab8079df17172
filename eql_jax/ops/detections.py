"""From the outputs of the box head to the detections of one image.

Shapes: R proposals, K foreground classes, D = max_detections, C = candidates.

A low threshold over many classes leaves up to R * K pairs (1.2 million at 1203 classes) for NMS. Only the C best pairs
are decoded and looked at here. Greedy NMS takes pairs by falling score, so the result is that of all pairs whenever D
were kept, or when no pair over the threshold was left out; `Detections.exact` says whether that holds.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from eql_jax.ops import boxes as box_ops
from eql_jax.ops.nms import nms_sorted
from eql_jax.ops.topk import top_k


class Detections(NamedTuple):
    """Detections of one image by falling score, padded.

    Attributes:
      boxes: float32 [D, 4], clipped to the image, possibly of size 0; 0 in padding.
      scores: float32 [D]; 0 in padding.
      classes: int32 [D]; -1 in padding.
      proposal_index: int32 [D], the proposal a detection comes from (one may give several classes); -1 in padding.
      exact: bool, the result is the same as with all R * K pairs as candidates. If False, repeat with more candidates.
    """

    boxes: Array
    scores: Array
    classes: Array
    proposal_index: Array
    exact: Array


def select_detections(
    scores: Array,
    deltas: Array,
    proposals: Array,
    image_size: Array,
    *,
    proposals_valid: Array | None = None,
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    candidates: int,
) -> Detections:
    """The best detections of an image (detectron2 `fast_rcnn_inference`).

    Args:
      scores: [R, K] probabilities of the foreground classes (softmax heads: without the background column). Equal
        scores are ordered by proposal, then class.
      deltas: [R, K, 4], or [R, 1, 4] for class-agnostic boxes.
      proposals: [R, 4].
      image_size: (h, w) of the image without its padding.
      proposals_valid: bool [R], False for padding.
      box_weights: the factors the deltas were encoded with.
      score_threshold: scores must be strictly above it.
      iou_threshold: of NMS within a class; an IoU strictly above it suppresses.
      max_detections: D.
      candidates: C, pairs that enter NMS at most.

    Returns:
      `Detections`, without gradient. Boxes that clipping made empty are still among them: detectron2 drops them after
      the final scaling to the original image, and so should the caller.

    Raises:
      ValueError: if the shapes do not fit.
    """
    num_proposals, num_classes = scores.shape
    if deltas.shape not in ((num_proposals, num_classes, 4), (num_proposals, 1, 4)):
        raise ValueError(
            f"deltas must be [R, K, 4] or [R, 1, 4] for scores [R, K] = {scores.shape}, got {deltas.shape}; reshape "
            "the predictor's [R, 4K] first"
        )
    scores, deltas, proposals = lax.stop_gradient((scores.astype(jnp.float32), deltas, proposals))
    # Also takes NaN out of the way, which a top-k would put first.
    wanted = scores > score_threshold
    if proposals_valid is not None:
        wanted &= proposals_valid[:, None]
    best = top_k(jnp.where(wanted, scores, -jnp.inf).reshape(-1), candidates)
    considered = best.indices.shape[0]
    row, label = best.indices // num_classes, best.indices % num_classes
    delta = deltas[row, 0 if deltas.shape[1] == 1 else label]
    boxes = box_ops.decode_boxes(delta, proposals[row], weights=box_weights)
    usable = (best.values > -jnp.inf) & jnp.all(jnp.isfinite(boxes), axis=-1)
    boxes = box_ops.clip_boxes(boxes, image_size)
    kept = nms_sorted(
        boxes, iou_threshold=iou_threshold, max_output=max_detections, valid=usable, groups=label.astype(jnp.int32)
    )
    nothing_left_out = considered == scores.size or best.values[-1] == -jnp.inf
    take = kept.indices
    return Detections(
        boxes=jnp.where(kept.valid[:, None], boxes[take], 0),
        scores=jnp.where(kept.valid, best.values[take], 0),
        classes=jnp.where(kept.valid, label[take], -1).astype(jnp.int32),
        proposal_index=jnp.where(kept.valid, row[take], -1).astype(jnp.int32),
        exact=jnp.all(kept.valid) | nothing_left_out,
    )
