"""CIFAR-100-LT, imbalance 200, ResNet-32, softmax equalization loss with gamma .95 and lambda 3e-3.

    python train.py --config=configs/classification/cifar100_lt_seql.py --workdir=runs/cifar100_lt_seql

As configs/classification/cifar100_lt_softmax.py but for the loss. The tail is the 46 classes with fewer than 28.5 of
the 9,502 images.
Published: top-1 43.38 %, with plain softmax 41.33 %; the paper's figures. Not run here.
Hardware: not run here; planned for one GPU with 4 GB.
"""

from ml_collections import ConfigDict

from configs.classification import cifar100_lt_softmax


def get_config() -> ConfigDict:
    c = cifar100_lt_softmax.get_config()
    c.name = "cifar100_lt_seql"
    c.loss.name = "seql"
    c.loss.options.gamma = 0.95
    c.loss.tail_threshold = 3e-3
    return c
