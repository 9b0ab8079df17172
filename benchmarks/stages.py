"""Where the time of a detector goes: every stage compiled and timed alone, on the arrays that it gets in the whole.

Each stage is a programme of its own whose arguments are the results of the stages before it, so the numbers are of
real RoIs and targets, but without what XLA gains by fusing over their borders, and each with the start of a
programme. The sum against the whole, which is given too, says how much that is. Training:

    backbone_fpn   images to pyramid             box_head   two fully connected layers, classifier, deltas
    rpn            head on every level           mask_head  convolutions and the rows of the RoIs' classes
    proposals      top-k, decoding, NMS          losses     of RPN, classes, boxes and masks, with cropping the targets
    targets        matching and sampling         backward   the step less the whole's forward pass and the optimizer
    roi_align      of boxes and masks            optimizer  the update of all parameters

`backward` is a difference of three programmes, so in training only the stages of the forward pass can miss the whole:
`forward_sum_over_forward` is their sum over a programme of the forward pass alone. Inference has neither targets nor
losses, but `detections`, the selection among all (proposal, class) pairs.

For models with one box head and one mask head over a pyramid, as configs/base.py has them.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import common
from eql_jax.models.mask_rcnn import BOX_WEIGHTS, MaskRCNN
from eql_jax.models.per_image import map_images
from eql_jax.models.structures import ClassRules
from eql_jax.models.targets import GroundTruth, RoITargets, roi_targets, rpn_targets
from eql_jax.ops.detections import select_detections
from eql_jax.training.train_step import LOSS_TERMS, image_keys, step_key


# ------------------------------------------------------------------------------------------------- stages of the model
# Functions of the module and of what the stages before it made, for flax's apply(method=..).
def _backbone_fpn(m: MaskRCNN, image, image_size, *, train: bool):
    return m.features(image, image_size, train=train)


def _rpn(m: MaskRCNN, pyramid):
    return m.rpn(pyramid)


def _proposals(m: MaskRCNN, pyramid, rpn, image_size, *, train: bool):
    return m.proposals(rpn, m.anchors(pyramid), image_size, train=train)


def _targets(m: MaskRCNN, pyramid, proposals, gt, keys):
    both = jax.vmap(lambda k: jax.random.split(k, 2))(keys)
    anchors = jnp.asarray(np.concatenate(m.anchors(pyramid)))
    of_anchors = map_images(lambda g, k: rpn_targets(anchors, g, k, m.config.rpn))(gt, both[:, 0])
    options = dict(num_classes=m.num_classes, box_weights=m.sample_weights)
    of_rois = map_images(lambda p, v, g, k: roi_targets(p, v, g, k, m.config.roi, **options))(
        proposals.boxes, proposals.valid, gt, both[:, 1]
    )
    return of_anchors, of_rois, m.foreground_slots(of_rois)


def _pool(m: MaskRCNN, pyramid, boxes, *, head: str):
    return m.pool(pyramid, boxes, m.config[head].pool_size)


def _box_head(m: MaskRCNN, pooled, rois: RoITargets, classes):
    hidden = m.box_head.hidden(pooled, train=True).reshape(*rois.classes.shape, -1)
    count = classes.shape[0] // hidden.shape[0]
    foreground = hidden[:, :count].reshape(-1, hidden.shape[-1])
    return m.box_head.logits(hidden), m.box_head.deltas_of(foreground, classes).reshape(-1, count, 4)


def _mask_head(m: MaskRCNN, pooled, classes, *, train: bool):
    return m.mask_head(pooled, classes, train=train)


def _losses(m: MaskRCNN, rpn, anchor_targets, rois: RoITargets, slots, logits, deltas, mask_logits, gt, rules):
    count = slots.boxes.shape[1]
    terms = m.rpn_losses(rpn, anchor_targets)
    terms["cls"] = m.classification_loss(m.box_head, logits, rois.classes, rules)
    terms["box"] = m.box_loss(
        deltas,
        RoITargets(*(x[:, :count] for x in rois)),
        gt,
        slots.is_object.reshape(-1, count),
        weights=m.sample_weights,
        normalizer=jnp.sum(rois.classes >= 0),
    )
    return terms | m.mask_losses(mask_logits, slots, gt, None)


def _all_boxes(m: MaskRCNN, pooled, boxes):
    hidden = m.box_head.hidden(pooled)
    scores = m.box_head.scores(m.box_head.logits(hidden)).reshape(*boxes.shape[:2], -1)
    return scores, m.box_head.all_deltas(hidden).reshape(*boxes.shape[:2], -1, 4)


def _detections(m: MaskRCNN, scores, deltas, proposals, image_size):
    t = m.config.test
    options = dict(
        box_weights=BOX_WEIGHTS,
        score_threshold=t.score_threshold,
        iou_threshold=t.nms_iou,
        max_detections=t.detections_per_image,
        candidates=t.candidates,
    )
    return map_images(lambda s, d, b, v, size: select_detections(s, d, b, size, proposals_valid=v, **options))(
        scores, deltas, proposals.boxes, proposals.valid, image_size
    )


class Clock:
    """Compiles functions, times them and adds up what they took.

    Attributes:
      seconds: {stage: median seconds}; compile_seconds: of all of them together.
    """

    def __init__(self, model: MaskRCNN, variables: Mapping, repeats: int, compiler_options: dict | None):
        self._model, self._variables, self._repeats = model, variables, repeats
        self._options = compiler_options
        self.seconds: dict[str, float] = {}
        self.compile_seconds = 0.0

    def stage(self, name: str, method: Callable, *args: Any, **static: Any) -> Any:
        """Results of method(module, *args, **static) under the variables; its time adds to stage `name`."""
        memory = [k for k in self._variables if k != "params"]

        def fn(variables, *args):
            return self._model.apply(variables, *args, method=lambda m, *a: method(m, *a, **static), mutable=memory)[0]

        return self.time(name, fn, self._variables, *args)

    def time(self, name: str, fn: Callable, *args: Any) -> Any:
        """Results of fn(*args), whose time adds to `name`."""
        start = time.perf_counter()
        compiled = jax.jit(fn).lower(*args).compile(compiler_options=self._options)
        self.compile_seconds += time.perf_counter() - start
        out = compiled(*args)
        seconds = common.median_seconds(lambda: compiled(*args), repeats=self._repeats)
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        return out


def training(
    model: MaskRCNN,
    optimizer: optax.GradientTransformation,
    config: Any,
    state: Any,
    batch: Mapping[str, jax.Array],
    *,
    repeats: int,
    whole: float,
    compiler_options: dict | None = None,
) -> dict[str, Any]:
    """Times the stages of a training step.

    Args:
      model, optimizer, config, state: as of eql_jax.training.train_step; the state is not changed.
      batch: on the device.
      repeats: timed calls of every stage.
      whole: seconds of the step.
      compiler_options: of XLA, for tests.

    Returns:
      stage_seconds {stage: seconds}, shares of their sum, sum_seconds, whole_seconds, sum_over_whole,
      forward_sum_over_forward, stages_compile_seconds; and the loss that the stages add up to (stages_loss) with that
      of the whole model on the same batch (loss).

    Raises:
      ValueError: the model is another than a Mask R-CNN with one box head and one mask head over a pyramid.
    """
    _check(model)
    memory = {"batch_stats": state.batch_stats, "loss_state": state.loss_state}
    memory = {k: v for k, v in memory.items() if v}
    variables = {"params": state.params, **memory}
    keys = image_keys(config.seed, state.step, batch["image_id"])
    loss_key = step_key(config.seed, state.step)
    gt = GroundTruth(*(batch[k] for k in ("gt_boxes", "gt_classes", "gt_ignore", "gt_masks")))
    verified = batch["verified_classes"] if model.config.eql.verified_negatives else None
    rules = ClassRules(verified, None, loss_key)
    weights = dict(config.train.loss_weights)
    total = lambda terms: sum(weights[name] * terms[name] for name in LOSS_TERMS if name in terms)  # noqa: E731

    clock = Clock(model, variables, repeats, compiler_options)
    pyramid, rpn, proposals = _proposed(clock, batch, train=True)
    anchor_targets, rois, slots = clock.stage("targets", _targets, pyramid, proposals, gt, keys)
    pooled = clock.stage("roi_align", _pool, pyramid, rois.boxes, head="box_head")
    mask_pooled = clock.stage("roi_align", _pool, pyramid, slots.boxes, head="mask_head")
    logits, deltas = clock.stage("box_head", _box_head, pooled, rois, slots.classes)
    mask_logits = clock.stage("mask_head", _mask_head, mask_pooled, slots.classes, train=True)
    terms = clock.stage("losses", _losses, rpn, anchor_targets, rois, slots, logits, deltas, mask_logits, gt, rules)
    forward_sum = sum(clock.seconds.values())
    del pyramid, rpn, proposals, anchor_targets, rois, slots, pooled, mask_pooled, logits, deltas, mask_logits

    def loss_fn(params, memory, batch, keys, loss_key):
        terms, _ = model.apply(
            {"params": params, **memory}, batch, keys, loss_key, method="losses", mutable=list(memory)
        )
        return total(terms)

    def update(grads, opt_state, params):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    loss = clock.time("forward", loss_fn, state.params, memory, batch, keys, loss_key)
    # Gradients are as large as the parameters, and the update takes as long whatever they are.
    grads = jax.tree.map(lambda p: 1e-3 * p, state.params)
    clock.time("optimizer", update, grads, state.opt_state, state.params)
    forward, step_end = clock.seconds.pop("forward"), clock.seconds.pop("optimizer")
    found = clock.seconds | {"backward": whole - forward - step_end, "optimizer": step_end}
    return _summary(found, whole, clock) | {
        "forward_sum_over_forward": common.rounded(forward_sum / forward),
        "stages_loss": float(total(terms)),
        "loss": float(loss),
    }


def inference(
    model: MaskRCNN,
    variables: Mapping,
    batch: Mapping[str, jax.Array],
    *,
    repeats: int,
    whole: float,
    compiler_options: dict | None = None,
) -> dict[str, Any]:
    """Times the stages of inference; arguments and results as of `training`.

    The results have `classes` [B,D] in place of losses, to compare with those of the whole.
    """
    _check(model)
    variables = {k: v for k, v in variables.items() if v}
    clock = Clock(model, variables, repeats, compiler_options)
    pyramid, _, proposals = _proposed(clock, batch, train=False)
    pooled = clock.stage("roi_align", _pool, pyramid, proposals.boxes, head="box_head")
    scores, deltas = clock.stage("box_head", _all_boxes, pooled, proposals.boxes)
    found = clock.stage("detections", _detections, scores, deltas, proposals, batch["image_size"])
    mask_pooled = clock.stage("roi_align", _pool, pyramid, found.boxes, head="mask_head")
    classes = jnp.maximum(found.classes, 0).reshape(-1)
    clock.stage("mask_head", _mask_head, mask_pooled, classes, train=False)
    return _summary(clock.seconds, whole, clock) | {"classes": found.classes}


def _proposed(clock: Clock, batch: Mapping[str, jax.Array], *, train: bool) -> tuple[Any, Any, Any]:
    """Pyramid, results of the RPN and proposals: the stages that training and inference share."""
    size = batch["image_size"]
    pyramid = clock.stage("backbone_fpn", _backbone_fpn, batch["image"], size, train=train)
    rpn = clock.stage("rpn", _rpn, pyramid)
    return pyramid, rpn, clock.stage("proposals", _proposals, pyramid, rpn, size, train=train)


def _check(model: MaskRCNN) -> None:
    if type(model) is not MaskRCNN or not model.config.with_mask or model.config.architecture != "fpn":
        raise ValueError(
            "stages are told apart for a Mask R-CNN with one box head and one mask head over a pyramid; got "
            f"{type(model).__name__}, architecture {model.config.architecture!r}, with_mask {model.config.with_mask}"
        )


def _summary(seconds: Mapping[str, float], whole: float, clock: Clock) -> dict[str, Any]:
    total = sum(seconds.values())
    return {
        "stage_seconds": {k: common.rounded(v) for k, v in seconds.items()},
        "shares": {k: round(v / total, 3) for k, v in seconds.items()},
        "sum_seconds": total,
        "whole_seconds": whole,
        "sum_over_whole": common.rounded(total / whole),
        "stages_compile_seconds": clock.compile_seconds,
    }
