"""What the long-tail study compares: its data set, the checkpoint all runs start from, and a config for every arm.

Data set: the classes of supershapes_hard in small, 100 with the tail of LVIS, and 4000 images of 96 pixels. At 4000
images rare and rare + common classes have the same shares of the image counts as in LVIS v0.5 (tail ratios .96 and
8.9 %; there .93 and 9.08). The pictures are those of difficulty 'normal': on 'hard' ones the class loss of a start of
200 shapes was still flat after 400 steps (`--difficulty hard` is there to try, with more --steps).

Start: the same network trained on 60 other shapes of the same catalogue, balanced. It stands for ImageNet: it has seen
shapes, none of the study's. Its classifier has other columns, so that every run begins with a fresh one. The backbone
stays as it is from there on, which makes steps cheaper and lets more of them fit.

Thresholds: shares of images mean nothing from one data set to another, so the paper's lambdas are carried over by tail
ratio. See `threshold_like`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import supershapes_hard
from eql_jax.data.categories import packaged_statistics
from eql_jax.losses import tail_ratio

PAPER_IMAGES = 57_263  # of LVIS v0.5 train, the denominator of the paper's frequencies
PAPER_LAMBDAS = (0.176e-3, 0.5e-3, 0.8e-3, 1.5e-3, 1.76e-3, 2e-3, 3e-3, 5e-3)  # Table 2; 0 is the sigmoid loss
PAPER_LAMBDA = 1.76e-3  # its choice
PAPER_REPEAT = 5e-4  # repeat-factor sampling in the released code


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of a study.

    classes, train_images, val_images, image_size: of the data set. start_classes, start_images: of the other shapes.
    difficulty: of all pictures. start_steps: of the shared checkpoint. steps: of a run. width: channels of res2. batch:
    images of a step.
    """

    classes: int = 100
    train_images: int = 4000
    val_images: int = 400
    image_size: int = 96
    difficulty: str = "normal"
    start_classes: int = 60
    start_images: int = 4000
    start_steps: int = 1200
    steps: int = 800
    width: int = 32
    batch: int = 16


TINY = Scale(
    classes=20,
    train_images=40,
    val_images=20,
    image_size=64,
    start_classes=24,
    start_images=24,
    start_steps=2,
    steps=2,
    width=4,
    batch=4,
)  # runs through in a minute, learns nothing


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the table.

    title: in tables and plots. fields: of the config, {'model.box_head.loss': 'eql'}. paper_lambda: where it has a
    tail, the paper's lambda that stands for it; paper_repeat: the same of repeat-factor sampling's threshold.
    """

    title: str
    fields: Mapping[str, Any]
    paper_lambda: float = 0.0
    paper_repeat: float = 0.0


def _loss(name: str) -> dict[str, str]:
    return {"model.box_head.loss": name}


ARMS: dict[str, Arm] = {
    "softmax": Arm("softmax", _loss("softmax")),
    "sigmoid": Arm("sigmoid", _loss("sigmoid")),
    "eql": Arm("EQL", _loss("eql"), PAPER_LAMBDA),
    "eql_rfs": Arm("EQL + RFS", _loss("eql") | {"data.sampler": "repeat_factor"}, PAPER_LAMBDA, PAPER_REPEAT),
    "eqlv2": Arm("EQL v2", _loss("eqlv2")),
    "seesaw": Arm("Seesaw", _loss("seesaw")),
    "federated": Arm("federated", _loss("federated")),
    "sigmoid_rfs": Arm("sigmoid + RFS", _loss("sigmoid") | {"data.sampler": "repeat_factor"}, 0.0, PAPER_REPEAT),
    "eql_no_e": Arm("EQL without E(r)", _loss("eql") | {"model.eql.background_keeps_negatives": False}, PAPER_LAMBDA),
    **{
        f"eql_{1e3 * value:g}": Arm(f"EQL, lambda {1e3 * value:g}e-3", _loss("eql"), value)
        for value in PAPER_LAMBDAS
        if value != PAPER_LAMBDA
    },
}
# Sigmoid, which is EQL at lambda 0, and EQL by rising lambda
SWEEP = tuple(
    sorted(
        (n for n, arm in ARMS.items() if n in ("sigmoid", "eql") or arm.title.startswith("EQL, lambda")),
        key=lambda n: ARMS[n].paper_lambda,
    )
)
GROUPS = {
    "table": ("softmax", "sigmoid", "eql", "eql_rfs", "eqlv2", "seesaw"),  # what is run unless others are named
    "sweep": SWEEP,
    "all": tuple(ARMS),
}


def paper_tail_ratio(paper_lambda: float) -> float:
    """Share of the image counts of LVIS v0.5 that classes below the paper's lambda have."""
    counts = packaged_statistics("lvis_v0.5").image_counts
    return tail_ratio(counts, counts / PAPER_IMAGES < paper_lambda)


