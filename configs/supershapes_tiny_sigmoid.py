"""The sigmoid baseline of configs/supershapes_tiny.py: same data, steps and seed, plain sigmoid cross-entropy.

    python train.py --config=configs/supershapes_tiny_sigmoid.py --workdir=runs/supershapes_tiny_sigmoid

No published figure: the data set is made here. What was measured: docs/results.md.
Hardware: two CPU cores, about 12 minutes.
"""

from configs import supershapes_tiny


def get_config():
    c = supershapes_tiny.get_config()
    c.name = "supershapes_tiny_sigmoid"
    c.model.box_head.loss = "sigmoid"
    return c
