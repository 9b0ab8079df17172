"""Mask R-CNN (He et al. 2017) with a feature pyramid, under any classification loss of eql_jax.class_losses.

Shapes: B images, H W padded size, P proposals, R sampled RoIs, F foreground slots, G padded ground truth, K foreground
classes (background = K, padding = -1), D detections, M side of a mask. Boxes are float32 XYXY pixels of the resized
image.

Losses are sums over the global batch divided by global counts: under jit over a mesh every number of devices gives the
same values (detectron2's replicas each use their own counts, see docs/deviations.md).
"""

import jax
import jax.numpy as jnp
import numpy as np

from eql_jax import losses
from eql_jax.class_losses import ClassFrequencies, ClassLoss, LossInputs
from eql_jax.models.box_head import BoxHead, configured_loss
from eql_jax.models.mask_head import MaskHead
from eql_jax.models.per_image import map_images
from eql_jax.models.proposal_network import ProposalNetwork
from eql_jax.models.structures import BoxOutputs, ClassRules, Detections, ForegroundSlots, TrainingSample
from eql_jax.models.targets import GroundTruth, RoITargets, roi_targets, rpn_targets
from eql_jax.ops.boxes import decode_boxes
from eql_jax.ops.detections import Detections as BoxDetections
from eql_jax.ops.detections import select_detections
from eql_jax.ops.masks import crop_and_resize_masks
from eql_jax.ops.roi_align import multilevel_roi_align

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the box head's deltas


