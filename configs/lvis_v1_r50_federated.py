"""LVIS v1, Mask R-CNN R50-FPN, federated loss on the recipe of the released code of EQL.

    python train.py --config=configs/lvis_v1_r50_federated.py --workdir=runs/lvis_v1_r50_federated \
        --config.train.init_from=runs/msra_r50 \
        --config.data.train_annotations=LVIS/lvis_v1_train.json --config.data.train_images=COCO \
        --config.data.val_annotations=LVIS/lvis_v1_val.json --config.data.val_images=COCO

A set of 50 classes for every two images, as on detectron2's GPUs, drawn by the square root of their image counts.

No published figure for this recipe.
Hardware: not run here, nothing was measured for LVIS at full size. Planned for 8 GPUs of 16 GB, 2 images each (the
release: 8 GPUs), or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/lvis.py says where weights and data come from.
"""

from configs import lvis


def get_config():
    c = lvis.released_code("lvis_v1_r50_federated", version="v1", depth=50, loss="federated")
    c.model.box_head.loss_options = dict(num_sampled=50, power=0.5, images_per_set=2)
    return c
