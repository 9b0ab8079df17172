"""Workdirs as training leaves them, made without training: a checkpoint of random parameters, curves, an evaluation."""

import json
from pathlib import Path

import jax
import numpy as np

from eql_jax.data.annotations import load_annotations
from eql_jax.data.categories import class_statistics
from eql_jax.data.supershapes import ensure_supershapes
from eql_jax.evaluation.columns import ResultTable
from eql_jax.evaluation.evaluator import evaluate
from eql_jax.evaluation.tables import write_class_csv, write_metrics_json
from eql_jax.models import build_model, init_model
from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.compatibility import Classes
from eql_jax.training.metrics import MetricWriter
from eql_jax.training.state import TrainState
from eql_jax.training.tail import class_frequencies
from eql_jax.visualize.ground_truth import record_objects
from tests.models.test_mask_rcnn import tiny_config

STEP = 20


def make_data(folder: Path, *, num_classes: int = 24):
    """A small data set of shapes: what `ensure_supershapes` returns."""
    sizes = {"num_classes": num_classes, "train_images": 16, "val_images": 5, "image_size": 64}
    return ensure_supershapes(folder, **sizes, progress=False, workers=1)


def make_config(data, **changes):
    """A narrow Faster R-CNN on that data, eight images a batch."""
    fields = {
        "name": "tiny",
        "data.train_annotations": str(data.train_annotations),
        "data.val_annotations": str(data.val_annotations),
        "data.train_images": str(data.images),
        "data.val_images": str(data.images),
        "data.frequencies": "train_annotations",
        "data.shorter_side": (64,),
        "data.longest_side": 64,
        "data.eval_shorter_side": 64,
        "data.buckets": ((64, 64),),
        "data.max_objects": 16,
        "data.workers": 1,
        "model.with_mask": False,
        "model.backbone.norm": "group_norm",
        "train.batch_size": 8,
        "log.tensorboard": False,
    }
    return tiny_config(**(fields | changes))


def random_tree(shapes, rng):
    return jax.tree.map(lambda x: rng.normal(0, 0.05, x.shape).astype(x.dtype), shapes)


def make_workdir(workdir: Path, config, *, curves: bool = True, evaluation: bool = True, seed: int = 0):
    """WORKDIR with a checkpoint, and where asked for metrics.jsonl and evaluation/."""
    rng = np.random.default_rng(seed)
    train = load_annotations(config.data.train_annotations, config.data.train_images)
    statistics = class_statistics(train, "train_annotations")
    classes = Classes.of(statistics)
    model = build_model(config, len(classes), class_frequencies(classes))
    variables = random_tree(jax.eval_shape(lambda: init_model(model, jax.random.key(0))), rng)
    state = TrainState(np.int32(STEP), variables["params"], variables["batch_stats"], {}, None)
    workdir.mkdir(parents=True)
    with Checkpoints(workdir, config, classes) as checkpoints:
        checkpoints.save(state)
    if curves:
        with MetricWriter(workdir, config) as writer:
            for step in range(1, STEP + 1):
                writer.train(step, {"loss": 2 / step, "loss_cls": 1 / step, "learning_rate": 0.01})
            writer.evaluation(STEP, {"bbox/AP": 0.25})
    if evaluation:
        make_evaluation(workdir / "evaluation", config, statistics, rng)
    return workdir


def make_evaluation(folder: Path, config, statistics, rng):
    """An evaluation of the ground truth, of which the last class is missing and the others are off by some pixels."""
    val = load_annotations(config.data.val_annotations, config.data.val_images)
    results = []
    for record in val.images:
        for thing in record_objects(record, val.class_ids):
            if thing["category_id"] != int(val.class_ids[-1]):
                box = np.array(thing["bbox"]) + rng.uniform(-1, 1, 4)
                result = {"image_id": record.id, "category_id": thing["category_id"], "bbox": box.tolist()}
                results.append(result | {"score": float(rng.uniform(0.3, 1))})
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    found = evaluate(val, ResultTable.from_results(results), iou_types=("bbox",))
    write_metrics_json(folder / "metrics.json", found, extra={"step": STEP})
    counts = dict(zip(statistics.category_ids.tolist(), statistics.image_counts.tolist(), strict=True))
    write_class_csv(folder / "classes.csv", found, train_image_counts=counts, train_instance_counts=counts)
