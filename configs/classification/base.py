"""Every field of an image classification experiment, with its meaning and default: the recipe of CIFAR-100-LT.

Other configs of this folder start from `get_config()` here. Any field can be changed on the command line:

    python train.py --config=configs/classification/base.py --workdir=DIR --config.data.imbalance=100.0 ...
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the base configuration; all fields that exist, exist here."""
    c = ConfigDict()

    c.task = "classification"  # what train.py tells these configs from those of detectors by
    c.name = "cifar100_lt"
    c.seed = 0  # with the step and the image id, fixes every random draw but the choice of the images

    # ---------------------------------------------------------------- data
    d = c.data = ConfigDict()
    # 'cifar10' and 'cifar100' of TFDS, made long-tailed; 'drawn': made on the spot; 'imagenet_lt': image lists
    d.source = "cifar100"
    d.tfds_dir = ""  # where TFDS has CIFAR; "": its default
    # Images of the most frequent class over those of the least frequent one, of CIFAR and drawn sets:
    # n_i = n_max * imbalance^(-i / (K - 1)), rounded down. 200 on CIFAR-100 is 9,502 images
    d.imbalance = 200.0
    d.subset_seed = 0  # which images of CIFAR are kept, and what is drawn; runs of other seeds share the data
    d.drawn = ConfigDict()
    d.drawn.num_classes = 50
    d.drawn.largest_class = 300  # training images of the most frequent class
    d.drawn.val_per_class = 20
    d.drawn.lookalikes = True  # classes come in groups of four that resemble each other
    d.images = ""  # imagenet_lt: the folder that the lists' paths are below
    d.train_list = ""  # imagenet_lt: ImageNet_LT_train.txt, lines 'train/n01440764/x.JPEG 0'
    d.val_list = ""  # and what is evaluated on, ImageNet_LT_test.txt in the paper
    d.image_size = 32
    # Training: 'none'; 'padded': shifted by up to `pad` pixels; 'resized': a random part of 8 to 100 % of the area,
    # resized (then evaluation takes the middle of the image, its shorter side made 8/7 of image_size)
    d.crop = "padded"
    d.pad = 4
    d.flip = True  # random horizontal flip
    # Random colours, see configs/base.py; before AutoAugment
    d.photometric = ConfigDict(dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0))
    d.auto_augment = "cifar10"  # policy of AutoAugment: 'cifar10', 'imagenet' or "" for none
    d.cutout = 16  # side of the square that is blotted out at a random place; 0: none
    d.engine = "threads"  # or 'tf.data', the same batches
    d.workers = 0  # threads that make rows of batches; 0: as many as there are cores
    d.prefetch = 2  # batches in flight on the host, and as many on the device

    # ---------------------------------------------------------------- model
    m = c.model = ConfigDict()
    # 'cifar_resnet' (He et al. 2016, section 4.2; depth 6n + 2) or 'resnet' (ImageNet's with basic blocks; 10, 18, 34)
    m.kind = "cifar_resnet"
    m.depth = 32
    m.width = 16  # channels of the first stage, each further one has twice as many; 64 is usual for 'resnet'
    m.dtype = "float32"  # compute type: 'float32' or 'bfloat16'; parameters stay float32
    m.pixel_mean = (129.3, 124.1, 112.4)  # RGB, 0..255; padding and Cutout have this colour, rounded
    m.pixel_std = (68.2, 65.4, 70.4)
    m.prior = 0.01  # score that every class starts with under losses with a sigmoid

    # ---------------------------------------------------------------- loss
    loss = c.loss = ConfigDict()
    loss.name = "softmax"  # any of eql_jax.class_losses, or 'module:Class' of your own
    loss.options = ConfigDict()  # what it has of options, --config.loss.options.gamma=0.9 say
    # The tail of 'seql' and 'eql': classes whose share of the training images is below lambda (threshold)
    loss.tail_threshold = 3e-3
    loss.tail_function = "step"  # T below the threshold: 'step', 'exponential' or 'gompertz'

    # ---------------------------------------------------------------- training
    t = c.train = ConfigDict()
    t.batch_size = 256  # images over all devices and hosts
    # Batch size that the learning rate and the step counts are meant for; another train.batch_size scales them by the
    # linear rule (eql_jax/training/batch_scaling.py). 0: no scaling
    t.reference_batch_size = 256
    t.steps = 12_800
    t.gradient_accumulation = 1  # the batch is run in this many parts; BatchNorm sees one part at a time
    # Steps that go to the device in one call, so that the host has less to do. Saves and evaluations come at their
    # steps all the same, with calls of one step before them where this does not divide checkpoint.every or eval.every
    t.steps_per_call = 1
    t.reduce_dtype = "compute"  # gradients are summed over devices in what they are computed in, or in 'bfloat16'
    t.init_from = ""  # workdir or checkpoint whose parameters training starts from
    t.loss_weights = ConfigDict(dict(cls=1.0))
    o = c.optimizer = ConfigDict()
    o.name = "sgd"  # 'sgd' (momentum) or 'adamw'
    o.learning_rate = 0.2
    o.momentum = 0.9
    o.nesterov = True
    o.betas = (0.9, 0.999)  # adamw
    o.weight_decay = 1e-4
    o.schedule = "steps"  # 'steps', 'cosine' or 'constant', after the warm-up
    o.decay_at = (6400, 9600)
    o.decay_factor = 0.1
    o.warmup_steps = 400
    o.warmup_factor = 0.5  # of the learning rate, at step 0: from .1 to .2
    o.clip_norm = 0.0  # global gradient norm; 0: off
    # (regex over the parameter's path, factor of learning rate, factor of weight decay): none, so that norms and biases
    # decay too, as He et al. 2016 have it
    o.groups = ()
    o.ema_decay = 0.0  # exponential moving average of the parameters, used for evaluation; 0: off

    # ---------------------------------------------------------------- devices, evaluation, logs, checkpoints
    c.mesh = ConfigDict(dict(data=-1, model=1, fsdp=False))  # see configs/base.py
    e = c.eval = ConfigDict()
    e.every = 1600  # steps; 0: at the end only
    e.batch_size = 256  # images over all devices and hosts
    e.max_images = 0  # 0: all
    e.many_above = 100  # classes with more training images than this are 'many'
    e.few_below = 20  # with fewer than this 'few', the rest 'medium'
    c.log = ConfigDict(dict(every=50, tensorboard=True, progress=True))
    # Kept are the newest `keep`, the best `keep_best` (by top1), and the first at or after each multiple of keep_every
    # steps (0: no such)
    c.checkpoint = ConfigDict(dict(every=1600, keep=2, keep_best=1, keep_every=0))
    c.debug = ConfigDict(dict(nan_checks=True))  # stop on a loss that is not finite, naming step, images and terms
    return c
