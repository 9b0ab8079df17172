"""LVIS v0.5, Mask R-CNN R101-FPN, softmax cross-entropy: the release's baseline.

    python train.py --config=configs/lvis_v05_r101_softmax.py --workdir=runs/lvis_v05_r101_softmax \
        --config.train.init_from=runs/msra_r101 \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

Published: mask AP/r/c/f 22.8 / 4.3 / 22.7 / 30.2, box AP 22.3 on LVIS v0.5 val; the release's figure.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 8 GPUs of 16 GB, 2 images each (the
release: 8 GPUs), or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    return lvis.released_code("lvis_v05_r101_softmax", version="v0.5", depth=101, loss="softmax")
