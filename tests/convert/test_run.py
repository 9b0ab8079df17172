"""From file to workdir and back: round trip, what does not fit, classes, conventions, nothing written on an error."""

import json
import pickle

import numpy as np
import pytest
import yaml

from configs import base
from eql_jax.convert import __main__ as command
from eql_jax.convert.conventions import IMAGENET_STD
from eql_jax.convert.errors import ConversionError
from eql_jax.convert.source_config import read_source_config
from eql_jax.data.categories import packaged_statistics
from eql_jax.training.compatibility import flatten
from tests.convert.conversions import B, P, narrow_config, run
from tests.convert.test_names import caffe2_name, torchvision_names
from tests.models.golden import CONFIG, WEIGHTS

# ------------------------------------------------------------------------------------------------------- both ways


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    """A JSON of the first 60 classes of LVIS v1, which the golden model has."""
    found = packaged_statistics("lvis_v1")
    categories = [{"id": i, "name": n} for i, n in zip(found.category_ids.tolist(), found.names, strict=True)][:60]
    content = {"images": [{"id": 1, "width": 8, "height": 8, "file_name": "1.jpg"}], "categories": categories}
    path = tmp_path_factory.mktemp("annotations") / "sixty.json"
    path.write_text(json.dumps(content | {"annotations": []}))
    return path


def test_round_trip_is_bit_exact(tmp_path, tensors, annotations, capsys):
    """The two commands of the README: into a workdir, and back."""
    workdir, out = tmp_path / "run", tmp_path / "back.pkl"
    words = ["detectron2", str(WEIGHTS), "--config=configs/lvis_v1_r50_eql.py", f"--workdir={workdir}"]
    words += [
        f"--source-config={CONFIG}",
        f"--annotations={annotations}",
        "--config.data.frequencies=train_annotations",
    ]
    assert command.main(words) == 0
    report = capsys.readouterr().out
    assert "307 of 307 arrays of the model loaded" in report and "60 classes" in report
    assert "channels: bgr (detectron2_mask_rcnn_r50_eql.yaml)" in report
    assert command.main(["--to", "detectron2", f"--workdir={workdir}", f"--out={out}"]) == 0
    back = pickle.loads(out.read_bytes())
    assert back["model"].keys() == tensors.keys()
    for name, array in tensors.items():
        found = back["model"][name]
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes()), name
    assert "INPUT.FORMAT BGR" in capsys.readouterr().out

    # Nothing is overwritten.
    assert command.main(words) == 2 and "holds checkpoints already" in capsys.readouterr().err
    assert command.main(["--to", "detectron2", f"--workdir={workdir}", f"--out={out}"]) == 2
    assert "exists already" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- what does not fit


