"""What the stages of a detector hand to each other and to their users.

Shapes: B images, P proposals, R sampled RoIs, F foreground slots, K foreground classes (background = K, padding = -1),
D detections, M side of a mask. Boxes are float32 XYXY pixels of the resized image.
"""

from typing import NamedTuple

import jax

from eql_jax.models.targets import GroundTruth, RoITargets


class Detections(NamedTuple):
    """Detections of a batch by falling score; rows past the last one have score 0 and class -1.

    boxes [B,D,4], scores [B,D], classes [B,D] int32, masks [B,D,M,M] probabilities ([B,D,0,0] without a mask head),
    proposal_index [B,D] int32 and exact [B] bool: False if more candidates could have changed the result (see
    ops.detections).
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    masks: jax.Array
    proposal_index: jax.Array
    exact: jax.Array


class ClassRules(NamedTuple):
    """What the classification loss is told about the classes of a batch; None where there is nothing to tell.

    verified [B,K] bool: classes that EQL spares nothing in that image. annotated [B,K] bool: classes that get no
    negatives from an image are False. key: PRNG key of the step, for losses that draw.
    """

    verified: jax.Array | None = None
    annotated: jax.Array | None = None
    key: jax.Array | None = None

    def of_stage(self, stage: int) -> "ClassRules":
        """The same, with a key of its own for one of several heads."""
        return self if self.key is None else self._replace(key=jax.random.fold_in(self.key, stage))


class TrainingSample(NamedTuple):
    """What the heads are trained on, of a batch.

    pyramid: features of all levels; gt: its ground truth (batched); rois: the sampled RoIs (batched); rpn_terms: losses
    and counts of the RPN.
    """

    pyramid: list[jax.Array]
    gt: GroundTruth
    rois: RoITargets
    rpn_terms: dict[str, jax.Array]


class BoxOutputs(NamedTuple):
    """What the box heads say of P proposals, before NMS.

    scores [B,P,K] probabilities; deltas [B,P,K,4], or [B,P,1,4] when class-agnostic, under the model's
    `output_weights`; boxes [B,P,4] that the deltas start from.
    """

    scores: jax.Array
    deltas: jax.Array
    boxes: jax.Array


class ForegroundSlots(NamedTuple):
    """The first F of the sampled RoIs, which the foreground ones fill: boxes and masks are computed for those alone.

    boxes [B,F,4]; matched [B,F]; classes [B*F], 0 where there is no object; is_object bool [B*F].
    """

    boxes: jax.Array
    matched: jax.Array
    classes: jax.Array
    is_object: jax.Array
