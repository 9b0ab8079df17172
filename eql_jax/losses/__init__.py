"""Losses of long-tailed detection as plain functions on arrays: equalization loss (EQL), baselines, RPN, box and mask.

This package needs JAX and NumPy, nothing else, not even the rest of eql_jax (`pip install` of eql_jax without extras
brings no more). Three steps lift EQL into a detector of your own.

1. Once, say which classes are the tail. From training counts (images that contain each class, in your class order):

    >>> import numpy as np
    >>> from eql_jax.losses import tail_mask_from_threshold, tail_ratio
    >>> image_counts = np.array([5200, 900, 60, 8])  # e.g. of 50,000 training images
    >>> tail_mask = tail_mask_from_threshold(image_counts / 50_000, 1.76e-3)
    >>> tail_mask
    array([False, False,  True,  True])
    >>> round(tail_ratio(image_counts, tail_mask), 3)  # good thresholds give .02 to .10 on LVIS
    0.011

   On LVIS, `tail_mask_from_letters([...], "rc")` with the categories' `frequency` letters does the same.

2. In the training step, replace the classification loss of the box head. The classifier has K logits and *no*
   background column (drop yours). Labels are 0..K-1, background is K, and -1 marks rows of padding. (Where background
   is 0 and classes are 1..K: `(labels - 1) % (K + 1)`, then set the padding.)

    >>> import jax, jax.numpy as jnp
    >>> from eql_jax.losses import equalization_loss
    >>> logits = jnp.zeros((4, 4))  # [R, K]: R sampled proposals of the batch
    >>> labels = jnp.array([0, 2, 4, -1])  # frequent object, rare object, background, padding
    >>> loss = equalization_loss(logits, labels, tail_mask)
    >>> grad = jax.grad(equalization_loss)(logits, labels, tail_mask)
    >>> print(np.sign(np.asarray(grad)).astype(int))  # 1 pushes a logit down, -1 up, 0 leaves it alone
    [[-1  1  0  0]
     [ 1  1 -1  0]
     [ 1  1  1  1]
     [ 0  0  0  0]]

   The frequent object (row 0) no longer pushes down the rare classes 2 and 3; background (row 2) still does, or false
   positives explode.

3. Initialise the classifier for sigmoids as the authors do, weights with standard deviation .01 and every bias with
   -log((1 - p) / p), p = .001: all classes start with score p instead of .5, which would swamp the first steps with
   negatives. At inference the scores are `jax.nn.sigmoid(logits)`.

Every function takes any leading axes and is pure: jit, vmap and grad apply. Sums run over the whole array and are
divided by the number of valid rows, or by `normalizer` if you count over several devices. Smooth thresholds are in
`threshold_function`, section 4.2's verified negatives in `exempt_classes`, and pictures in which nobody looked for some
classes in `annotated_classes`.
"""

from eql_jax.losses.box_losses import box_pair_regression_loss, ciou_loss, diou_loss, giou_loss
from eql_jax.losses.calibration import LogNStatistics, adjust_logits, logn, logn_statistics, norcal
from eql_jax.losses.classification import (
    equalization_loss,
    sigmoid_cross_entropy_loss,
    softmax_cross_entropy_loss,
)
from eql_jax.losses.detection import box_regression_loss, mask_loss, rpn_box_loss, rpn_objectness_loss
from eql_jax.losses.effective_class_margin import (
    EffectiveClassMarginState,
    effective_class_margin_init,
    effective_class_margin_loss,
    effective_class_margin_scores,
    effective_class_margins,
)
from eql_jax.losses.elementwise import smooth_l1
from eql_jax.losses.eqlv2 import eqlv2_init, eqlv2_loss, eqlv2_scores, eqlv2_weights
from eql_jax.losses.equalized_focal import equalized_focal_focusing, equalized_focal_init, equalized_focal_loss
from eql_jax.losses.federated import federated_classes, federated_loss
from eql_jax.losses.focal import class_balanced_loss, class_balanced_weights, focal_loss
from eql_jax.losses.group_softmax import (
    class_groups,
    group_softmax_loss,
    group_softmax_scores,
    group_softmax_weights,
)
from eql_jax.losses.memory import GradientMemory
from eql_jax.losses.padding import pad_classes, pad_per_class, padded_count
from eql_jax.losses.seesaw import SeesawState, seesaw_init, seesaw_loss, seesaw_scores
from eql_jax.losses.softmax_family import balanced_softmax_loss, softmax_equalization_loss
from eql_jax.losses.tail import tail_mask_from_letters, tail_mask_from_threshold, tail_ratio, threshold_function

__all__ = [
    "EffectiveClassMarginState",
    "GradientMemory",
    "LogNStatistics",
    "SeesawState",
    "adjust_logits",
    "balanced_softmax_loss",
    "box_pair_regression_loss",
    "box_regression_loss",
    "ciou_loss",
    "class_balanced_loss",
    "class_balanced_weights",
    "class_groups",
    "diou_loss",
    "effective_class_margin_init",
    "effective_class_margin_loss",
    "effective_class_margin_scores",
    "effective_class_margins",
    "eqlv2_init",
    "eqlv2_loss",
    "eqlv2_scores",
    "eqlv2_weights",
    "equalization_loss",
    "equalized_focal_focusing",
    "equalized_focal_init",
    "equalized_focal_loss",
    "federated_classes",
    "federated_loss",
    "focal_loss",
    "giou_loss",
    "group_softmax_loss",
    "group_softmax_scores",
    "group_softmax_weights",
    "logn",
    "logn_statistics",
    "mask_loss",
    "norcal",
    "pad_classes",
    "pad_per_class",
    "padded_count",
    "rpn_box_loss",
    "rpn_objectness_loss",
    "seesaw_init",
    "seesaw_loss",
    "seesaw_scores",
    "sigmoid_cross_entropy_loss",
    "smooth_l1",
    "softmax_cross_entropy_loss",
    "softmax_equalization_loss",
    "tail_mask_from_letters",
    "tail_mask_from_threshold",
    "tail_ratio",
    "threshold_function",
]
