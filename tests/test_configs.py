"""Every file of configs/ loads and says how it is run, and the LVIS recipes have the reference's values."""

import functools
import importlib
import json
import operator
import re
import shlex
from pathlib import Path

import pytest

from configs import base
from eql_jax import predict
from eql_jax.convert.__main__ import parse_arguments
from eql_jax.convert.conventions import FAMILIES
from eql_jax.data import browse, open_images
from eql_jax.data.buckets import choose_bucket
from eql_jax.data.transforms import Size
from eql_jax.training import config as config_lib
from eql_jax.training.schedules import make_schedule
from eql_jax.training.tail import make_tail

ROOT = Path(__file__).resolve().parents[1]
NO_CONFIG = ("__init__", "lvis", "lvis_challenge", "open_images")  # the latter: what the recipes share
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in NO_CONFIG)
RELEASED = [
    f"lvis_{version}_{depth}_{kind}"
    for version in ("v05", "v1")
    for depth in ("r50", "r101")
    for kind in ("softmax", "sigmoid", "eql", "eql_rfs")
] + [f"lvis_v1_r50_{kind}" for kind in ("eqlv2", "seesaw", "federated")]
PAPER = [
    *(f"lvis_{version}_{depth}_eql_paper" for version in ("v05", "v1") for depth in ("r50", "r101")),
    *(f"lvis_v05_r50_{kind}_paper" for kind in ("softmax", "sigmoid", "class_aware", "rfs", "class_balanced", "focal")),
    "lvis_v05_r101_sigmoid_paper",
]
VARIANTS = [
    f"lvis_v05_{depth}_{model}_{loss}_paper"
    for depth in ("r50", "r101")
    for model in ("c4", "cascade")
    for loss in ("sigmoid", "eql")
]
CHALLENGE = [
    f"lvis_v05_{part}_challenge"
    for part in ("x101_dcn", "senet154", "senet154_oid", "senet154_oid_tta_boxes", "senet154_oid_tta", "expert")
]
OPEN_IMAGES = [f"open_images_r50_{kind}" for kind in ("sigmoid", "class_aware", "eql")]
RECIPES = [*RELEASED, *PAPER, *VARIANTS]