def test_everything_that_does_not_fit_is_listed_at_once(write, tensors):
    broken = dict(tensors)
    del broken[f"{B}res3.1.conv2.weight"], broken["roi_heads.mask_head.deconv.bias"]
    broken["backbone.fpn_lateral4.weight"] = np.zeros((32, 64, 1, 1), np.float32)
    broken["proposal_generator.rpn_head.objectness_logits.bias"] = np.zeros(5, np.float32)
    broken["roi_heads.extra.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(ConversionError) as error:
        run(write(broken))
    text = str(error.value)
    assert (
        "missing in the file (2)" in text and f"{B}res3.1.conv2.weight -> params/backbone/res3_1/conv2/kernel" in text
    )
    assert "of another shape (2)" in text
    assert "backbone.fpn_lateral4.weight is (32, 64, 1, 1), the model wants (32, 128, 1, 1)" in text
    assert "not used by the model (1)" in text and "roi_heads.extra.weight (2, 2)" in text
    assert "nothing was written" in text


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (
            lambda t: t | {"roi_heads.res5.0.conv1.weight": np.zeros(1)},
            r"C4 model .*: set config\.model\.architecture=c4",
        ),
        (
            lambda t: t | {f"roi_heads.box_head.{i}.fc1.weight": np.zeros(1) for i in range(3)},
            r"Cascade R-CNN of 3 stages: set config\.model\.cascade\.ious=\(0\.5, 0\.6, 0\.7\), "
            r"config\.model\.box_head\.class_agnostic_boxes=True",
        ),
        (
            lambda t: t | {f"{B}res{i}.0.conv2_offset.weight": np.zeros((18, 8, 3, 3)) for i in (3, 4)},
            r"deformable .*deform_stages=\(3, 4\), config\.model\.backbone\.deform_modulated=False",
        ),
        (
            lambda t: t | {f"{B}res2.0.se_reduce.weight": np.zeros(1)},
            r"SENet-154: set config\.model\.backbone\.kind=senet",
        ),
        (
            lambda t: (
                t | {"roi_heads.box_head.conv1.weight": np.zeros(1), "roi_heads.box_head.conv1.norm.bias": np.zeros(1)}
            ),
            r"num_convs=1, config\.model\.box_head\.norm=group_norm",
        ),
        (
            lambda t: {k: v for k, v in t.items() if "mask_head" not in k},
            r"without masks: set config\.model\.with_mask=False",
        ),
        (lambda t: t | {"roi_heads.keypoint_head.x": np.zeros(1)}, "keypoint model, which is not built here"),
        (lambda t: t | {f"{B}res4.6.conv1.weight": np.zeros(1)}, r"config\.model\.backbone\.depth=101"),
        (lambda t: t | {f"{B}res3.0.conv2.weight": np.zeros((16, 4, 3, 3))}, "ResNeXt.*groups=4, .*width_per_group=2"),
        (lambda t: {k: v for k, v in t.items() if k.startswith(B)}, "--backbone-only"),
    ],
)
def test_hints_at_other_architectures(write, tensors, change, hint):
    with pytest.raises(ConversionError, match=hint):
        run(write(change(tensors)))


def test_hint_at_the_loss(write, tensors):
    more = tensors | {f"{P}cls_score.weight": np.zeros((61, 64)), f"{P}cls_score.bias": np.zeros(61)}
    with pytest.raises(ConversionError, match=r"config\.model\.box_head\.loss=softmax"):
        run(write(more))
    with pytest.raises(ConversionError, match=r"config\.model\.box_head\.loss=eql"):
        run(write(tensors), config=narrow_config(**{"model.box_head.loss": "softmax"}))


