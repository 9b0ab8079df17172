"""Pooled features of a frozen detector, kept on disk, and the training of box heads on them.

All runs of the long-tail study have one backbone, feature pyramid, RPN and mask head, which stand still. So the RoIs
that the box head is trained on are found, sampled and pooled once, and a run is the box head's own training step: the
same `make_train_step`, checkpoints and loop as any run's, with `HeadOnly` in place of the model. What comes out is an
ordinary workdir of the whole detector, for `train.py --mode=eval` and `eql_jax.analysis`.

Shapes: N training images, B of a batch, R sampled RoIs of an image, S pooled side, C channels, K foreground classes
(background = K, padding = -1).
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from eql_jax.data.eval_batches import make_eval_batches
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.records import Annotations
from eql_jax.data.samplers import Sampler
from eql_jax.data.sampling_weights import repeat_factors
from eql_jax.evaluation.run import run_evaluation
from eql_jax.models import MaskRCNN, init_model
from eql_jax.models.structures import ClassRules
from eql_jax.models.targets import GroundTruth, RoITargets
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.compatibility import Classes
from eql_jax.training.disk import write_atomically
from eql_jax.training.eval_step import make_detector
from eql_jax.training.inputs import Data
from eql_jax.training.loop import train
from eql_jax.training.metrics import MetricWriter
from eql_jax.training.optimizer import make_optimizer
from eql_jax.training.run_dir import begin
from eql_jax.training.state import create_state
from eql_jax.training.tail import class_frequencies, make_tail
from eql_jax.training.train_step import image_keys, make_train_step

TARGETS = {"boxes": np.float32, "classes": np.int32, "matched": np.int32, "deltas": np.float32}  # fields of RoITargets


class HeadOnly(MaskRCNN):
    """The detector, whose training losses are those of its box head on RoIs that were pooled before."""

    def losses(self, batch, keys, loss_key=None, *, rule: str = "random") -> dict[str, jax.Array]:
        """cls, box and num_foreground of a batch with pooled [B,R,S,S,C] and the fields of RoITargets."""
        del keys, rule  # nothing is sampled
        pooled = batch["pooled"]
        hidden = self.box_head.hidden(pooled.reshape(-1, *pooled.shape[2:]), train=True)
        sample = RoITargets(**{name: batch[name] for name in TARGETS})
        return self.box_losses(hidden, sample, None, ClassRules(key=loss_key))

    def pooled_sample(self, batch, keys) -> tuple[jax.Array, RoITargets]:
        """RoIs of a batch of pictures, pooled float16 [B,R,S,S,C] and targets [B,R,..], with BatchNorm as at inference:
        what stands still has no statistics of its own batch."""
        gt = GroundTruth(batch["gt_boxes"], batch["gt_classes"], batch["gt_ignore"], batch["gt_masks"])
        pyramid = self.features(batch["image"], batch["image_size"])
        rois = self.sampled_rois(self.rpn(pyramid), self.anchors(pyramid), batch["image_size"], gt, keys)
        pooled = self.pool(pyramid, rois.boxes, self.config.box_head.pool_size)
        return pooled.reshape(*rois.classes.shape, *pooled.shape[1:]).astype(jnp.float16), rois


class Features(NamedTuple):
    """RoIs of N images: `pooled` float16 [N,R,S,S,C], memory-mapped, `targets` the fields of RoITargets [N,R,..], and
    `image_id` int64 [N]."""

    pooled: np.ndarray
    targets: dict[str, np.ndarray]
    image_id: np.ndarray

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of some images."""
        targets = {name: values[indices] for name, values in self.targets.items()}
        return {"image_id": self.image_id[indices], "pooled": self.pooled[indices], **targets}

    @property
    def foreground_share(self) -> float:
        """Of the sampled RoIs, how many are objects."""
        classes = self.targets["classes"]
        return float((classes[classes >= 0] < classes.max()).mean())


def pooled_features(folder: Path, variables, config: ConfigDict, train_set: Annotations) -> Features:
    """The features of every image of a training set, made in `folder` where they are missing.

    Args:
      folder: gets pooled.npy, targets.npz and, when all is written, done.json.
      variables: {'params': .., 'batch_stats': ..} of the frozen detector.
      config: of the study's runs. Flips must be off: an image is pooled once.
      train_set: N images of one size.
    """
    if not (folder / "done.json").is_file():
        _write(folder, variables, config, train_set)
    with np.load(folder / "targets.npz") as found:
        targets = {name: found[name] for name in TARGETS}
        return Features(np.load(folder / "pooled.npy", mmap_mode="r"), targets, found["image_id"])


