"""LVIS v0.5, ResNeXt-101 64x4d with deformable convolutions, EQL: the challenge entry, row 1.

    python train.py --config=configs/lvis_v05_x101_dcn_challenge.py \
        --workdir=runs/lvis_v05_x101_dcn_challenge --config.train.init_from=runs/coco_x101_dcn \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

Live BatchNorm over the global batch, repeat-factor sampling, shorter sides of 400 to 1400; 16 images, 90k steps.

Published: mask AP/r/c/f 30.1 / 19.3 / 31.8 / 32.3 on LVIS v0.5 val; the paper's figure.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 16 GPUs of 80 GB, 1 image each, or
fewer with config.train.gradient_accumulation as high as it needs.
configs/lvis_challenge.py has the table, the weights and what is ours.
"""

from configs import lvis_challenge


def get_config():
    return lvis_challenge.x101_dcn("lvis_v05_x101_dcn_challenge")
