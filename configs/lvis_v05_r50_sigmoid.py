"""LVIS v0.5, Mask R-CNN R50-FPN, plain sigmoid cross-entropy: the baseline of EQL on the released code's recipe.

    python train.py --config=configs/lvis_v05_r50_sigmoid.py --workdir=runs/lvis_v05_r50_sigmoid \
        --config.train.init_from=runs/msra_r50 \
        --config.data.train_annotations=LVIS/lvis_v0.5_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v0.5_val.json --config.data.val_images=COCO

No published figure for exactly this recipe.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 8 GPUs of 16 GB, 2 images each (the
release: 8 GPUs), or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    return lvis.released_code("lvis_v05_r50_sigmoid", version="v0.5", depth=50, loss="sigmoid")
