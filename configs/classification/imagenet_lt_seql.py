"""ImageNet-LT, ResNet-10, softmax equalization loss with gamma .9 and lambda 4.3e-4.

    python train.py --config=configs/classification/imagenet_lt_seql.py --workdir=runs/imagenet_lt_seql \
        --config.data.images=imagenet --config.data.train_list=ImageNet_LT_train.txt \
        --config.data.val_list=ImageNet_LT_test.txt

As configs/classification/imagenet_lt_softmax.py but for the loss. The tail is the classes with fewer than 49.8 of the
115,846 images.
Published: top-1 36.4 %, with plain softmax 34.7 %; the paper's figures. Not run here.
Hardware: not run here; planned for one GPU with 16 GB, and 16 cores that decode JPEG.
"""

from ml_collections import ConfigDict

from configs.classification import imagenet_lt_softmax


def get_config() -> ConfigDict:
    c = imagenet_lt_softmax.get_config()
    c.name = "imagenet_lt_seql"
    c.loss.name = "seql"
    c.loss.options.gamma = 0.9
    c.loss.tail_threshold = 4.3e-4
    return c
