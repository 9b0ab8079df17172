"""Reads the config.yaml that a detectron2 trainer writes beside its checkpoints, as settings of our config."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from eql_jax.convert.conventions import BGR, RGB, Setting
from eql_jax.convert.errors import ConversionError

_LIVE_NORMS = {"BN": "batch_norm", "SyncBN": "batch_norm", "nnSyncBN": "batch_norm", "naiveSyncBN": "batch_norm"}
_LIVE_NORMS |= {"GN": "group_norm"}
_BACKBONE_NORMS = {"FrozenBN": "frozen_batch_norm", **_LIVE_NORMS}
_HEAD_NORMS = {"": "none", **_LIVE_NORMS}


def _one_per_level(value: list) -> tuple:
    if any(len(v) != 1 for v in value):
        raise ValueError("expected one size per level")
    return tuple(float(v[0]) for v in value)


def _of_one_level(value: list) -> tuple:
    if len(value) != 1:
        raise ValueError("expected the sizes of one level")
    return tuple(float(v) for v in value[0])


def _same_for_all(value: list) -> tuple:
    if any(v != value[0] for v in value):
        raise ValueError("expected the same ratios on every level")
    return tuple(float(v) for v in value[0])


def _floats(value: Any) -> tuple:
    return tuple(float(v) for v in value)


def _ints(value: Any) -> tuple:
    return tuple(int(v) for v in (value if isinstance(value, list | tuple) else [value]))


def _one_of(names: Mapping[str, str]):
    def read(value: str) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(map(repr, names))}")
        return names[value]

    return read


def _at_least_one(value: Any) -> int:
    if int(value) < 1:
        raise ValueError("expected at least 1")
    return int(value)


def _stages(value: list) -> tuple:
    return tuple(stage for stage, deformable in zip((2, 3, 4, 5), value, strict=True) if deformable)


def _stage_weights(value: list) -> tuple:
    """One number for each stage's (w, w, w / 2, w / 2)."""
    if any(list(v) != [v[0], v[0], v[0] / 2, v[0] / 2] for v in value):
        raise ValueError("expected (w, w, w / 2, w / 2) for every stage")
    return tuple(float(v[0]) for v in value)


# detectron2's key -> (our field, how the value is read)
_FIELDS = {
    "MODEL.RESNETS.DEPTH": ("model.backbone.depth", int),
    "MODEL.RESNETS.NORM": ("model.backbone.norm", _one_of(_BACKBONE_NORMS)),
    "MODEL.RESNETS.STRIDE_IN_1X1": ("model.backbone.stride_in_1x1", bool),
    "MODEL.RESNETS.NUM_GROUPS": ("model.backbone.groups", int),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ("model.backbone.deform_stages", _stages),
    "MODEL.BACKBONE.FREEZE_AT": ("model.backbone.freeze_at", int),
    "MODEL.MASK_ON": ("model.with_mask", bool),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ("model.rpn.aspect_ratios", _same_for_all),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": ("model.rpn.batch_per_image", int),
    "MODEL.RPN.POSITIVE_FRACTION": ("model.rpn.positive_fraction", float),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": ("model.rpn.pre_nms_train", int),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": ("model.rpn.post_nms_train", int),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": ("model.rpn.pre_nms_test", int),
    "MODEL.RPN.POST_NMS_TOPK_TEST": ("model.rpn.post_nms_test", int),
    "MODEL.RPN.NMS_THRESH": ("model.rpn.nms_iou", float),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": ("model.roi.batch_per_image", int),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": ("model.roi.positive_fraction", float),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": ("model.test.score_threshold", float),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": ("model.test.nms_iou", float),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": ("model.box_head.pool_size", int),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": ("model.roi.sampling_ratio", int),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": ("model.box_head.class_agnostic_boxes", bool),
    "TEST.DETECTIONS_PER_IMAGE": ("model.test.detections_per_image", int),
    "INPUT.MIN_SIZE_TEST": ("data.eval_shorter_side", int),
    "INPUT.MIN_SIZE_TRAIN": ("data.shorter_side", _ints),
    "INPUT.MAX_SIZE_TRAIN": ("data.longest_side", int),
}
_FPN_FIELDS = {
    "MODEL.ANCHOR_GENERATOR.SIZES": ("model.rpn.anchor_sizes", _one_per_level),
    "MODEL.FPN.OUT_CHANNELS": ("model.fpn.channels", int),
    "MODEL.FPN.NORM": ("model.fpn.norm", _one_of(_HEAD_NORMS)),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": ("model.box_head.num_convs", int),
    "MODEL.ROI_BOX_HEAD.CONV_DIM": ("model.box_head.conv_dim", int),
    "MODEL.ROI_BOX_HEAD.NORM": ("model.box_head.norm", _one_of(_HEAD_NORMS)),
    "MODEL.ROI_BOX_HEAD.NUM_FC": ("model.box_head.num_fc", _at_least_one),
    "MODEL.ROI_BOX_HEAD.FC_DIM": ("model.box_head.fc_dim", int),
}
_C4_FIELDS = {"MODEL.ANCHOR_GENERATOR.SIZES": ("model.rpn.anchor_sizes", _of_one_level)}
_MASK_FIELDS = {
    "MODEL.ROI_MASK_HEAD.NUM_CONV": ("model.mask_head.num_convs", int),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": ("model.mask_head.channels", int),
    "MODEL.ROI_MASK_HEAD.NORM": ("model.mask_head.norm", _one_of(_HEAD_NORMS)),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": ("model.mask_head.class_agnostic", bool),
}
_FPN_MASK_FIELDS = {"MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": ("model.mask_head.pool_size", int)}
_CASCADE_FIELDS = {
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": ("model.cascade.ious", _floats),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": ("model.cascade.box_weights", _stage_weights),
}
_DEFORM_FIELDS = {
    "MODEL.RESNETS.DEFORM_MODULATED": ("model.backbone.deform_modulated", bool),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": ("model.backbone.deform_groups", int),
}

