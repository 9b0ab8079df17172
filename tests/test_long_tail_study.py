"""The study's arms, its way through a tiny run, and its tables."""

import csv
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import long_tail_study
from benchmarks.long_tail_arms import (
    ARMS,
    GROUPS,
    PAPER_LAMBDA,
    SWEEP,
    TINY,
    Scale,
    arm_config,
    base_config,
    other_shapes,
    paper_tail_ratio,
    start_config,
    threshold_like,
)
from benchmarks.long_tail_features import head_batches, pooled_features
from benchmarks.long_tail_report import ENDS, METRICS, differences, limits, markdown, spreads, write_report
from configs import base
from eql_jax.class_losses import REGISTRY
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.shapes.plan import long_tail_counts
from eql_jax.losses import tail_ratio
from eql_jax.models import build_model
from eql_jax.training import config as config_lib
from eql_jax.training.compatibility import flatten
from eql_jax.training.config import load_config
from eql_jax.training.errors import CheckpointError
from eql_jax.training.inference_model import load_for_inference
from eql_jax.training.inputs import load_training

IMAGES = Scale().train_images
FEDERATED = ("", ".num_sampled", ".images_per_set")  # options of the one arm that has some
COUNTS = long_tail_counts(num_classes=Scale().classes, num_images=IMAGES)


def config_of(name, tmp_path, seed=0):
    return arm_config(name, seed, scale=Scale(), out=tmp_path, image_counts=COUNTS, num_images=IMAGES)


# ---------------------------------------------------------------------------------------------------- arms
def test_tail_ratios_are_those_of_the_paper():
    assert 100 * paper_tail_ratio(PAPER_LAMBDA) == pytest.approx(9.08, abs=0.02)
    assert paper_tail_ratio(0) == 0


@pytest.mark.parametrize("value", [0.176e-3, 0.5e-3, PAPER_LAMBDA, 5e-3])
def test_thresholds_have_the_nearest_tail_ratio(value):
    """Against all thresholds there are, by hand."""
    found = threshold_like(value, COUNTS, IMAGES)
    ratios = {n: COUNTS[COUNTS <= n].sum() / COUNTS.sum() for n in set(COUNTS.tolist())}
    nearest = min(ratios, key=lambda n: abs(ratios[n] - paper_tail_ratio(value)))
    np.testing.assert_array_equal(COUNTS / IMAGES < found, COUNTS <= nearest)


def test_the_papers_choice_takes_rare_and_common_classes():
    tail = COUNTS / IMAGES < threshold_like(PAPER_LAMBDA, COUNTS, IMAGES)
    np.testing.assert_array_equal(tail, COUNTS <= 100)
    assert 100 * tail_ratio(COUNTS, tail) == pytest.approx(9, abs=0.3)


def test_tails_of_the_sweep_grow(tmp_path):
    thresholds = [config_of(name, tmp_path).model.eql.threshold for name in SWEEP if name != "sigmoid"]
    assert len(thresholds) == 8 and thresholds == sorted(set(thresholds))


@pytest.mark.parametrize("name", ARMS)
def test_configs_are_sound_and_differ_in_the_arm_alone(name, tmp_path):
    config, other = load_config(config_of(name, tmp_path), base=base.get_config()), config_of("sigmoid", tmp_path)
    assert config.model.box_head.loss in REGISTRY
    allowed = {"name", "model.box_head.loss", "model.eql.threshold", "model.eql.background_keeps_negatives"}
    allowed |= {"data.sampler", "data.repeat_threshold", *(f"model.box_head.loss_options{x}" for x in FEDERATED)}
    assert config_lib.differences(other, config).keys() <= allowed
    assert config_lib.differences(config, config_of(name, tmp_path, seed=1)).keys() == {"name", "seed"}


def test_groups_name_arms():
    assert {arm for group in GROUPS.values() for arm in group} == ARMS.keys()