class MaskRCNN(ProposalNetwork):
    """The model with one box head and one mask head over a pyramid; Faster R-CNN with config.with_mask False.

    `frequencies` is what the classification loss knows of the classes in training; None will do at inference, but for
    losses whose columns depend on it.

    The subclasses in `cascade` and `c4` have other RoI heads; `build_model` picks the class.

    Methods to `apply` are `losses` (training), `detect` (inference), `masks_of_boxes` and the stages they are made of.
    """

    frequencies: ClassFrequencies | None = None

    def setup(self) -> None:
        super().setup()
        self.setup_box_heads()
        if self.config.with_mask:
            h = self.config.mask_head
            dtype = jnp.dtype(self.config.dtype)
            self.mask_head = MaskHead(self.num_classes, h.num_convs, h.channels, h.norm, h.class_agnostic, dtype)

    def setup_box_heads(self) -> None:
        """Makes the modules that classify and refine RoIs; called by `setup`."""
        self.box_head = self.make_box_head()

    def make_box_head(self, name: str | None = None) -> BoxHead:
        """A box head as config.box_head describes it."""
        h = self.config.box_head
        return BoxHead(
            self.class_loss,
            h.num_fc,
            h.fc_dim,
            h.class_agnostic_boxes,
            h.prior,
            h.num_convs,
            h.conv_dim,
            h.norm,
            h.classifier,
            h.cosine_temperature,
            dtype=jnp.dtype(self.config.dtype),
            name=name,
        )

    @property
    def class_loss(self) -> ClassLoss:
        """The configured classification loss."""
        return configured_loss(self.config, self.frequencies or ClassFrequencies(self.num_classes))

    @property
    def sample_weights(self) -> tuple[float, float, float, float]:
        """Weights of the deltas that sampled RoIs are trained on."""
        return BOX_WEIGHTS

    @property
    def output_weights(self) -> tuple[float, float, float, float]:
        """Weights of the deltas of `BoxOutputs`."""
        return BOX_WEIGHTS

    # ------------------------------------------------------------------ RoI heads

    def pool(self, pyramid: list[jax.Array], boxes: jax.Array, size: int) -> jax.Array:
        """RoIAlign of boxes [B,R,4] -> [B*R,size,size,C]; p6 is not pooled from."""
        c = self.config.roi
        pooled = multilevel_roi_align(
            pyramid[: self.num_roi_levels],
            boxes,
            strides=self.strides[: self.num_roi_levels],
            output_size=size,
            sampling_ratio=c.sampling_ratio,
            canonical_size=c.canonical_size,
            canonical_level=c.canonical_level,
            max_samples=c.max_samples,
            aligned=c.aligned,
        )
        return pooled.reshape(-1, *pooled.shape[2:])

    def box_hidden(self, pyramid: list[jax.Array], boxes: jax.Array, *, train: bool = False) -> jax.Array:
        """Boxes [B,R,4] -> what their class and deltas are linear in, [B*R,units]."""
        return self.box_head.hidden(self.pool(pyramid, boxes, self.config.box_head.pool_size), train=train)

    def box_outputs(self, pyramid: list[jax.Array], boxes: jax.Array, image_size: jax.Array) -> BoxOutputs:
        """Scores and deltas of proposals [B,P,4]."""
        del image_size  # for heads that make boxes of boxes
        hidden = self.box_hidden(pyramid, boxes)
        scores = self.calibrated(self.box_head.scores(self.box_head.logits(hidden)))
        scores = scores.reshape(*boxes.shape[:2], -1)
        return BoxOutputs(scores, self.box_head.all_deltas(hidden).reshape(*boxes.shape[:2], -1, 4), boxes)

    def mask_logits(
        self, pyramid: list[jax.Array], boxes: jax.Array, classes: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Boxes [B,R,4] with their classes [B*R] (0..K-1) -> mask logits [B*R,M,M]."""
        return self.mask_head(self.pool(pyramid, boxes, self.config.mask_head.pool_size), classes, train=train)

    def calibrated(self, scores: jax.Array) -> jax.Array:
        """Scores [..., K] after config.test.norcal_gamma, which 0 leaves alone.

        Raises:
          ValueError: the training counts of the classes are not known.
        """
        gamma = self.config.test.norcal_gamma
        if gamma == 0:
            return scores
        loss = self.class_loss
        return losses.norcal(scores, loss.counts("image"), gamma=gamma, sigmoid=not loss.exclusive_scores)

    # ------------------------------------------------------------------ training

    def losses(
        self, batch: dict[str, jax.Array], keys: jax.Array, loss_key: jax.Array | None = None, *, rule: str = "random"
    ) -> dict[str, jax.Array]:
        """Forward pass in training: the losses and counts of a batch.

        Args:
          batch: image, image_size, gt_boxes, gt_classes, gt_ignore, gt_masks ([B,G,0,0] will do without a mask head);
            for config.eql.verified_negatives also verified_classes; annotated_classes and gt_has_mask where there are
            (see eql_jax.data.pipeline).
          keys: [B] PRNG keys, one per image.
          loss_key: PRNG key of the batch, for classification losses that draw.
          rule: how anchors and RoIs are sampled, see ops.sampling; 'spread' for comparison with recorded runs.

        Returns:
          float32 scalars: rpn_cls, rpn_box, cls, box and, with a mask head, mask (unweighted losses);
          num_positive_anchors, num_foreground.
        """
        sample = self.training_sample(batch, keys, rule=rule)
        verified = batch["verified_classes"] if self.config.eql.verified_negatives else None
        rules = ClassRules(verified, batch.get("annotated_classes"), loss_key)
        roi_terms = self.roi_losses(sample.pyramid, batch["image_size"], sample.rois, sample.gt, rules)
        return sample.rpn_terms | roi_terms

    def training_sample(self, batch: dict[str, jax.Array], keys: jax.Array, *, rule: str = "random") -> TrainingSample:
        """From a batch to the RoIs that the heads are trained on. Arguments as of `losses`."""
        gt = GroundTruth(
            batch["gt_boxes"], batch["gt_classes"], batch["gt_ignore"], batch["gt_masks"], batch.get("gt_has_mask")
        )
        pyramid = self.features(batch["image"], batch["image_size"], train=True)
        rpn = self.rpn(pyramid)
        anchors = self.anchors(pyramid)
        both = jax.vmap(lambda k: jax.random.split(k, 2))(keys)

        flat_anchors = jnp.asarray(np.concatenate(anchors))
        c = self.config
        targets = map_images(lambda g, k: rpn_targets(flat_anchors, g, k, c.rpn, rule=rule))(gt, both[:, 0])
        terms = self.rpn_losses(rpn, targets)

        rois = self.sampled_rois(rpn, anchors, batch["image_size"], gt, both[:, 1], rule=rule)
        return TrainingSample(pyramid, gt, rois, terms)

    def sampled_rois(
        self, rpn, anchors, image_size: jax.Array, gt: GroundTruth, keys: jax.Array, *, rule: str = "random"
    ) -> RoITargets:
        """What `rpn` (outputs) and `anchors` of all levels propose, with the ground truth, sampled by keys [B]."""
        proposals = self.proposals(rpn, anchors, image_size, train=True)
        return map_images(
            lambda p, v, g, k: roi_targets(
                p, v, g, k, self.config.roi, num_classes=self.num_classes, box_weights=self.sample_weights, rule=rule
            )
        )(proposals.boxes, proposals.valid, gt, keys)

    def roi_losses(
        self,
        pyramid: list[jax.Array],
        image_size: jax.Array,
        sample: RoITargets,
        gt: GroundTruth,
        rules: ClassRules,
        mask_targets: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Losses of the heads on sampled RoIs (all arrays batched).

        mask_targets: bool [B,F,M,M] of the foreground slots, such as polygons rasterised within each RoI
          (data.polygons.crop_mask, detectron2's way); None: cropped from the objects' masks on the device.
        """
        del image_size  # for heads that make boxes of boxes
        hidden = self.box_hidden(pyramid, sample.boxes, train=True)
        return self.box_losses(hidden, sample, gt, rules) | self.sampled_mask_losses(pyramid, sample, gt, mask_targets)

    def sampled_mask_losses(
        self, pyramid: list[jax.Array], sample: RoITargets, gt: GroundTruth, mask_targets: jax.Array | None
    ) -> dict[str, jax.Array]:
        """mask of the sampled foreground RoIs, {} without a mask head. Arguments as of `roi_losses`."""
        if not self.config.with_mask:
            return {}
        slots = self.foreground_slots(sample)
        logits = self.mask_logits(pyramid, slots.boxes, slots.classes, train=True)
        return self.mask_losses(logits, slots, gt, mask_targets)

    def foreground_slots(self, sample: RoITargets) -> ForegroundSlots:
        """The slots of sampled RoIs (batched) that may hold an object."""
        count = int(sample.classes.shape[1] * self.config.roi.positive_fraction)
        classes = sample.classes[:, :count].reshape(-1)
        is_object = (classes >= 0) & (classes < self.num_classes)
        return ForegroundSlots(
            sample.boxes[:, :count], sample.matched[:, :count], jnp.where(is_object, classes, 0), is_object
        )

    def box_losses(
        self, hidden: jax.Array, sample: RoITargets, gt: GroundTruth, rules: ClassRules
    ) -> dict[str, jax.Array]:
        """Hidden layer [B*R,units] of sampled RoIs -> cls, box and num_foreground."""
        hidden = hidden.reshape(*sample.classes.shape, -1)
        cls = self.classification_loss(self.box_head, self.box_head.logits(hidden), sample.classes, rules)
        slots = self.foreground_slots(sample)
        count = slots.boxes.shape[1]
        deltas = self.box_head.deltas_of(hidden[:, :count].reshape(-1, hidden.shape[-1]), slots.classes)
        box = self.box_loss(
            deltas.reshape(-1, count, 4),
            RoITargets(*(x[:, :count] for x in sample)),
            gt,
            slots.is_object.reshape(-1, count),
            weights=self.sample_weights,
            normalizer=jnp.sum(sample.classes >= 0),
        )
        return {"cls": cls, "box": box, "num_foreground": jnp.sum(slots.is_object).astype(jnp.float32)}

    def box_loss(
        self,
        deltas: jax.Array,
        rois: RoITargets,
        gt: GroundTruth,
        foreground: jax.Array,
        *,
        weights: tuple[float, float, float, float],
        normalizer: jax.Array,
    ) -> jax.Array:
        """The configured box loss of predicted deltas [B,R,4], summed over the foreground [B,R] / normalizer.

        rois: what the deltas start from (batched); weights: of the deltas. 'smooth_l1' compares deltas, the others the
        decoded boxes with the objects' (detectron2's _dense_box_regression_loss).
        """
        h = self.config.box_head
        if h.box_loss == "smooth_l1":
            return losses.box_regression_loss(
                deltas, rois.deltas, foreground, beta=h.box_loss_beta, normalizer=normalizer
            )
        truth = map_images(lambda boxes, matched: boxes[matched])(gt.boxes, rois.matched)
        boxes = decode_boxes(deltas, rois.boxes, weights=weights)
        return losses.box_pair_regression_loss(boxes, truth, foreground, kind=h.box_loss, normalizer=normalizer)

    def mask_losses(
        self, logits: jax.Array, slots: ForegroundSlots, gt: GroundTruth, mask_targets: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Mask logits [B*F,M,M] of the foreground slots -> mask; mask_targets as in `roi_losses`.

        RoIs of objects without a mask do not count, nor do they for the divisor.
        """
        if mask_targets is None:
            crop = map_images(lambda m, b, r, i: crop_and_resize_masks(m, b, r, i, size=logits.shape[-1]))
            mask_targets = crop(gt.masks, gt.boxes, slots.boxes, slots.matched)
        counted = slots.is_object
        if gt.has_mask is not None:
            counted &= map_images(lambda known, matched: known[matched])(gt.has_mask, slots.matched).reshape(-1)
        return {"mask": losses.mask_loss(logits, mask_targets.reshape(logits.shape), counted)}

    def classification_loss(self, head: BoxHead, logits: jax.Array, labels: jax.Array, rules: ClassRules) -> jax.Array:
        """The loss of one head's logits [B,R,C] with labels [B,R] (K background, -1 empty)."""
        by_image = lambda classes: None if classes is None else classes[:, None]  # noqa: E731
        inputs = LossInputs(by_image(rules.verified), by_image(rules.annotated), rules.key)
        return head.classification_loss(logits, labels, inputs)

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
        outputs = self.box_outputs(pyramid, proposals.boxes, image_size)

        def one(scores, deltas, boxes, valid, size):
            return select_detections(
                scores,
                deltas,
                boxes,
                size,
                proposals_valid=valid,
                box_weights=self.output_weights,
                score_threshold=t.score_threshold,
                iou_threshold=t.nms_iou,
                max_detections=t.detections_per_image,
                candidates=candidates or t.candidates,
            )

        return map_images(one)(outputs.scores, outputs.deltas, outputs.boxes, proposals.valid, image_size)

    def masks(self, pyramid: list[jax.Array], boxes: jax.Array, classes: jax.Array) -> jax.Array:
        """Mask probabilities [B,D,M,M] of boxes [B,D,4] for their classes [B,D] (-1 allowed); M = 0 without a head."""
        if not self.config.with_mask:
            return jnp.zeros((*classes.shape, 0, 0), jnp.float32)
        logits = self.mask_logits(pyramid, boxes, jnp.maximum(classes, 0).reshape(-1))
        return jax.nn.sigmoid(logits).reshape(*classes.shape, *logits.shape[1:])

    def masks_of_boxes(
        self, image: jax.Array, image_size: jax.Array, boxes: jax.Array, classes: jax.Array
    ) -> jax.Array:
        """Mask probabilities [B,D,M,M] of given boxes [B,D,4] (pixels of the resized image) for their classes [B,D].

        Padding has class -1; its masks are of no interest. Boxes may come from anywhere, such as other views of the
        image; all must be finite.

        Raises:
          ValueError: the model has no mask head.
        """
        if not self.config.with_mask:
            raise ValueError("masks_of_boxes: the model has no mask head, config.model.with_mask is False")
        return self.masks(self.features(image, image_size), boxes, classes)

    def __call__(self, image: jax.Array, image_size: jax.Array) -> BoxOutputs:
        """Touches every parameter once, for `init`, with one whole-image RoI per image."""
        pyramid = self.features(image, image_size)
        self.rpn(pyramid)
        whole = jnp.concatenate([jnp.zeros_like(image_size), image_size[:, ::-1]], axis=1).astype(jnp.float32)[:, None]
        self.masks(pyramid, whole, jnp.zeros(whole.shape[:2], jnp.int32))
        return self.box_outputs(pyramid, whole, image_size)
