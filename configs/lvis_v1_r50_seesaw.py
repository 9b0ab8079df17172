"""LVIS v1, Mask R-CNN R50-FPN, Seesaw loss and cosine classifier on the recipe of the released code of EQL.

    python train.py --config=configs/lvis_v1_r50_seesaw.py --workdir=runs/lvis_v1_r50_seesaw \
        --config.train.init_from=runs/msra_r50 \
        --config.data.train_annotations=LVIS/lvis_v1_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v1_val.json --config.data.val_images=COCO

No published figure for exactly this recipe. Nearest: mask AP 25.0, published for Mask R-CNN R50-FPN on LVIS v1 val, 2x,
random sampling; schedule and framework differ.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 8 GPUs of 16 GB, 2 images each (the
release: 8 GPUs), or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    c = lvis.released_code("lvis_v1_r50_seesaw", version="v1", depth=50, loss="seesaw")
    c.model.box_head.classifier = "cosine"
    return c
