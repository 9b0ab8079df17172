"""Reads the config.yaml that a detectron2 trainer writes beside its checkpoints, as settings of our config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from eql_jax.convert.conventions import BGR, RGB, Setting
from eql_jax.convert.errors import ConversionError

_NORMS = {
    "": "none",
    "FrozenBN": "frozen_batch_norm",
    "BN": "batch_norm",
    "SyncBN": "batch_norm",
    "nnSyncBN": "batch_norm",
    "naiveSyncBN": "batch_norm",
    "GN": "group_norm",
}


def _one_per_level(value: list) -> tuple:
    if any(len(v) != 1 for v in value):
        raise ValueError("expected one size per level")
    return tuple(float(v[0]) for v in value)


def _same_for_all(value: list) -> tuple:
    if any(v != value[0] for v in value):
        raise ValueError("expected the same ratios on every level")
    return tuple(float(v) for v in value[0])


def _floats(value: Any) -> tuple:
    return tuple(float(v) for v in value)


def _ints(value: Any) -> tuple:
    return tuple(int(v) for v in (value if isinstance(value, list | tuple) else [value]))


# detectron2's key -> (our field, how the value is read)
_FIELDS = {
    "MODEL.RESNETS.DEPTH": ("model.backbone.depth", int),
    "MODEL.RESNETS.NORM": ("model.backbone.norm", _NORMS.__getitem__),
    "MODEL.RESNETS.STRIDE_IN_1X1": ("model.backbone.stride_in_1x1", bool),
    "MODEL.BACKBONE.FREEZE_AT": ("model.backbone.freeze_at", int),
    "MODEL.FPN.OUT_CHANNELS": ("model.fpn.channels", int),
    "MODEL.FPN.NORM": ("model.fpn.norm", _NORMS.__getitem__),
    "MODEL.ANCHOR_GENERATOR.SIZES": ("model.rpn.anchor_sizes", _one_per_level),
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
    "MODEL.ROI_BOX_HEAD.NUM_FC": ("model.box_head.num_fc", int),
    "MODEL.ROI_BOX_HEAD.FC_DIM": ("model.box_head.fc_dim", int),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": ("model.box_head.pool_size", int),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": ("model.roi.sampling_ratio", int),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": ("model.box_head.class_agnostic_boxes", bool),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": ("model.mask_head.num_convs", int),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": ("model.mask_head.channels", int),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": ("model.mask_head.pool_size", int),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": ("model.mask_head.class_agnostic", bool),
    "TEST.DETECTIONS_PER_IMAGE": ("model.test.detections_per_image", int),
    "INPUT.MIN_SIZE_TEST": ("data.eval_shorter_side", int),
    "INPUT.MIN_SIZE_TRAIN": ("data.shorter_side", _ints),
    "INPUT.MAX_SIZE_TRAIN": ("data.longest_side", int),
}

# What the model here is built for: any other value is another architecture.
_EXPECTED = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.MASK_ON": True,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False] * 4,
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0] * 4,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
}
_BASIC_DEPTHS = (18, 34)  # blocks of two 3x3 convolutions; in deeper ones a stage has four times its inner width
_HEADS = {"StandardROIHeads": "softmax", "EQLROIHeads": "eql"}


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
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ConversionError(f"--source-config {path} does not exist") from e
    except (yaml.YAMLError, UnicodeError) as e:
        raise ConversionError(f"{path} is no YAML file: {e}") from e
    flat = dict(_leaves(content)) if isinstance(content, Mapping) else {}
    needed = [*_FIELDS, *_EXPECTED]
    needed += [f"MODEL.RESNETS.{k}" for k in ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP")]
    needed += ["MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT", "MODEL.ROI_HEADS.NAME"]
    missing = [key for key in needed if key not in flat]
    if missing:
        raise ConversionError(
            f"{path} lacks {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}; expected the complete config "
            "that a trainer writes to OUTPUT_DIR/config.yaml, not a file of changes over a base"
        )
    faults = [f"{key} is {flat[key]!r}; expected {v!r}" for key, v in _EXPECTED.items() if flat[key] != v]
    settings: dict[str, Setting] = {}
    for key, (field, read) in _FIELDS.items():
        try:
            settings[field] = Setting(read(flat[key]), f"{path.name}")
        except (KeyError, TypeError, ValueError) as e:
            faults.append(f"{key} is {flat[key]!r}: {e}")
    faults += _relations(flat)
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise ConversionError(f"{path} is of a model that cannot be built here:\n{lines}")

    def put(field: str, value: Any) -> None:
        settings[field] = Setting(value, f"{path.name}")

    channels = {"BGR": BGR, "RGB": RGB}[flat["INPUT.FORMAT"]]
    step = -1 if channels == BGR else 1
    depth, res2 = flat["MODEL.RESNETS.DEPTH"], flat["MODEL.RESNETS.RES2_OUT_CHANNELS"]
    width = res2 if depth in _BASIC_DEPTHS else res2 // 4
    put("model.backbone.width", width)
    stem = flat["MODEL.RESNETS.STEM_OUT_CHANNELS"]
    put("model.backbone.stem_width", 0 if stem == width else stem)
    put("channels", channels)
    put("model.pixel_mean", _floats(flat["MODEL.PIXEL_MEAN"][::step]))
    put("model.pixel_std", _floats(flat["MODEL.PIXEL_STD"][::step]))
    put("model.rpn.negative_iou", float(flat["MODEL.RPN.IOU_THRESHOLDS"][0]))
    put("model.rpn.positive_iou", float(flat["MODEL.RPN.IOU_THRESHOLDS"][1]))
    put("model.roi.positive_iou", float(flat["MODEL.ROI_HEADS.IOU_THRESHOLDS"][0]))
    put("model.roi.aligned", True)
    put("model.rpn.round_anchors", False)
    sigmoid = bool(flat.get("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"))
    put("model.box_head.loss", "sigmoid" if sigmoid else _HEADS[flat["MODEL.ROI_HEADS.NAME"]])
    if "MODEL.ROI_HEADS.LAMBDA" in flat:
        put("model.eql.tail_by", "lambda")
        put("model.eql.threshold", float(flat["MODEL.ROI_HEADS.LAMBDA"]))
    return SourceConfig(settings, int(flat["MODEL.ROI_HEADS.NUM_CLASSES"]), sigmoid)


def _relations(flat: Mapping[str, Any]) -> list[str]:
    """Values that are right only together with others."""
    faults = []
    depth, res2, width = (flat[f"MODEL.RESNETS.{k}"] for k in ("DEPTH", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP"))
    if depth not in _BASIC_DEPTHS and res2 != 4 * width:
        faults.append(f"MODEL.RESNETS.RES2_OUT_CHANNELS is {res2}; expected 4 times WIDTH_PER_GROUP {width}")
    if flat["MODEL.ROI_HEADS.NAME"] not in _HEADS:
        faults.append(f"MODEL.ROI_HEADS.NAME is {flat['MODEL.ROI_HEADS.NAME']!r}; expected one of {sorted(_HEADS)}")
    if flat["INPUT.FORMAT"] not in ("BGR", "RGB"):
        faults.append(f"INPUT.FORMAT is {flat['INPUT.FORMAT']!r}; expected 'BGR' or 'RGB'")
    if flat["MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO"] != flat["MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO"]:
        faults.append("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO is not that of ROI_BOX_HEAD; expected one for both")
    return faults


def _leaves(content: Mapping, prefix: str = ""):
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