# Mask AP / APr / APc / APf and box AP on LVIS v0.5 val: of the release's page, and of the paper.
PUBLISHED = {
    "lvis_v05_r50_softmax": "21.2 / 3.2 / 21.1 / 28.7, box AP 20.8",
    "lvis_v05_r50_eql": "24.0 / 9.4 / 25.2 / 28.4, box AP 23.6",
    "lvis_v05_r50_eql_rfs": "26.1 / 17.2 / 27.3 / 28.2, box AP 25.4",
    "lvis_v05_r101_softmax": "22.8 / 4.3 / 22.7 / 30.2, box AP 22.3",
    "lvis_v05_r101_eql": "25.9 / 10.0 / 27.9 / 29.8, box AP 25.9",
    "lvis_v05_r101_eql_rfs": "27.4 / 17.3 / 29.0 / 29.4, box AP 27.1",
    "lvis_v05_r50_sigmoid_paper": "20.1 / 7.2 / 19.9 / 25.4, box AP 20.5",
    "lvis_v05_r50_eql_paper": "22.8 / 11.3 / 24.7 / 25.1, box AP 23.3",
    "lvis_v05_r101_sigmoid_paper": "22.2 / 9.8 / 22.6 / 26.5, box AP 22.7",
    "lvis_v05_r101_eql_paper": "24.8 / 14.6 / 26.7 / 26.4, box AP 25.2",
    "lvis_v05_r50_softmax_paper": "20.2 / 4.5 / 20.8 / 25.6",
    "lvis_v05_r50_class_aware_paper": "18.5 / 7.3 / 19.3 / 21.9",
    "lvis_v05_r50_rfs_paper": "21.3 / 12.2 / 21.5 / 24.7",
    "lvis_v05_r50_class_balanced_paper": "20.9 / 8.2 / 21.2 / 25.7",
    "lvis_v05_r50_focal_paper": "21.0 / 9.3 / 21.0 / 25.8",
    "lvis_v05_r50_c4_sigmoid_paper": "19.7 / 7.9 / 21.1 / 22.8, box AP 20.3",
    "lvis_v05_r50_c4_eql_paper": "22.5 / 14.4 / 24.9 / 22.6, box AP 23.1",
    "lvis_v05_r50_cascade_sigmoid_paper": "21.1 / 6.3 / 21.6 / 26.5, box AP 21.1",
    "lvis_v05_r50_cascade_eql_paper": "23.1 / 10.4 / 24.5 / 26.3, box AP 23.1",
    "lvis_v05_r101_cascade_sigmoid_paper": "21.9 / 6.0 / 22.3 / 27.7, box AP 24.7",
    "lvis_v05_r101_cascade_eql_paper": "24.9 / 10.3 / 27.3 / 27.8, box AP 27.9",
    "lvis_v05_x101_dcn_challenge": "30.1 / 19.3 / 31.8 / 32.3",
    "lvis_v05_senet154_challenge": "30.8 / 19.7 / 32.2 / 33.4",
    "lvis_v05_senet154_oid_challenge": "31.4 / 21.5 / 33.1 / 33.3",
    "lvis_v05_senet154_oid_tta_boxes_challenge": "32.3 / 20.5 / 34.7 / 34.2",
    "lvis_v05_senet154_oid_tta_challenge": "36.4 / 25.5 / 38.6 / 38.1",
}
# AP, and AP of five groups of 100 classes by falling number of training images.
PUBLISHED_OPEN_IMAGES = {
    "open_images_r50_sigmoid": "48.13, AP1 .. AP5 59.86 / 51.24 / 49.31 / 46.51 / 33.72",
    "open_images_r50_class_aware": "56.50, AP1 .. AP5 64.44 / 59.30 / 59.74 / 57.02 / 42.00",
    "open_images_r50_eql": "57.83, AP1 .. AP5 64.95 / 60.18 / 61.17 / 58.23 / 44.6",
}


def load(name, *overrides):
    return config_lib.load_config(ROOT / "configs" / f"{name}.py", overrides, base=base.get_config())


def docstring(name):
    return importlib.import_module(f"configs.{name}").__doc__