def _write(folder: Path, variables, config: ConfigDict, train_set: Annotations) -> None:
    model = HeadOnly(FrozenConfigDict(config.model), train_set.num_classes)

    @jax.jit
    def run(variables, batch):
        keys = image_keys(config.seed, jnp.int32(0), batch["image_id"])
        return model.apply(variables, batch, keys, method="pooled_sample")

    folder.mkdir(parents=True, exist_ok=True)
    images = len(train_set.images)
    rois, side = config.model.roi.batch_per_image, config.model.box_head.pool_size
    shape = (images, rois, side, side, config.model.fpn.channels)
    pooled = np.lib.format.open_memmap(folder / "pooled.npy", mode="w+", dtype=np.float16, shape=shape)
    targets = {name: np.zeros((images, rois, *((4,) if t is np.float32 else ())), t) for name, t in TARGETS.items()}
    image_id = np.zeros(images, np.int64)
    row_of = {record.id: row for row, record in enumerate(train_set.images)}
    batches = make_train_iterator(train_set, config)  # uniform sampling: the first epoch has every image once
    for _ in range(math.ceil(images / config.train.batch_size)):
        batch = next(batches)
        found, of_batch = jax.device_get(run(variables, mesh_lib.put_batch(batch, mesh_lib.local_mesh())))
        at = np.array([row_of[i] for i in np.asarray(batch["image_id"]).tolist()])
        pooled[at], image_id[at] = found, batch["image_id"]
        for name, values in targets.items():
            values[at] = getattr(of_batch, name)
    batches.close()
    pooled.flush()
    if not image_id.all():
        raise AssertionError(f"{(image_id == 0).sum()} of {images} images were not pooled")
    np.savez(folder / "targets.npz", image_id=image_id, **targets)
    write_atomically(folder / "done.json", json.dumps({"images": images}) + "\n")


def head_batches(
    features: Features, config: ConfigDict, train_set: Annotations, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from `start_step` on, of the images that config.data.sampler takes for each step."""
    index, weights = train_set.index, {}
    if config.data.sampler == "repeat_factor":
        k, threshold = train_set.num_classes, config.data.repeat_threshold
        weights["factors"] = repeat_factors(index.classes, index.offsets, num_classes=k, threshold=threshold)
    buckets = [0] * len(features.image_id)
    sampler = Sampler(buckets=buckets, batch_size=config.train.batch_size, seed=config.seed, **weights)
    step = start_step
    while True:
        yield features.rows(sampler.batch(step).indices)
        step += 1


def train_head(config: ConfigDict, workdir: Path, features: Features, data: Data) -> int:
    """Trains the box head of `config` from where `workdir` is, and evaluates the detector with it into
    workdir/evaluation.

    Returns:
      The step reached: config.train.steps, or fewer after a signal, and then nothing was evaluated.

    Raises:
      UserError: the checkpoints do not fit, no room on the disk, a loss that is not finite.
    """
    mesh = mesh_lib.make_mesh(config)
    classes = Classes.of(data.statistics)
    tail = make_tail(config, letters=classes.letters, image_counts=classes.image_counts, num_images=classes.num_images)
    model = HeadOnly(FrozenConfigDict(config.model), len(classes), class_frequencies(classes, tail))
    key = jax.random.key(config.seed)
    params = jax.eval_shape(lambda: init_model(model, key))["params"]
    trainable = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "box_head", params)
    optimizer = make_optimizer(config, params, trainable=trainable)
    initialise = lambda key: create_state(init_model(model, key), optimizer.transform, ema=False)  # noqa: E731
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None  # runs once
    state = jax.jit(initialise, out_shardings=mesh_lib.replicated(mesh), compiler_options=options)(key)
    step_function = make_train_step(model, optimizer.transform, config, mesh)
    with Checkpoints(workdir, config, classes) as checkpoints:
        state = begin(state, config, workdir, checkpoints)
        with MetricWriter(workdir, config, start_step=int(state.step)) as writer:
            result = train(
                state=state,
                step_function=step_function,
                make_batches=lambda start: head_batches(features, config, data.train, start),
                config=config,
                mesh=mesh,
                checkpoints=checkpoints,
                writer=writer,
                schedule=optimizer.schedule,
            )
    if not result.stopped:
        evaluate_detector(config, workdir / "evaluation", result.state, model, data)
    return int(result.state.step)


def evaluate_detector(config: ConfigDict, out: Path, state, model: MaskRCNN, data: Data) -> dict[str, float]:
    """Metrics of the whole detector on the validation set; the results are in out/results.json."""
    return run_evaluation(
        make_detector(model, config),
        {"params": state.params, "batch_stats": state.batch_stats},
        make_eval_batches(data.val, config),
        data.val,
        config,
        out,
        statistics=data.statistics,
        class_ids=data.statistics.category_ids,
        step=int(state.step),
        log=lambda _: None,
    )