def threshold_like(paper_lambda: float, image_counts: Sequence[int] | np.ndarray, num_images: int) -> float:
    """The threshold that gives these classes the tail ratio nearest to the one that the paper's has on LVIS v0.5.

    Args:
      paper_lambda: a share of the images of LVIS v0.5, such as 1.76e-3.
      image_counts: [K] images of the data set with each class.
      num_images: images of the data set.

    Returns:
      A share of num_images, half way between two counts so that no rounding matters.
    """
    counts = np.asarray(image_counts)
    borders = np.unique(counts) + 0.5
    ratios = np.array([tail_ratio(counts, counts < border) for border in borders])
    return float(borders[np.abs(ratios - paper_tail_ratio(paper_lambda)).argmin()] / num_images)


def base_config(scale: Scale, out: Path) -> ConfigDict:
    """What all runs of a study in folder `out` have in common."""
    c = supershapes_hard.get_config()
    size = scale.image_size
    c.data.supershapes = dict(
        out=str(out / "data"),
        num_classes=scale.classes,
        train_images=scale.train_images,
        val_images=scale.val_images,
        image_size=size,
        difficulty=scale.difficulty,
        seed=0,
    )
    c.data.shorter_side = (size,)
    c.data.longest_side = size
    c.data.eval_shorter_side = size
    c.data.buckets = ((size, size),)
    c.data.max_objects = 16
    c.data.mask_size = 28
    m = c.model
    m.backbone.width = scale.width
    m.fpn.channels = scale.width * 3 // 2
    m.rpn.anchor_sizes = (10, 20, 40, 64, 96)
    m.rpn.batch_per_image = 64
    m.rpn.pre_nms_train = 150
    m.rpn.post_nms_train = 80
    m.rpn.pre_nms_test = 150
    m.rpn.post_nms_test = 80
    m.roi.batch_per_image = 48
    m.roi.canonical_size = 84
    m.box_head.fc_dim = 8 * scale.width
    m.box_head.class_agnostic_boxes = True  # nothing but the classifier has rows per class
    m.mask_head.class_agnostic = True
    m.mask_head.num_convs = 2
    m.mask_head.channels = scale.width
    m.test.detections_per_image = 100
    m.test.candidates = 1000
    m.eql.tail_by = "lambda"
    m.eql.num_images = 0  # as many as the data set has
    c.train.batch_size = scale.batch
    c.optimizer.warmup_steps = 50
    c.eval.every = 0
    c.eval.pictures = 0
    c.log.tensorboard = False
    c.checkpoint.every = 100
    c.checkpoint.keep = 1
    return c


def start_config(scale: Scale, out: Path) -> ConfigDict:
    """The run that makes the shared checkpoint: the same network on the balanced split of other shapes."""
    c = base_config(scale, out)
    c.name = "long_tail_study_start"
    other = other_shapes(scale, out)
    c.data.train_annotations = str(Path(other["out"]) / "val.json")  # the split in which all classes are as frequent
    c.data.train_images = other["out"]
    c.data.supershapes = {}
    c.model.box_head.loss = "softmax"
    c.train.steps = scale.start_steps
    return c


def other_shapes(scale: Scale, out: Path) -> dict[str, Any]:
    """Arguments of the data set that the shared checkpoint is trained on; its own training split is not used."""
    return dict(
        out=str(out / "other_shapes"),
        num_classes=scale.start_classes,
        first_class=scale.classes,
        train_images=scale.start_classes,
        val_images=scale.start_images,
        image_size=scale.image_size,
        difficulty=scale.difficulty,
        seed=1,
    )


def arm_config(
    name: str, seed: int, *, scale: Scale, out: Path, image_counts: Sequence[int], num_images: int
) -> ConfigDict:
    """The config of one run.

    Args:
      name: of ARMS.
      seed: of the run; the data set is the same for all.
      scale, out: of the study.
      image_counts, num_images: of its training set, for the thresholds.
    """
    arm = ARMS[name]
    c = base_config(scale, out)
    c.name = f"long_tail_study_{name}_{seed}"
    c.seed = seed
    c.train.steps = scale.steps
    c.train.init_from = str(out / "start")
    c.model.backbone.freeze_at = 5
    for key, value in arm.fields.items():
        section, _, field = key.rpartition(".")
        group = c
        for part in section.split("."):
            group = group[part]
        group[field] = value
    if arm.paper_lambda:
        c.model.eql.threshold = threshold_like(arm.paper_lambda, image_counts, num_images)
    if arm.paper_repeat:
        c.data.repeat_threshold = threshold_like(arm.paper_repeat, image_counts, num_images)
    return c
