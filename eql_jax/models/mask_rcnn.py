"""Mask R-CNN (He et al. 2017) on a ResNet-FPN, with sigmoid (EQL) or softmax classification.

Shapes: B images, H W padded size, N anchors of an image, P proposals, R sampled RoIs, F foreground slots, G padded
ground truth, K foreground classes (background = K, padding = -1), D detections. Boxes are float32 XYXY pixels of the
resized image.

Losses are sums over the global batch divided by global counts: under jit over a mesh every number of devices gives the
same values (detectron2's replicas each use their own counts, see docs/deviations.md).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from eql_jax import losses
from eql_jax.models.backbones import make_backbone
from eql_jax.models.box_head import BoxHead
from eql_jax.models.fpn import FPN
from eql_jax.models.mask_head import MaskHead
from eql_jax.models.per_image import map_images
from eql_jax.models.rpn import RPNHead, RPNOutput
from eql_jax.models.targets import GroundTruth, RoITargets, RPNTargets, roi_targets, rpn_targets
from eql_jax.ops.anchors import pyramid_anchors
from eql_jax.ops.detections import Detections as BoxDetections
from eql_jax.ops.detections import select_detections
from eql_jax.ops.masks import crop_and_resize_masks
from eql_jax.ops.proposals import Proposals, select_proposals
from eql_jax.ops.roi_align import multilevel_roi_align

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the box head's deltas


class Detections(NamedTuple):
    """Detections of a batch by falling score; rows past the last one have score 0 and class -1.

    boxes [B,D,4], scores [B,D], classes [B,D] int32, masks [B,D,M,M] probabilities, proposal_index [B,D] int32 and
    exact [B] bool: False if more candidates could have changed the result (see ops.detections).
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    masks: jax.Array
    proposal_index: jax.Array
    exact: jax.Array


