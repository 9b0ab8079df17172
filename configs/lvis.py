"""What the recipes for LVIS, configs/lvis_*.py, share: the authors' released code and the paper. No config by itself.

Data: LVIS/ holds the annotation files and COCO/ the folders train2017/ and val2017/ (part of LVIS v1's validation
images lie in train2017).

Weights: the stem, res2 and all BatchNorm are frozen, so a run must start from trained ones. The release uses
detectron2's ImageNet models MSRA/R-50.pkl and MSRA/R-101.pkl (Caffe's: no division by a standard deviation, so
model.pixel_std is 1; stride in the first 1x1). Make them once, and start from them with config.train.init_from:

    python -m eql_jax.convert detectron2 R-50.pkl --backbone-only --config=configs/lvis_v1_r50_eql.py \
        --workdir=runs/msra_r50
    python -m eql_jax.convert detectron2 R-101.pkl --backbone-only --config=configs/lvis_v1_r101_eql.py \
        --workdir=runs/msra_r101

The C4 models have res5 in their RoI heads, and so weights of their own from the same files:

    python -m eql_jax.convert detectron2 R-50.pkl --backbone-only --config=configs/lvis_v05_r50_c4_eql_paper.py \
        --workdir=runs/msra_r50_c4
    python -m eql_jax.convert detectron2 R-101.pkl --backbone-only --config=configs/lvis_v05_r101_c4_eql_paper.py \
        --workdir=runs/msra_r101_c4

The paper's ImageNet weights were PyTorch's, says the release's page; which ones is unknown. Its recipes here start
from MSRA's as well. To train from scratch: config.model.backbone.norm=group_norm, config.model.backbone.freeze_at=0
and a config.model.pixel_std of (58.395, 57.12, 57.375).

Other batch sizes: give config.train.batch_size, and learning rate and steps follow by the linear rule
(config.train.reference_batch_size in configs/base.py). config.train.gradient_accumulation=n runs the same batch in n
parts where memory is short.

Published figures: the release's page says that its results vary much from run to run, and not how much.

Where these recipes differ from the release and the paper: docs/deviations.md.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import base


class Version(NamedTuple):
    """A version of LVIS.

    frequencies: its table of class counts (config.data.frequencies). training_images: images of the training file,
    which the paper counts. annotated_images: those with an object, which the release counts.
    """

    frequencies: str
    training_images: int
    annotated_images: int


VERSIONS = {
    "v0.5": Version("lvis_v0.5", training_images=57_263, annotated_images=56_740),
    "v1": Version("lvis_v1", training_images=100_170, annotated_images=99_388),
}
# Thresholds of repeat-factor sampling: the release's on v0.5; on v1, where it has no recipe, detectron2's.
REPEAT_THRESHOLDS = {"v0.5": 5e-4, "v1": 1e-3}


def released_code(name: str, *, version: str, depth: int, loss: str = "eql", sampler: str = "uniform") -> ConfigDict:
    """The recipe of the authors' released code: 16 images, 90k steps, scale jitter, class-specific masks.

    Args:
        name: of the config, that of its file.
        version: 'v0.5' or 'v1'.
        depth: of the ResNet, 50 or 101.
        loss: config.model.box_head.loss.
        sampler: config.data.sampler.
    """
    c = _common(name, version, depth, loss)
    c.data.sampler = sampler
    c.data.repeat_threshold = REPEAT_THRESHOLDS[version]
    c.data.shorter_side = (640, 672, 704, 736, 768, 800)
    c.model.test.score_threshold = 1e-4
    # 1.77e-3 of the annotated images: exactly the rare and common classes (1.76e-3 of them would miss three).
    _tail(c, version, threshold=1.77e-3, num_images=VERSIONS[version].annotated_images)
    _schedule(c, batch_size=16, learning_rate=0.02, steps=90_000, decay_at=(60_000, 80_000))
    return c


def paper(
    name: str, *, version: str, depth: int, loss: str = "eql", sampler: str = "uniform", model: str = "fpn"
) -> ConfigDict:
    """The paper's recipe: 32 images, 25 epochs, one scale, class-agnostic masks.

    model: 'fpn', 'c4' or 'cascade' (on an FPN). The other arguments as of `released_code`.
    """
    images, batch_size = VERSIONS[version].training_images, 32
    c = _common(name, version, depth, loss)
    c.data.sampler = sampler
    c.data.repeat_threshold = 1e-3  # of Gupta et al. 2019; the paper's is not known
    c.data.shorter_side = (800,)
    c.model.mask_head.class_agnostic = True
    c.model.test.score_threshold = 0.0
    # 1.76e-3 of all training images: exactly the rare and common classes, as 1.77e-3 of the annotated ones.
    _tail(c, version, threshold=1.76e-3, num_images=images)
    # v0.5: 25 * 57,263 / 32 = 44,736.7 steps, /10 at 16 * 57,263 / 32 = 28,631.5 and 22 * 57,263 / 32 = 39,368.3.
    # v1: 25 * 100,170 / 32 = 78,257.8 steps, /10 at 16 * 100,170 / 32 = 50,085 and 22 * 100,170 / 32 = 68,866.9.
    end, *decay_at = (int(epochs * images / batch_size + 0.5) for epochs in (25, 16, 22))
    _schedule(c, batch_size=batch_size, learning_rate=0.04, steps=end, decay_at=tuple(decay_at))
    if model == "c4":
        c4(c)
    if model == "cascade":
        cascade(c)
    return c


def c4(c: ConfigDict) -> None:
    """Turns a recipe into detectron2's Base-RCNN-C4: one map of stride 16, res5 in the RoI heads."""
    c.model.architecture = "c4"
    c.model.rpn.pre_nms_train = 12_000
    c.model.rpn.post_nms_train = 2000
    c.model.rpn.pre_nms_test = 6000
    c.model.box_head.pool_size = 14
    c.model.mask_head.num_convs = 0


