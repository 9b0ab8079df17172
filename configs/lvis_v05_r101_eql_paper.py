"""LVIS v0.5, Mask R-CNN R101-FPN, EQL: the paper's recipe.

    python train.py --config=configs/lvis_v05_r101_eql_paper.py --workdir=runs/lvis_v05_r101_eql_paper \
        --config.train.init_from=runs/msra_r101 \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

44,737 steps, 25 epochs of the 57,263 training images, 32 at a time; class-agnostic masks. The tail is f < 1.76e-3 of
all training images: exactly the rare and the common classes. The paper's ImageNet weights are unknown, these are
MSRA's.

Published: mask AP/r/c/f 24.8 / 14.6 / 26.7 / 26.4, box AP 25.2 on LVIS v0.5 val; the paper's figure.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 16 GPUs of 16 GB, 2 images each, or
fewer or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    return lvis.paper("lvis_v05_r101_eql_paper", version="v0.5", depth=101)
