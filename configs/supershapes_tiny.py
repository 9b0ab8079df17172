"""Supershapes on two CPU cores: a small Mask R-CNN with EQL, trained from scratch.

    python train.py --config=configs/supershapes_tiny.py --workdir=runs/supershapes_tiny

makes the data set (40 classes with LVIS's long tail), trains, evaluates with the LVIS protocol and draws pictures.

No published figure: the data set is made here. What was measured: docs/results.md.
Hardware: two CPU cores, about 10 minutes.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.name = "supershapes_tiny"

    c.data.supershapes = dict(
        out="runs/data/supershapes", num_classes=40, train_images=3000, val_images=240, image_size=128, seed=0
    )
    c.data.frequencies = "train_annotations"
    c.data.shorter_side = (128,)
    c.data.longest_side = 128
    c.data.eval_shorter_side = 128
    c.data.buckets = ((128, 128),)
    c.data.max_objects = 24
    c.data.mask_size = 56

    m = c.model
    m.backbone.depth = 18
    m.backbone.width = 32
    m.backbone.norm = "batch_norm"
    m.backbone.freeze_at = 0
    m.fpn.channels = 48
    m.fpn.norm = "batch_norm"
    m.rpn.anchor_sizes = (12, 24, 48, 96, 128)
    m.rpn.batch_per_image = 64
    m.rpn.pre_nms_train = 200
    m.rpn.post_nms_train = 100
    m.rpn.pre_nms_test = 200
    m.rpn.post_nms_test = 100
    m.roi.batch_per_image = 48
    m.roi.canonical_size = 112
    m.box_head.fc_dim = 256
    m.mask_head.num_convs = 2
    m.mask_head.channels = 32
    m.test.detections_per_image = 100
    m.test.candidates = 1000

    c.train.batch_size = 16
    c.train.steps = 1000
    o = c.optimizer
    o.name = "adamw"
    o.learning_rate = 0.002
    o.weight_decay = 0.05
    o.schedule = "cosine"
    o.warmup_steps = 100
    o.clip_norm = 1.0
    o.ema_decay = 0.99

    c.eval.every = 0
    c.eval.batch_size = 16
    c.checkpoint.every = 300
    return c
