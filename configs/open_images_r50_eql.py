"""Open Images, Faster R-CNN R50-FPN, EQL.

    python train.py --config=configs/open_images_r50_eql.py --workdir=runs/open_images_r50_eql \
        --config.train.init_from=runs/msra_r50 \
        --config.data.train_annotations=oid_train.json --config.data.train_images=OpenImages/train \
        --config.data.val_annotations=oid_val.json --config.data.val_images=OpenImages/validation

Boxes only, 500 classes, 637,500 steps of 32 images (12 epochs, ours). The tail is f < 3e-4 of the training images
(the paper's lambda). AP and AP50 of five groups of 100 classes by number of training images come with the evaluation.

Published: box AP 57.83, AP1 .. AP5 64.95 / 60.18 / 61.17 / 58.23 / 44.6 on Open Images; the paper's figure.
Hardware: not run here, nothing was measured for Open Images at full size. Planned for 16 GPUs of 16 GB, 2 images each,
or fewer or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/open_images.py says what is the paper's and what is ours; docs/open_images.md makes the data.
"""

from configs import open_images


def get_config():
    return open_images.recipe("open_images_r50_eql")
