"""LVIS v0.5, Cascade Mask R-CNN R101-FPN, EQL: the paper's recipe.

    python train.py --config=configs/lvis_v05_r101_cascade_eql_paper.py \
        --workdir=runs/lvis_v05_r101_cascade_eql_paper --config.train.init_from=runs/msra_r101 \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

Three stages of IoU .5, .6 and .7, as detectron2's cascade_mask_rcnn: what the paper's does otherwise is
not known.
44,737 steps, 25 epochs of 32 images a step; class-agnostic masks. The tail is f < 1.76e-3 of all
training images, the rare and the common classes.

Published: mask AP/r/c/f 24.9 / 10.3 / 27.3 / 27.8, box AP 27.9 on LVIS v0.5 val; the paper's figure.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 16 GPUs of 16 GB, 2 images each, or
fewer or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    return lvis.paper("lvis_v05_r101_cascade_eql_paper", version="v0.5", depth=101, loss="eql", model="cascade")
