"""A detector whose RoIs come with the batch, trained by one of several processes; process 0 prints a JSON line a step.

python -m tests.training.stored_rois STEPS [--coordinator=HOST:PORT --num_processes=N --process_id=I]

Which proposals are kept and sampled hangs on the last bit of a score, so that runs whose sums are formed in another
order part after some steps. With stored RoIs nothing is decided and rounding stays rounding. Backbone, FPN, RPN and
both heads are trained; the anchors' labels hang on the objects alone.
"""

import argparse
import json
import logging

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from eql_jax.class_losses import ClassFrequencies
from eql_jax.models import MaskRCNN, init_model, trainable_mask
from eql_jax.models.structures import ClassRules
from eql_jax.models.targets import GroundTruth, RoITargets, rpn_targets
from eql_jax.ops import encode_boxes
from eql_jax.training import hosts
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.optimizer import make_optimizer
from eql_jax.training.sharding import tree_shardings
from eql_jax.training.state import create_state
from eql_jax.training.train_step import make_train_step
from tests.synthetic import synthetic_batch
from tests.training.sharded_classes import drawn, tiny_config

CLASSES, BATCH, ROIS = 20, 8, 16
LAST = ("cls_score", "bbox_pred", "objectness", "anchor_deltas")  # small at first, as anywhere


class StoredRoIs(MaskRCNN):
    """The detector on the RoIs of its batch."""

    def losses(self, batch, keys, loss_key=None, *, rule="random"):
        gt = GroundTruth(batch["gt_boxes"], batch["gt_classes"], batch["gt_ignore"], batch["gt_masks"])
        pyramid = self.features(batch["image"], batch["image_size"], train=True)
        anchors = np.concatenate(self.anchors(pyramid))
        label = jax.vmap(lambda g, k: rpn_targets(anchors, g, k, self.config.rpn, rule=rule))
        terms = self.rpn_losses(self.rpn(pyramid), label(gt, keys))
        rois = RoITargets(**{name: batch[f"roi_{name}"] for name in RoITargets._fields})
        return terms | self.roi_losses(pyramid, batch["image_size"], rois, gt, ClassRules(key=loss_key))


def make_config():
    config = tiny_config(1)
    config.model.with_mask = True
    config.model.mask_head.update(channels=8, num_convs=1)
    config.model.box_head.class_agnostic_boxes = False
    config.model.roi.batch_per_image = ROIS
    config.train.batch_size = BATCH
    config.optimizer.learning_rate = 0.002
    return config


def stored_batch(step: int) -> dict[str, np.ndarray]:
    """A batch that depends on the step alone. RoIs of an image: four jittered boxes of objects, eleven anywhere and an
    empty slot."""
    batch = synthetic_batch(
        batch=BATCH, height=64, width=64, num_classes=CLASSES, objects=3, max_objects=4, mask_size=28, seed=step
    )
    batch["image_id"] += BATCH * step
    rng = np.random.default_rng(step)
    matched = np.where(np.arange(ROIS) < 4, np.arange(ROIS) % 3, 0) + np.zeros((BATCH, 1), np.int32)
    objects = np.take_along_axis(batch["gt_boxes"], matched[..., None], axis=1)
    near = objects + rng.uniform(-2, 2, objects.shape)
    corner, size = rng.uniform(0, 40, (2, BATCH, ROIS, 2))
    anywhere = np.concatenate([corner, corner + 8 + 0.4 * size], axis=-1)
    foreground = np.arange(ROIS) < 4
    boxes = np.clip(np.where(foreground[:, None], near, anywhere), 0, 64).astype(np.float32)
    classes = np.where(foreground, np.take_along_axis(batch["gt_classes"], matched, axis=1), CLASSES)
    classes[:, -1] = -1
    deltas = np.asarray(encode_boxes(objects, boxes, weights=(10, 10, 5, 5)))
    found = {"boxes": boxes, "classes": classes, "matched": matched, "deltas": deltas}
    return batch | {f"roi_{k}": v.astype(np.float32 if v.ndim == 3 else np.int32) for k, v in found.items()}


def run(steps: int) -> None:
    config = make_config()
    mesh = mesh_lib.make_mesh(config)
    frequencies = ClassFrequencies(CLASSES, tail=np.arange(CLASSES) % 2 == 0)
    model = StoredRoIs(FrozenConfigDict(config.model), CLASSES, frequencies)
    params = drawn(jax.eval_shape(lambda: init_model(model, jax.random.key(0)))["params"])
    params = jax.tree_util.tree_map_with_path(lambda path, x: 0.05 * x if path[-2].key in LAST else x, params)
    optimizer = make_optimizer(config, params, trainable=trainable_mask(params, config)).transform
    state = create_state({"params": params}, optimizer, ema=True)
    shardings = tree_shardings(state, mesh)
    state = jax.device_put(state, shardings)
    step = make_train_step(model, optimizer, config, mesh, shardings)
    rows = BATCH // jax.process_count()
    mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
    for i in range(steps):
        batch = {name: array[mine] for name, array in stored_batch(i).items()}
        state, metrics = step(state, mesh_lib.put_batch(batch, mesh))
        if jax.process_index() == 0:
            print(json.dumps({k: float(v) for k, v in metrics.items()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", type=int)
    hosts.add_arguments(parser)
    options = parser.parse_args()
    try:
        hosts.join(options)
        logging.basicConfig(format="%(message)s", force=True)
        run(options.steps)
    except Exception as e:
        status = hosts.tell(e)
    else:
        hosts.leave(0, together=True)
    hosts.leave(status, together=False)


if __name__ == "__main__":
    main()
