"""Runs a checkpoint's box head over batches and takes what `gradients` counts: labels, scores, gradients.

Nothing is trained. As in training, RoIs are sampled and live BatchNorm goes by the batch; the loss is the run's own
classification loss (not yet times config.train.loss_weights.cls), with the memory that the checkpoint has of it.

B images, R sampled RoIs of an image, F hidden units, C columns of logits, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from eql_jax.analysis.collect import Run
from eql_jax.analysis.gradients import Findings, Probe, column_norms, own_entries, split_gradient, summarize
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.records import Annotations
from eql_jax.models import MaskRCNN, build_model
from eql_jax.models.box_head import BoxHead
from eql_jax.models.cascade import CascadeMaskRCNN
from eql_jax.models.structures import ClassRules
from eql_jax.training.errors import UserError, user_input
from eql_jax.training.mesh import put_batch
from eql_jax.training.tail import class_frequencies, make_tail
from eql_jax.training.train_step import image_keys, step_key

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The box head that is looked into.

    stage: of a cascade, else 0. columns: int [K], the column of logits that each class has; None: it has none.
    """

    model: MaskRCNN
    stage: int
    columns: np.ndarray | None

    @property
    def path(self) -> tuple[str, ...]:
        """Where its weights are among the parameters."""
        head = f"box_head_{self.stage}" if self.model.config.cascade.ious else "box_head"
        return (head, "cls_score", "kernel")

    def kernel(self, params: Mapping) -> Any:
        """The weights [F, C]."""
        for name in self.path:
            params = params[name]
        return params

    def with_kernel(self, variables: Variables, kernel: jax.Array) -> Variables:
        """The variables with other weights."""
        return {**variables, "params": _replaced(variables["params"], self.path, kernel)}

    def weight_norms(self, params: Mapping) -> np.ndarray | None:
        """float32 [K] L2 norm of each class's weights, None without a column for each class."""
        return None if self.columns is None else np.asarray(column_norms(self.kernel(params), self.columns))


def make_classifier(run: Run, stage: int) -> Classifier:
    """The classifier of a run.

    Raises:
      UserError: the run has no such stage, or its loss cannot be made of what the checkpoint knows of the classes.
    """
    config, classes = run.config, run.classes
    stages = max(len(config.model.cascade.ious), 1)
    if stage >= stages:
        raise UserError(f"--stage is {stage}, but the box heads of {run.workdir} have stages 0 to {stages - 1}")
    with user_input():
        tail = make_tail(
            config, letters=classes.letters, image_counts=classes.image_counts, num_images=classes.num_images
        )
        model = build_model(config, len(classes), class_frequencies(classes, tail))
        return Classifier(model, stage, model.class_loss.class_columns)


def run_pass(
    classifier: Classifier,
    run: Run,
    annotations: Annotations,
    *,
    batches: int,
    score_threshold: float,
    progress: Callable[[Iterator], Iterator] = iter,
) -> Findings:
    """Looks at the first training batches that the run's config makes of a data set.

    Args:
      classifier: of the run.
      run: whose checkpoint it is.
      annotations: the data set.
      batches: how many.
      score_threshold: see `groups.group_confusion`.
      progress: wraps the iterator of the batches.

    Raises:
      UserError: the data set has other classes, or no image that can be used.
    """
    with user_input():
        iterator = make_train_iterator(annotations, run.config)
    probe = jax.jit(lambda *arguments: make_probe(classifier, *arguments))
    variables = jax.device_put(classifier_variables(run))
    mesh = Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1), ("data", "model"))

    def probes():
        for step in range(batches):
            batch = put_batch(next(iterator), mesh)
            keys = image_keys(run.config.seed, jnp.int32(step), batch["image_id"])
            yield Probe(*map(_to_numpy, probe(variables, batch, keys, step_key(run.config.seed, jnp.int32(step)))))

    try:
        return summarize(progress(probes()), run.classes.letters, score_threshold=score_threshold)
    finally:
        iterator.close()


def classifier_variables(run: Run) -> Variables:
    """What the checkpoint has: parameters, BatchNorm statistics, the loss's memory."""
    return {**run.model.variables, "loss_state": run.model.loss_state}


def make_probe(
    classifier: Classifier, variables: Variables, batch: Mapping, keys: jax.Array, loss_key: jax.Array
) -> Probe:
    """What a batch shows; traceable by jit. Arguments as of `MaskRCNN.losses`."""
    model, stage = classifier.model, classifier.stage

    def head(module) -> BoxHead:
        return module.box_heads[stage] if isinstance(module, CascadeMaskRCNN) else module.box_head

    (hidden, labels), _ = model.apply(variables, batch, keys, stage, method=training_rows, mutable=["batch_stats"])
    verified = batch["verified_classes"] if model.config.eql.verified_negatives else None
    rules = ClassRules(verified, batch.get("annotated_classes"), loss_key).of_stage(stage)

    def logits_of(kernel):
        return model.apply(classifier.with_kernel(variables, kernel), hidden, method=lambda m, h: head(m).logits(h))

    def loss_of(logits):
        by_image = logits.reshape(*labels.shape, -1)
        # The memory is read and stays as it is: "loss_state" is not mutable here.
        return model.apply(variables, by_image, method=lambda m, z: m.classification_loss(head(m), z, labels, rules))

    kernel = classifier.kernel(variables["params"])
    logits = logits_of(kernel)
    dlogits = jax.grad(loss_of)(logits)
    rows = labels.reshape(-1)
    norms = (None, None)
    if classifier.columns is not None:
        own = own_entries(rows, classifier.columns, logits.shape[-1])
        parts = split_gradient(logits_of, kernel, dlogits, own)
        norms = tuple(column_norms(part, classifier.columns) for part in parts)
    return Probe(rows, model.class_loss.scores(logits), *norms)


def training_rows(model: MaskRCNN, batch: Mapping, keys: jax.Array, stage: int) -> tuple[jax.Array, jax.Array]:
    """The hidden layer [B*R,F] and the labels [B,R] of the RoIs that a stage is trained on; a method for `apply`."""
    sample = model.training_sample(batch, keys)
    if not isinstance(model, CascadeMaskRCNN):
        return model.box_hidden(sample.pyramid, sample.rois.boxes, train=True), sample.rois.classes
    rois, present = sample.rois, sample.rois.classes >= 0
    for earlier in range(stage):
        _, deltas = model.run_stage(earlier, sample.pyramid, rois.boxes, train=True)
        boxes = model.refine(earlier, rois.boxes, deltas, batch["image_size"])
        rois, present = model.rematch(earlier + 1, boxes, present, sample.gt)
    pooled = model.pool(sample.pyramid, rois.boxes, model.config.box_head.pool_size)
    return model.box_heads[stage].hidden(pooled, train=True), rois.classes


def _replaced(tree: Mapping, path: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *rest = path
    return {**tree, name: _replaced(tree[name], tuple(rest), value) if rest else value}


def _to_numpy(x: jax.Array | None) -> np.ndarray | None:
    return None if x is None else np.asarray(x)
