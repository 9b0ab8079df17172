"""Long-tailed drawings as in configs/classification/synthetic_softmax.py, softmax equalization loss.

    python train.py --config=configs/classification/synthetic_seql.py --workdir=runs/synthetic_seql

No published figure; measured: docs/classification.md.
Hardware: one CPU core, a minute or two.
"""

from ml_collections import ConfigDict

from configs.classification import synthetic_softmax


def get_config() -> ConfigDict:
    c = synthetic_softmax.get_config()
    c.name = "synthetic_seql"
    c.loss.name = "seql"
    c.loss.options.gamma = 0.9
    c.loss.tail_threshold = 0.015  # the seven classes with up to 13 images, a tail ratio of 5.2 %
    return c
