"""LVIS v0.5, SENet-154 tested at five scales: the challenge entry, row 4.

    python train.py --mode=eval --config=configs/lvis_v05_senet154_oid_tta_boxes_challenge.py \
        --workdir=runs/lvis_v05_senet154_oid_challenge \
        --out=runs/lvis_v05_senet154_oid_tta_boxes_challenge \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

Boxes at 600, 800, 1000, 1200 and 1400 and mirrored; their masks at 800.
It trains nothing: the run of row 3 is evaluated.

Published: mask AP/r/c/f 32.3 / 20.5 / 34.7 / 34.2 on LVIS v0.5 val; the paper's figure.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for GPUs of 80 GB, any number.
configs/lvis_challenge.py has the table, the weights and what is ours.
"""

from configs import lvis_challenge


def get_config():
    return lvis_challenge.multi_scale_boxes(lvis_challenge.senet154("lvis_v05_senet154_oid_tta_boxes_challenge"))
