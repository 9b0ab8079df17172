"""Cascade Mask R-CNN (Cai & Vasconcelos 2018), as detectron2's CascadeROIHeads has it.

Each stage has a box head of its own; the boxes that one makes are the RoIs of the next, which is trained on them with a
higher IoU of what counts as an object. Shapes as in `mask_rcnn`; S stages.
"""

import functools

import jax
import jax.numpy as jnp

from eql_jax.models.box_head import BoxHead
from eql_jax.models.mask_rcnn import MaskRCNN
from eql_jax.models.per_image import map_images
from eql_jax.models.structures import BoxOutputs, ClassRules
from eql_jax.models.targets import GroundTruth, RematchedRoIs, RoITargets, rematched_targets
from eql_jax.ops.boxes import clip_boxes, decode_boxes

Weights = tuple[float, float, float, float]


class CascadeMaskRCNN(MaskRCNN):
    """Mask R-CNN with the box heads box_head_0, box_head_1, .. in place of one; the mask head is that of MaskRCNN.

    Boxes are class-agnostic. Proposals are sampled once, for the first stage, whose foreground RoIs are also those that
    the mask head is trained on.
    """

    def setup_box_heads(self) -> None:
        if not self.config.box_head.class_agnostic_boxes:
            raise ValueError(
                "box_head.class_agnostic_boxes is False; a cascade hands one box per RoI to the next stage"
            )
        self.box_heads = [self.make_box_head(f"box_head_{i}") for i in range(len(self.config.cascade.ious))]

    @property
    def stage_weights(self) -> tuple[Weights, ...]:
        """Weights of the deltas of each stage."""
        return tuple((w, w, w / 2, w / 2) for w in self.config.cascade.box_weights)

    @property
    def sample_weights(self) -> Weights:
        """Weights of the first stage, which the sampled RoIs are for."""
        return self.stage_weights[0]

    @property
    def output_weights(self) -> Weights:
        """Weights of the last stage, whose boxes are the result."""
        return self.stage_weights[-1]

    def run_stage(
        self, stage: int, pyramid: list[jax.Array], boxes: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Boxes [B,R,4] -> class logits [B,R,C] and deltas [B,R,4] of a stage.

        The gradient that the features get is divided by S, that of the head is not: detectron2's form of averaging the
        stages' losses and giving the heads S times the rate.
        """
        pooled = self.pool(pyramid, boxes, self.config.box_head.pool_size)
        head: BoxHead = self.box_heads[stage]
        hidden = head.hidden(scale_gradient(pooled, 1 / len(self.box_heads)), train=train)
        rows = boxes.shape[:2]
        return head.logits(hidden).reshape(*rows, -1), head.all_deltas(hidden).reshape(*rows, 4)

    def refine(self, stage: int, boxes: jax.Array, deltas: jax.Array, image_size: jax.Array) -> jax.Array:
        """Boxes and deltas [B,R,4] of a stage -> the next one's boxes, cut to the image; no gradient."""
        decoded = decode_boxes(deltas, boxes, weights=self.stage_weights[stage])
        return jax.lax.stop_gradient(map_images(clip_boxes)(decoded, image_size))

    def box_outputs(self, pyramid: list[jax.Array], boxes: jax.Array, image_size: jax.Array) -> BoxOutputs:
        """Scores averaged over the stages; deltas of the last stage and the boxes that they start from.

        Boxes that became empty stay, so that the stages' scores are of the same rows.
        """
        total = 0.0
        for stage in range(len(self.box_heads)):
            logits, deltas = self.run_stage(stage, pyramid, boxes)
            total += self.box_heads[stage].scores(logits)
            if stage + 1 < len(self.box_heads):
                refined = self.refine(stage, boxes, deltas, image_size)
                boxes = jnp.where(jnp.isfinite(refined), refined, 0)
        scores = self.calibrated(total / len(self.box_heads))
        return BoxOutputs(scores, deltas[:, :, None], boxes)

    def roi_losses(
        self,
        pyramid: list[jax.Array],
        image_size: jax.Array,
        sample: RoITargets,
        gt: GroundTruth,
        rules: ClassRules,
        mask_targets: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """As MaskRCNN.roi_losses; cls and box are sums over the stages, with cls_stage0, box_stage0, .. beside them.

        num_foreground is that of the first stage; num_foreground_stage1, .. those of the others.
        """
        terms = {"cls": 0.0, "box": 0.0}
        rois, present = sample, sample.classes >= 0
        for stage in range(len(self.box_heads)):
            logits, deltas = self.run_stage(stage, pyramid, rois.boxes, train=True)
            found = self.stage_losses(stage, logits, deltas, rois, gt, rules.of_stage(stage))
            terms |= {"cls": terms["cls"] + found["cls"], "box": terms["box"] + found["box"]}
            terms |= {f"{name}_stage{stage}": value for name, value in found.items()}
            if stage + 1 < len(self.box_heads):
                boxes = self.refine(stage, rois.boxes, deltas, image_size)
                rois, present = self.rematch(stage + 1, boxes, present, gt)
        terms["num_foreground"] = terms.pop("num_foreground_stage0")
        return terms | self.sampled_mask_losses(pyramid, sample, gt, mask_targets)

    def rematch(self, stage: int, boxes: jax.Array, present: jax.Array, gt: GroundTruth) -> RematchedRoIs:
        """Boxes [B,R,4], of which those `present` (bool [B,R]) count, as the RoIs that a stage is trained on."""

        def one(boxes, present, gt):
            return rematched_targets(
                boxes,
                present,
                gt,
                iou=self.config.cascade.ious[stage],
                num_classes=self.num_classes,
                box_weights=self.stage_weights[stage],
            )

        return map_images(one)(boxes, present, gt)

    def stage_losses(
        self,
        stage: int,
        logits: jax.Array,
        deltas: jax.Array,
        rois: RoITargets,
        gt: GroundTruth,
        rules: ClassRules,
    ) -> dict[str, jax.Array]:
        """cls, box and num_foreground of one stage, over its own number of RoIs.

        Later stages may have more foreground than the sampling allows, in any slot: all slots are looked at.
        """
        foreground = (rois.classes >= 0) & (rois.classes < self.num_classes)
        count = jnp.sum(rois.classes >= 0)
        return {
            "cls": self.classification_loss(self.box_heads[stage], logits, rois.classes, rules),
            "box": self.box_loss(deltas, rois, gt, foreground, weights=self.stage_weights[stage], normalizer=count),
            "num_foreground": jnp.sum(foreground).astype(jnp.float32),
        }


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """x, whose gradient is multiplied by `factor` on the way back."""
    return x


scale_gradient.defvjp(lambda x, factor: (x, None), lambda factor, _, grad: (grad * factor,))