def test_the_start_sees_other_shapes_and_has_the_same_network(tmp_path):
    start, arm = start_config(Scale(), tmp_path), base_config(Scale(), tmp_path)
    load_config(start, base=base.get_config())
    assert {k for k in config_lib.differences(arm, start) if k.startswith("model.")} == {"model.box_head.loss"}
    other = other_shapes(Scale(), tmp_path)
    assert other["first_class"] == Scale().classes
    assert other["num_classes"] not in (Scale().classes, Scale().classes + 1)  # the classifier never fits


# ---------------------------------------------------------------------------------------------------- running
@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of one run, in a process of its own whose compilations are not optimised: they are most of the time."""
    out = tmp_path_factory.mktemp("study") / "out"
    words = ["--out", str(out), "--tiny", "--arms", "eql", "--seeds", "0"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, long_tail_study.__file__, *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_a_tiny_study_writes_tables_and_plots(study):
    row = json.loads((study / "results.jsonl").read_text())
    assert (row["arm"], row["seed"], row["steps"]) == ("eql", 0, TINY.steps)
    assert all(0 <= row[key] <= 1 or row[key] == -1 for key in METRICS)
    assert row["cpu_seconds"] > 0 and len(row["config"]) == 12
    with (study / "results.csv").open() as file:
        assert [r["arm"] for r in csv.DictReader(file)] == ["eql"]
    assert "| EQL | 1 |" in (study / "table.md").read_text()
    assert (study / "groups.png").stat().st_size > 1000
    start = json.loads((study / "start.json").read_text())
    assert start["steps"] == TINY.start_steps and 0 <= start["bbox/AP"] <= 1


@pytest.mark.slow
def test_runs_train_the_box_head_of_the_shared_detector_alone(study):
    start, run = (load_for_inference(study / name) for name in ("start", f"runs/eql_{TINY.steps}_steps/seed0"))
    assert not set(start.classes.names) & set(run.classes.names)
    before, after = flatten(start.variables), flatten(run.variables)
    differ = {k for k in before.keys() & after.keys() if before[k].shape != after[k].shape}
    assert differ == {"params/box_head/cls_score/kernel", "params/box_head/cls_score/bias"}
    frozen = [k for k in before if not k.startswith("params/box_head/")]
    assert frozen
    for k in frozen:
        np.testing.assert_array_equal(after[k], before[k])
    trained = before.keys() - differ - set(frozen)
    assert len(trained) == 6 and not any(np.array_equal(after[k], before[k]) for k in trained)


@pytest.mark.slow
def test_losses_of_pooled_features_are_those_of_the_pictures(study):
    """The first image's RoIs through the whole model, against the features on disk: equal but for float16."""
    found = load_for_inference(study / f"runs/eql_{TINY.steps}_steps/seed0")
    config = load_config(base_config(TINY, study), base=base.get_config())
    train_set = load_training(config)[0]
    features = pooled_features(study / "features", found.variables, config, train_set)
    assert features.pooled.shape == (TINY.train_images, 48, 7, 7, config.model.fpn.channels)
    assert sorted(features.image_id.tolist()) == [record.id for record in train_set.images]
    model = build_model(found.config, TINY.classes)
    batch = next(make_train_iterator(train_set, config))
    row = int(np.flatnonzero(features.image_id == batch["image_id"][0])[0])

    def hidden(model):
        pyramid = model.features(batch["image"][:1], batch["image_size"][:1])
        return model.box_hidden(pyramid, features.targets["boxes"][[row]])

    options = {"xla_backend_optimization_level": 0}
    from_pictures = jax.jit(lambda v: model.apply(v, method=hidden), compiler_options=options)(found.variables)
    from_disk = model.apply(
        found.variables, features.pooled[row].astype(np.float32), method=lambda model, x: model.box_head.hidden(x)
    )
    used = features.targets["classes"][row] >= 0
    scale = np.abs(np.asarray(from_pictures)).max()
    np.testing.assert_allclose(from_disk[used], from_pictures[used], atol=2e-3 * scale)
    # Batches go by step alone, and an epoch has every image once.
    steps = TINY.train_images // TINY.batch
    batches = head_batches(features, config, train_set, 0)
    epoch = np.concatenate([next(batches)["image_id"] for _ in range(steps)])
    assert sorted(epoch.tolist()) == sorted(features.image_id.tolist())
    np.testing.assert_array_equal(next(head_batches(features, config, train_set, 3))["image_id"], epoch[12:16])


