"""The linear rule: worked numbers, what the user gives, and configs that are read again."""

import logging
from pathlib import Path

import pytest

from configs import base
from eql_jax.training import config as config_lib
from eql_jax.training.batch_scaling import apply_linear_rule
from eql_jax.training.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FIELDS = (
    "train.batch_size",
    "train.reference_batch_size",
    "optimizer.learning_rate",
    "train.steps",
    "optimizer.decay_at",
    "optimizer.warmup_steps",
    "eval.every",
    "checkpoint.every",
)


def load(*overrides, source=CONFIGS / "lvis_v1_r50_eql.py"):
    return config_lib.load_config(source, overrides, base=base.get_config())


def values(config):
    found = dict(config_lib.leaves(config))
    return tuple(found[key] for key in FIELDS)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (16, 16, 0.02, 90_000, (60_000, 80_000), 1000, 10_000, 2000)),
        # s = 1/8: the rate divided, the steps multiplied by 8.
        (["--config.train.batch_size=2"], (2, 2, 0.0025, 720_000, (480_000, 640_000), 8000, 80_000, 16_000)),
        # s = 4.
        (["--config.train.batch_size=64"], (64, 64, 0.08, 22_500, (15_000, 20_000), 250, 2500, 500)),
        # s = 3: 60,000 / 3 exact, 80,000 / 3 = 26,666.7, 1000 / 3 = 333.3, 10,000 / 3 = 3333.3, 2000 / 3 = 666.7.
        (["--config.train.batch_size=48"], (48, 48, 0.06, 30_000, (20_000, 26_667), 333, 3333, 667)),
        # Another reference, s = 16 / 8.
        (["--config.train.reference_batch_size=8"], (16, 16, 0.04, 45_000, (30_000, 40_000), 500, 5000, 1000)),
        # Switched off.
        (
            ["--config.train.reference_batch_size=0", "--config.train.batch_size=2"],
            (2, 0, 0.02, 90_000, (60_000, 80_000), 1000, 10_000, 2000),
        ),
    ],
)
def test_by_hand(overrides, expected):
    found = values(load(*overrides))
    assert found[:2] + found[3:] == expected[:2] + expected[3:]
    assert found[2] == pytest.approx(expected[2], rel=1e-12)
    assert all(isinstance(f, type(e)) for f, e in zip(found, expected, strict=True))


def test_rounding():
    """Halves go up, 0 stays 0, and what is above 0 does not become 0."""
    config = base.get_config()
    config.update_from_flattened_dict(
        {
            "train.batch_size": 32,
            "train.reference_batch_size": 16,
            "train.steps": 1001,
            "optimizer.decay_at": (3, 0),
            "optimizer.warmup_steps": 0,
            "eval.every": 0,
            "checkpoint.every": 1,
        }
    )
    changes = apply_linear_rule(config)
    assert values(config) == (32, 32, 0.04, 501, (2, 0), 0, 0, 1)
    assert changes == {
        "optimizer.learning_rate": (0.02, 0.04),
        "train.steps": (1001, 501),
        "optimizer.decay_at": ((3, 0), (2, 0)),
    }
    assert apply_linear_rule(config) == {}  # once is enough


def test_what_the_user_gives_is_left_alone():
    config = load("--config.train.batch_size=2", "--config.train.steps=50", "--config.optimizer.learning_rate", "0.01")
    assert values(config) == (2, 2, 0.01, 50, (480_000, 640_000), 8000, 80_000, 16_000)


def test_base_has_no_reference():
    assert values(load("--config.train.batch_size=2", source=base.get_config()))[:4] == (2, 0, 0.02, 90_000)


def test_stored_config_is_read_as_it_was_run(tmp_path):
    """config.json of a run with another batch size, read to go on: nothing is scaled twice."""
    run = load("--config.train.batch_size=2", "--config.eval.every=123")
    path = tmp_path / "config.json"
    path.write_text(config_lib.to_json(run))
    again = load(source=path)
    assert config_lib.differences(run, again) == {}
    # The first command once more gives the same, too.
    assert config_lib.differences(run, load("--config.train.batch_size=2", "--config.eval.every=123")) == {}
    # Back to 16 images: the stored values are those of 2.
    back = load("--config.train.batch_size=16", source=path)
    assert values(back)[:4] == (16, 16, pytest.approx(0.02), 90_000) and back.eval.every == 15  # 123 / 8 = 15.4


def test_log_says_what_changed(caplog):
    with caplog.at_level(logging.INFO, logger="eql_jax"):
        load()
        assert not caplog.messages
        load("--config.train.batch_size=2", "--config.train.steps=50")
    assert caplog.messages == [
        "batch size 2, the config is meant for 16; by the linear rule: optimizer.learning_rate 0.02 -> 0.0025, "
        "optimizer.decay_at (60000, 80000) -> (480000, 640000), optimizer.warmup_steps 1000 -> 8000, "
        "eval.every 10000 -> 80000, checkpoint.every 2000 -> 16000; as given: train.steps"
    ]


def test_faults_after_scaling_are_told():
    with pytest.raises(ConfigError, match=r"decay_at is \(1, 1\); expected rising steps"):
        load("--config.train.batch_size=1600000")
    with pytest.raises(ConfigError, match=r"reference_batch_size is -1; expected a number of at least 0"):
        load("--config.train.reference_batch_size=-1")


def test_other_config_files_can_have_a_reference(tmp_path):
    """A file that sets its batch size beside the recipe's reference is scaled like the command line's."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import lvis\n\ndef get_config():\n"
        "    c = lvis.paper('mine', version='v0.5', depth=50)\n    c.train.batch_size = 8\n    return c\n"
    )
    # s = 1/4: 4 * 44,737 and so on.
    assert values(load(source=path))[:5] == (8, 8, 0.01, 178_948, (114_528, 157_472))
