"""LVIS v0.5 (1230 classes), Mask R-CNN R50-FPN with EQL, the released code's recipe.

    python train.py --config=configs/lvis_v05_r50_eql.py --workdir=runs/lvis_v05_r50_eql \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

lambda is the released code's 1.77e-3 over 56,740 annotated images: exactly the rare and common classes.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.name = "lvis_v05_r50_eql"
    c.data.frequencies = "lvis_v0.5"
    c.model.eql.tail_by = "lambda"
    c.model.eql.threshold = 1.77e-3
    c.model.eql.num_images = 56740
    return c
