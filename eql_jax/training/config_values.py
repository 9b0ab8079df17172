"""Which values config fields may take, as tables, and what must fit together."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from eql_jax.class_losses import REGISTRY, ClassFrequencies, class_loss_type
from eql_jax.evaluation.image_groups import MAX_GROUPS
from eql_jax.models.box_head import configured_loss
from eql_jax.training.errors import ConfigError
from eql_jax.training.extra_sets import extra_set_faults
from eql_jax.training.optimizer import OPTIMIZERS, parameter_factors
from eql_jax.training.schedules import SCHEDULES

CHOICES = {
    "data.engine": ("threads", "tf.data"),
    "eval.backend": ("fast", "official"),
    "data.copy_paste.source": ("batch", "bank"),
    "data.sampler": ("uniform", "repeat_factor", "class_aware"),
    "model.dtype": ("float32", "bfloat16"),
    "model.architecture": ("fpn", "c4"),
    "model.backbone.kind": ("resnet", "senet"),
    "model.backbone.depth": (18, 34, 50, 101, 152, 154),
    "model.backbone.norm": ("frozen_batch_norm", "batch_norm", "group_norm"),
    "model.backbone.freeze_at": (0, 1, 2, 3, 4, 5),
    "model.fpn.norm": ("none", "batch_norm", "group_norm"),
    "model.fpn.min_level": (2, 3, 4, 5),
    "model.box_head.box_loss": ("smooth_l1", "giou", "diou", "ciou"),
    "model.box_head.norm": ("none", "batch_norm", "group_norm"),
    "model.mask_head.norm": ("none", "batch_norm", "group_norm"),
    "model.box_head.classifier": ("linear", "cosine"),
    "model.eql.tail_by": ("letters", "lambda"),
    "model.eql.function": ("step", "exponential", "gompertz"),
    "train.reduce_dtype": ("compute", "bfloat16"),
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
}
# key: (smallest, largest) value allowed, both inclusive, None: no limit; a tuple's elements each.
RANGES = {
    "seed": (0, 2**31 - 1),
    "data.repeat_threshold": (0, 1),
    "data.shorter_side": (1, None),
    "data.longest_side": (1, None),
    "data.eval_shorter_side": (1, None),
    "data.scale_jitter": (1e-3, 100),
    "data.crop_size": (32, None),
    "data.photometric.brightness": (0, 1),
    "data.photometric.contrast": (0, 1),
    "data.photometric.saturation": (0, 1),
    "data.photometric.hue": (0, 0.5),
    "data.copy_paste.probability": (0, 1),
    "data.copy_paste.max_objects": (1, 255),
    "data.copy_paste.scale": (1e-3, 100),
    "data.copy_paste.class_power": (-10, 10),
    "data.max_objects": (1, None),
    "data.mask_size": (1, None),
    "data.workers": (0, None),
    "data.prefetch": (1, None),
    "model.pixel_mean": (0, 255),
    "model.pixel_std": (1e-3, None),
    "model.backbone.width": (1, None),
    "model.backbone.stem_width": (0, None),
    "model.backbone.groups": (1, None),
    "model.backbone.width_per_group": (0, None),
    "model.backbone.deform_stages": (2, 5),
    "model.backbone.deform_groups": (1, None),
    "model.fpn.channels": (1, None),
    "model.rpn.anchor_sizes": (1, None),
    "model.rpn.aspect_ratios": (1e-2, 1e2),
    "model.rpn.positive_iou": (0, 1),
    "model.rpn.negative_iou": (0, 1),
    "model.rpn.batch_per_image": (1, None),
    "model.rpn.positive_fraction": (0, 1),
    "model.rpn.pre_nms_train": (1, None),
    "model.rpn.post_nms_train": (1, None),
    "model.rpn.pre_nms_test": (1, None),
    "model.rpn.post_nms_test": (1, None),
    "model.rpn.nms_iou": (0, 1),
    "model.roi.batch_per_image": (1, None),
    "model.roi.positive_fraction": (0, 1),
    "model.roi.positive_iou": (0, 1),
    "model.roi.sampling_ratio": (0, None),
    "model.roi.max_samples": (1, None),
    "model.roi.canonical_size": (1, None),
    "model.box_head.cosine_temperature": (1e-3, None),
    "model.box_head.class_multiple": (1, None),
    "model.box_head.box_loss_beta": (0, None),
    "model.box_head.num_convs": (0, None),
    "model.box_head.conv_dim": (1, None),
    "model.box_head.num_fc": (1, None),
    "model.box_head.fc_dim": (1, None),
    "model.box_head.pool_size": (1, None),
    "model.mask_head.num_convs": (0, None),
    "model.mask_head.channels": (1, None),
    "model.mask_head.pool_size": (1, None),
    "model.cascade.ious": (0, 1),
    "model.cascade.box_weights": (1e-3, None),
    "model.eql.threshold": (0, 1),
    "model.eql.num_images": (0, None),
    "model.test.score_threshold": (0, 1),
    "model.test.norcal_gamma": (0, None),
    "model.test.nms_iou": (0, 1),
    "model.test.detections_per_image": (1, None),
    "model.test.candidates": (1, None),
    "train.batch_size": (1, None),
    "train.reference_batch_size": (0, None),
    "train.steps": (1, None),
    "train.gradient_accumulation": (1, None),
    "train.steps_per_call": (1, None),
    "optimizer.learning_rate": (0, None),
    "optimizer.momentum": (0, 1),
    "optimizer.weight_decay": (0, None),
    "optimizer.decay_at": (0, None),
    "optimizer.decay_factor": (0, None),
    "optimizer.warmup_steps": (0, None),
    "optimizer.warmup_factor": (0, 1),
    "optimizer.clip_norm": (0, None),
    "optimizer.ema_decay": (0, 1),
    "mesh.data": (-1, None),
    "mesh.model": (-1, None),
    "eval.every": (0, None),
    "eval.batch_size": (1, None),
    "eval.max_images": (0, None),
    "eval.max_detections": (1, None),
    "eval.image_count_groups": (0, MAX_GROUPS),
    "eval.tta.shorter_sides": (1, None),
    "eval.tta.longest_side": (1, None),
    "eval.pictures": (0, None),
    "log.every": (1, None),
    "checkpoint.every": (1, None),
    "checkpoint.keep": (1, None),
    "checkpoint.keep_best": (0, None),
    "checkpoint.keep_every": (0, None),
}


def type_faults(values: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """One line for every value whose type is not that of the base config's field.

    Args:
        values: {'a.b': value} with every key of `base`.
        base: {'a.b': default}.
    """
    return list(_type_faults(values, base))


def value_faults(config: ConfigDict) -> list[str]:
    """One line for every value that is not allowed; relations between values only when each is right by itself."""
    faults = [*table_faults(config, CHOICES, RANGES), *_class_loss_faults(config)]
    return faults or [*training_faults(config), *_relation_faults(config)]


def _type_faults(values: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[str]:
    for key, expected in base.items():
        value = values[key]
        if isinstance(expected, tuple):
            right = isinstance(value, tuple | list)
        elif isinstance(expected, float):
            right = isinstance(value, int | float) and not isinstance(value, bool)
        else:
            right = type(value) is type(expected)
        if not right:
            yield f"{key} is {value!r} ({type(value).__name__}); expected {type(expected).__name__}, as {expected!r}"


def table_faults(
    config: ConfigDict, choices: Mapping[str, tuple], ranges: Mapping[str, tuple[float, float | None]]
) -> Iterator[str]:
    """One line for every value that is not among its `choices`, or outside of its `ranges` (as CHOICES and RANGES)."""
    for key, allowed in choices.items():
        value = _get(config, key)
        if value not in allowed:
            near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
            hint = f"; did you mean {near[0]!r}?" if near and isinstance(value, str) else ""
            yield f"{key} is {value!r}; expected one of {', '.join(map(repr, allowed))}{hint}"
    for key, (low, high) in ranges.items():
        value = _get(config, key)
        limits = f"at least {low}" if high is None else f"{low} to {high}"
        for v in value if isinstance(value, tuple | list) else (value,):
            number = isinstance(v, int | float)
            # Written so that NaN, which compares false with everything, is a fault too.
            if not number or not (low <= v and (high is None or v <= high)):
                yield f"{key} is {value!r}; expected {'numbers' if v is not value else 'a number'} of {limits}"
                break


def training_faults(config: ConfigDict) -> Iterator[str]:
    """What must fit together whatever is trained: sections train, optimizer and mesh, and the pixel values."""
    m, t, o = config.model, config.train, config.optimizer
    if t.batch_size % t.gradient_accumulation:
        yield f"train.batch_size {t.batch_size} is not a multiple of gradient_accumulation {t.gradient_accumulation}"
    # With more, every call would be one of a single step.
    for key, every in (("checkpoint.every", config.checkpoint.every), ("eval.every", config.eval.every)):
        if 0 < every < t.steps_per_call:
            yield f"train.steps_per_call is {t.steps_per_call}; expected at most {key} {every}"
    if o.name == "adamw" and o.nesterov:
        yield "optimizer.nesterov is for sgd; optimizer.name is 'adamw'"
    if o.schedule == "steps" and list(o.decay_at) != sorted(set(o.decay_at)):
        yield f"optimizer.decay_at is {o.decay_at}; expected rising steps"
    if len(o.betas) != 2 or not all(0 <= b < 1 for b in o.betas):
        yield f"optimizer.betas is {o.betas}; expected two numbers from 0 to below 1"
    try:
        parameter_factors({}, tuple(o.groups))
    except ConfigError as e:
        yield str(e)
    if o.ema_decay >= 1:
        yield f"optimizer.ema_decay is {o.ema_decay}; expected below 1 (0: off)"
    for name in ("pixel_mean", "pixel_std"):
        if len(m[name]) != 3:
            yield f"model.{name} is {m[name]}; expected three numbers, red, green and blue"
    for axis in ("data", "model"):
        if config.mesh[axis] == 0:
            yield f"mesh.{axis} is 0; expected a number of devices, or -1 for all that are left"
    if config.mesh.data == -1 and config.mesh.model == -1:
        yield "mesh.data and mesh.model are both -1; one of them must be a number of devices"
    for name, weight in t.loss_weights.items():
        if not weight >= 0:
            yield f"train.loss_weights.{name} is {weight}; expected at least 0"


def _relation_faults(config: ConfigDict) -> Iterator[str]:
    d, m = config.data, config.model
    if not 0 < m.box_head.prior < 1:
        yield f"model.box_head.prior is {m.box_head.prior}; expected between 0 and 1"
    if not m.eql.tail_letters or set(m.eql.tail_letters) - set("rcf"):
        yield f"model.eql.tail_letters is {m.eql.tail_letters!r}; expected letters out of 'rcf'"
    if m.eql.tail_by == "letters" and m.eql.function != "step":
        yield f"model.eql.function is {m.eql.function!r}, which goes with eql.tail_by 'lambda'; letters are a step"
    if m.rpn.negative_iou > m.rpn.positive_iou:
        yield f"model.rpn.negative_iou {m.rpn.negative_iou} is above model.rpn.positive_iou {m.rpn.positive_iou}"
    yield from extra_set_faults(d.extra_sets)
    yield from _backbone_faults(m)
    yield from _head_faults(m)
    levels = 7 - m.fpn.min_level
    if m.architecture == "fpn" and len(m.rpn.anchor_sizes) != levels:
        yield (
            f"model.rpn.anchor_sizes has {len(m.rpn.anchor_sizes)} entries; expected {levels}, one per level from "
            f"model.fpn.min_level {m.fpn.min_level} to 6"
        )
    for name, values in (("data.shorter_side", d.shorter_side), ("model.rpn.aspect_ratios", m.rpn.aspect_ratios)):
        if not values:
            yield f"{name} is empty; expected at least one number"
    for name, values in (
        ("data.scale_jitter", d.scale_jitter or (1, 1)),
        ("data.copy_paste.scale", d.copy_paste.scale),
    ):
        if len(values) != 2 or not values[0] <= values[1]:
            yield f"{name} is {tuple(values)}; expected (smallest, largest)"
    if len(d.crop_size) != 2 or any(not isinstance(s, int) or s % 32 for s in d.crop_size):
        yield f"data.crop_size is {d.crop_size}; expected (height, width), multiples of 32"
    if not d.buckets or any(
        len(b) != 2 or any(not isinstance(s, int) or s < 1 or s % 32 for s in b) for b in d.buckets
    ):
        yield f"data.buckets is {d.buckets}; expected (height, width) pairs of multiples of 32"
    if config.train.steps_per_call > 1 and len(d.buckets) > 1 and not d.scale_jitter:
        yield (
            f"train.steps_per_call is {config.train.steps_per_call}, which asks for batches of one shape; expected one "
            f"bucket in place of data.buckets {d.buckets}, or data.scale_jitter"
        )
    if any(not isinstance(side, int) for side in config.eval.tta.shorter_sides):
        yield f"eval.tta.shorter_sides is {config.eval.tta.shorter_sides}; expected whole numbers of pixels"
    unlimited = [name for name in ("ap_fixed", "ap_pool") if config.eval[name]]
    if unlimited and m.test.detections_per_image <= config.eval.max_detections:
        yield (
            f"eval.{unlimited[0]}: model.test.detections_per_image is {m.test.detections_per_image}; expected more "
            f"than eval.max_detections {config.eval.max_detections}, 1000 say, because AP-fixed and AP-pool have no "
            "limit per image"
        )
    if not m.with_mask:
        if d.copy_paste.probability:
            yield f"data.copy_paste.probability is {d.copy_paste.probability}; pasting asks for model.with_mask True"
        if config.eval.boundary:
            yield "eval.boundary is True; boundary AP asks for model.with_mask True"


def _backbone_faults(m: ConfigDict) -> Iterator[str]:
    b = m.backbone
    depths = {"resnet": (18, 34, 50, 101, 152), "senet": (50, 101, 154)}[b.kind]
    if b.depth not in depths:
        yield f"model.backbone.depth is {b.depth}; expected one of {', '.join(map(str, depths))} for {b.kind!r}"
    if b.kind == "senet" and b.stride_in_1x1:
        yield "model.backbone.stride_in_1x1 is True; expected False for 'senet', whose stride is in the 3x3"
    if b.kind == "senet" and b.deform_stages:
        yield f"model.backbone.deform_stages is {b.deform_stages}; 'senet' has none, expected ()"
    if b.kind == "senet" and b.width_per_group:
        yield (
            f"model.backbone.width_per_group is {b.width_per_group}; expected 0 for 'senet', whose 3x3 has as many "
            "channels as the block whatever the groups"
        )
    if b.depth in (18, 34):
        for name, plain in (("groups", 1), ("width_per_group", 0), ("deform_stages", ())):
            if b[name] != plain:
                yield f"model.backbone.{name} is {b[name]}; depths 18 and 34 have no bottlenecks, expected {plain}"
    elif not b.width_per_group and b.width % b.groups:
        yield f"model.backbone.width {b.width} is not a multiple of model.backbone.groups {b.groups}"
    if any(not isinstance(s, int) for s in b.deform_stages) or len(set(b.deform_stages)) != len(b.deform_stages):
        yield f"model.backbone.deform_stages is {b.deform_stages}; expected some of (2, 3, 4, 5), each once"
    inner = b.groups * (b.width_per_group or b.width // b.groups)
    if b.deform_stages and inner % b.deform_groups:
        yield f"model.backbone.deform_groups is {b.deform_groups}; expected a divisor of the inner width {inner}"


def _class_loss_faults(config: ConfigDict) -> Iterator[str]:
    h = config.model.box_head
    try:
        kind = class_loss_type(h.loss)
    except ValueError as e:
        yield f"model.box_head.loss is {h.loss!r}; {e}"
        return
    if h.loss == "eql" and h.loss_options:
        yield f"model.box_head.loss_options is {dict(h.loss_options)}; the options of 'eql' are those of model.eql"
        return
    if h.class_multiple > 1 and not kind.takes_padding:
        takes = ", ".join(repr(name) for name, loss in sorted(REGISTRY.items()) if loss.takes_padding)
        yield (
            f"model.box_head.class_multiple is {h.class_multiple}; expected 1 for {h.loss!r}, whose columns are not "
            f"one sigmoid per class; others go with {takes}"
        )
        return
    try:
        # Values are the loss's own to check; the classes are only there to have some.
        counts = np.array([1, 20, 300])
        loss = configured_loss(config.model, ClassFrequencies(3, ("r", "c", "f"), counts, counts, 300, counts < 100))
    except ValueError as e:
        yield f"model.box_head.loss_options: {e}"
        return
    images = config.train.batch_size // max(1, config.train.gradient_accumulation)
    if images % loss.images_multiple:
        yield (
            f"train.batch_size {config.train.batch_size} with train.gradient_accumulation "
            f"{config.train.gradient_accumulation} gives parts of {images} images; {h.loss!r} asks for a multiple of "
            f"{loss.images_multiple} (model.box_head.loss_options)"
        )
    eql = config.model.eql
    if eql.verified_negatives and not kind.takes_verified:
        yield f"model.eql.verified_negatives is True; expected False for {h.loss!r}, which does not read them"
    if not eql.background_keeps_negatives and h.loss != "eql":
        yield f"model.eql.background_keeps_negatives is False; expected True for {h.loss!r}, which does not read it"
    if config.data.extra_sets and not kind.takes_annotated:
        takes = ", ".join(repr(name) for name, loss in sorted(REGISTRY.items()) if loss.takes_annotated)
        yield (
            f"model.box_head.loss {h.loss!r} cannot leave out classes that a set of data.extra_sets is not annotated "
            f"with; expected one of {takes}"
        )


def _head_faults(m: ConfigDict) -> Iterator[str]:
    if m.box_head.box_loss_beta and m.box_head.box_loss != "smooth_l1":
        yield (
            f"model.box_head.box_loss_beta is {m.box_head.box_loss_beta}, which goes with model.box_head.box_loss "
            f"'smooth_l1'; {m.box_head.box_loss!r} has none, expected 0"
        )
    ious = m.cascade.ious
    if ious and len(ious) != len(m.cascade.box_weights):
        yield (
            f"model.cascade.ious has {len(ious)} stages and model.cascade.box_weights {len(m.cascade.box_weights)}; "
            "expected as many"
        )
    if ious and not m.box_head.class_agnostic_boxes:
        yield "model.cascade.ious asks for model.box_head.class_agnostic_boxes True, as one box goes to the next stage"
    if ious and ious[0] != m.roi.positive_iou:
        yield f"model.cascade.ious begins with {ious[0]}; expected model.roi.positive_iou {m.roi.positive_iou}"
    if m.architecture == "c4":
        if ious:
            yield f"model.cascade.ious is {ious}; the cascade goes with model.architecture 'fpn'"
        if m.box_head.num_convs:
            yield f"model.box_head.num_convs is {m.box_head.num_convs}; expected 0 for 'c4', whose box head is res5"
        if m.box_head.pool_size % 2:
            yield (
                f"model.box_head.pool_size is {m.box_head.pool_size}; expected an even number for 'c4', 14 as a rule, "
                "as res5 halves it"
            )
        if m.backbone.freeze_at > 4:
            yield f"model.backbone.freeze_at is {m.backbone.freeze_at}; expected at most 4 for 'c4'"


def _get(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
