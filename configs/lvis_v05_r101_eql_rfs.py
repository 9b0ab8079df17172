"""LVIS v0.5, Mask R-CNN R101-FPN, EQL with repeat-factor sampling: the released code's recipe.

    python train.py --config=configs/lvis_v05_r101_eql_rfs.py --workdir=runs/lvis_v05_r101_eql_rfs \
        --config.train.init_from=runs/msra_r101 \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

As lvis_v05_r101_eql, and images are repeated for classes in less than 5e-4 of them.

Published: mask AP/r/c/f 27.4 / 17.3 / 29.0 / 29.4, box AP 27.1 on LVIS v0.5 val; the release's figure.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 8 GPUs of 16 GB, 2 images each (the
release: 8 GPUs), or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    return lvis.released_code("lvis_v05_r101_eql_rfs", version="v0.5", depth=101, sampler="repeat_factor")
