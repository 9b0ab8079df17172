"""detectron2's config.yaml: what is read, what is refused."""

import pytest
import yaml

from eql_jax.convert.errors import ConversionError
from eql_jax.convert.source_config import read_source_config
from tests.models.golden import CONFIG


def test_source_config_is_read():
    found = read_source_config(CONFIG)
    values = {k: v.value for k, v in found.settings.items()}
    assert found.num_classes == 60 and not found.background_logit
    expected = {
        "channels": "bgr",
        "model.pixel_mean": (123.675, 116.28, 103.53),
        "model.pixel_std": (1.0, 1.0, 1.0),
        "model.backbone.depth": 50,
        "model.backbone.width": 8,
        "model.backbone.stem_width": 0,
        "model.backbone.norm": "frozen_batch_norm",
        "model.fpn.norm": "none",
        "model.rpn.aspect_ratios": (0.5, 1.0, 2.0),
        "model.rpn.negative_iou": 0.3,
        "model.roi.sampling_ratio": 0,
        "model.box_head.loss": "eql",
        "model.eql.threshold": 0.00177,
        "model.test.detections_per_image": 300,
        "data.eval_shorter_side": 800,
    }
    assert {k: values[k] for k in expected} == expected


@pytest.mark.parametrize(
    ("given", "kind", "beta"),
    [
        ({"BBOX_REG_LOSS_TYPE": "giou", "SMOOTH_L1_BETA": 0.5}, "giou", 0.0),  # which has no beta
        ({"BBOX_REG_LOSS_TYPE": "smooth_l1", "SMOOTH_L1_BETA": 0.5}, "smooth_l1", 0.5),
        ({}, "smooth_l1", 0.0),
    ],
)
def test_the_loss_of_boxes(tmp_path, given, kind, beta):
    content = yaml.safe_load(CONFIG.read_text())
    head = content["MODEL"]["ROI_BOX_HEAD"]
    for key in ("BBOX_REG_LOSS_TYPE", "SMOOTH_L1_BETA"):
        del head[key]
    head.update(given)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    settings = read_source_config(path).settings
    assert settings["model.box_head.box_loss"].value == kind
    assert settings["model.box_head.box_loss_beta"].value == beta


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.RESNETS.RES5_DILATION", 2, r"MODEL\.RESNETS\.RES5_DILATION is 2; expected 1"),
        ("MODEL.BACKBONE.NAME", "build_mobilenet", "'build_resnet_fpn_backbone', 'build_resnet_backbone'"),
        ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "'EQLROIHeads' on .*; expected 'Res5ROIHeads'"),
        ("MODEL.ROI_HEADS.NAME", "PointRendROIHeads", "'PointRendROIHeads'; expected one of 'CascadeROIHeads'"),
        ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", r"CLS_AGNOSTIC_BBOX_REG is False; expected True"),
        ("MODEL.ROI_BOX_HEAD.NORM", "LN", "'LN': expected one of '', 'BN'"),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 0, "NUM_FC is 0: expected at least 1"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign", "ROIAlignV2"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64]], "one size per level"),
        ("MODEL.RESNETS.NORM", "LN", "'LN'"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", 26, "expected a multiple of 4"),
        ("INPUT.FORMAT", "YUV-BT.601", "expected 'BGR' or 'RGB'"),
        ("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 2, "expected one for both"),
    ],
)
def test_source_config_of_another_model(tmp_path, key, value, message):
    content = yaml.safe_load(CONFIG.read_text())
    group = content
    for part in key.split(".")[:-1]:
        group = group[part]
    group[key.split(".")[-1]] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConversionError, match=message):
        read_source_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: other.yaml\nMODEL: {MASK_ON: true}\n", "complete config"),
        ("a: [", "no YAML"),
        ("3", "complete config"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConversionError, match=message):
        read_source_config(path)
    with pytest.raises(ConversionError, match="does not exist"):
        read_source_config(tmp_path / "none.yaml")
