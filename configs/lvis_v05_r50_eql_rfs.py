"""LVIS v0.5, Mask R-CNN R50-FPN, EQL with repeat-factor sampling: the released code's recipe.

    python train.py --config=configs/lvis_v05_r50_eql_rfs.py --workdir=runs/lvis_v05_r50_eql_rfs \
        --config.train.init_from=runs/msra_r50 \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

As lvis_v05_r50_eql, and images are repeated for classes in less than 5e-4 of them.

Published: mask AP/r/c/f 26.1 / 17.2 / 27.3 / 28.2, box AP 25.4 on LVIS v0.5 val; the release's figure.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 8 GPUs of 16 GB, 2 images each (the
release: 8 GPUs), or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    return lvis.released_code("lvis_v05_r50_eql_rfs", version="v0.5", depth=50, sampler="repeat_factor")