class MaskRCNN(nn.Module):
    """The model. `config` is config.model (a FrozenConfigDict), `num_classes` is K.

    Methods to `apply` are `losses` (training), `detect` (inference) and the stages they are made of.
    """

    config: object
    num_classes: int

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.backbone = make_backbone(c, dtype)
        self.fpn = FPN(c.fpn.channels, c.fpn.norm, c.fpn.min_level, dtype)
        self.rpn_head = RPNHead(c.fpn.channels, len(c.rpn.aspect_ratios), dtype)
        h = c.box_head
        self.box_head = BoxHead(self.num_classes, h.loss, h.num_fc, h.fc_dim, h.class_agnostic_boxes, h.prior, dtype)
        h = c.mask_head
        self.mask_head = MaskHead(self.num_classes, h.num_convs, h.channels, h.class_agnostic, dtype)

    # ------------------------------------------------------------------ stages

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the pyramid, p6 last."""
        return tuple(2**level for level in range(self.config.fpn.min_level, 7))

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
        """Images to the pyramid [p_min, .., p6]."""
        return self.fpn(self.backbone(self.normalize(image, image_size), train=train), train=train)

    def rpn(self, pyramid: list[jax.Array]) -> RPNOutput:
        """Pyramid -> objectness and deltas of every level."""
        return self.rpn_head(pyramid)

    def anchors(self, pyramid: list[jax.Array]) -> list[np.ndarray]:
        """Anchors [n_l,4] of every level, NumPy constants."""
        c = self.config.rpn
        shapes = [x.shape[1:3] for x in pyramid]
        return pyramid_anchors(
            shapes,
            strides=self.strides,
            sizes=c.anchor_sizes,
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

    def pool(self, pyramid: list[jax.Array], boxes: jax.Array, size: int) -> jax.Array:
        """RoIAlign of boxes [B,R,4] -> [B*R,size,size,C]; p6 is not pooled from."""
        c = self.config.roi
        pooled = multilevel_roi_align(
            pyramid[:-1],
            boxes,
            strides=self.strides[:-1],
            output_size=size,
            sampling_ratio=c.sampling_ratio,
            canonical_size=c.canonical_size,
            canonical_level=c.canonical_level,
            max_samples=c.max_samples,
            aligned=c.aligned,
        )
        return pooled.reshape(-1, *pooled.shape[2:])

    # ------------------------------------------------------------------ training

    def losses(
        self, batch: dict[str, jax.Array], keys: jax.Array, tail_mask: jax.Array, *, rule: str = "random"
    ) -> dict[str, jax.Array]:
        """Forward pass in training: the losses and counts of a batch.

        Args:
          batch: image, image_size, gt_boxes, gt_classes, gt_ignore, gt_masks and, for config.eql.verified_negatives,
            verified_classes (see eql_jax.data.pipeline).
          keys: [B] PRNG keys, one per image.
          tail_mask: [K] bool or float32, T(f) of the equalization loss.
          rule: how anchors and RoIs are sampled, see ops.sampling; 'spread' for comparison with recorded runs.

        Returns:
          float32 scalars: rpn_cls, rpn_box, cls, box, mask (unweighted losses), num_positive_anchors, num_foreground.
        """
        gt = GroundTruth(batch["gt_boxes"], batch["gt_classes"], batch["gt_ignore"], batch["gt_masks"])
        pyramid = self.features(batch["image"], batch["image_size"], train=True)
        rpn = self.rpn(pyramid)
        anchors = self.anchors(pyramid)
        both = jax.vmap(lambda k: jax.random.split(k, 2))(keys)

        flat_anchors = jnp.asarray(np.concatenate(anchors))
        c = self.config
        targets = map_images(lambda g, k: rpn_targets(flat_anchors, g, k, c.rpn, rule=rule))(gt, both[:, 0])
        terms = self.rpn_losses(rpn, targets)

        proposals = self.proposals(rpn, anchors, batch["image_size"], train=True)
        sample = map_images(
            lambda p, v, g, k: roi_targets(
                p, v, g, k, c.roi, num_classes=self.num_classes, box_weights=BOX_WEIGHTS, rule=rule
            )
        )(proposals.boxes, proposals.valid, gt, both[:, 1])
        verified = batch["verified_classes"] if c.eql.verified_negatives else None
        return terms | self.roi_losses(pyramid, sample, gt, tail_mask, verified)

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

    def roi_losses(
        self,
        pyramid: list[jax.Array],
        sample: RoITargets,
        gt: GroundTruth,
        tail_mask: jax.Array,
        verified_classes: jax.Array | None = None,
        mask_targets: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Losses of the heads on sampled RoIs (all arrays batched).

        verified_classes: bool [B,K], classes that EQL spares nothing in that image; None: no such rule.
        mask_targets: bool [B,F,S,S] of the foreground slots, such as polygons rasterised within each RoI
          (data.polygons.crop_mask, detectron2's way); None: cropped from the objects' masks on the device.
        """
        c = self.config
        num_images, num_rois = sample.classes.shape
        hidden = self.box_head.hidden(self.pool(pyramid, sample.boxes, c.box_head.pool_size))
        hidden = hidden.reshape(num_images, num_rois, -1)
        exempt = None if verified_classes is None else verified_classes[:, None]
        cls = self.classification_loss(self.box_head.logits(hidden), sample.classes, tail_mask, exempt)

        # Foreground RoIs fill the first F slots, so boxes and masks are computed for those alone.
        slots = int(num_rois * c.roi.positive_fraction)
        fg_classes = sample.classes[:, :slots]
        fg = (fg_classes >= 0) & (fg_classes < self.num_classes)
        safe_classes = jnp.where(fg, fg_classes, 0).reshape(-1)
        deltas = self.box_head.deltas_of(hidden[:, :slots].reshape(num_images * slots, -1), safe_classes)
        box = losses.box_regression_loss(
            deltas,
            sample.deltas[:, :slots].reshape(-1, 4),
            fg.reshape(-1),
            normalizer=jnp.sum(sample.classes >= 0),
        )
        fg_boxes = sample.boxes[:, :slots]
        mask_logits = self.mask_head(self.pool(pyramid, fg_boxes, c.mask_head.pool_size), safe_classes)
        if mask_targets is None:
            crop = map_images(lambda m, b, r, i: crop_and_resize_masks(m, b, r, i, size=mask_logits.shape[-1]))
            mask_targets = crop(gt.masks, gt.boxes, fg_boxes, sample.matched[:, :slots])
        mask = losses.mask_loss(mask_logits, mask_targets.reshape(mask_logits.shape), fg.reshape(-1))
        return {"cls": cls, "box": box, "mask": mask, "num_foreground": jnp.sum(fg).astype(jnp.float32)}

    def classification_loss(
        self, logits: jax.Array, labels: jax.Array, tail_mask: jax.Array, exempt: jax.Array | None = None
    ) -> jax.Array:
        """The configured loss of logits [B,R,K] or [B,R,K+1] with labels [B,R] (K background, -1 empty)."""
        name = self.config.box_head.loss
        if name == "softmax":
            return losses.softmax_cross_entropy_loss(logits, labels)
        if name == "sigmoid":
            return losses.sigmoid_cross_entropy_loss(logits, labels)
        return losses.equalization_loss(
            logits,
            labels,
            tail_mask,
            background_keeps_negatives=self.config.eql.background_keeps_negatives,
            exempt_classes=exempt,
        )

    # ------------------------------------------------------------------ inference

    def detect(self, image: jax.Array, image_size: jax.Array, *, candidates: int | None = None) -> Detections:
        """Images uint8 [B,H,W,3] with sizes [B,2] -> Detections.

        candidates: (proposal, class) pairs that enter NMS, config.test.candidates by default.
        """
        pyramid = self.features(image, image_size)
        found = self.detect_boxes(pyramid, image_size, candidates=candidates)
        masks = self.masks(pyramid, found.boxes, found.classes)
        return Detections(found.boxes, found.scores, found.classes, masks, found.proposal_index, found.exact)

    def detect_boxes(
        self, pyramid: list[jax.Array], image_size: jax.Array, *, candidates: int | None = None
    ) -> BoxDetections:
        """`detect` without the masks, from what `features` made: ops.detections.Detections of a batch."""
        t = self.config.test
        proposals = self.proposals(self.rpn(pyramid), self.anchors(pyramid), image_size, train=False)
        num_images, num_proposals = proposals.valid.shape
        hidden = self.box_head.hidden(self.pool(pyramid, proposals.boxes, self.config.box_head.pool_size))
        scores = self.scores(self.box_head.logits(hidden)).reshape(num_images, num_proposals, -1)
        deltas = self.box_head.all_deltas(hidden).reshape(num_images, num_proposals, -1, 4)

        def one(scores, deltas, boxes, valid, size):
            return select_detections(
                scores,
                deltas,
                boxes,
                size,
                proposals_valid=valid,
                box_weights=BOX_WEIGHTS,
                score_threshold=t.score_threshold,
                iou_threshold=t.nms_iou,
                max_detections=t.detections_per_image,
                candidates=candidates or t.candidates,
            )

        return map_images(one)(scores, deltas, proposals.boxes, proposals.valid, image_size)

    def masks_of_boxes(
        self, image: jax.Array, image_size: jax.Array, boxes: jax.Array, classes: jax.Array
    ) -> jax.Array:
        """Mask probabilities [B,D,M,M] of given boxes [B,D,4] of classes [B,D] (-1: padding) in images [B,H,W,3]."""
        return self.masks(self.features(image, image_size), boxes, classes)

    def scores(self, logits: jax.Array) -> jax.Array:
        """Class logits [R,K] or [R,K+1] -> class probabilities [R,K]."""
        if self.config.box_head.loss == "softmax":
            return jax.nn.softmax(logits)[:, :-1]
        return jax.nn.sigmoid(logits)

    def masks(self, pyramid: list[jax.Array], boxes: jax.Array, classes: jax.Array) -> jax.Array:
        """Mask probabilities [B,D,M,M] of boxes [B,D,4] for their classes [B,D] (-1 allowed)."""
        pooled = self.pool(pyramid, boxes, self.config.mask_head.pool_size)
        logits = self.mask_head(pooled, jnp.maximum(classes, 0).reshape(-1))
        return jax.nn.sigmoid(logits).reshape(*classes.shape, *logits.shape[1:])

    def __call__(self, image: jax.Array, image_size: jax.Array) -> jax.Array:
        """Touches every parameter once, for `init`; returns the mask logits of one whole-image RoI per image."""
        pyramid = self.features(image, image_size)
        self.rpn(pyramid)
        whole = jnp.concatenate([jnp.zeros_like(image_size), image_size[:, ::-1]], axis=1).astype(jnp.float32)[:, None]
        self.box_head(self.pool(pyramid, whole, self.config.box_head.pool_size))
        pooled = self.pool(pyramid, whole, self.config.mask_head.pool_size)
        return self.mask_head(pooled, jnp.zeros(image.shape[0], jnp.int32))