# What the models here are built for: any other value is another architecture.
_EXPECTED = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0] * 4,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
}
_FPN_EXPECTED = {
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
}
_C4_EXPECTED = {
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
}
_MASK_EXPECTED = {"MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead"}
_FPN_MASK_EXPECTED = {"MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2"}
_ONE_STAGE_EXPECTED = {"MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0]}
_CASCADE_EXPECTED = {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}

_ARCHITECTURES = {"build_resnet_fpn_backbone": "fpn", "build_resnet_backbone": "c4"}
_BASIC_DEPTHS = (18, 34)  # blocks of two 3x3 convolutions; in deeper ones a stage has four times its inner width


class _Heads(NamedTuple):
    """What ROI_HEADS.NAME says: the architecture it goes with, the loss, and whether it is a cascade."""

    architecture: str
    loss: str
    cascade: bool


_HEADS = {
    "StandardROIHeads": _Heads("fpn", "softmax", False),
    "EQLROIHeads": _Heads("fpn", "eql", False),
    "CascadeROIHeads": _Heads("fpn", "softmax", True),
    "EQLCascadeROIHeads": _Heads("fpn", "eql", True),
    "Res5ROIHeads": _Heads("c4", "softmax", False),
}


class SourceConfig(NamedTuple):
    """settings: of our config, and 'channels'; num_classes: K; background_logit: sigmoid classifier with an unused
    last column (USE_SIGMOID_CE)."""

    settings: dict[str, Setting]
    num_classes: int
    background_logit: bool


def read_source_config(path: str | Path) -> SourceConfig:
    """Reads a complete detectron2 config (the trainer's OUTPUT_DIR/config.yaml).

    Raises:
      ConversionError: no such file, not the complete config, or one of a model that is not built here; all at once.
    """
    path = Path(path)
    flat = _flat_config(path)
    architecture = _ARCHITECTURES.get(flat["MODEL.BACKBONE.NAME"])
    heads = _HEADS.get(flat["MODEL.ROI_HEADS.NAME"])
    faults = _structure_faults(flat, architecture, heads)
    if not faults:
        fields, expected = _parts(flat, architecture, heads)
        _require(path, flat, [*fields, *expected])
        faults += [f"{key} is {flat[key]!r}; expected {v!r}" for key, v in expected.items() if flat[key] != v]
        faults += _relations(flat, architecture, heads)
        settings: dict[str, Setting] = {}
        for key, (field, read) in fields.items():
            try:
                settings[field] = Setting(read(flat[key]), f"{path.name}")
            except (KeyError, TypeError, ValueError) as e:
                faults.append(f"{key} is {flat[key]!r}: {e}")
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise ConversionError(f"{path} is of a model that cannot be built here:\n{lines}")

    sigmoid = bool(flat.get("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"))
    values = _derived(flat, architecture, heads)
    values["model.box_head.loss"] = "sigmoid" if sigmoid else heads.loss
    if sigmoid and flat.get("MODEL.ROI_BOX_HEAD.USE_FED_LOSS"):  # which asks for USE_SIGMOID_CE
        values["model.box_head.loss"] = "federated"
        options = "model.box_head.loss_options"
        values[f"{options}.num_sampled"] = int(flat.get("MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 50))
        values[f"{options}.power"] = float(flat.get("MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER", 0.5))
    # Older versions have smooth L1 alone and no key for it.
    values["model.box_head.box_loss"] = kind = flat.get("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "smooth_l1")
    beta = flat.get("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.0)
    values["model.box_head.box_loss_beta"] = float(beta) if kind == "smooth_l1" else 0.0
    settings |= {field: Setting(value, f"{path.name}") for field, value in values.items()}
    return SourceConfig(settings, int(flat["MODEL.ROI_HEADS.NUM_CLASSES"]), sigmoid)


# What is read besides the tables' keys.
_DERIVED = [f"MODEL.RESNETS.{k}" for k in ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP")]
_DERIVED += ["MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT", "MODEL.RPN.IOU_THRESHOLDS"]
_DERIVED += [f"MODEL.ROI_HEADS.{k}" for k in ("NAME", "NUM_CLASSES", "IOU_THRESHOLDS")]


def _flat_config(path: Path) -> dict[str, Any]:
    """{'A.B': value} of the file; it has every key that all architectures need."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ConversionError(f"--source-config {path} does not exist") from e
    except (yaml.YAMLError, UnicodeError) as e:
        raise ConversionError(f"{path} is no YAML file: {e}") from e
    flat = dict(_leaves(content)) if isinstance(content, Mapping) else {}
    _require(path, flat, ["MODEL.BACKBONE.NAME", *_FIELDS, *_EXPECTED, *_DERIVED])
    return flat


def _require(path: Path, flat: Mapping[str, Any], keys: list[str]) -> None:
    missing = [key for key in keys if key not in flat]
    if missing:
        raise ConversionError(
            f"{path} lacks {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}; expected the complete config "
            "that a trainer writes to OUTPUT_DIR/config.yaml, not a file of changes over a base"
        )


def _structure_faults(flat: Mapping[str, Any], architecture: str | None, heads: _Heads | None) -> list[str]:
    """Whether backbone and heads are known and go together: on this depends which other keys count."""
    faults = []
    if architecture is None:
        name = flat["MODEL.BACKBONE.NAME"]
        faults.append(f"MODEL.BACKBONE.NAME is {name!r}; expected one of {', '.join(map(repr, _ARCHITECTURES))}")
    if heads is None:
        name = flat["MODEL.ROI_HEADS.NAME"]
        faults.append(f"MODEL.ROI_HEADS.NAME is {name!r}; expected one of {', '.join(map(repr, sorted(_HEADS)))}")
    if not faults and heads.architecture != architecture:
        fitting = [repr(name) for name, known in sorted(_HEADS.items()) if known.architecture == architecture]
        faults.append(
            f"MODEL.ROI_HEADS.NAME is {flat['MODEL.ROI_HEADS.NAME']!r} on MODEL.BACKBONE.NAME "
            f"{flat['MODEL.BACKBONE.NAME']!r}; expected {' or '.join(fitting)}"
        )
    return faults


def _parts(flat: Mapping[str, Any], architecture: str, heads: _Heads) -> tuple[dict, dict]:
    """The fields to read and the values to expect of this architecture."""
    fpn, masks = architecture == "fpn", bool(flat["MODEL.MASK_ON"])
    fields = {**_FIELDS, **(_FPN_FIELDS if fpn else _C4_FIELDS)}
    expected = {**_EXPECTED, **(_FPN_EXPECTED if fpn else _C4_EXPECTED)}
    if masks:
        fields |= _MASK_FIELDS | (_FPN_MASK_FIELDS if fpn else {})
        expected |= _MASK_EXPECTED | (_FPN_MASK_EXPECTED if fpn else {})
    if heads.cascade:
        fields |= _CASCADE_FIELDS
    expected |= _CASCADE_EXPECTED if heads.cascade else _ONE_STAGE_EXPECTED
    if any(flat["MODEL.RESNETS.DEFORM_ON_PER_STAGE"]):
        fields |= _DEFORM_FIELDS
    return fields, expected


def _derived(flat: Mapping[str, Any], architecture: str, heads: _Heads) -> dict[str, Any]:
    """Fields that are made of several keys, or of none."""
    channels = {"BGR": BGR, "RGB": RGB}[flat["INPUT.FORMAT"]]
    step = -1 if channels == BGR else 1
    depth, res2, stem, groups, per_group = (
        flat[f"MODEL.RESNETS.{k}"]
        for k in ("DEPTH", "RES2_OUT_CHANNELS", "STEM_OUT_CHANNELS", "NUM_GROUPS", "WIDTH_PER_GROUP")
    )
    basic = depth in _BASIC_DEPTHS
    width = res2 if basic else res2 // 4
    values = {
        "channels": channels,
        "model.architecture": architecture,
        "model.pixel_mean": _floats(flat["MODEL.PIXEL_MEAN"][::step]),
        "model.pixel_std": _floats(flat["MODEL.PIXEL_STD"][::step]),
        "model.backbone.kind": "resnet",
        "model.backbone.width": width,
        "model.backbone.stem_width": 0 if stem == width else stem,
        "model.backbone.width_per_group": 0 if basic or groups * per_group == width else per_group,
        "model.rpn.negative_iou": float(flat["MODEL.RPN.IOU_THRESHOLDS"][0]),
        "model.rpn.positive_iou": float(flat["MODEL.RPN.IOU_THRESHOLDS"][1]),
        "model.rpn.round_anchors": False,
        "model.roi.positive_iou": float(flat["MODEL.ROI_HEADS.IOU_THRESHOLDS"][0]),
        "model.roi.aligned": True,
    }
    if architecture == "fpn":
        values["model.fpn.min_level"] = 2
    else:
        values["model.box_head.num_convs"] = 0
    if not heads.cascade:
        values["model.cascade.ious"] = ()
    if "MODEL.ROI_HEADS.LAMBDA" in flat:
        values["model.eql.tail_by"] = "lambda"
        values["model.eql.threshold"] = float(flat["MODEL.ROI_HEADS.LAMBDA"])
    return values


def _relations(flat: Mapping[str, Any], architecture: str, heads: _Heads) -> Iterator[str]:
    """Values that are right only together with others."""
    resnets = {k: flat[f"MODEL.RESNETS.{k}"] for k in ("DEPTH", "RES2_OUT_CHANNELS", "NUM_GROUPS")}
    depth, res2, groups = resnets.values()
    deform = flat["MODEL.RESNETS.DEFORM_ON_PER_STAGE"]
    if depth in _BASIC_DEPTHS and (groups != 1 or any(deform)):
        yield f"MODEL.RESNETS.DEPTH {depth} has no bottlenecks; expected NUM_GROUPS 1 and DEFORM_ON_PER_STAGE all False"
    if depth not in _BASIC_DEPTHS and res2 % 4:
        yield f"MODEL.RESNETS.RES2_OUT_CHANNELS is {res2}; expected a multiple of 4"
    if architecture == "c4" and deform[3]:
        yield "MODEL.RESNETS.DEFORM_ON_PER_STAGE has res5, which detectron2 cannot deform in the RoI heads"
    if flat["INPUT.FORMAT"] not in ("BGR", "RGB"):
        yield f"INPUT.FORMAT is {flat['INPUT.FORMAT']!r}; expected 'BGR' or 'RGB'"
    mask_ratio = flat.get("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO")
    if (
        architecture == "fpn"
        and flat["MODEL.MASK_ON"]
        and mask_ratio != flat["MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO"]
    ):
        yield "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO is not that of ROI_BOX_HEAD; expected one for both"
    if heads.cascade:
        ious, weights = (flat.get(f"MODEL.ROI_BOX_CASCADE_HEAD.{k}", []) for k in ("IOUS", "BBOX_REG_WEIGHTS"))
        first = flat["MODEL.ROI_HEADS.IOU_THRESHOLDS"][0]
        if len(ious) != len(weights) or not ious or ious[0] != first:
            yield (
                f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS is {ious} with {len(weights)} BBOX_REG_WEIGHTS; expected one for "
                f"each stage, the first ROI_HEADS.IOU_THRESHOLDS {first}"
            )


def _leaves(content: Mapping, prefix: str = ""):
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
