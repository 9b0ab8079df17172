"""CIFAR-10-LT, imbalance 200, ResNet-32, softmax equalization loss with the paper's gamma for CIFAR-100-LT.

    python train.py --config=configs/classification/cifar10_lt_seql.py --workdir=runs/cifar10_lt_seql

As configs/classification/cifar10_lt_softmax.py but for the loss. Of ten classes the paper's lambda would take one;
here it is .02, which takes the four with 25 to 146 images: a tail ratio of 2.65 %, and 2 to 10 % is the paper's range.
No published figure: the paper has CIFAR-100 only. Not run here.
Hardware: not run here; planned for one GPU with 4 GB.
"""

from ml_collections import ConfigDict

from configs.classification import cifar10_lt_softmax


def get_config() -> ConfigDict:
    c = cifar10_lt_softmax.get_config()
    c.name = "cifar10_lt_seql"
    c.loss.name = "seql"
    c.loss.options.gamma = 0.95
    c.loss.tail_threshold = 0.02
    return c
