"""Every file of configs/classification loads, says how it is run and has the paper's values; faults are told."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from configs.classification import base
from eql_jax.classification.config_checks import find_faults
from eql_jax.classification.long_tail import exponential_counts
from eql_jax.training import config as config_lib
from eql_jax.training.errors import ConfigError
from eql_jax.training.schedules import make_schedule

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(p.stem for p in (ROOT / "configs" / "classification").glob("*.py") if p.stem != "__init__")


def load(name, *overrides):
    path = ROOT / "configs" / "classification" / f"{name}.py"
    return config_lib.load_config(path, overrides, base=base.get_config(), find_faults=find_faults)


def test_all_are_there():
    kinds = ("cifar100_lt", "cifar10_lt", "imagenet_lt", "synthetic")
    assert NAMES == sorted(["base", *(f"{kind}_{loss}" for kind in kinds for loss in ("softmax", "seql"))])


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_says_how_it_is_run(name):
    config = load(name)
    assert config_lib.task_of(config) == "classification"
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()
    text = importlib.import_module(f"configs.classification.{name}").__doc__
    (command,) = re.findall(r"^ *(python train\.py .*)$", text, re.MULTILINE)
    words = shlex.split(command)
    assert words[2] == f"--config=configs/classification/{name}.py"
    if name == "base":
        return
    assert config.name == name and words[3] == f"--workdir=runs/{name}"
    load(name, *words[4:])
    assert config.loss.name == name.rpartition("_")[2]
    published = {
        "cifar100_lt_softmax": "Published: top-1 41.33 %; the paper's figure",
        "cifar100_lt_seql": "Published: top-1 43.38 %, with plain softmax 41.33 %; the paper's figures",
        "imagenet_lt_softmax": "Published: top-1 34.7 %; the paper's figure",
        "imagenet_lt_seql": "Published: top-1 36.4 %, with plain softmax 34.7 %; the paper's figures",
    }
    assert published.get(name, "No published figure") in text
    assert re.search(r"^Hardware: ", text, re.M)


def rates(config, *steps):
    schedule = make_schedule(config.optimizer, total_steps=config.train.steps)
    return pytest.approx([float(schedule(s)) for s in steps])


@pytest.mark.parametrize("name", ["cifar100_lt_softmax", "cifar100_lt_seql"])
def test_recipe_of_cifar(name):
    c = load(name)
    assert (c.data.source, c.data.imbalance, c.data.auto_augment, c.data.cutout) == ("cifar100", 200, "cifar10", 16)
    assert (c.model.kind, c.model.depth, c.model.width) == ("cifar_resnet", 32, 16)
    assert (c.train.batch_size, c.train.steps) == (256, 12_800)
    o = c.optimizer
    assert (o.name, o.momentum, o.nesterov, o.weight_decay, o.groups) == ("sgd", 0.9, True, 1e-4, ())
    assert rates(c, 0, 200, 400, 6399, 6400, 9600) == [0.1, 0.15, 0.2, 0.2, 0.02, 0.002]
    if name.endswith("seql"):
        assert (dict(c.loss.options), c.loss.tail_threshold) == ({"gamma": 0.95}, 3e-3)
        counts = exponential_counts(num_classes=100, largest=500, imbalance=200)
        assert np.sum(counts / counts.sum() < c.loss.tail_threshold) == 46


@pytest.mark.parametrize("name", ["imagenet_lt_softmax", "imagenet_lt_seql"])
def test_recipe_of_imagenet(name):
    c = load(name)
    assert (c.model.kind, c.model.depth, c.model.width, c.data.image_size) == ("resnet", 10, 64, 224)
    assert (c.train.batch_size, c.train.steps) == (1024, 12_000)
    assert rates(c, 0, 250, 500, 3400, 6800, 10_200) == [0.1, 0.25, 0.4, 0.04, 0.004, 0.0004]
    assert (c.eval.many_above, c.eval.few_below) == (100, 20)
    if name.endswith("seql"):
        assert (dict(c.loss.options), c.loss.tail_threshold) == ({"gamma": 0.9}, 4.3e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.loss.nam=seql"], "--config.loss.nam: the config has no such key; did you mean loss.name?"),
        (["--config.loss.name=sqel"], "loss.name is 'sqel'; expected one of .*did you mean 'seql'"),
        (["--config.loss.options.gama=.5"], "loss.options: loss 'seql' has no option 'gama'; .*did you mean 'gamma'"),
        (["--config.loss.options.gamma=1.5"], "loss.options: gamma"),
        (["--config.data.auto_augment=cifar100"], "data.auto_augment is 'cifar100'; .*did you mean 'cifar10'"),
        (["--config.data.imbalance=0.5"], "data.imbalance is 0.5; expected a number of at least 1"),
        (["--config.model.depth=31"], r"model.depth is 31; expected 6n \+ 2 for 'cifar_resnet'"),
        (["--config.model.kind=resnet"], "model.depth is 32; expected one of 10, 18, 34 for 'resnet'"),
        (["--config.data.source=imagenet_lt"], "data.crop is 'padded'; expected 'resized' for data.source 'imagenet"),
        (["--config.data.image_size=48"], "data.image_size is 48; expected 32, that of CIFAR"),
        (
            ["--config.data.source=drawn", "--config.data.drawn.largest_class=100"],
            "data.imbalance is 200; expected at most data.drawn.largest_class 100",
        ),
        (["--config.eval.few_below=200"], "eval.few_below 200 and eval.many_above 100 overlap"),
        (["--config.model.prior=0.0"], "model.prior is 0.0; expected between 0 and 1"),
        (["--config.optimizer.decay_at=(3,1)"], "optimizer.decay_at"),
        (["--config.train.gradient_accumulation=3"], "train.batch_size 256 is not a multiple"),
    ],
)
def test_faults(words, message):
    with pytest.raises(ConfigError, match=message):
        load("cifar100_lt_seql", *words)


def test_batch_size_scales_the_recipe():
    c = load("cifar100_lt_seql", "--config.train.batch_size=128")
    assert c.optimizer.learning_rate == 0.1 and c.train.steps == 25_600 and c.optimizer.decay_at == (12_800, 19_200)


def test_a_detector_s_field_is_an_error_that_names_the_right_file():
    config = base.get_config()
    config.model.fpn = 3
    with pytest.raises(ConfigError, match="sets keys that configs/classification/base.py does not have"):
        config_lib.load_config(config, base=base.get_config(), find_faults=find_faults)
