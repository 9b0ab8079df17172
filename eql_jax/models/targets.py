"""What the RPN and the RoI heads are trained on: labels of anchors, sampled RoIs and their ground truth.

Per image; the model maps them over the batch. Shapes: N anchors, G padded ground truth (class -1 is padding), P
proposals, R sampled RoIs of which the first F slots hold the foreground ones, K foreground classes (background = K).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from eql_jax.ops import boxes as box_ops
from eql_jax.ops import matching, sampling


class GroundTruth(NamedTuple):
    """Objects of an image: boxes [G,4], classes [G] (-1 padding), ignore [G] bool, masks [G,M,M] cropped to the box.

    has_mask: [G] bool, objects whose mask is known; None: all.
    """

    boxes: jax.Array
    classes: jax.Array
    ignore: jax.Array
    masks: jax.Array
    has_mask: jax.Array | None = None


class RPNTargets(NamedTuple):
    """labels [N]: 1 positive, 0 negative, -1 not sampled; deltas [N,4] to the matched box (read on positives only)."""

    labels: jax.Array
    deltas: jax.Array


class RoITargets(NamedTuple):
    """RoIs to train the heads on.

    boxes [R,4]; classes [R] with K = background and -1 = empty slot; matched [R]: index of the ground truth (0 where
    there is none); deltas [R,4] to its box under the box head's weights.
    """

    boxes: jax.Array
    classes: jax.Array
    matched: jax.Array
    deltas: jax.Array


def rpn_targets(anchors: jax.Array, gt: GroundTruth, key: jax.Array, config, *, rule: str = "random") -> RPNTargets:
    """Labels and samples the anchors of an image as detectron2 does (`config` is config.model.rpn).

    rule: 'random', or 'spread' for the deterministic rule of the golden tests (then `key` is not read).
    """
    match = matching.match_boxes(
        anchors,
        gt.boxes,
        gt_valid=gt.classes >= 0,
        gt_ignore=gt.ignore,
        positive_iou=config.positive_iou,
        negative_iou=config.negative_iou,
        low_quality=True,
    )
    labels = sampling.sample_anchors(
        match.labels, num=config.batch_per_image, positive_fraction=config.positive_fraction, key=key, rule=rule
    )
    deltas = box_ops.encode_boxes(gt.boxes[match.matched_index], anchors, weights=(1.0, 1.0, 1.0, 1.0))
    return RPNTargets(labels, jax.lax.stop_gradient(deltas))


def roi_targets(
    proposals: jax.Array,
    proposal_valid: jax.Array,
    gt: GroundTruth,
    key: jax.Array,
    config,
    *,
    num_classes: int,
    box_weights: tuple[float, float, float, float],
    rule: str = "random",
) -> RoITargets:
    """Appends the ground truth to the proposals [P,4], matches and samples (`config` is config.model.roi)."""
    is_object = (gt.classes >= 0) & ~gt.ignore
    boxes = jnp.concatenate([proposals, gt.boxes])
    valid = jnp.concatenate([proposal_valid, is_object])
    match = matching.match_boxes(
        boxes,
        gt.boxes,
        gt_valid=gt.classes >= 0,
        gt_ignore=gt.ignore,
        boxes_valid=valid,
        positive_iou=config.positive_iou,
        negative_iou=config.positive_iou,
    )
    picked = sampling.sample_rois(
        match.labels, num=config.batch_per_image, positive_fraction=config.positive_fraction, key=key, rule=rule
    )
    rois = boxes[picked.indices]
    matched = match.matched_index[picked.indices]
    classes = jnp.where(picked.foreground, gt.classes[matched], num_classes)
    classes = jnp.where(picked.valid, classes, -1)
    deltas = box_ops.encode_boxes(gt.boxes[matched], rois, weights=box_weights)
    return jax.tree.map(jax.lax.stop_gradient, RoITargets(rois, classes, matched, deltas))


class RematchedRoIs(NamedTuple):
    """RoIs of a further cascade stage, and which of them there are (bool [R]): the others have class -1."""

    targets: RoITargets
    present: jax.Array


def rematched_targets(
    boxes: jax.Array,
    present: jax.Array,
    gt: GroundTruth,
    *,
    iou: float,
    num_classes: int,
    box_weights: tuple[float, float, float, float],
) -> RematchedRoIs:
    """Labels all of an image's refined boxes [R,4] anew (detectron2's CascadeROIHeads._match_and_label_boxes).

    Nothing is sampled and no ground truth is appended. Boxes that are empty or not finite drop out, like those that
    were not `present` (bool [R]) before. Boxes with half of their area in an ignore region are neither foreground nor
    background of this stage, and stay present.
    """
    present &= box_ops.nonempty(boxes)
    boxes = jnp.where(present[:, None], boxes, 0)
    match = matching.match_boxes(
        boxes,
        gt.boxes,
        gt_valid=gt.classes >= 0,
        gt_ignore=gt.ignore,
        boxes_valid=present,
        positive_iou=iou,
        negative_iou=iou,
    )
    classes = jnp.where(match.labels == matching.POSITIVE, gt.classes[match.matched_index], num_classes)
    classes = jnp.where(match.labels == matching.IGNORED, -1, classes)
    deltas = box_ops.encode_boxes(gt.boxes[match.matched_index], boxes, weights=box_weights)
    targets = RoITargets(boxes, classes, match.matched_index, deltas)
    return jax.tree.map(jax.lax.stop_gradient, RematchedRoIs(targets, present))
