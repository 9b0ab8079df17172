"""What the configs of the LVIS Challenge 2019 entry share: configs/lvis_*_challenge.py. No config by itself.

The paper's last table adds one part a row, mask AP/r/c/f on LVIS v0.5 val, all of them the paper's figures:

    ResNeXt-101 64x4d, deformable convolution, synchronised BatchNorm, EQL, repeat-factor
    sampling, multi-scale training, from a COCO model      30.1 / 19.3 / 31.8 / 32.3  x101_dcn_challenge
    SENet-154                                              30.8 / 19.7 / 32.2 / 33.4  senet154_challenge
    about 20k Open Images pictures of 110 shared classes   31.4 / 21.5 / 33.1 / 33.3  senet154_oid_challenge
    boxes tested at 600, 800, 1000, 1200, 1400             32.3 / 20.5 / 34.7 / 34.2  senet154_oid_tta_boxes_challenge
    re-scored ensemble with two expert models              35.1 / 24.8 / 37.5 / 36.3  expert_challenge, and see below
    masks tested at these scales                           36.4 / 25.5 / 38.6 / 38.1  senet154_oid_tta_challenge

The names go after lvis_v05_.
The two rows of multi-scale testing train nothing: they evaluate the checkpoint of the row before. For the ensemble,
train the expert and put the results files together:

    python -m eql_jax.ensemble --help

Ours, because it is not known: batch size, schedule and learning rate (the release's), the scales of training (those of
testing, 400 more), which stages have deformable convolutions (res3 to res5, and none in SENet-154), that BatchNorm
lives in the backbone alone, the threshold of repeat-factor sampling (the release's), and what the experts are.

Weights: Caffe2's X-101-64x4d.pkl or SENet-154 of ImageNet, then a COCO model by this programme:

    python -m eql_jax.convert detectron2 X-101-64x4d.pkl --backbone-only \
        --config=configs/lvis_v05_x101_dcn_challenge.py --workdir=runs/x101_64x4d
    python -m eql_jax.convert cadene senet154-c7b49a05.pth --backbone-only \
        --config=configs/lvis_v05_senet154_challenge.py --workdir=runs/senet154

A COCO model is these configs with COCO's files, config.data.frequencies=train_annotations and
config.model.box_head.loss=sigmoid; its classes are others, and config.train.init_from leaves the layers with rows per
class at their fresh values.
"""

from ml_collections import ConfigDict

from configs import lvis

SCALES = (600, 800, 1000, 1200, 1400)  # of testing, the paper's
# At 1400 / 1600 pixels: 4:3 and 3:2 photographs, both ways up, and squarer ones.
BUCKETS = ((1216, 1600), (1600, 1216), (1088, 1600), (1600, 1088), (1408, 1600), (1600, 1408))


def x101_dcn(name: str) -> ConfigDict:
    """Mask R-CNN on ResNeXt-101 64x4d with deformable convolutions in res3, res4 and res5."""
    c = _entry(name)
    b = c.model.backbone
    b.depth, b.groups, b.width_per_group = 101, 64, 4
    b.deform_stages = (3, 4, 5)
    return c  # pixels are not divided by a std, as Detectron's configs of 64x4d have it


def senet154(name: str) -> ConfigDict:
    """Mask R-CNN on SENet-154."""
    c = _entry(name)
    b = c.model.backbone
    b.kind, b.depth, b.groups = "senet", 154, 64
    c.model.pixel_std = (58.395, 57.12, 57.375)
    return c


def multi_scale_boxes(c: ConfigDict) -> ConfigDict:
    """Tests boxes at all scales, and masks of the merged boxes at the plain one."""
    c.eval.tta.shorter_sides = SCALES
    c.eval.tta.flip = True
    c.eval.tta.masks = False
    return c


def multi_scale(c: ConfigDict) -> ConfigDict:
    """Tests boxes and masks at all scales."""
    c = multi_scale_boxes(c)
    c.eval.tta.masks = True
    return c


def _entry(name: str) -> ConfigDict:
    c = lvis.released_code(name, version="v0.5", depth=101, sampler="repeat_factor")
    c.data.shorter_side = (400, *SCALES)
    c.data.longest_side = 1600
    c.data.buckets = BUCKETS
    b = c.model.backbone
    b.norm, b.freeze_at, b.stride_in_1x1 = "batch_norm", 0, False
    return c
