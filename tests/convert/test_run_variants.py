"""Cascade, C4, ResNeXt, deformable, boxes only and SENet: both ways, and backbones from ImageNet weights."""

import jax
import numpy as np
import pytest

from configs import base
from eql_jax.convert.conventions import IMAGENET_STD, family_of
from eql_jax.convert.errors import ConversionError
from eql_jax.convert.run import export_detectron2, save
from eql_jax.convert.table import detectron2_table, find_rule
from eql_jax.models.backbones import make_backbone
from eql_jax.training.compatibility import flatten
from tests.convert.conversions import B, classes_of, narrow_config, narrow_variant, run, tensors_of
from tests.convert.test_names import caffe2_name

VARIANTS = {
    "cascade": {"model.cascade.ious": (0.5, 0.6, 0.7), "model.box_head.class_agnostic_boxes": True},
    "c4": {"model.architecture": "c4", "model.mask_head.num_convs": 0, "model.box_head.pool_size": 14},
    "resnext": {"model.backbone.groups": 2, "model.backbone.width_per_group": 4},
    "deformable": {"model.backbone.deform_stages": (3, 4, 5)},
    "4conv1fc": {"model.box_head.num_convs": 4, "model.box_head.conv_dim": 4, "model.box_head.num_fc": 1},
    "boxes only": {"model.with_mask": False},
}
SETTINGS = {
    "cascade": ["ROI_HEADS.NAME CascadeROIHeads", "CASCADE_HEAD.IOUS [0.5, 0.6, 0.7]", "[20.0, 20.0, 10.0, 10.0]"],
    "c4": ["BACKBONE.NAME build_resnet_backbone", "ROI_HEADS.NAME Res5ROIHeads"],
    "resnext": ["NUM_GROUPS 2", "WIDTH_PER_GROUP 4", "STRIDE_IN_1X1 False", "PIXEL_STD [57.375, 57.12, 58.395]"],
    "deformable": ["DEFORM_ON_PER_STAGE [False, True, True, True]", "DEFORM_MODULATED True"],
    "4conv1fc": ["ROI_BOX_HEAD.NUM_CONV 4, CONV_DIM 4", "ROI_BOX_HEAD.NUM_FC 1"],
    "boxes only": ["MODEL.MASK_ON False"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip_of_the_variants(write, name, tmp_path):
    """In, into a workdir, and back, bit by bit; the report has what the model needs in detectron2."""
    config = narrow_variant(**VARIANTS[name])
    tensors, arrays = tensors_of(config)
    found = run(write(tensors), count=3, config=config)
    for path, array in flatten(found.variables).items():
        assert np.asarray(array).tobytes() == arrays[path].tobytes(), path
    save(found, classes_of(3), tmp_path / "run")
    exported = export_detectron2(tmp_path / "run", tmp_path / "back.pkl", checkpoint="latest")
    assert exported.tensors.keys() == tensors.keys()
    assert all(exported.tensors[k].tobytes() == v.tobytes() for k, v in tensors.items())
    report = "\n".join(exported.report)
    assert all(line in report for line in ["META_ARCHITECTURE GeneralizedRCNN", *SETTINGS[name]]), report


@pytest.mark.slow
def test_caffe2_resnext_backbone_for_a_deformable_model(write):
    """X-101-32x8d.pkl: BGR, ImageNet's std, the stride in the 3x3. The offsets begin at zero, as in detectron2."""
    config = narrow_variant(**VARIANTS["resnext"], **VARIANTS["deformable"])
    tensors, arrays = tensors_of(config)
    left_out = ("running", "conv2_offset")
    file = {k: v for k, v in tensors.items() if k.startswith(B) and not any(part in k for part in left_out)}
    file = {caffe2_name(k.removeprefix(B)): v for k, v in file.items()}
    found = run(write(file, author="Caffe2"), count=3, config=config, backbone_only=True)
    m, loaded = found.config.model, flatten(found.variables)
    path = "params/backbone/res3_0/conv2/kernel"
    np.testing.assert_array_equal(loaded[path], arrays[path])
    assert not np.asarray(loaded["params/backbone/res3_0/conv2_offset/kernel"]).any()
    assert not m.backbone.stride_in_1x1 and m.pixel_std == IMAGENET_STD
    assert "assumed" not in "\n".join(found.report)


def test_what_is_assumed_of_resnexts():
    """64x4d of Caffe2, of which the file does not say the std, and whole models without a config."""
    assert family_of("detectron2", "Caffe2", True, 64).assumed
    assert family_of("detectron2", "Caffe2", True, 64).backbone["model.pixel_std"] == (1.0, 1.0, 1.0)
    zoo = family_of("detectron2", "Detectron2 Model Zoo", False, 32)
    assert zoo.assumed and zoo.backbone["model.pixel_std"] == IMAGENET_STD
    assert not zoo.backbone["model.backbone.stride_in_1x1"]


def test_whole_model_without_offsets(write, tensors):
    with pytest.raises(ConversionError, match=r"without deformable convolutions: set .*deform_stages=\(\)"):
        run(write(tensors), config=narrow_config(**VARIANTS["deformable"]))


@pytest.mark.slow
def test_imagenet_backbone_for_a_c4_model(write, tensors):
    """MSRA's res5 goes to the RoI heads."""
    config = narrow_config(**VARIANTS["c4"])
    bare = {k.removeprefix(B): v for k, v in tensors.items() if k.startswith(B)}
    file = {caffe2_name(k): v for k, v in bare.items() if "running" not in k}
    found = run(write(file), count=3, config=config, backbone_only=True)
    arrays = flatten(found.variables)
    expected = bare["res5.1.conv2.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(arrays["params/res5/res5_1/conv2/kernel"], expected)
    (fresh,) = [line for line in found.report if line.startswith("freshly initialised")]
    assert "params/box_head/cls_score/kernel" in fresh and "res5" not in fresh


def cadene_name(name):
    """The name in senet154's state dict of a tensor of this package's SENet."""
    parts = name.removeprefix(B).split(".")
    if parts[0] == "stem":
        number = parts[1][-1]
        return f"layer0.bn{number}.{parts[-1]}" if "norm" in parts else f"layer0.conv{number}.{parts[-1]}"
    block = f"layer{int(parts[0][-1]) - 1}.{parts[1]}"
    if parts[2] == "shortcut":
        return f"{block}.downsample.{int('norm' in parts)}.{parts[-1]}"
    if parts[2].startswith("se_"):
        return f"{block}.se_module.fc{1 + (parts[2] == 'se_expand')}.{parts[-1]}"
    return f"{block}.bn{parts[2][-1]}.{parts[-1]}" if "norm" in parts else f"{block}.{parts[2]}.{parts[-1]}"


def senet_shapes(config):
    """{name in senet154's state dict: shape} of the backbone of `config`."""
    backbone = make_backbone(config.model, np.float32)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), image)
    arrays = {
        f"{group}/backbone/{path}": np.broadcast_to(np.float32(0), leaf.shape)
        for group, tree in shapes.items()
        for path, leaf in flatten(tree).items()
    }
    table = detectron2_table(config, channels="bgr")
    found = {path: find_rule(path, table) for path in arrays}
    return {cadene_name(name): rule.transform.backward(arrays[path]).shape for path, (rule, name) in found.items()}


def test_names_and_shapes_of_senet154():
    config = base.get_config()
    b = config.model.backbone
    b.kind, b.depth, b.groups, b.stride_in_1x1 = "senet", 154, 64, False
    shapes = senet_shapes(config)
    expected = {
        "layer0.conv1.weight": (64, 3, 3, 3),
        "layer0.conv3.weight": (128, 64, 3, 3),
        "layer0.bn3.running_var": (128,),
        "layer1.0.conv1.weight": (128, 128, 1, 1),
        "layer1.0.conv2.weight": (256, 2, 3, 3),
        "layer1.0.downsample.0.weight": (256, 128, 1, 1),
        "layer2.7.conv3.weight": (512, 512, 1, 1),
        "layer2.0.downsample.0.weight": (512, 256, 3, 3),
        "layer3.35.se_module.fc1.weight": (64, 1024, 1, 1),
        "layer3.35.se_module.fc2.bias": (1024,),
        "layer4.2.se_module.fc1.bias": (128,),
        "layer4.0.downsample.1.running_mean": (2048,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    # Of every convolution a kernel and four arrays of its norm; of 50 blocks, two layers with bias.
    assert len(shapes) == 5 * (3 + 50 * 3 + 4) + 50 * 4
    assert sum(int(np.prod(s)) for n, s in shapes.items() if "running" not in n) == pytest.approx(113.0e6, abs=0.1e6)


@pytest.mark.slow
def test_senet(write):
    """A state dict of Cadene's names, with made-up numbers of narrow layers."""
    fields = {"model.backbone.kind": "senet", "model.backbone.depth": 50, "model.backbone.groups": 2}
    config = narrow_variant(**fields, **{"model.backbone.stride_in_1x1": False})
    tensors, arrays = tensors_of(config)
    file = {cadene_name(k): v for k, v in tensors.items() if k.startswith(B)}
    file |= {"last_linear.weight": np.ones((10, 4), np.float32), "layer0.bn1.num_batches_tracked": np.array(3)}
    # The first layer takes RGB.
    path = write(file | {"layer0.conv1.weight": file["layer0.conv1.weight"][:, ::-1]})
    found = run(path, count=3, config=config, source="cadene", backbone_only=True)
    loaded = flatten(found.variables)
    for name, array in arrays.items():
        if "/backbone/" in name:
            np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    report = "\n".join(found.report)
    assert "channels: rgb (Cadene's SENets)" in report and "the ImageNet classifier: classifier.weight" in report
    assert found.config.model.pixel_std == IMAGENET_STD
    with pytest.raises(ConversionError, match="--backbone-only takes the backbone"):
        run(path, count=3, config=config, source="cadene")
    with pytest.raises(ConversionError, match=r"of a SENet-154: set config\.model\.backbone\.kind=senet"):
        run(path, count=3, config=narrow_variant(), source="cadene", backbone_only=True)
