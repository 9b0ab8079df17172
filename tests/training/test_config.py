"""Configs: overrides, unknown keys with suggestions, faulty values, JSON round trip."""

import json
import re

import pytest
from ml_collections import ConfigDict

from configs import base
from configs.classification import base as classification_base
from eql_jax.training import config as config_lib
from eql_jax.training import config_values
from eql_jax.training.errors import ConfigError


def load(tmp_path, *overrides, body=""):
    """Loads a config file of `body` (lines that change c) with overrides."""
    path = tmp_path / "experiment.py"
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path.write_text(f"from configs import base\n\ndef get_config():\n    c = base.get_config()\n{lines}    return c\n")
    return config_lib.load_config(path, overrides, base=base.get_config())


def test_base_is_valid_and_every_checked_key_exists():
    config = base.get_config()
    config_lib.validate(config, base=config)
    known = dict(config_lib.leaves(config))
    assert not (config_values.CHOICES.keys() | config_values.RANGES.keys()) - known.keys()


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--config.train.steps=30"], "train.steps", 30),
        (["--config.train.steps", "30"], "train.steps", 30),
        (["--config.train.steps=30", "--config.train.steps=40"], "train.steps", 40),
        (["--config.optimizer.learning_rate=1"], "optimizer.learning_rate", 1.0),
        (["--config.data.flip=false"], "data.flip", False),
        (["--noconfig.data.flip"], "data.flip", False),
        (["--config.data.shorter_side=(64, 96)"], "data.shorter_side", (64, 96)),
        (["--config.data.buckets=((64, 96),)"], "data.buckets", ((64, 96),)),
        (["--config.name=5"], "name", "5"),
        (["--config.data.supershapes.num_classes=20"], "data.supershapes.num_classes", 20),
    ],
)
def test_overrides(tmp_path, words, key, value):
    config = load(tmp_path, *words)
    found = dict(config_lib.leaves(config))[key]
    assert found == value and type(found) is type(value)
    assert config.is_locked


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.train.stps=3", r"train\.stps: the config has no such key; did you mean train\.steps\?"),
        ("--config.learning_rate=3", r"did you mean optimizer\.learning_rate\?"),
        ("--config.optimiser.momentum=0.5", r"did you mean optimizer\.momentum\?"),
        ("--config.model.roi.nms_iou=.5", r"did you mean model\.rpn\.nms_iou"),
        ("--config.train=3", r"--config\.train is a group of fields.*train\.steps"),
        ("--wordkir=3", r"unknown flag --wordkir=3"),
        ("steps=3", r"unexpected words on the command line: steps=3"),
        ("--config.train.steps=1e3", r"train\.steps=1e3"),
        ("--config.train.steps", r"Missing value for flag --config\.train\.steps"),
        ("--config.data.sampler=repeat_factors", r"'repeat_factors'; expected one of.*did you mean 'repeat_factor'\?"),
        (
            "--config.model.box_head.loss=bce",
            r"box_head\.loss is 'bce'; expected one of 'balanced_softmax', .* or 'module:Class'",
        ),
        ("--config.model.box_head.loss=sigmoit", r"box_head\.loss is 'sigmoit'; .*; did you mean 'sigmoid'\?"),
        (
            "--config.model.box_head.loss_options.x=1",
            r"loss_options is {'x': 1}; the options of 'eql' are those of model\.eql",
        ),
        (
            "--config.model.box_head.loss=federated --config.model.box_head.loss_options.images_per_set=2 "
            "--config.train.gradient_accumulation=16",
            r"gradient_accumulation 16 gives parts of 1 images; 'federated' asks for a multiple of 2",
        ),
        (
            "--config.model.box_head.loss=sigmoid --config.model.eql.verified_negatives=True",
            r"verified_negatives is True; expected False for 'sigmoid'",
        ),
        (
            "--config.model.box_head.loss=sigmoid --config.model.eql.background_keeps_negatives=False",
            r"background_keeps_negatives is False; expected True for 'sigmoid'",
        ),
        ("--config.model.backbone.norm=bn", r"backbone\.norm is 'bn'"),
        ("--config.model.backbone.kind=senet --config.model.backbone.width_per_group=4", r"expected 0 for 'senet'"),
        ("--config.model.architecture=c4", r"pool_size is 7; expected an even number for 'c4'"),
        ("--config.model.architecture=c4 --config.model.box_head.num_convs=4", r"num_convs is 4; expected 0 for 'c4'"),
        ("--config.model.backbone.depth=51", r"depth is 51; expected one of 18, 34, 50, 101"),
        ("--config.optimizer.schedule=linear", r"optimizer\.schedule is 'linear'; expected one of 'steps'"),
        ("--config.optimizer.learning_rate=nan", r"learning_rate is nan; expected a number of at least 0"),
        ("--config.model.test.nms_iou=1.5", r"nms_iou is 1.5; expected a number of 0 to 1"),
        ("--config.data.buckets=((100, 128),)", r"buckets is .*multiples of 32"),
        ("--config.model.rpn.anchor_sizes=(32, 64)", r"anchor_sizes has 2 entries; expected 5"),
        ("--config.train.gradient_accumulation=3", r"batch_size 16 is not a multiple of gradient_accumulation 3"),
        ("--config.train.steps_per_call=2", r"steps_per_call is 2, .* expected one bucket in place of"),
        (
            "--config.train.steps_per_call=8 --config.data.scale_jitter=(.1,2.) --config.checkpoint.every=4",
            r"steps_per_call is 8; expected at most checkpoint\.every 4",
        ),
        ("--config.model.eql.tail_letters=rx", r"tail_letters is 'rx'"),
        ("--config.model.eql.function=gompertz", r"eql\.function is 'gompertz', which goes with eql\.tail_by"),
        ("--config.optimizer.groups=(('(', 1.0, 1.0),)", r"optimizer\.groups\[0\] is .*expected \(regex"),
        ("--config.model.rpn.aspect_ratios=()", r"aspect_ratios is empty"),
        ("--config.model.rpn.aspect_ratios=(0.0,)", r"aspect_ratios is \(0\.0,\); expected numbers of 0\.01 to 100"),
        ("--config.seed=-1", r"seed is -1; expected a number of 0"),
        ("--config.eval.ap_fixed=true", r"detections_per_image is 300; expected more than eval.max_detections 300"),
        ("--config.optimizer.decay_at=(20, 10)", r"decay_at is \(20, 10\); expected rising steps"),
    ],
)
def test_faulty_overrides(tmp_path, word, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, *re.split(" (?=--)", word))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("c.train.stps = 3", r"train\.stps; did you mean train\.steps\?"),
        ("c.training = dict(steps=3)", r"training\.steps; did you mean train\.steps\?"),
        ("c.train.steps = 3.5", r"experiment\.py fails: TypeError"),
        ("c.train.unlock(); del c.train.steps", r"lacks train\.steps"),
        ("c = 3", r"returned int; expected ConfigDict"),
        ("raise RuntimeError('oh')", r"fails: RuntimeError: oh"),
        ("c.train = 5", r"TypeError"),
    ],
)
def test_faulty_files(tmp_path, body, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, body=body)


