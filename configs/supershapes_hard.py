"""Supershapes for studies: 100 classes, small crowded objects, low contrast. Nothing saturates here.

    python train.py --config=configs/supershapes_hard.py --workdir=runs/supershapes_hard

No published figure: the data set is made here. Nothing was measured yet.
Hardware: planned for one accelerator; `supershapes_tiny` is the one for two CPU cores.
"""

from configs import supershapes_tiny


def get_config():
    c = supershapes_tiny.get_config()
    c.name = "supershapes_hard"
    c.data.supershapes = dict(
        out="runs/data/supershapes_hard",
        num_classes=100,
        train_images=20_000,
        val_images=1000,
        image_size=192,
        difficulty="hard",
        seed=0,
    )
    c.data.shorter_side = (160, 192, 224)
    c.data.longest_side = 224
    c.data.eval_shorter_side = 192
    c.data.buckets = ((224, 224),)
    c.data.max_objects = 48
    m = c.model
    m.backbone.width = 48
    m.fpn.channels = 96
    m.rpn.batch_per_image = 128
    m.rpn.pre_nms_train = 1000
    m.rpn.post_nms_train = 300
    m.rpn.pre_nms_test = 1000
    m.rpn.post_nms_test = 300
    m.roi.batch_per_image = 128
    m.box_head.fc_dim = 512
    m.mask_head.num_convs = 4
    m.mask_head.channels = 96
    m.test.detections_per_image = 300
    m.test.candidates = 5000
    c.train.batch_size = 32
    c.train.steps = 20_000
    c.optimizer.warmup_steps = 500
    c.eval.every = 5000
    c.checkpoint.every = 1000
    return c