def test_numbers_that_are_none(write, tensors):
    broken = dict(tensors)
    broken["backbone.fpn_lateral4.bias"] = np.full(32, np.nan, np.float32)
    with pytest.raises(ConversionError, match="NaN or infinite numbers in params/fpn/lateral4/bias"):
        run(write(broken))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cposix\nsystem\n(Vtouch witness\ntR.",  # code
        WEIGHTS.read_bytes()[:-1000],  # cut off
        pickle.dumps({"model": {"layer1.weight": np.ones(3, np.float32)}}),  # something else
    ],
    ids=["code", "truncated", "another model"],
)
def test_nothing_is_written_on_an_error(tmp_path, content, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pkl").write_bytes(content)
    config = CONFIG.parents[2] / "configs" / "lvis_v1_r50_eql.py"
    assert command.main(["detectron2", "model.pkl", f"--config={config}", "--workdir=run"]) == 2
    assert capsys.readouterr().err.startswith("error: model.pkl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pkl"]


# ------------------------------------------------------------------------------------------------------- classes


def test_another_number_of_classes(write, tensors):
    path = write(tensors)
    with pytest.raises(ConversionError, match=r"60 classes, the data set 7.*--new-classes") as error:
        run(path, count=7)
    assert "of another shape (6)" in str(error.value)
    with pytest.raises(ConversionError, match=r"60 classes, the data set 7.*--new-classes"):
        run(path, count=7, source_config=read_source_config(CONFIG))
    found = run(path, count=7, new_classes=True)
    arrays = flatten(found.variables)
    assert arrays["params/box_head/cls_score/kernel"].shape == (64, 7)
    np.testing.assert_array_equal(arrays["params/box_head/fc2/kernel"], tensors["roi_heads.box_head.fc2.weight"].T)
    (line,) = [line for line in found.report if line.startswith("freshly initialised")]
    for layer in ("box_head/cls_score", "box_head/bbox_pred", "mask_head/predictor"):
        assert f"params/{layer}/kernel" in line and f"params/{layer}/bias" in line
    assert "301 of 307 arrays" in "\n".join(found.report)
    # Asked for, they are new also where the number is the same.
    same = flatten(run(path, new_classes=True).variables)["params/box_head/cls_score/kernel"]
    assert not np.array_equal(same, tensors[f"{P}cls_score.weight"].T)


# ---------------------------------------------------------------------------------------------------- conventions


def test_what_is_assumed_is_said(write, tensors):
    found = run(write(tensors))
    assert found.config.model.pixel_std == (1.0, 1.0, 1.0) and found.config.model.roi.sampling_ratio == 0
    report = "\n".join(found.report)
    assert "channels: bgr (detectron2's defaults (assumed: the file does not say))" in report
    assert "model.pixel_std: (1.0, 1.0, 1.0) (detectron2's defaults" in report
    stem = tensors[f"{B}stem.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(flatten(found.variables)["params/backbone/stem/kernel"], stem[:, :, ::-1])


def test_the_command_line_comes_first_and_the_file_before_defaults(write, tensors):
    """Old checkpoints carry the mean and the std as arrays, in the order of their channels."""
    more = tensors | {
        "pixel_mean": np.float32([103.53, 116.28, 123.675]).reshape(3, 1, 1),
        "pixel_std": np.float32([57.375, 57.12, 58.395]).reshape(3, 1, 1),
    }
    found = run(write(more))
    assert found.config.model.pixel_std == pytest.approx(IMAGENET_STD, abs=1e-5)
    assert "pixel_std in the file" in "\n".join(found.report)
    config = narrow_config(**{"model.pixel_std": (2.0, 2.0, 2.0)})
    found = run(write(more), config=config, overridden=["model.pixel_std"], channels="rgb")
    assert found.config.model.pixel_std == (2.0, 2.0, 2.0)
    report = "\n".join(found.report)
    assert "channels: rgb (command line)" in report and "(command line; pixel_std in the file" in report
    stem = tensors[f"{B}stem.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(flatten(found.variables)["params/backbone/stem/kernel"], stem)


def test_anchors_in_the_file_are_compared(write, tensors):
    name = "proposal_generator.anchor_generator.cell_anchors."
    anchors = {f"{name}{i}": np.float32([[-s, -s, s, s]]) / 2 for i, s in enumerate((32, 64, 128, 256, 512))}
    config = narrow_config(**{"model.rpn.aspect_ratios": (1.0,)})
    del tensors  # RPN layers of one anchor are not needed: the anchors are compared first
    with pytest.raises(ConversionError, match="missing in the file"):
        run(write({"a": np.ones(1)} | anchors), config=config)
    anchors[f"{name}2"] *= 2
    with pytest.raises(ConversionError, match=r"anchors of level 2 are \[\[-128.*config's \[\[-64"):
        run(write({"a": np.ones(1)} | anchors), config=config)


def test_msra_backbone(write, tensors):
    """Scale and bias alone, channels BGR, std 1, stride in the 1x1; the ImageNet classifier is left out."""
    backbone = {k.removeprefix(B): v for k, v in tensors.items() if k.startswith(B) and "running" not in k}
    caffe2 = {caffe2_name(k): v for k, v in backbone.items()} | {"fc1000_w": np.ones((10, 4), np.float32)}
    found = run(write(caffe2, author="Caffe2"), count=3, backbone_only=True)
    arrays = flatten(found.variables)
    np.testing.assert_array_equal(
        arrays["params/backbone/res4_5/conv2/kernel"], tensors[f"{B}res4.5.conv2.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        arrays["params/backbone/stem/kernel"], tensors[f"{B}stem.conv1.weight"].transpose(2, 3, 1, 0)[:, :, ::-1]
    )
    assert (arrays["batch_stats/backbone/res2_0/conv1/norm/var"] == np.float32(1) - np.float32(1e-5)).all()
    report = "\n".join(found.report)
    assert "MSRA's ImageNet weights" in report and "assumed" not in report
    assert "not used, the ImageNet classifier: classifier.w" in report
    assert found.config.model.roi.sampling_ratio == 2, "a backbone says nothing of the heads"
    assert "params/box_head/cls_score/kernel" in arrays and "params/fpn/lateral2/kernel" in report


def test_torchvision_backbone_in_detectron2s_names(write, tensors):
    """For a loss with a memory, which is no part of what is converted."""
    backbone = {k.removeprefix(B): v for k, v in tensors.items() if k.startswith(B)}
    seesaw = narrow_config(**{"model.box_head.loss": "seesaw"})
    found = run(write(backbone, author="torchvision"), count=3, config=seesaw, backbone_only=True)
    assert set(found.variables) == {"params", "batch_stats"}
    assert found.variables["params"]["box_head"]["cls_score"]["bias"].shape == (5,)
    m = found.config.model
    assert m.pixel_std == IMAGENET_STD and not m.backbone.stride_in_1x1
    assert "channels: rgb (torchvision's weights in detectron2's names)" in "\n".join(found.report)


def test_torchvision_model(write):
    """All 360 names of maskrcnn_resnet50_fpn with 5 classes (background is one); and the published eps of 0."""
    rng = np.random.default_rng(0)
    tensors = {n: rng.random(shape, np.float32) for n, shape in torchvision_names().items()}
    found = run(write(tensors), count=4, config=base.get_config(), source="torchvision")
    m = found.config.model
    assert (m.roi.aligned, m.roi.sampling_ratio, m.rpn.round_anchors, m.box_head.loss) == (False, 2, True, "softmax")
    arrays = flatten(found.variables)
    bias = tensors["roi_heads.box_predictor.cls_score.bias"]
    np.testing.assert_array_equal(arrays["params/box_head/cls_score/bias"], [*bias[1:], bias[0]])
    var = tensors["backbone.body.layer2.0.bn1.running_var"]
    np.testing.assert_array_equal(arrays["batch_stats/backbone/res3_0/conv1/norm/var"], var)
    assert "a counter of BatchNorm" in "\n".join(found.report)
    published = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    found = run(write(published), count=4, config=base.get_config(), source="torchvision")
    shifted = flatten(found.variables)["batch_stats/backbone/res3_0/conv1/norm/var"]
    np.testing.assert_allclose(shifted + np.float32(1e-5), var, rtol=0, atol=1e-7)
    assert (shifted != var).all()


def test_sigmoid_head_with_an_unused_background_column(tmp_path, write, tensors):
    """detectron2's USE_SIGMOID_CE keeps K + 1 logits and never reads the last."""
    more = tensors | {
        f"{P}cls_score.weight": np.concatenate([tensors[f"{P}cls_score.weight"], np.ones((1, 64), np.float32)]),
        f"{P}cls_score.bias": np.append(tensors[f"{P}cls_score.bias"], np.float32(9)),
    }
    content = yaml.safe_load(CONFIG.read_text())
    content["MODEL"]["ROI_BOX_HEAD"]["USE_SIGMOID_CE"] = True
    content["MODEL"]["ROI_HEADS"]["NAME"] = "StandardROIHeads"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    found = run(write(more), source_config=read_source_config(tmp_path / "config.yaml"))
    assert found.config.model.box_head.loss == "sigmoid"
    np.testing.assert_array_equal(
        flatten(found.variables)["params/box_head/cls_score/bias"], tensors[f"{P}cls_score.bias"]
    )
    content["MODEL"]["ROI_BOX_HEAD"] |= {"USE_FED_LOSS": True, "FED_LOSS_NUM_CLASSES": 30}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    head = run(write(more), source_config=read_source_config(tmp_path / "config.yaml")).config.model.box_head
    assert (head.loss, dict(head.loss_options)) == ("federated", {"num_sampled": 30, "power": 0.5})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["detectron2", "m.pkl", "--workdir=w"], "--config is missing"),
        (["detectron2", "--config=c", "--workdir=w"], "expected the source and the file"),
        (["--to", "detectron2", "--workdir=w"], "needs --out"),
        (["--to", "detectron2", "--workdir=w", "--out=o", "--config=c"], "go with it"),
        (["torchvision", "m.pth", "--config=c", "--workdir=w", "--source-config=y"], "is for detectron2"),
        (["detectron2", "m.pkl", "--config=c", "--workdir=w", "--out=o"], "go with --to"),
    ],
)
def test_commands_that_make_no_sense(words, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.parse_arguments(words)
    assert exit_.value.code == 2 and message in capsys.readouterr().err
