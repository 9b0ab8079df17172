"""Open Images, Faster R-CNN R50-FPN, sigmoid cross-entropy.

    python train.py --config=configs/open_images_r50_sigmoid.py --workdir=runs/open_images_r50_sigmoid \
        --config.train.init_from=runs/msra_r50 \
        --config.data.train_annotations=oid_train.json --config.data.train_images=OpenImages/train \
        --config.data.val_annotations=oid_val.json --config.data.val_images=OpenImages/validation

The baseline of open_images_r50_eql: boxes only, 500 classes, 637,500 steps of 32 images (12 epochs, ours).

Published: box AP 48.13, AP1 .. AP5 59.86 / 51.24 / 49.31 / 46.51 / 33.72 on Open Images; the paper's figure.
Hardware: not run here, nothing was measured for Open Images at full size. Planned for 16 GPUs of 16 GB, 2 images each,
or fewer or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/open_images.py says what is the paper's and what is ours; docs/open_images.md makes the data.
"""

from configs import open_images


def get_config():
    return open_images.recipe("open_images_r50_sigmoid", loss="sigmoid")
