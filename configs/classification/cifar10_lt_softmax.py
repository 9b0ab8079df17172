"""CIFAR-10-LT, imbalance 200, ResNet-32, softmax, with the recipe of CIFAR-100-LT.

    python train.py --config=configs/classification/cifar10_lt_softmax.py --workdir=runs/cifar10_lt_softmax

Needs CIFAR-10 of TFDS (tfds build cifar10). 11,203 images, 5000 to 25 a class.
No published figure: the paper has CIFAR-100 only. Not run here.
Hardware: not run here; planned for one GPU with 4 GB.
"""

from ml_collections import ConfigDict

from configs.classification import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.name = "cifar10_lt_softmax"
    c.data.source = "cifar10"
    c.model.pixel_mean = (125.3, 123.0, 113.9)
    c.model.pixel_std = (63.0, 62.1, 66.7)
    return c
