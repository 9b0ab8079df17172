"""Top-1 accuracy: over all images, and over the classes with many, medium and few training images.

B images of a batch, K classes. Into the output directory go

    metrics.json    the accuracies, shares of 1, and the step
    classes.csv     every class with its training images, test images and accuracy
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from eql_jax.classification.long_tail import GROUPS, GroupBorders, class_groups
from eql_jax.classification.models import Classifier
from eql_jax.training.compatibility import Classes
from eql_jax.training.disk import check_writable, write_atomically
from eql_jax.training.errors import UserError

Predictor = Callable[[Mapping[str, Any], np.ndarray], np.ndarray]


class Hits(NamedTuple):
    """int64 [K] each: test images of every class, and those of them that were classified right."""

    images: np.ndarray
    right: np.ndarray


def make_predictor(model: Classifier, mesh: Mesh) -> Predictor:
    """Returns predictor(variables, uint8 [B,S,S,3]) -> int32 [B], the class of the highest score.

    mesh: shards the batch over its 'data' axis; B must be a multiple of that.
    """

    def predict(variables, image):
        return jnp.argmax(model.apply(variables, image, method="scores"), axis=-1).astype(jnp.int32)

    replicated, by_image = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    jitted = jax.jit(predict, in_shardings=(replicated, by_image), out_shardings=by_image)

    def predictor(variables: Mapping[str, Any], image: np.ndarray) -> np.ndarray:
        with jax.set_mesh(mesh):
            return np.asarray(jitted(variables, jax.device_put(image, by_image)))  # several hosts: jit takes no NumPy

    return predictor


def count_hits(
    predictor: Predictor,
    variables: Mapping[str, Any],
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    num_classes: int,
    num_hosts: int = 1,
) -> Hits:
    """Runs the model over this host's batches and adds up what all hosts found. Rows with label -1 count nowhere.

    Raises:
      UserError: another host could not read its images. What fails on this host is raised as it is; of several hosts,
        once all are done, so that none waits for one that has left.
    """
    images, right = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    fault = None
    try:
        for batch in batches:
            label = batch["label"]
            predicted = predictor(variables, batch["image"])
            images += np.bincount(label[label >= 0], minlength=num_classes)
            right += np.bincount(label[(label >= 0) & (predicted == label)], minlength=num_classes)
    except Exception as e:  # whatever it is, the other hosts must hear of it
        if num_hosts == 1:
            raise
        fault = e
    if num_hosts > 1:
        failed = np.full(num_classes, fault is not None)
        counts = multihost_utils.process_allgather(np.stack([images, right, failed]).astype(np.int32))
        if fault is not None:
            raise fault
        hosts = np.flatnonzero(counts[:, 2, 0])
        if hosts.size:
            raise UserError(f"the evaluation failed on host {', '.join(map(str, hosts))}; its log says why")
        images, right, _ = counts.sum(axis=0, dtype=np.int64)
    return Hits(images, right)


def accuracies(hits: Hits, training_counts: np.ndarray, borders: GroupBorders) -> dict[str, float]:
    """top1, the share of images that are right, and top1_many, top1_medium, top1_few, the means over their classes.

    The mean over classes is that of Liu et al. 2019; where all classes have as many test images, as in the sets here,
    it is the share of images. A group without a class that has test images is left out.

    Args:
      hits: of the test images.
      training_counts: int [K].
      borders: of the groups.

    Raises:
      ValueError: no test image at all.
    """
    if not hits.images.sum():
        raise ValueError("accuracies: there is no test image")
    found = {"top1": float(hits.right.sum() / hits.images.sum())}
    groups = class_groups(training_counts, borders)
    for number, name in enumerate(GROUPS):
        mine = (groups == number) & (hits.images > 0)
        if mine.any():
            found[f"top1_{name}"] = float(np.mean(hits.right[mine] / hits.images[mine]))
    return found


def write_results(
    out: Path, metrics: Mapping[str, float], hits: Hits, classes: Classes, borders: GroupBorders, *, step: int
) -> None:
    """Writes the files of the module's head; those of an earlier evaluation are replaced.

    Raises:
      CheckpointError: `out` cannot be written to.
    """
    check_writable(out)
    write_atomically(out / "metrics.json", json.dumps({"step": step, **metrics}, indent=2) + "\n")
    groups = class_groups(np.asarray(classes.image_counts), borders)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("class", "name", "group", "training_images", "test_images", "right", "top1"))
    for k, name in enumerate(classes.names):
        images, right = int(hits.images[k]), int(hits.right[k])
        share = f"{right / images:.4f}" if images else ""
        rows.writerow((k, name, GROUPS[groups[k]], classes.image_counts[k], images, right, share))
    write_atomically(out / "classes.csv", text.getvalue())


def format_accuracies(metrics: Mapping[str, float], training_counts: np.ndarray, borders: GroupBorders) -> str:
    """A line for the log: 'top-1 45.00 %; many (20 classes) 60.00, ...'."""
    sizes = np.bincount(class_groups(training_counts, borders), minlength=len(GROUPS))
    parts = [
        f"{name} ({size} classes) {100 * metrics[f'top1_{name}']:.2f}"
        for name, size in zip(GROUPS, sizes.tolist(), strict=True)
        if f"top1_{name}" in metrics
    ]
    return f"top-1 {100 * metrics['top1']:.2f} %; {', '.join(parts)}"
