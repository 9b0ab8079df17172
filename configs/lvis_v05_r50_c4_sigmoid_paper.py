"""LVIS v0.5, Mask R-CNN R50-C4, plain sigmoid: the paper's recipe.

    python train.py --config=configs/lvis_v05_r50_c4_sigmoid_paper.py \
        --workdir=runs/lvis_v05_r50_c4_sigmoid_paper --config.train.init_from=runs/msra_r50_c4 \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

RoI heads on res5, as detectron2's Base-RCNN-C4: what the paper's C4 model does otherwise is not known.
44,737 steps, 25 epochs of 32 images a step; class-agnostic masks.

Published: mask AP/r/c/f 19.7 / 7.9 / 21.1 / 22.8, box AP 20.3 on LVIS v0.5 val; the paper's figure.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 16 GPUs of 16 GB, 2 images each, or
fewer or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    return lvis.paper("lvis_v05_r50_c4_sigmoid_paper", version="v0.5", depth=50, loss="sigmoid", model="c4")
