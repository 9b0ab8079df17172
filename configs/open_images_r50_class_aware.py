"""Open Images, Faster R-CNN R50-FPN, class-aware sampling.

    python train.py --config=configs/open_images_r50_class_aware.py --workdir=runs/open_images_r50_class_aware \
        --config.train.init_from=runs/msra_r50 \
        --config.data.train_annotations=oid_train.json --config.data.train_images=OpenImages/train \
        --config.data.val_annotations=oid_val.json --config.data.val_images=OpenImages/validation

The paper's comparison to open_images_r50_eql: sigmoid cross-entropy, a class is drawn uniformly, then an image with it.
Boxes only, 500 classes, 637,500 steps of 32 images (ours); with this sampler that is no number of epochs.

Published: box AP 56.50, AP1 .. AP5 64.44 / 59.30 / 59.74 / 57.02 / 42.00 on Open Images; the paper's figure.
Hardware: not run here, nothing was measured for Open Images at full size. Planned for 16 GPUs of 16 GB, 2 images each,
or fewer or one of 80 GB with config.train.gradient_accumulation as high as it needs.
configs/open_images.py says what is the paper's and what is ours; docs/open_images.md makes the data.
"""

from configs import open_images


def get_config():
    return open_images.recipe("open_images_r50_class_aware", loss="sigmoid", sampler="class_aware")
