"""From images to proposals: backbone, neck and region proposal network, the same for all architectures.

Shapes: B images, H W padded size, L levels, N anchors of an image, P proposals. Boxes are float32 XYXY pixels of the
resized image.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from eql_jax import losses
from eql_jax.models.backbones import make_backbone
from eql_jax.models.fpn import FPN
from eql_jax.models.per_image import map_images
from eql_jax.models.rpn import RPNHead, RPNOutput
from eql_jax.models.targets import RPNTargets
from eql_jax.ops.anchors import pyramid_anchors
from eql_jax.ops.proposals import Proposals, select_proposals


class ProposalNetwork(nn.Module):
    """The part of a detector that knows no classes. `config` is config.model (a FrozenConfigDict), `num_classes` is K.

    With config.architecture 'fpn' the features are a pyramid p_min .. p6 and each level has anchors of one size; with
    'c4' they are res4 alone, whose cells have anchors of all sizes.

    remat: the gradient computes what is inside of the backbone's blocks anew.
    """

    config: object
    num_classes: int
    remat: bool = dataclasses.field(default=False, kw_only=True)

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.backbone = make_backbone(c, dtype, remat=self.remat)
        sizes_per_cell = len(c.rpn.anchor_sizes)
        if c.architecture == "fpn":
            self.fpn = FPN(c.fpn.channels, c.fpn.norm, c.fpn.min_level, dtype)
            sizes_per_cell = 1
        self.rpn_head = RPNHead(sizes_per_cell * len(c.rpn.aspect_ratios), dtype)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the features, p6 last; (16,) for 'c4'."""
        if self.config.architecture == "c4":
            return (16,)
        return tuple(2**level for level in range(self.config.fpn.min_level, 7))

    @property
    def num_roi_levels(self) -> int:
        """How many of the features RoIs are pooled from: all but p6, which serves the RPN only."""
        return len(self.strides) - (self.config.architecture == "fpn")

    def normalize(self, image: jax.Array, image_size: jax.Array) -> jax.Array:
        """uint8 RGB [B,H,W,3], image_size [B,2] (h, w) -> float32, normalised, zero outside the image.

        The zeros come after the normalisation, as detectron2 pads.
        """
        mean = jnp.asarray(self.config.pixel_mean, jnp.float32)
        std = jnp.asarray(self.config.pixel_std, jnp.float32)
        x = (image.astype(jnp.float32) - mean) / std
        rows = jnp.arange(image.shape[1])[None, :] < image_size[:, :1]
        cols = jnp.arange(image.shape[2])[None, :] < image_size[:, 1:]
        return jnp.where((rows[:, :, None] & cols[:, None, :])[..., None], x, 0.0)

    def features(self, image: jax.Array, image_size: jax.Array, *, train: bool = False) -> list[jax.Array]:
        """Images to [p_min, .., p6], or to [res4] for 'c4', which takes images of any padded size.

        Raises:
          ValueError: 'fpn' and a side that is no multiple of 32.
        """
        is_c4 = self.config.architecture == "c4"
        height, width = image.shape[1:3]
        if not is_c4 and (height % 32 or width % 32):
            raise ValueError(f"image is padded to {height}x{width}; both sides must be multiples of 32")
        stages = self.backbone(self.normalize(image, image_size), train=train)
        return stages[-1:] if is_c4 else self.fpn(stages, train=train)

    def rpn(self, pyramid: list[jax.Array]) -> RPNOutput:
        """Features -> objectness and deltas of every level."""
        return self.rpn_head(pyramid)

    def anchors(self, pyramid: list[jax.Array]) -> list[np.ndarray]:
        """Anchors [n_l,4] of every level, NumPy constants."""
        c = self.config.rpn
        sizes = tuple(c.anchor_sizes)
        return pyramid_anchors(
            [x.shape[1:3] for x in pyramid],
            strides=self.strides,
            sizes=[sizes] if self.config.architecture == "c4" else sizes,
            aspect_ratios=c.aspect_ratios,
            rounded=c.round_anchors,
        )

    def proposals(self, rpn: RPNOutput, anchors: list[np.ndarray], image_size: jax.Array, *, train: bool) -> Proposals:
        """Best boxes after per-level NMS: boxes [B,P,4], valid [B,P]. No gradient."""
        c = self.config.rpn
        rpn = jax.tree.map(jax.lax.stop_gradient, rpn)

        def one(logits, deltas, size):
            return select_proposals(
                logits,
                deltas,
                anchors,
                size,
                pre_nms=c.pre_nms_train if train else c.pre_nms_test,
                post_nms=c.post_nms_train if train else c.post_nms_test,
                iou_threshold=c.nms_iou,
            )

        return map_images(one)(rpn.logits, rpn.deltas, image_size)

    def rpn_losses(self, rpn: RPNOutput, targets: RPNTargets) -> dict[str, jax.Array]:
        """RPN output and targets (labels [B,N], deltas [B,N,4]) -> losses, both over batch_per_image * B."""
        logits = jnp.concatenate(rpn.logits, axis=1)
        deltas = jnp.concatenate(rpn.deltas, axis=1)
        normalizer = self.config.rpn.batch_per_image * logits.shape[0]
        return {
            "rpn_cls": losses.rpn_objectness_loss(logits, targets.labels, normalizer=normalizer),
            "rpn_box": losses.rpn_box_loss(deltas, targets.deltas, targets.labels, normalizer=normalizer),
            "num_positive_anchors": jnp.sum(targets.labels == 1).astype(jnp.float32),
        }
