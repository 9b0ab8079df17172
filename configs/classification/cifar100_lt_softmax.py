"""CIFAR-100-LT, imbalance 200, ResNet-32, softmax: the paper's baseline of its second experiment.

    python train.py --config=configs/classification/cifar100_lt_softmax.py --workdir=runs/cifar100_lt_softmax

Needs CIFAR-100 of TFDS (tfds build cifar100). Recipe: configs/classification/base.py, which is the paper's: Nesterov
SGD, 256 images, 12.8k steps, learning rate .1 to .2 over 400 steps, a tenth at 6.4k and 9.6k, AutoAugment and Cutout.
Published: top-1 41.33 %; the paper's figure. Not run here.
Hardware: not run here; planned for one GPU with 4 GB.
"""

from ml_collections import ConfigDict

from configs.classification import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.name = "cifar100_lt_softmax"
    return c
