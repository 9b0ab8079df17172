"""Long-tailed drawings, 50 classes of 300 to 3 training images, ResNet-14 of half width, softmax.

    python train.py --config=configs/classification/synthetic_softmax.py --workdir=runs/synthetic_softmax

The set is drawn when the run starts. No published figure; measured: docs/classification.md.
Hardware: two CPU cores, some minutes.
"""

from ml_collections import ConfigDict

from configs.classification import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.name = "synthetic_softmax"
    c.data.source = "drawn"
    c.data.imbalance = 100.0
    c.data.auto_augment = ""  # shapes and their colours are as varied as they are
    c.data.cutout = 0
    c.model.depth = 14
    c.model.width = 8
    c.model.pixel_mean = (127.5, 127.5, 127.5)
    c.model.pixel_std = (64.0, 64.0, 64.0)
    c.train.batch_size = c.train.reference_batch_size = 64
    c.train.steps = 1000
    c.optimizer.learning_rate = 0.1
    c.optimizer.decay_at = (600, 850)
    c.optimizer.warmup_steps = 50
    c.eval.every = 500
    c.checkpoint.every = 500
    c.log.every = 50
    return c
