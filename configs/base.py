"""Every field of an experiment, with its meaning and default: Mask R-CNN R50-FPN with EQL on LVIS v1.

Other configs start from `get_config()` here and change a few fields. Any field can be changed on the command line:

    python train.py --config=configs/base.py --workdir=DIR --config.data.train_annotations=lvis_v1_train.json ...
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the base configuration; all fields that exist, exist here."""
    c = ConfigDict()

    c.name = "mask_rcnn_r50_fpn_eql"
    c.seed = 0  # with the step and the image id, fixes every random draw

    # ---------------------------------------------------------------- data
    c.data = ConfigDict()
    # LVIS v0.5, LVIS v1 or COCO instance JSON; or a folder that eql_jax.data.prepare made; or tfds:lvis/train. Here or
    # at gs://bucket/..; see docs/data.md
    c.data.train_annotations = ""
    # of a JSON: folder; files are found by coco_url (split folder + name), file_name or bare name. Of tfds: data_dir
    c.data.train_images = ""
    # Further training sets, each (annotations, images, class map, share): share of the images drawn from it, the rest
    # come from the set above. Class map: a JSON {category name or id there: category id here}, "" where the classes are
    # the same. Classes that no object of a set can have get no negatives from its images; a fifth element says more:
    # 'verified': in an image those alone get some that are present or verified absent in it, 'annotated': all of the
    # set, 'all': as in the main set; without it 'verified' where the set has neg_category_ids. See docs/mixed_data.md
    c.data.extra_sets = ()
    c.data.val_annotations = ""
    c.data.val_images = ""
    # Arguments of eql_jax.data.supershapes, which makes the data set when the paths above are empty; {} for real data.
    c.data.supershapes = ConfigDict()
    # Where class frequencies (r/c/f letters, image counts) come from: 'lvis_v1' and 'lvis_v0.5' are the training counts
    # shipped with the package; 'train_annotations' counts (or reads) the training file; else the path of a JSON.
    c.data.frequencies = "lvis_v1"
    c.data.strict = False  # True: the first faulty record is fatal; False: faulty records are skipped and summarised
    c.data.drop_empty_images = True  # training only: leave out images without a usable object
    # 'uniform'; 'repeat_factor': images of rare classes come more often; 'class_aware': a class is drawn uniformly,
    # then an image with it
    c.data.sampler = "uniform"
    c.data.repeat_threshold = 1e-3  # repeat-factor sampling: classes in fewer images than this share are repeated
    c.data.shorter_side = (640, 672, 704, 736, 768, 800)  # training: one is drawn per image
    c.data.longest_side = 1333
    c.data.eval_shorter_side = 800
    c.data.flip = True  # random horizontal flip in training
    # Large-scale jitter (Ghiasi et al. 2021): (smallest, largest) size of the resized image in shares of crop_size, cut
    # to crop_size, which every batch then has; theirs is (0.1, 2.0). It takes the place of shorter_side, longest_side
    # and buckets in training. (): off
    c.data.scale_jitter = ()
    c.data.crop_size = (1024, 1024)  # (height, width)
    # Random colours as in torchvision's ColorJitter; 0: off. Factors are from 1 - x to 1 + x, hue shifts by up to x
    # turns of the colour circle (at most .5).
    c.data.photometric = ConfigDict(dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0))
    # Copy-paste (Ghiasi et al. 2021): objects of another image are set into the image, with their masks.
    p = c.data.copy_paste = ConfigDict()
    p.probability = 0.0  # that an image gets any; 0: off
    # 'batch': objects of another image of the batch, where they lie in it; 'bank': a class is drawn, then one of its
    # objects in the whole data set, and a place for it. Each object of the bank means one more image to decode.
    p.source = "batch"
    p.max_objects = 10  # 1 to as many are pasted
    p.scale = (1.0, 1.0)  # (smallest, largest) factor on their size, besides the augmentation that their image gets
    p.class_power = 0.5  # 'bank': weight of a class is its number of images to the power of -class_power; 0: all alike
    # False: pixels are those of detectron2 (Pillow), byte for byte. True: enlarged JPEGs go through OpenCV, up to one
    # grey level apart and several times faster; those reduced to half or less are decoded at 1/2, 1/4 or 1/8. Training
    # only.
    c.data.fast_pixels = False
    c.data.buckets = (
        (800, 1344),
        (1344, 800),
        (1088, 1088),
    )  # padded (height, width); each image goes to the smallest that fits
    c.data.max_objects = (
        300  # padding of ground truth; images with more keep the largest and are counted in the summary
    )
    c.data.mask_size = 112  # side of the box-cropped ground-truth masks
    # What makes the batches, the same ones: 'tf.data', or 'threads' of this package, which copies less (and is what is
    # left where TensorFlow is not installed)
    c.data.engine = "threads"
    c.data.workers = 0  # threads that make rows of batches; 0: as many as there are cores
    c.data.prefetch = 2  # batches in flight on the host, and as many on the device

    # ---------------------------------------------------------------- model
    m = c.model = ConfigDict()
    m.dtype = "float32"  # compute type of convolutions and matmuls: 'float32' or 'bfloat16'; parameters stay float32
    m.pixel_mean = (123.675, 116.28, 103.53)  # RGB, 0..255
    m.pixel_std = (58.395, 57.12, 57.375)
    # 'fpn'; or 'c4': proposals and RoI features from res4 alone, and res5 is part of the RoI heads: it takes RoIs of
    # box_head.pool_size, usually 14, for boxes and masks, and has no use for fpn, box_head.num_fc and
    # mask_head.pool_size
    m.architecture = "fpn"
    m.with_mask = True  # False: Faster R-CNN, boxes only
    m.backbone = ConfigDict()
    m.backbone.kind = (
        "resnet"  # 'resnet' (with groups: ResNeXt) or 'senet' (squeeze-and-excitation; depth 154: SENet-154)
    )
    m.backbone.depth = 50  # resnet: 18, 34, 50, 101 or 152; senet: 50, 101 or 154
    m.backbone.width = 64  # res2 has 4 times as many channels (depths 18 and 34: as many), each stage twice the last
    m.backbone.stem_width = 0  # channels of the stem (senet: its last layer has twice as many); 0: model.backbone.width
    m.backbone.groups = 1  # of the 3x3 convolutions of bottlenecks: ResNeXt 32x8d has 32, SENet-154 64
    m.backbone.width_per_group = 0  # resnet: channels of a group in res2, doubled each stage; 0: width / groups
    m.backbone.deform_stages = ()  # of (2, 3, 4, 5): bottlenecks there have a deformable 3x3 (Zhu et al. 2019)
    m.backbone.deform_modulated = True  # False: offsets without modulation (Dai et al. 2017)
    m.backbone.deform_groups = 1  # groups of channels with offsets of their own
    m.backbone.norm = (
        "frozen_batch_norm"  # 'frozen_batch_norm', 'batch_norm' (live, over the global batch) or 'group_norm'
    )
    m.backbone.freeze_at = 2  # 0: nothing; 1: the stem; 2: stem and res2, ... get no gradient
    m.backbone.stride_in_1x1 = (
        True  # bottlenecks: stride in the first 1x1 (MSRA, detectron2) or in the 3x3 (torchvision)
    )
    m.fpn = ConfigDict()
    m.fpn.channels = 256
    m.fpn.norm = "none"  # 'none', 'batch_norm' or 'group_norm'
    m.fpn.min_level = 2  # finest level, 2 is stride 4; the coarsest (one above res5) serves the RPN only
    m.rpn = ConfigDict()
    m.rpn.anchor_sizes = (32, 64, 128, 256, 512)  # pixels, one per level
    m.rpn.aspect_ratios = (0.5, 1.0, 2.0)  # height / width
    m.rpn.round_anchors = False  # corners of the cell's anchors rounded to pixels, as torchvision does
    m.rpn.positive_iou = 0.7
    m.rpn.negative_iou = 0.3
    m.rpn.batch_per_image = 256  # sampled anchors
    m.rpn.positive_fraction = 0.5
    m.rpn.pre_nms_train = 2000  # per level
    m.rpn.post_nms_train = 1000  # per image
    m.rpn.pre_nms_test = 1000
    m.rpn.post_nms_test = 1000
    m.rpn.nms_iou = 0.7
    m.roi = ConfigDict()
    m.roi.batch_per_image = 512  # sampled RoIs
    m.roi.positive_fraction = 0.25
    m.roi.positive_iou = 0.5
    m.roi.sampling_ratio = 2  # RoIAlign points per bin and axis; 0: as many as the box's size asks for (detectron2)
    # Most points per bin and axis with sampling_ratio 0; a larger box gets this many, evenly spread. No box of up to
    # 1792 pixels needs more than 64. A step takes as long as its box with most points: see docs/performance.md.
    m.roi.max_samples = 64
    m.roi.aligned = True  # False: the half-pixel shift of older RoIAligns, for torchvision's models
    m.roi.canonical_size = 224  # a box of this size is pooled from level canonical_level
    m.roi.canonical_level = 4
    m.box_head = ConfigDict()
    # Classification loss: 'eql', 'sigmoid', 'softmax' or another of docs/losses.md, or 'module:Class' of your own
    m.box_head.loss = "eql"
    # What that loss has of options, --config.model.box_head.loss_options.p=0.8 say; those of 'eql' are in model.eql
    m.box_head.loss_options = ConfigDict()
    # The classifier gets columns until their number is a multiple of this: of mesh.model, so that they divide over its
    # devices, or of 128. The added ones change no loss and no score. For losses with a sigmoid per class.
    m.box_head.class_multiple = 1
    m.box_head.classifier = "linear"  # or 'cosine': directions only, as in the Seesaw paper
    m.box_head.cosine_temperature = 20.0  # factor on the cosines
    m.box_head.num_convs = 0  # 3x3 convolutions before the fully connected layers: 4 with num_fc 1 is "4conv1fc"
    m.box_head.conv_dim = 256
    m.box_head.norm = "none"  # of these convolutions: 'none', 'batch_norm' or 'group_norm'
    m.box_head.num_fc = 2
    m.box_head.fc_dim = 1024
    m.box_head.pool_size = 7
    m.box_head.class_agnostic_boxes = False
    # Loss of foreground RoIs' boxes: 'smooth_l1' of deltas, or 'giou', 'diou' or 'ciou' of decoded boxes. Those are
    # smaller numbers and ask for a larger train.loss_weights.box (mmdetection has 10 with GIoU)
    m.box_head.box_loss = "smooth_l1"
    m.box_head.box_loss_beta = 0.0  # 'smooth_l1': where it becomes linear, in units of deltas; 0: L1
    m.box_head.prior = 0.001  # initial score of every class under a sigmoid loss: bias = -log((1 - prior) / prior)
    m.mask_head = ConfigDict()
    m.mask_head.num_convs = 4
    m.mask_head.channels = 256
    m.mask_head.norm = "none"  # 'none', 'batch_norm' or 'group_norm'
    m.mask_head.pool_size = 14
    m.mask_head.class_agnostic = False
    # Cascade (Cai & Vasconcelos 2018): a box head for each IoU that makes a RoI foreground; the boxes of one are the
    # RoIs of the next. (0.5, 0.6, 0.7) is the usual one; (): off. Asks for box_head.class_agnostic_boxes.
    m.cascade = ConfigDict()
    m.cascade.ious = ()
    m.cascade.box_weights = (10.0, 20.0, 30.0)  # of x and y in the deltas of each stage; width and height have half
    # Equalization loss, w = 1 - E(r) T(f) (1 - y)
    m.eql = ConfigDict()
    m.eql.tail_by = "letters"  # 'letters': the classes of `tail_letters`; 'lambda': classes with f < lambda
    m.eql.tail_letters = "rc"
    m.eql.threshold = 1.1e-3  # lambda, a share of images
    # The denominator of f: 99388 annotated training images of v1 (v0.5: 56740, the paper 57263); 0: as many as
    # data.frequencies counts
    m.eql.num_images = 99388
    m.eql.function = "step"  # T below lambda: 'step', 'exponential' or 'gompertz'; with letters only 'step'
    m.eql.background_keeps_negatives = True  # E(r): False drops the tail's negatives on background proposals too
    m.eql.verified_negatives = (
        False  # paper section 4.2: weight 1 for classes annotated or verified absent in the image
    )
    m.test = ConfigDict()
    m.test.score_threshold = 1e-4
    # Calibration after training (NorCal, docs/losses.md): scores are divided by the class's training images to this
    # power and normalised again; about 0.6 for softmax. 0: off
    m.test.norcal_gamma = 0.0
    m.test.nms_iou = 0.5
    m.test.detections_per_image = 300
    m.test.candidates = (
        10_000  # top (proposal, class) pairs that enter NMS; more are taken when these cannot prove exact
    )

    # ---------------------------------------------------------------- training
    t = c.train = ConfigDict()
    t.batch_size = 16  # images over all devices and hosts
    # Batch size that the learning rate and the step counts of a config are meant for. When train.batch_size is another,
    # loading the config scales them by the linear rule (eql_jax/training/batch_scaling.py), except those given on the
    # command line. 0: no scaling.
    t.reference_batch_size = 0
    t.steps = 90_000
    t.gradient_accumulation = 1  # the batch is run in this many parts, one after the other
    # Steps that go to the device in one call, so that the host has less to do; for small models on fast devices. Saves
    # and evaluations come at their steps all the same, with calls of one step before them where this does not divide
    # checkpoint.every or eval.every. Asks for batches of one shape: one bucket, or data.scale_jitter. See
    # docs/performance.md
    t.steps_per_call = 1
    # The gradient computes what is inside of the backbone's blocks anew instead of keeping it: less memory, more time,
    # the same results
    t.remat = False
    # What gradients are summed over devices in: 'compute': what they are computed in; 'bfloat16': half the traffic of
    # float32, rounded to 8 bits. See docs/scaling.md
    t.reduce_dtype = "compute"
    t.init_from = ""  # workdir or checkpoint whose parameters training starts from
    t.loss_weights = ConfigDict(dict(rpn_cls=1.0, rpn_box=1.0, cls=1.0, box=1.0, mask=1.0))
    o = c.optimizer = ConfigDict()
    o.name = "sgd"  # 'sgd' (momentum) or 'adamw'
    o.learning_rate = 0.02
    o.momentum = 0.9
    o.nesterov = False
    o.betas = (0.9, 0.999)  # adamw
    o.weight_decay = 1e-4
    o.schedule = "steps"  # 'steps', 'cosine' or 'constant', after the warm-up
    o.decay_at = (60_000, 80_000)  # 'steps': multiply by decay_factor there
    o.decay_factor = 0.1
    o.warmup_steps = 1000
    o.warmup_factor = 0.001  # of the learning rate, at step 0
    o.clip_norm = 0.0  # global gradient norm; 0: off
    # (regex over the parameter's path, factor of learning rate, factor of weight decay); the first match counts, none
    # means (1, 1). Here: no decay for norms. (".*bias", 2.0, 0.0) would double the rate of biases and spare them decay.
    o.groups = ((r".*/norm/.*", 1.0, 0.0),)
    o.ema_decay = 0.0  # exponential moving average of the parameters, used for evaluation; 0: off

    # ---------------------------------------------------------------- devices
    # Devices along each axis, -1: all that are left. Batches are spread over 'data'; the classifier, its logits and its
    # loss are spread over 'model' by class, for large vocabularies (docs/performance.md). In all else devices
    # along 'model' repeat each other's work.
    # fsdp: parameters, optimizer memory and averages are spread over 'data' as well, and put together for each step:
    # less memory, the same results. See docs/scaling.md
    c.mesh = ConfigDict(dict(data=-1, model=1, fsdp=False))

    # ---------------------------------------------------------------- evaluation, logs, checkpoints
    e = c.eval = ConfigDict()
    e.every = 10_000  # steps; 0: at the end only
    e.batch_size = 8  # images over all devices and hosts
    e.max_images = 0  # 0: all
    e.max_detections = 300  # per image, as the LVIS protocol has it
    # Report AP-fixed as well (Dave et al. 2021): the best 10,000 detections of each class, however many in an image. It
    # asks for model.test.detections_per_image far above max_detections, such as 1000 or 3000 (the table says in how
    # many images that was too few), and a low score_threshold; time and results.json grow with them.
    e.ap_fixed = False
    e.ap_pool = False  # also AP-pool (Dave et al. 2021): all classes ranked together; asks for the same as ap_fixed
    e.boundary = False  # also boundary AP (Cheng et al. 2021), the LVIS challenge's metric since 2021
    e.backend = "fast"  # 'fast': this package's evaluator, the same numbers; 'official': the `lvis` package
    # AP of this many groups of classes as well, as many classes in each, by falling number of training images: the
    # paper has 5 on Open Images. 0: off
    e.image_count_groups = 0
    # Test-time augmentation as in detectron2's GeneralizedRCNNWithTTA: the image at each of these shorter sides; the
    # paper's challenge entry has (600, 800, 1000, 1200, 1400). (): off. For --mode=eval and prediction; evaluations
    # during training are without it. See docs/test_time.md
    e.tta = ConfigDict()
    e.tta.shorter_sides = ()
    e.tta.longest_side = 4000
    e.tta.flip = True  # and mirrored
    e.tta.masks = True  # average the masks of all views; False: from the plain image of data.eval_shorter_side alone
    e.pictures = 16  # validation pictures drawn with their detections into workdir/pictures at the end; 0: none
    c.log = ConfigDict(dict(every=20, tensorboard=True, progress=True))
    # Kept are the newest `keep`, the best `keep_best` (by mask AP; by box AP without masks), and the first at
    # or after each multiple of keep_every steps (0: no such)
    c.checkpoint = ConfigDict(dict(every=2000, keep=2, keep_best=1, keep_every=0))
    c.debug = ConfigDict(dict(nan_checks=True))  # stop on a loss that is not finite, naming step, images and terms
    return c