def cascade(c: ConfigDict) -> None:
    """Turns a recipe into detectron2's cascade_mask_rcnn: three stages of one box for all classes."""
    c.model.rpn.post_nms_train = 2000
    c.model.box_head.class_agnostic_boxes = True
    c.model.cascade.ious = (0.5, 0.6, 0.7)
    c.model.cascade.box_weights = (10.0, 20.0, 30.0)


def _common(name: str, version: str, depth: int, loss: str) -> ConfigDict:
    """What both recipes have: base, weights of MSRA, weight decay, warm-up, 300 detections."""
    c = base.get_config()
    c.name = name
    c.data.frequencies = VERSIONS[version].frequencies
    c.data.longest_side = 1333
    c.data.flip = True
    # 4:3 and squarer photographs fit 800 x 1088 at the largest scale; in 800 x 1344 a fifth and more would be padding.
    c.data.buckets = ((800, 1088), (1088, 800), (800, 1344), (1344, 800))
    c.model.pixel_std = (1.0, 1.0, 1.0)  # the MSRA weights have it in their first convolution
    c.model.backbone.depth = depth
    c.model.backbone.freeze_at = 2
    c.model.backbone.stride_in_1x1 = True
    c.model.box_head.loss = loss
    c.model.test.detections_per_image = 300
    return c


def _tail(c: ConfigDict, version: str, *, threshold: float, num_images: int) -> None:
    """The tail of EQL: f < threshold on v0.5; on v1, for which neither has a lambda, the same set by letter."""
    c.model.eql.num_images = num_images
    if version == "v0.5":
        c.model.eql.tail_by = "lambda"
        c.model.eql.threshold = threshold
    else:
        c.model.eql.tail_by = "letters"
        c.model.eql.tail_letters = "rc"


def _schedule(c: ConfigDict, *, batch_size: int, learning_rate: float, steps: int, decay_at: tuple[int, ...]) -> None:
    c.train.batch_size = c.train.reference_batch_size = batch_size
    c.train.steps = steps
    o = c.optimizer
    o.name = "sgd"
    o.learning_rate = learning_rate
    o.momentum = 0.9
    o.weight_decay = 1e-4
    o.schedule = "steps"
    o.decay_at = decay_at
    o.decay_factor = 0.1
    o.warmup_steps = 1000
    o.warmup_factor = 1e-3
    o.clip_norm = 0.0
