"""ImageNet-LT, ResNet-10, softmax: the paper's baseline of its third experiment.

    python train.py --config=configs/classification/imagenet_lt_softmax.py --workdir=runs/imagenet_lt_softmax \
        --config.data.images=imagenet --config.data.train_list=ImageNet_LT_train.txt \
        --config.data.val_list=ImageNet_LT_test.txt

The lists are those of Liu et al. 2019 (arXiv 1904.05160), with ImageNet's train/ and val/ below `images`. Recipe of the
paper: 1024 images, 12k steps, learning rate .1 to .4 over 500 steps, a tenth at 3.4k, 6.8k and 10.2k. Momentum and
weight decay are those of its CIFAR recipe; random parts and colours are those of Liu et al.: docs/classification.md.
Published: top-1 34.7 %; the paper's figure. Not run here.
Hardware: not run here; planned for one GPU with 16 GB, and 16 cores that decode JPEG.
"""

from ml_collections import ConfigDict

from configs.classification import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.name = "imagenet_lt_softmax"
    c.data.source = "imagenet_lt"
    c.data.image_size = 224
    c.data.crop = "resized"
    c.data.photometric.brightness = c.data.photometric.contrast = c.data.photometric.saturation = 0.4
    c.data.auto_augment = ""
    c.data.cutout = 0
    c.model.kind = "resnet"
    c.model.depth = 10
    c.model.width = 64
    c.model.pixel_mean = (123.675, 116.28, 103.53)
    c.model.pixel_std = (58.395, 57.12, 57.375)
    c.model.prior = 0.001
    c.train.batch_size = c.train.reference_batch_size = 1024
    c.train.steps = 12_000
    c.optimizer.learning_rate = 0.4
    c.optimizer.warmup_steps = 500
    c.optimizer.warmup_factor = 0.25
    c.optimizer.decay_at = (3400, 6800, 10_200)
    c.eval.every = 2000
    c.checkpoint.every = 1000
    return c
