"""LVIS v1, Mask R-CNN R101-FPN, EQL on the released code's recipe.

    python train.py --config=configs/lvis_v1_r101_eql.py --workdir=runs/lvis_v1_r101_eql \
        --config.train.init_from=runs/msra_r101 \
        --config.data.train_annotations=LVIS/lvis_v1_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v1_val.json --config.data.val_images=COCO

The release has no lambda for v1: the tail is the rare and the common classes, by their letter.

No published figure for exactly this recipe.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 8 GPUs of 16 GB, 2 images each (the
release: 8 GPUs), or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    return lvis.released_code("lvis_v1_r101_eql", version="v1", depth=101)
