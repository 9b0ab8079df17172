"""The conversion table: complete, unambiguous, and its transforms mean the same computation on both sides."""

import jax
import numpy as np
import pytest

from configs import base
from eql_jax.convert import table as table_lib
from eql_jax.models import build_model, init_model
from eql_jax.training.compatibility import flatten

RNG = np.random.default_rng(0)


def shapes_of(config, num_classes=5):
    model = build_model(config, num_classes)
    return {k: v.shape for k, v in flatten(jax.eval_shape(lambda: init_model(model, jax.random.key(0)))).items()}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"backbone.depth": 101, "mask_head.class_agnostic": True, "box_head.class_agnostic_boxes": True},
        {"backbone.depth": 18, "backbone.norm": "batch_norm", "fpn.norm": "batch_norm", "box_head.loss": "softmax"},
        {"backbone.depth": 34, "backbone.norm": "group_norm", "fpn.norm": "group_norm", "fpn.min_level": 3},
        {"mask_head.num_convs": 2, "box_head.num_fc": 3, "box_head.pool_size": 5},
        {"architecture": "c4", "mask_head.num_convs": 0, "backbone.deform_stages": (4,)},
        {"cascade.ious": (0.5, 0.6, 0.7), "box_head.class_agnostic_boxes": True, "box_head.loss": "softmax"},
        {"backbone.groups": 2, "backbone.width_per_group": 3, "backbone.deform_stages": (3, 5)},
        {"backbone.deform_stages": (2, 4), "backbone.deform_modulated": False, "backbone.deform_groups": 2},
        {
            "backbone.kind": "senet",
            "backbone.groups": 2,
            "backbone.stride_in_1x1": False,
            "backbone.norm": "batch_norm",
        },
        {"box_head.num_convs": 2, "box_head.conv_dim": 4, "box_head.norm": "group_norm", "box_head.num_fc": 1},
        {"mask_head.norm": "batch_norm", "box_head.num_convs": 1, "box_head.conv_dim": 4},
        {"with_mask": False},
    ],
)
def test_every_array_has_a_line_of_its_own_and_comes_back_bit_by_bit(fields):
    config = base.get_config()
    config.model.backbone.width, config.model.fpn.channels, config.model.box_head.fc_dim = 4, 8, 6
    for key, value in fields.items():
        config.update_from_flattened_dict({f"model.{key}": value})
    if config.model.fpn.min_level == 3:
        config.model.rpn.anchor_sizes = (32, 64, 128, 256)
    arrays = {path: RNG.standard_normal(shape).astype(np.float32) for path, shape in shapes_of(config).items()}
    lines = table_lib.detectron2_table(config, channels="bgr")
    tensors = table_lib.to_detectron2(arrays, lines)
    assert len(tensors) == len(arrays) and all(t.flags.c_contiguous for t in tensors.values())
    match = table_lib.match_tensors(tensors, {path: a.shape for path, a in arrays.items()}, lines)
    assert not match.missing and not match.misshaped and not match.unused
    for path, array in arrays.items():
        assert match.arrays[path].tobytes() == array.tobytes(), path


def test_classes_are_marked_unless_agnostic():
    config = base.get_config()
    for agnostic in (False, True):
        config.model.mask_head.class_agnostic = config.model.box_head.class_agnostic_boxes = agnostic
        marked = {line.path for line in table_lib.detectron2_table(config, channels="bgr") if line.classes}
        expected = {"cls_score"} if agnostic else {"cls_score", "bbox_pred", "predictor"}
        assert {path.split("/")[2] for path in marked} == expected


def test_names_of_the_variants():
    """Where detectron2 has the parts of a cascade, a C4 model and a deformable block."""
    config = base.get_config()
    config.model.cascade.ious, config.model.box_head.class_agnostic_boxes = (0.5, 0.6, 0.7), True
    config.model.box_head.norm = "group_norm"
    name = lambda path: table_lib.find_rule(path, table_lib.detectron2_table(config, channels="bgr"))[1]  # noqa: E731
    assert name("params/box_head_2/fc1/kernel") == "roi_heads.box_head.2.fc1.weight"
    assert name("params/box_head_0/cls_score/bias") == "roi_heads.box_predictor.0.cls_score.bias"
    assert name("params/box_head_1/conv4/norm/scale") == "roi_heads.box_head.1.conv4.norm.weight"
    assert name("params/backbone/res3_0/conv2_offset/bias") == "backbone.bottom_up.res3.0.conv2_offset.bias"
    config.model.cascade.ious, config.model.architecture = (), "c4"
    assert name("params/backbone/stem/kernel") == "backbone.stem.conv1.weight"
    assert name("params/res5/res5_0/shortcut/kernel") == "roi_heads.res5.0.shortcut.weight"
    assert name("batch_stats/res5/res5_2/conv3/norm/mean") == "roi_heads.res5.2.conv3.norm.running_mean"


def test_flattened_layer_reads_the_same_pixels():
    pooled = RNG.standard_normal((4, 3, 3))  # [C, y, x]
    weight = RNG.standard_normal((6, 4 * 9))
    kernel = table_lib.flattened(3).forward(weight)
    np.testing.assert_allclose(pooled.transpose(1, 2, 0).ravel() @ kernel, weight @ pooled.ravel())


@pytest.mark.parametrize("channels", ["bgr", "rgb"])
def test_stem_reads_the_same_colours(channels):
    weight = RNG.standard_normal((2, 3, 1, 1))
    red, green, blue = 0.1, 0.2, 0.4
    expected = weight[:, :, 0, 0] @ ([blue, green, red] if channels == "bgr" else [red, green, blue])
    kernel = table_lib.stem(channels).forward(weight)
    np.testing.assert_allclose(np.array([red, green, blue]) @ kernel[0, 0], expected)


def test_transposed_convolution_is_not_flipped():
    weight = np.arange(8.0).reshape(1, 2, 2, 2)  # [in, out, h, w]
    np.testing.assert_array_equal(table_lib.DECONV.forward(weight)[1, 0, 0], weight[0, :, 1, 0])


def test_a_path_without_a_line():
    with pytest.raises(KeyError, match="no line for the parameter params/new/kernel"):
        table_lib.find_rule("params/new/kernel", table_lib.detectron2_table(base.get_config(), channels="bgr"))
