"""LVIS v1, Mask R-CNN R101-FPN, EQL: the paper's recipe.

    python train.py --config=configs/lvis_v1_r101_eql_paper.py --workdir=runs/lvis_v1_r101_eql_paper \
        --config.train.init_from=runs/msra_r101 \
        --config.data.train_annotations=LVIS/lvis_v1_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v1_val.json --config.data.val_images=COCO

78,258 steps, 25 epochs of the 100,170 training images, 32 at a time; class-agnostic masks. The paper has no lambda for
v1: the tail is the rare and the common classes, by their letter. The paper's ImageNet weights are unknown, these are
MSRA's.

No published figure: the paper has no results on v1.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 16 GPUs of 16 GB, 2 images each, or
fewer or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    return lvis.paper("lvis_v1_r101_eql_paper", version="v1", depth=101)