@pytest.mark.slow
def test_finished_runs_are_not_done_again(study, monkeypatch, capsys):
    monkeypatch.setattr(long_tail_study, "train_head", lambda *_: pytest.fail("ran again"))
    before = (study / "results.jsonl").read_text()
    words = ["--out", str(study), "--tiny", "--arms", "eql", "--seeds", "0"]
    assert long_tail_study.main(words) == 0
    assert (study / "results.jsonl").read_text() == before
    assert "| EQL | 1 |" in capsys.readouterr().out
    assert long_tail_study.main([*words, "--steps", "9", "--report"]) == 0
    assert "EQL" not in capsys.readouterr().out  # tables are of one number of steps
    assert long_tail_study.main([*words, "--difficulty", "hard"]) == 2
    assert "difficulty is 'normal', asked for is 'hard'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_start_that_knows_the_classes_is_refused(study):
    class Known(long_tail_study.Study):
        start = study / "runs" / f"eql_{TINY.steps}_steps" / "seed0"

    with pytest.raises(CheckpointError, match="was trained on 20 classes of the study"):
        Known(study, TINY).prepare()


def test_a_stopped_run_is_no_result(tmp_path, monkeypatch, capsys):
    def stopped(*_):
        raise long_tail_study.Stopped

    monkeypatch.setattr(long_tail_study.Study, "prepare", stopped)
    assert long_tail_study.main(["--out", str(tmp_path), "--tiny"]) == 0
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()


# ---------------------------------------------------------------------------------------------------- reports
def rows(arm, *values):
    return [{"arm": arm, "seed": i, "steps": 1, **dict.fromkeys(METRICS, v)} for i, v in enumerate(values)]


def test_mean_and_spread_by_hand(tmp_path):
    finished = [*rows("eql", 0.1, 0.2, 0.3), *rows("sigmoid", 0.5, 0.1)]
    found = spreads(finished)
    assert list(found) == ["sigmoid", "eql"]  # the order of ARMS
    assert found["eql"]["bbox/APr"].text() == "20.0 ± 10.0"
    assert spreads(rows("sigmoid", 0.5))["sigmoid"]["segm/AP"].text() == "50.0"
    (minus,) = differences(finished).values()  # of seeds 0 and 1: -40 and +10
    assert minus["bbox/APr"].text("{:+.1f}") == "-15.0 ± 35.4" and minus["bbox/APr"].seeds == 2
    text = markdown(finished, TINY)
    titles = [line for line in text.splitlines() if "detections" in line]
    assert titles[0] == "5 detections an image, percent:" and len(titles) == 4
    head, _, sigmoid, eql = text.split("\n\n")[1].splitlines()
    assert head.startswith("| arm | seeds | boxes AP | boxes APr")
    assert sigmoid.startswith("| sigmoid | 2 | 30.0 ± 28.3 |") and eql.startswith("| EQL | 3 | 20.0 ± 10.0 |")
    assert "| EQL | 2 | -15.0 ± 35.4 |" in text
    write_report(tmp_path, [*rows("eql", 0.1, 0.2), *rows("sigmoid", 0.1)], TINY)
    assert {p.name for p in tmp_path.iterdir()} == {
        "results.csv",
        "table.md",
        *(f"{plot}{end}.png" for plot in ("groups", "sweep") for end in ENDS),
    }


def test_a_group_without_ground_truth_has_no_ap():
    (found,) = spreads([{"arm": "eql", "seed": 0, "steps": 1, **dict.fromkeys(METRICS, -1.0)}]).values()
    assert {v.text() for v in found.values()} == {"-"}


def test_a_study_without_results_has_empty_tables(tmp_path):
    write_report(tmp_path, [], TINY)
    assert (tmp_path / "table.md").read_text().count("| arm | seeds |") == 2 * len(limits(TINY))


def test_unknown_arms_are_named(capsys):
    with pytest.raises(SystemExit):
        long_tail_study.main(["--out", "x", "--arms", "sigmod"])
    assert "no arm or group sigmod" in capsys.readouterr().err
