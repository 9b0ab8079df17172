"""LVIS v0.5, Mask R-CNN R50-FPN, focal loss in the paper's comparison.

    python train.py --config=configs/lvis_v05_r50_focal_paper.py --workdir=runs/lvis_v05_r50_focal_paper \
        --config.train.init_from=runs/msra_r50 \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

44,737 steps, 25 epochs of the 57,263 training images, 32 at a time; class-agnostic masks. The paper's ImageNet weights
are unknown, these are MSRA's; alpha .25, gamma 2 and the prior of .001 are assumptions.

Published: mask AP/r/c/f 21.0 / 9.3 / 21.0 / 25.8 on LVIS v0.5 val; the paper's figure (Table 5).
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 16 GPUs of 16 GB, 2 images each, or
fewer or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    return lvis.paper("lvis_v05_r50_focal_paper", version="v0.5", depth=50, loss="focal")
