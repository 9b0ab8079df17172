"""Names of MSRA's and torchvision's files in detectron2's."""

import json

import numpy as np
import pytest

from eql_jax.convert import names
from eql_jax.convert.errors import ConversionError
from tests.models.golden import TESTDATA


def caffe2_name(name):
    """The Caffe2 name of a tensor of a bare ResNet, written the other way round than names.CAFFE2."""
    parts = name.split(".")
    kind = {"weight": "s", "bias": "b"}[parts[-1]]
    if parts[0] == "stem":
        return f"res_conv1_bn_{kind}" if "norm" in parts else "conv1_w"
    branch = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}[parts[2]]
    return f"{parts[0]}_{parts[1]}_{branch}" + (f"_bn_{kind}" if "norm" in parts else "_w")


def resnet_names(blocks):
    convs = ["stem.conv1"]
    for stage, count in enumerate(blocks, start=2):
        for block in range(count):
            convs += [
                f"res{stage}.{block}.{c}"
                for c in ("shortcut", "conv1", "conv2", "conv3")
                if c != "shortcut" or not block
            ]
    return [f"{conv}.{part}" for conv in convs for part in ("weight", "norm.weight", "norm.bias")]


@pytest.mark.parametrize("blocks", [(3, 4, 6, 3), (3, 4, 23, 3)])
def test_msra_names(blocks):
    wanted = resnet_names(blocks)
    found = names.caffe2_to_detectron2(
        {caffe2_name(n): np.array(i) for i, n in enumerate(wanted)}
        | {"fc1000_w": np.array(-1), "fc1000_b": np.array(-2)}
    )
    assert {n: int(v) for n, v in found.items()} == {n: i for i, n in enumerate(wanted)} | {
        "classifier.w": -1,
        "classifier.b": -2,
    }


def test_folded_norms_become_the_identity_with_eps():
    """scale / sqrt(var + 1e-5) must be the file's scale: variance 1 - 1e-5, as in detectron2."""
    tensors = names.with_prefix(
        {"stem.conv1.norm.weight": np.float32([2, 3]), "stem.conv1.norm.bias": np.float32([1, 1])}, "fpn"
    )
    found = names.complete_norms(tensors)
    var = found["backbone.bottom_up.stem.conv1.norm.running_var"]
    np.testing.assert_array_equal(np.float32([2, 3]) / np.sqrt(var + np.float32(1e-5)), [2, 3])
    assert not found["backbone.bottom_up.stem.conv1.norm.running_mean"].any()


def test_prefix_goes_to_bare_resnets_only():
    found = names.with_prefix(
        {"res2.0.conv1.weight": 0, "backbone.bottom_up.res2.0.conv2.weight": 1, "backbone.fpn_lateral2.bias": 2}, "fpn"
    )
    assert list(found) == [
        "backbone.bottom_up.res2.0.conv1.weight",
        "backbone.bottom_up.res2.0.conv2.weight",
        "backbone.fpn_lateral2.bias",
    ]


def test_prefixes_of_c4_models():
    """res5 belongs to the RoI heads; a backbone alone moves from one architecture to the other."""
    bare = {"stem.conv1.weight": 0, "res4.0.conv1.weight": 1, "res5.0.conv1.weight": 2}
    c4 = {"backbone.stem.conv1.weight": 0, "backbone.res4.0.conv1.weight": 1, "roi_heads.res5.0.conv1.weight": 2}
    fpn = {f"backbone.bottom_up.{name}": value for name, value in bare.items()}
    assert names.with_prefix(bare, "c4") == names.with_prefix(c4, "c4") == c4
    assert names.with_prefix(fpn, "c4") == fpn, "a whole model of another architecture stays as it is"
    assert names.with_prefix(fpn, "c4", backbone_only=True) == c4
    assert names.with_prefix(c4, "fpn", backbone_only=True) == fpn
    assert all(names.is_backbone(name) for name in [*bare, *c4, *fpn])
    assert not names.is_backbone("backbone.fpn_lateral2.bias") and not names.is_backbone("roi_heads.box_head.fc1.bias")


