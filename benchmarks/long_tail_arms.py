"""What the long-tail study compares: its data set, the detector that all runs share, and a config for every arm.

Data set: supershapes, 200 classes with the tail of LVIS, and 8000 images of 96 pixels. At 40 images a class rare and
rare + common classes have the same shares of the image counts as in LVIS v0.5 (tail ratios .99 and 9.3 %; there .93 and
9.08). Validation images list ten verified absent classes, about as many as those of LVIS do, and the AP that counts
keeps a quarter as many detections an image as there are classes (LVIS: 300 of 1203).

Shared detector: the same network trained on 240 other shapes of the same catalogue, balanced. It stands for ImageNet
and for what a detector knows of objects of any class: it has seen shapes, none of the study's. From there on backbone,
pyramid, RPN and mask head stand still, and a run trains the box head: both hidden layers, classifier and box deltas,
the classifier from fresh weights. A run then costs a minute or two, so that its schedule can be the paper's: SGD, as
many epochs as steps / (images / batch), the rate divided by ten at 16/25 and 22/25 of them.

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
DETECTIONS = 100  # an image, of the model; Scale.few of them count for the first tables
PAPER_REPEAT = 5e-4  # repeat-factor sampling in the released code


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of a study.

    classes, train_images, val_images, val_negatives, image_size: of the data set. start_classes, start_images: of the
    other shapes, balanced. difficulty: of all pictures. start_steps: of the shared detector. steps: of a run. width:
    channels of res2. batch: images of a step. learning_rate: of a run.
    """

    classes: int = 200
    train_images: int = 8000
    val_images: int = 800
    val_negatives: int = 10
    image_size: int = 96
    difficulty: str = "normal"
    start_classes: int = 240
    start_images: int = 8000
    start_steps: int = 2000
    steps: int = 6000
    width: int = 32
    batch: int = 16
    learning_rate: float = 0.02

    @property
    def few(self) -> int:
        """The limit of detections an image that the tables are of."""
        return max(1, self.classes // 4)


TINY = Scale(
    classes=20,
    train_images=40,
    val_images=20,
    image_size=64,
    start_classes=24,
    start_images=24,
    start_steps=2,
    steps=4,
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
    # Of 1203 classes detectron2's 50 leave some 42 for classes that two images lack, a share of 3.5 %; here that is 7.
    "federated": Arm(
        "federated",
        _loss("federated") | {"model.box_head.loss_options": {"num_sampled": 15, "images_per_set": 2}},
    ),
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
        val_negatives=scale.val_negatives,
        seed=0,
    )
    c.data.flip = False  # an image is pooled once
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
    m.test.detections_per_image = DETECTIONS
    m.test.candidates = 2000
    m.eql.tail_by = "lambda"
    m.eql.num_images = 0  # as many as the data set has
    c.train.batch_size = scale.batch
    c.optimizer.warmup_steps = 100
    c.eval.every = 0
    c.eval.pictures = 0
    c.log.tensorboard = False
    c.checkpoint.every = 100
    c.checkpoint.keep = 1
    return c


def start_config(scale: Scale, out: Path) -> ConfigDict:
    """The run that makes the shared detector: the same network on the balanced split of other shapes."""
    c = base_config(scale, out)
    c.name = "long_tail_study_start"
    other = other_shapes(scale, out)
    c.data.train_annotations = str(Path(other["out"]) / "val.json")  # the split in which all classes are as frequent
    c.data.train_images = other["out"]
    c.data.val_annotations = str(Path(other["out"]) / "train.json")  # pictures that it was not trained on
    c.data.val_images = other["out"]
    c.data.supershapes = {}
    c.model.box_head.loss = "softmax"
    c.train.steps = scale.start_steps
    return c


def other_shapes(scale: Scale, out: Path) -> dict[str, Any]:
    """Arguments of the data set that the shared detector is trained on, whose training split it is evaluated on."""
    return dict(
        out=str(out / "other_shapes"),
        num_classes=scale.start_classes,
        first_class=scale.classes,
        train_images=2 * scale.start_classes,
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
    o = c.optimizer
    o.name = "sgd"
    o.learning_rate = scale.learning_rate
    o.weight_decay = 1e-4
    o.schedule = "steps"
    o.decay_at = (scale.steps * 16 // 25, scale.steps * 22 // 25)
    o.ema_decay = 0.0
    c.checkpoint.every = 2000
    c.log.every = 100
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
