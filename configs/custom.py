"""Fine-tuning on pictures of one's own, from a COCO or LVIS JSON: docs/custom_data.md leads through it.

    python train.py --config=configs/custom.py --workdir=runs/custom --config.train.init_from=runs/WEIGHTS \
        --config.data.train_annotations=splits/train.json --config.data.train_images=pictures \
        --config.data.val_annotations=splits/val.json --config.data.val_images=pictures

Mask R-CNN R50-FPN, 2000 steps of 4 images: a few hundred to a few thousand pictures. Another --config.train.batch_size
scales learning rate and steps. The layers that know classes start fresh, all others from init_from.

No published figure: the data are yours.
Hardware: one GPU with 16 GB.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.name = "custom"

    c.data.frequencies = "train_annotations"  # counted from the training file
    c.data.sampler = "repeat_factor"
    c.data.repeat_threshold = 0.01  # classes in less than 1 % of the pictures are repeated
    c.data.buckets = ((800, 1088), (1088, 800), (800, 1344), (1344, 800))
    c.model.pixel_std = (1.0, 1.0, 1.0)  # of the MSRA weights; train.init_from says when the weights want another
    # Which classes are the tail: those in less than this share of the pictures. 0 is none, and EQL is then plain
    # sigmoid cross-entropy. `python -m eql_jax.data.browse` names the values to try.
    c.model.eql.tail_by = "lambda"
    c.model.eql.threshold = 0.0
    c.model.eql.num_images = 0  # the denominator: the training pictures
    c.model.test.score_threshold = 0.01
    c.model.test.detections_per_image = 100

    c.train.batch_size = c.train.reference_batch_size = 4
    c.train.steps = 2000
    c.optimizer.learning_rate = 0.005
    c.optimizer.warmup_steps = 200
    c.optimizer.decay_at = (1400, 1800)

    c.eval.every = 500
    c.eval.max_detections = 100
    c.checkpoint.every = 500
    return c