def test_all_recipes_are_there():
    others = ["base", "custom", "supershapes_hard", "supershapes_tiny", "supershapes_tiny_sigmoid"]
    assert sorted([*RECIPES, *CHALLENGE, *OPEN_IMAGES, *others]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_bears_its_name(name):
    config = load(name)
    assert name in ("base", config.name)
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_docstring(name):
    """Its command runs this file with fields that exist; it says what was published and which hardware it needs."""
    text = docstring(name)
    # A backslash at the end of a line joins lines in a docstring as in a shell, so a command is one line here.
    (command,) = re.findall(r"^ *(python train\.py .*)$", text, re.MULTILINE)
    words = [word for word in shlex.split(command) if word != "--mode=eval" and not word.startswith("--out=")]
    flags = dict(word.split("=", 1) for word in words[2:] if word.startswith("--"))
    assert flags.pop("--config") == f"configs/{name}.py"
    if name == "base":
        return
    trained = "lvis_v05_senet154_oid_challenge" if "_tta_" in name else name  # those evaluate the run of this one
    assert flags.pop("--workdir") == f"runs/{trained}"
    load(name, *(f"{flag}={value}" for flag, value in flags.items()))
    assert words[:2] == ["python", "train.py"] and len(words) == 4 + len(flags)
    assert re.search(r"^(Published: .*(the release's|the paper's) figure|No published figure)", text, re.M | re.S)
    assert re.search(r"^Hardware: ", text, re.M)
    if name in PUBLISHED:
        whose = "the paper's" if name.endswith(("_paper", "_challenge")) else "the release's"
        assert f"Published: mask AP/r/c/f {PUBLISHED[name]} on LVIS v0.5 val; {whose} figure" in " ".join(text.split())
    elif name in OPEN_IMAGES:
        published = f"Published: box AP {PUBLISHED_OPEN_IMAGES[name]} on Open Images; the paper's figure."
        assert published in " ".join(text.split())
    else:
        assert "No published figure" in text


@pytest.mark.parametrize("name", RECIPES)
def test_command_of_a_recipe_names_its_weights_and_files(name):
    text = docstring(name)
    depth = 101 if "_r101_" in name else 50
    version = "v1" if "_v1_" in name else "v0.5"
    weights = f"msra_r{depth}_c4" if "_c4_" in name else f"msra_r{depth}"
    for word in (f"init_from=runs/{weights} ", f"lvis_{version}_train.json", f"lvis_{version}_val.json"):
        assert word in text.replace("\n", " "), word
    model = f"Mask R-CNN R{depth}-C4" if "_c4_" in name else f"Mask R-CNN R{depth}-FPN"
    assert text.startswith(f"LVIS {version}, {'Cascade ' if '_cascade_' in name else ''}{model}, ")
    assert "not run here, nothing was measured for LVIS at full size" in text


def test_commands_that_make_the_weights_are_of_the_converter():
    commands = re.findall(r"^ *python -m eql_jax\.convert (.*)$", docstring("lvis"), re.MULTILINE)
    assert len(commands) == 4
    for command, (depth, c4) in zip(commands, ((50, ""), (101, ""), (50, "_c4"), (101, "_c4")), strict=True):
        options, overrides = parse_arguments(shlex.split(command))
        assert not overrides and options.source == "detectron2" and options.backbone_only
        assert str(options.file) == f"R-{depth}.pkl" and str(options.workdir) == f"runs/msra_r{depth}{c4}"
        config = load(Path(options.config).stem)
        assert options.config == f"configs/{config.name}.py" and config.model.backbone.depth == depth
        assert config.model.architecture == ("c4" if c4 else "fpn")


def test_weights_of_the_challenge_entry_expect_what_its_configs_have():
    """The commands are the converter's, and train.init_from does not refuse what they make."""
    commands = re.findall(r"^ *python -m eql_jax\.convert (.*)$", docstring("lvis_challenge"), re.MULTILINE)
    assert len(commands) == 2
    for command, family in zip(commands, ("caffe2 64x4d", "cadene"), strict=True):
        options, overrides = parse_arguments(shlex.split(command))
        assert not overrides and options.backbone_only and options.source in ("detectron2", "cadene")
        config = load(Path(options.config).stem)
        for field, value in FAMILIES[family].backbone.items():
            assert functools.reduce(operator.getitem, field.split("."), config) == value, field


@pytest.mark.parametrize("name", RECIPES)
def test_values_of_the_reference(name):
    """What the release (detectron2's Base-RCNN-FPN and its defaults) and the paper have in common, value by value."""
    c = load(name)
    m, o = c.model, c.optimizer
    # Weights of MSRA: mean of ImageNet in RGB, no standard deviation, stride in the first 1x1.
    assert m.pixel_mean == (123.675, 116.28, 103.53) and m.pixel_std == (1.0, 1.0, 1.0)
    assert m.backbone.stride_in_1x1 and m.backbone.norm == "frozen_batch_norm" and m.backbone.freeze_at == 2
    assert m.backbone.depth == (101 if "_r101_" in name else 50) and m.backbone.width == 64
    assert (m.fpn.channels, m.fpn.norm, m.fpn.min_level) == (256, "none", 2)
    # RPN.
    assert m.rpn.anchor_sizes == (32, 64, 128, 256, 512) and m.rpn.aspect_ratios == (0.5, 1.0, 2.0)
    assert (m.rpn.positive_iou, m.rpn.negative_iou, m.rpn.nms_iou) == (0.7, 0.3, 0.7)
    assert (m.rpn.batch_per_image, m.rpn.positive_fraction) == (256, 0.5)
    c4, cascade = "_c4_" in name, "_cascade_" in name
    assert (m.rpn.pre_nms_train, m.rpn.post_nms_train) == (12_000 if c4 else 2000, 2000 if c4 or cascade else 1000)
    assert (m.rpn.pre_nms_test, m.rpn.post_nms_test) == (6000 if c4 else 1000, 1000)
    # RoI heads.
    assert (m.roi.batch_per_image, m.roi.positive_fraction, m.roi.positive_iou) == (512, 0.25, 0.5)
    assert (m.roi.canonical_size, m.roi.canonical_level) == (224, 4)
    assert m.roi.aligned and not m.rpn.round_anchors
    assert (m.box_head.num_fc, m.box_head.fc_dim, m.box_head.pool_size) == (2, 1024, 14 if c4 else 7)
    assert m.box_head.class_agnostic_boxes == cascade and m.box_head.prior == 0.001
    assert m.architecture == ("c4" if c4 else "fpn") and m.with_mask
    assert m.cascade.ious == ((0.5, 0.6, 0.7) if cascade else ())
    assert m.cascade.box_weights == (10, 20, 30)
    assert (m.mask_head.num_convs, m.mask_head.channels, m.mask_head.pool_size) == (0 if c4 else 4, 256, 14)
    # EQL: E(r) = 0 for background, T a step; without the rule of section 4.2.
    assert m.eql.background_keeps_negatives and m.eql.function == "step" and not m.eql.verified_negatives
    # Inference.
    assert (m.test.nms_iou, m.test.detections_per_image) == (0.5, 300)
    assert c.data.eval_shorter_side == 800 and c.data.longest_side == 1333 and c.data.flip
    assert c.eval.max_detections == 300
    # Training: SGD, decay of biases too and of no norm, warm-up over 1000 steps from 1/1000, no clipping, no average.
    assert (o.name, o.momentum, o.nesterov, o.weight_decay) == ("sgd", 0.9, False, 1e-4)
    assert o.groups == ((r".*/norm/.*", 1.0, 0.0),)
    assert (o.schedule, o.decay_factor, o.warmup_steps, o.warmup_factor) == ("steps", 0.1, 1000, 0.001)
    assert o.clip_norm == 0 and o.ema_decay == 0
    assert c.train.gradient_accumulation == 1 and set(dict(c.train.loss_weights).values()) == {1.0}
    assert c.train.reference_batch_size == c.train.batch_size
    assert c.data.frequencies == ("lvis_v1" if "_v1_" in name else "lvis_v0.5")


def test_buckets_of_the_recipes():
    """No photograph is scaled down to fit, each bucket is of use, and 4:3 fills 98 % of its bucket at 800 pixels."""
    buckets = load("lvis_v05_r50_eql").data.buckets
    assert all(load(name).data.buckets == buckets for name in RECIPES)
    sizes = [Size(*bucket) for bucket in buckets]
    found = {
        (h, w): choose_bucket(h, w, buckets=sizes, shorter_side=800, longest_side=1333)
        for h in range(100, 641, 20)
        for w in range(100, 641, 20)
    }
    assert all(choice.fits for choice in found.values())
    assert {choice.index for choice in found.values()} == {0, 1, 2, 3}
    assert found[480, 640].index == 0 and found[640, 480].index == 1 and found[420, 640].index == 2
    assert 800 * 1067 / (800 * 1088) > 0.98


@pytest.mark.parametrize("name", RELEASED)
def test_values_of_the_release(name):
    c = load(name)
    assert (c.train.batch_size, c.train.steps, c.optimizer.learning_rate) == (16, 90_000, 0.02)
    assert c.optimizer.decay_at == (60_000, 80_000)
    assert c.data.shorter_side == (640, 672, 704, 736, 768, 800)
    assert c.model.test.score_threshold == 1e-4 and not c.model.mask_head.class_agnostic
    kind = name.split("_", 3)[3]
    assert c.model.box_head.loss == kind.removesuffix("_rfs")
    assert c.data.sampler == ("repeat_factor" if kind == "eql_rfs" else "uniform")
    assert c.data.repeat_threshold == (1e-3 if "_v1_" in name else 5e-4)
    assert c.model.box_head.classifier == ("cosine" if kind == "seesaw" else "linear")
    assert dict(c.model.box_head.loss_options) == (
        {"num_sampled": 50, "power": 0.5, "images_per_set": 2} if kind == "federated" else {}
    )


@pytest.mark.parametrize("name", [*PAPER, *VARIANTS])
def test_values_of_the_paper(name):
    c = load(name)
    assert (c.train.batch_size, c.optimizer.learning_rate) == (32, 0.04)
    # 25, 16 and 22 epochs of 57,263 (v0.5) and 100,170 (v1) images, 32 a step.
    steps, decay_at = (78_258, (50_085, 68_867)) if "_v1_" in name else (44_737, (28_632, 39_368))
    assert (c.train.steps, c.optimizer.decay_at) == (steps, decay_at)
    images = 100_170 if "_v1_" in name else 57_263
    for step, epochs in zip((steps, *decay_at), (25, 16, 22), strict=True):
        assert abs(step * 32 / images - epochs) < 1e-3
    assert c.data.shorter_side == (800,)
    assert c.model.test.score_threshold == 0.0 and c.model.mask_head.class_agnostic
    kind = name.split("_", 3)[3].removesuffix("_paper").removeprefix("c4_").removeprefix("cascade_")
    assert c.model.box_head.loss == {"class_aware": "sigmoid", "rfs": "sigmoid"}.get(kind, kind)
    assert c.data.sampler == {"class_aware": "class_aware", "rfs": "repeat_factor"}.get(kind, "uniform")
    assert c.data.repeat_threshold == 1e-3


@pytest.mark.parametrize("name", [n for n in RECIPES if "_eql" in n and "_eqlv2" not in n])
def test_tail_is_the_rare_and_common_classes(name):
    """By lambda on v0.5, over the images that each recipe counts; by letter on v1. 915 and 798 classes."""
    c = load(name)
    table = json.loads((ROOT / "eql_jax" / "data" / "counts" / f"{c.data.frequencies}.json").read_text())
    columns = dict(zip(table["columns"], zip(*table["categories"], strict=True), strict=True))
    letters, images = columns["frequency"], columns["image_count"]
    tail = make_tail(c, letters=letters, image_counts=images, num_images=0)
    assert tail.weights.tolist() == [letter in "rc" for letter in letters]
    assert tail.weights.sum() == (798 if "_v1_" in name else 915)
    if "_v05_" in name:
        expected = (1.76e-3, 57_263) if name.endswith("_paper") else (1.77e-3, 56_740)
        assert (c.model.eql.threshold, c.model.eql.num_images) == expected


@pytest.mark.parametrize("name", CHALLENGE)
def test_values_of_the_challenge_entry(name):
    """What is known of it: backbones, BatchNorm, EQL, repeat factors, several scales, and those of testing."""
    c = load(name)
    b = c.model.backbone
    x101 = (b.kind, b.depth, b.groups, b.width_per_group, b.deform_stages) == ("resnet", 101, 64, 4, (3, 4, 5))
    senet = (b.kind, b.depth, b.groups, b.deform_stages) == ("senet", 154, 64, ())
    assert x101 if "x101_dcn" in name else senet
    assert b.norm == "batch_norm" and b.width == 64 and not b.stride_in_1x1
    assert c.model.box_head.loss == "eql" and (c.model.eql.threshold, c.model.eql.num_images) == (1.77e-3, 56_740)
    assert c.data.sampler == ("class_aware" if "expert" in name else "repeat_factor") and len(c.data.shorter_side) > 1
    assert c.eval.tta.shorter_sides == ((600, 800, 1000, 1200, 1400) if "_tta_" in name else ())
    assert c.eval.tta.masks == ("_tta_boxes_" not in name)
    buckets = [Size(*bucket) for bucket in c.data.buckets]
    size = {"shorter_side": max(c.data.shorter_side), "longest_side": c.data.longest_side}
    for height in range(100, 641, 20):
        for width in range(100, 641, 20):
            assert choose_bucket(height, width, buckets=buckets, **size).fits


@pytest.mark.parametrize("name", OPEN_IMAGES)
def test_values_of_the_experiment_on_open_images(name):
    """Boxes only, lambda 3e-4 of the training file's images, five groups; 12, 8 and 11 epochs of 1.7 million images."""
    c = load(name)
    assert not c.model.with_mask and c.model.backbone.depth == 50 and c.model.architecture == "fpn"
    assert c.data.frequencies == "train_annotations" and c.eval.image_count_groups == 5
    assert (c.model.eql.tail_by, c.model.eql.threshold, c.model.eql.num_images) == ("lambda", 3e-4, 0)
    assert c.model.box_head.loss == ("eql" if name.endswith("_eql") else "sigmoid")
    assert c.data.sampler == ("class_aware" if name.endswith("_class_aware") else "uniform")
    assert (c.train.batch_size, c.optimizer.learning_rate) == (32, 0.04)
    assert (c.train.steps, c.optimizer.decay_at) == (637_500, (425_000, 584_375))
    # A class in 509 of 1.7 million images is of the tail, one in 511 is not: 3e-4 of them are 510.
    tail = make_tail(c, letters="ff", image_counts=[509, 511], num_images=1_700_000)
    assert tail.weights.tolist() == [name.endswith("_eql"), False]
    assert "docs/open_images.md" in docstring(name)


def test_learning_rate_of_the_release():
    """By hand: 2e-5 at step 0, half way through the warm-up .02 * (.001 + .999 / 2), then .02, .002, .0002."""
    c = load("lvis_v05_r50_eql")
    schedule = make_schedule(c.optimizer, total_steps=c.train.steps)
    steps = (0, 500, 1000, 59_999, 60_000, 79_999, 80_000)
    expected = (2e-5, 0.01001, 0.02, 0.02, 0.002, 0.002, 0.0002)
    assert [float(schedule(step)) for step in steps] == pytest.approx(expected, rel=1e-5)


def test_commands_of_the_guide_to_open_images():
    """Every command of docs/open_images.md is one that its programme takes, with fields that exist."""
    text = (ROOT / "docs" / "open_images.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(block) for block in re.findall(r"^    (python .*)$", text, re.MULTILINE)]
    by_programme = {}
    for words in commands:
        by_programme.setdefault(words[2] if words[1] == "-m" else words[1], []).append(words)
    assert by_programme.keys() == {f"eql_jax.data.{name}" for name in ("open_images", "prepare", "browse")} | {
        "train.py"
    }
    parsed = [open_images.parse_arguments(words[3:]) for words in by_programme["eql_jax.data.open_images"]]
    assert [options.out for options in parsed] == ["oid_train.json", "oid_val.json"]
    browse.parse_arguments(by_programme["eql_jax.data.browse"][0][3:])
    fields = [word for words in commands for word in words if word.startswith("--config.")]
    load("open_images_r50_eql", *fields)


def test_commands_of_the_guide_to_custom_data():
    """Every command of docs/custom_data.md is one that its programme takes, with fields that exist."""
    text = (ROOT / "docs" / "custom_data.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"^    (python .*|--config.*)$", text, re.MULTILINE)
    commands = [shlex.split(block) for block in blocks if block.startswith("python")]
    parsers = {
        "eql_jax.data.browse": browse.parse_arguments,
        "eql_jax.convert": parse_arguments,
        "eql_jax.predict": predict.parse_arguments,
    }
    found = {words[2] if words[1] == "-m" else words[1]: words for words in commands}
    assert found.keys() == {*parsers, "eql_jax.data.split", "eql_jax.data.prepare", "train.py"}
    for name, parse in parsers.items():
        parse(found[name][3:])
    fields = [word for block in blocks for word in shlex.split(block) if word.startswith("--config.")]
    load("custom", *fields)
