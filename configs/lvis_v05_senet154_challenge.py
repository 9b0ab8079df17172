"""LVIS v0.5, SENet-154, EQL: the challenge entry, row 2.

    python train.py --config=configs/lvis_v05_senet154_challenge.py \
        --workdir=runs/lvis_v05_senet154_challenge --config.train.init_from=runs/coco_senet154 \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

As row 1 with another backbone.

Published: mask AP/r/c/f 30.8 / 19.7 / 32.2 / 33.4 on LVIS v0.5 val; the paper's figure.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 16 GPUs of 80 GB, 1 image each, or
fewer with config.train.gradient_accumulation as high as it needs.
configs/lvis_challenge.py has the table, the weights and what is ours.
"""

from configs import lvis_challenge


def get_config():
    return lvis_challenge.senet154("lvis_v05_senet154_challenge")