def test_cadene_names():
    """senet154: layer0 has three convolutions, a block's squeeze and excitation are fc1 and fc2 of se_module."""
    expected = {
        "layer0.conv2.weight": "stem.conv2.weight",
        "layer0.bn3.running_mean": "stem.conv3.norm.running_mean",
        "layer1.0.conv1.weight": "res2.0.conv1.weight",
        "layer2.7.bn2.bias": "res3.7.conv2.norm.bias",
        "layer3.35.se_module.fc1.weight": "res4.35.se_reduce.weight",
        "layer4.0.se_module.fc2.bias": "res5.0.se_expand.bias",
        "layer4.0.downsample.0.weight": "res5.0.shortcut.weight",
        "layer4.0.downsample.1.running_var": "res5.0.shortcut.norm.running_var",
        "last_linear.weight": "classifier.weight",
    }
    found = names.cadene_to_detectron2({name: np.array(i) for i, name in enumerate(expected)})
    assert {n: int(v) for n, v in found.items()} == {n: i for i, n in enumerate(expected.values())}


def torchvision_names():
    return json.loads((TESTDATA / "torchvision_names.json").read_text())


def test_torchvision_names_all_find_a_place():
    found = names.torchvision_to_detectron2({n: np.array(i) for i, n in enumerate(torchvision_names())})
    order = list(torchvision_names())
    for theirs, ours in {
        "backbone.body.conv1.weight": "stem.conv1.weight",
        "backbone.body.bn1.running_var": "stem.conv1.norm.running_var",
        "backbone.body.layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "backbone.body.layer4.2.bn3.bias": "res5.2.conv3.norm.bias",
        "backbone.fpn.inner_blocks.0.0.weight": "backbone.fpn_lateral2.weight",
        "backbone.fpn.layer_blocks.3.0.bias": "backbone.fpn_output5.bias",
        "rpn.head.conv.0.0.weight": "proposal_generator.rpn_head.conv.weight",
        "roi_heads.box_head.fc7.bias": "roi_heads.box_head.fc2.bias",
        "roi_heads.mask_head.3.0.weight": "roi_heads.mask_head.mask_fcn4.weight",
        "roi_heads.mask_predictor.conv5_mask.weight": "roi_heads.mask_head.deconv.weight",
        "roi_heads.mask_predictor.mask_fcn_logits.bias": "roi_heads.mask_head.predictor.bias",
    }.items():
        assert int(found[ours]) == order.index(theirs), (theirs, ours)
    assert len(found) == len(order) == 360
    # Names of torchvision before 0.14.
    old = {"backbone.fpn.inner_blocks.1.weight", "rpn.head.conv.weight", "roi_heads.mask_head.mask_fcn2.bias"}
    assert set(names.torchvision_to_detectron2(dict.fromkeys(old, np.zeros(1)))) == {
        "backbone.fpn_lateral3.weight",
        "proposal_generator.rpn_head.conv.weight",
        "roi_heads.mask_head.mask_fcn2.bias",
    }


def test_two_names_for_one_tensor():
    with pytest.raises(ConversionError, match=r"conv1\.weight and backbone\.body\.conv1\.weight both stand for"):
        names.torchvision_to_detectron2({"conv1.weight": np.zeros(1), "backbone.body.conv1.weight": np.zeros(1)})


def heads(rows):
    return {
        "roi_heads.box_predictor.cls_score.bias": np.arange(rows),
        "roi_heads.box_predictor.cls_score.weight": np.arange(rows)[:, None] * np.ones(2),
        "roi_heads.box_predictor.bbox_pred.bias": np.arange(4 * rows),
        "roi_heads.mask_head.predictor.weight": np.arange(rows).reshape(-1, 1, 1, 1),
    }


def test_background_moves_from_the_first_row_to_the_last():
    found = names.move_background_last(heads(3))
    assert found["roi_heads.box_predictor.cls_score.bias"].tolist() == [1, 2, 0]
    assert found["roi_heads.box_predictor.cls_score.weight"][:, 1].tolist() == [1, 2, 0]
    assert found["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert found["roi_heads.mask_head.predictor.weight"].ravel().tolist() == [1, 2]


def test_rows_by_category_id():
    found = names.move_background_last(heads(6), rows=(1, 2, 5))
    assert found["roi_heads.box_predictor.cls_score.bias"].tolist() == [1, 2, 5, 0]
    assert found["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23]
    with pytest.raises(ConversionError, match="has 6 rows; the classes need row 6"):
        names.move_background_last(heads(6), rows=(1, 6))
