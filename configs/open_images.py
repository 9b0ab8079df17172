"""What the recipes for Open Images, configs/open_images_*.py, share. No config by itself.

The paper's experiment (section 5): boxes only, the 500 classes of the Open Images Challenge 2019, 1.7 million training
images, ResNet-50, lambda 3e-4 of the images, which makes the tail 3 % of the image counts (tail ratio). That is all
that is known of it. Ours: the recipe for LVIS of the paper (configs/lvis.py: 32 images, learning rate .04, one scale,
score threshold 0, 300 detections) on a Faster R-CNN with FPN, over 12 epochs with the steps of detectron2's 1x
schedule, /10 after 8 and 11, where the 25 epochs of LVIS would take 1.3 million steps.

docs/open_images.md makes oid_train.json and oid_val.json, and says what the AP of five groups is beside the paper's.
"""

from ml_collections import ConfigDict

from configs import lvis

TRAINING_IMAGES = 1_700_000  # as the paper says; exactly as many only matter to the length of an epoch
EPOCHS, DECAY_AFTER = 12, (8, 11)


def recipe(name: str, *, loss: str = "eql", sampler: str = "uniform") -> ConfigDict:
    """Faster R-CNN R50-FPN on Open Images.

    Args:
        name: of the config, that of its file.
        loss: config.model.box_head.loss.
        sampler: config.data.sampler.
    """
    c = lvis.paper(name, version="v0.5", depth=50, loss=loss, sampler=sampler)
    c.model.with_mask = False
    c.data.frequencies = "train_annotations"
    c.model.eql.tail_by = "lambda"
    c.model.eql.threshold = 3e-4
    c.model.eql.num_images = 0  # as many as have an object in the training file
    steps_per_epoch = TRAINING_IMAGES / c.train.batch_size
    c.train.steps = round(EPOCHS * steps_per_epoch)
    c.optimizer.decay_at = tuple(round(epochs * steps_per_epoch) for epochs in DECAY_AFTER)
    c.eval.every = 50_000
    c.eval.image_count_groups = 5
    c.checkpoint.every = 10_000
    return c