def test_options_of_losses_from_the_command_line(tmp_path):
    """Whole numbers will do for others; options of the config's loss do not stay for another loss."""
    seesaw = "--config.model.box_head.loss=seesaw"
    config = load(
        tmp_path, seesaw, "--config.model.box_head.loss_options.p=1", "--config.model.box_head.loss_options.p=0.5"
    )
    assert dict(config.model.box_head.loss_options) == {"p": 0.5}
    body = "c.model.box_head.update(loss='federated', loss_options=dict(power=0.25))"
    config = load(tmp_path, "--config.model.box_head.loss_options.power=1", body=body)
    assert dict(config.model.box_head.loss_options) == {"power": 1}
    for words in ((seesaw,), ("--config.model.box_head.loss", "seesaw")):
        assert dict(load(tmp_path, *words, body=body).model.box_head.loss_options) == {}
    config = load(tmp_path, "--config.model.box_head.loss=federated", body=body)
    assert dict(config.model.box_head.loss_options) == {"power": 0.25}


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "tiny.py").write_text("")
    with pytest.raises(ConfigError, match=r"tine\.py does not exist; did you mean .*tiny\.py\?"):
        config_lib.load_config(tmp_path / "tine.py", base=base.get_config())


def test_all_faults_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "--config.train.steps=0", "--config.eval.batch_size=0")
    assert "train.steps is 0" in str(caught.value) and "eval.batch_size is 0" in str(caught.value)


def test_types_are_checked_where_json_or_dicts_lost_them():
    config = base.get_config()
    faulty = ConfigDict(config.to_dict() | {"seed": True, "name": 3})
    with pytest.raises(ConfigError, match=r"name is 3 \(int\); expected str.*\n.*seed is True \(bool\); expected int"):
        config_lib.validate(faulty, base=config)


def test_json_round_trip_and_differences(tmp_path):
    config = load(tmp_path, "--config.data.buckets=((64, 96), (96, 64))")
    path = tmp_path / "config.json"
    path.write_text(config_lib.to_json(config))
    again = config_lib.load_config(path, ["--config.train.steps=7"], base=base.get_config())
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()
    assert config_lib.differences(config, again) == {"train.steps": (config.train.steps, 7)}
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not the JSON of a config"):
        config_lib.load_config(path, base=base.get_config())


@pytest.mark.parametrize("base_of", [base, classification_base])
def test_runs_from_before_fields_were_added(base_of):
    config = base_of.get_config()
    stored = json.loads(config_lib.to_json(config))
    del stored["mesh"]["fsdp"], stored["train"]["reduce_dtype"], stored["train"]["steps_per_call"]
    assert config_lib.from_json(json.dumps(stored)).to_dict() == config.to_dict()


def test_get_config_takes_the_text_after_a_colon(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from configs import base\ndef get_config(text):\n    c = base.get_config()\n    c.name = text\n    return c\n"
    )
    assert config_lib.load_config(f"{path}:big", base=base.get_config()).name == "big"


def test_versions_name_what_matters():
    found = config_lib.versions()
    assert {"python", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "git_commit", "devices"} <= found.keys()
    assert found["jax"] and found["devices"]


def test_without_masks_nothing_that_needs_them():
    c = base.get_config()
    c.model.with_mask = False
    config_lib.validate(c, base=base.get_config())
    c.data.copy_paste.probability = 0.5
    c.eval.boundary = True
    with pytest.raises(
        ConfigError, match="(?s)pasting asks for model.with_mask True.*boundary AP asks for model.with_mask"
    ):
        config_lib.validate(c, base=base.get_config())
