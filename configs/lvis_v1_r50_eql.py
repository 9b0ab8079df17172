"""LVIS v1, Mask R-CNN R50-FPN with EQL, the released code's recipe (16 images, 90k steps, class-specific masks).

    python train.py --config=configs/lvis_v1_r50_eql.py --workdir=runs/lvis_v1_r50_eql \
        --config.data.train_annotations=LVIS/lvis_v1_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v1_val.json --config.data.val_images=COCO

COCO is the folder that holds train2017/ and val2017/: part of LVIS's validation images lie in train2017. The stem, res2
and all BatchNorm are frozen, so start from trained weights (config.train.init_from, another run's workdir); to train
from scratch, set config.model.backbone.norm=group_norm and config.model.backbone.freeze_at=0.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.name = "lvis_v1_r50_eql"
    return c
