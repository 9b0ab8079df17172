"""LVIS v0.5, Mask R-CNN R101-FPN, EQL: the released code's recipe.

    python train.py --config=configs/lvis_v05_r101_eql.py --workdir=runs/lvis_v05_r101_eql \
        --config.train.init_from=runs/msra_r101 \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

The tail is f < 1.77e-3 of the 56,740 annotated images: exactly the rare and the common classes.

Published: mask AP/r/c/f 25.9 / 10.0 / 27.9 / 29.8, box AP 25.9 on LVIS v0.5 val; the release's figure.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 8 GPUs of 16 GB, 2 images each (the
release: 8 GPUs), or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    return lvis.released_code("lvis_v05_r101_eql", version="v0.5", depth=101)
