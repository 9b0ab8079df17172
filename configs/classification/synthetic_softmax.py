"""Long-tailed drawings, 20 classes with 200 to 4 of 1,048 training images, a narrow ResNet-8, softmax.

    python train.py --config=configs/classification/synthetic_softmax.py --workdir=runs/synthetic_softmax

The pictures are drawn when the run starts. No published figure; measured: docs/classification.md.
Hardware: one CPU core, a minute or two.
"""

from ml_collections import ConfigDict

from configs.classification import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.name = "synthetic_softmax"
    c.data.source = "drawn"
    c.data.imbalance = 50.0
    c.data.drawn.num_classes = 20
    c.data.drawn.largest_class = 200
    c.data.drawn.val_per_class = 25
    c.data.drawn.lookalikes = False
    c.data.image_size = 24
    c.data.pad = 2
    c.data.auto_augment = ""  # the drawings are varied as they are
    c.data.cutout = 0
    c.model.depth = 8
    c.model.width = 8
    c.model.pixel_mean = (127.5, 127.5, 127.5)
    c.model.pixel_std = (64.0, 64.0, 64.0)
    c.train.batch_size = c.train.reference_batch_size = 64
    c.train.steps = 500
    c.optimizer.learning_rate = 0.1
    c.optimizer.decay_at = (300, 420)
    c.optimizer.warmup_steps = 20
    c.eval.every = 250
    c.checkpoint.every = 250
    return c
