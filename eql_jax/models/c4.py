"""Mask R-CNN on res4 alone, the "C4" models: res5 is part of the RoI heads (detectron2's Res5ROIHeads).

RoIs are pooled from res4 at config.box_head.pool_size (14), res5 halves that to 7 x 7; its mean classifies and refines
them, and the map itself goes to the mask head, whose masks are of 14 x 14. In training both share the features of the
foreground RoIs; at inference masks are pooled anew from the detected boxes. Shapes as in `mask_rcnn`; S pooled side
after res5, C channels of res5.
"""

import jax
import jax.numpy as jnp

from eql_jax.models.backbones import make_stage
from eql_jax.models.box_head import BoxHead
from eql_jax.models.mask_rcnn import MaskRCNN
from eql_jax.models.structures import ClassRules
from eql_jax.models.targets import GroundTruth, RoITargets


class C4MaskRCNN(MaskRCNN):
    """MaskRCNN with the module `res5` between pooling and heads; box_head has only its two linear layers."""

    def setup_box_heads(self) -> None:
        h = self.config.box_head
        dtype = jnp.dtype(self.config.dtype)
        self.res5 = make_stage(self.config, 5, dtype, remat=self.remat)
        self.box_head = BoxHead(
            self.class_loss,
            num_fc=0,
            class_agnostic_boxes=h.class_agnostic_boxes,
            prior=h.prior,
            classifier=h.classifier,
            cosine_temperature=h.cosine_temperature,
            dtype=dtype,
        )

    def shared(self, pyramid: list[jax.Array], boxes: jax.Array, *, train: bool = False) -> jax.Array:
        """Boxes [B,R,4] -> res5 of what is pooled from res4, [B*R,S,S,C]."""
        return self.res5(self.pool(pyramid, boxes, self.config.box_head.pool_size), train=train)

    def box_hidden(self, pyramid: list[jax.Array], boxes: jax.Array, *, train: bool = False) -> jax.Array:
        return jnp.mean(self.shared(pyramid, boxes, train=train), axis=(1, 2))

    def mask_logits(
        self, pyramid: list[jax.Array], boxes: jax.Array, classes: jax.Array, *, train: bool = False
    ) -> jax.Array:
        return self.mask_head(self.shared(pyramid, boxes, train=train), classes, train=train)

    def roi_losses(
        self,
        pyramid: list[jax.Array],
        image_size: jax.Array,
        sample: RoITargets,
        gt: GroundTruth,
        rules: ClassRules,
        mask_targets: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """As MaskRCNN.roi_losses; res5 runs once, on all sampled RoIs."""
        del image_size
        shared = self.shared(pyramid, sample.boxes, train=True)
        terms = self.box_losses(jnp.mean(shared, axis=(1, 2)), sample, gt, rules)
        if not self.config.with_mask:
            return terms
        slots = self.foreground_slots(sample)
        by_image = shared.reshape(*sample.classes.shape, *shared.shape[1:])
        foreground = by_image[:, : slots.boxes.shape[1]].reshape(-1, *shared.shape[1:])
        logits = self.mask_head(foreground, slots.classes, train=True)
        return terms | self.mask_losses(logits, slots, gt, mask_targets)
