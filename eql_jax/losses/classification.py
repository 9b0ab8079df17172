"""Classification losses over sampled proposals: equalization loss, sigmoid and softmax cross-entropy.

Shapes: R rows (proposals, RoIs or pictures), K foreground classes; "..." any leading axes, such as images. Labels are
0..K-1, K for background, -1 for a padding row that counts nowhere. Sigmoid losses have K logits and no background
column, the softmax loss has one column per label, background last.

Every loss is summed over classes and divided by the number of valid rows of the whole array, which is what detectron2
does with its sampled RoIs. Without valid rows a loss is 0, with zero gradient.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from eql_jax.losses.checks import broadcast_bool, check_per_class, check_range, check_rows
from eql_jax.losses.elementwise import divide_or_zero, loss_dtype, sigmoid_bce, softmax_ce


def equalization_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    tail_mask: ArrayLike,
    *,
    background_keeps_negatives: bool = True,
    exempt_classes: ArrayLike | None = None,
    annotated_classes: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Equalization loss (EQL): sigmoid cross-entropy that spares rare classes the negatives of other classes' objects.

    In a long-tailed data set every object of a frequent class is a negative example for each rare class, and these
    negatives drown the few positives. EQL drops them (Tan et al., CVPR 2020, arXiv 2003.05176, equations 6 to 8):

        w_j  = 1 - E(r) T(f_j) (1 - y_j)
        loss = 1 / R sum_r sum_j w_j BCE(z_j, y_j)

    with E(r) = 1 for a foreground proposal and 0 for background, y the one-hot label (all zero for background) and
    T = 1 for tail classes, f_j < lambda. So a background proposal is a negative for every class, and a foreground
    proposal for the classes outside the tail.

    Args:
      logits: float [..., R, K]; widened to float32 before anything is computed.
      labels: int [..., R], 0..K-1 foreground, K background, -1 for rows that count nowhere. Other values are an
        error outside jit and undefined inside.
      tail_mask: [K], bool (tail classes), or float T(f) in [0, 1] for a smooth threshold. See `eql_jax.losses.tail`.
        Bool is the faster of the two.
      background_keeps_negatives: E(r) as above; False sets E = 1 everywhere, the paper's ablation, in which tail
        classes see no negatives at all (rare AP 12.5 for 11.3, frequent 23.1 for 25.1).
      exempt_classes: bool, any shape that broadcasts to [..., R, K] ([K] for all rows; [B, 1, K] for images of R
        rows): classes whose weight is forced to 1, as section 4.2 does with the classes annotated or verified absent
        in an image. None (the released code): no exemption.
      annotated_classes: bool, shapes as for exempt_classes: False for classes that nobody looked for in an image, whose
        weight is 0 unless the row is an object of theirs, exempt or not. None: all are annotated.
      normalizer: scalar to divide the sum by, instead of the number of rows with label >= 0; for instance the count
        over all devices. A value that is not positive gives loss 0.

    Returns:
      float32 scalar (float64 for float64 logits).

    Raises:
      ValueError: shapes or dtypes do not fit; outside jit also: labels out of range, T outside [0, 1], NaN logits in
        rows that count.
    """
    logits, labels, tail_mask = jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(tail_mask)
    check_rows(logits, labels, extra_label=True)
    num_classes = logits.shape[-1]
    meaning = "one entry per column of logits; no background column"
    check_per_class("tail_mask", tail_mask, num_classes, logits.shape, meaning)
    if tail_mask.dtype != jnp.bool_ and not jnp.issubdtype(tail_mask.dtype, jnp.floating):
        raise ValueError(f"tail_mask has dtype {tail_mask.dtype}; expected bool, or float thresholds T in [0, 1]")
    if tail_mask.dtype != jnp.bool_:
        check_range("tail_mask", tail_mask, 0, 1)

    # Comparing labels keeps these masks as booleans that XLA fuses into the loss: no [R, K] array of weights is stored.
    target = labels[..., None] == jnp.arange(num_classes)
    full_weight = target
    if background_keeps_negatives:
        full_weight |= (labels == num_classes)[..., None]
    if exempt_classes is not None:
        full_weight |= broadcast_bool("exempt_classes", exempt_classes, logits.shape)
    valid = (labels >= 0)[..., None]
    counted = valid
    if annotated_classes is not None:
        counted &= target | broadcast_bool("annotated_classes", annotated_classes, logits.shape)
    if tail_mask.dtype == jnp.bool_:
        counted &= full_weight | ~tail_mask
        total = jnp.sum(sigmoid_bce(logits, target, counted))
    else:
        weight = jnp.where(full_weight, 1, 1 - tail_mask.astype(loss_dtype(logits, "logits")))
        counted &= weight > 0
        total = jnp.sum(weight * sigmoid_bce(logits, target, counted))
    return divide_or_zero(total, jnp.sum(valid) if normalizer is None else normalizer)


def sigmoid_cross_entropy_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    annotated_classes: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """One binary cross-entropy per class, summed over classes: the paper's baseline, EQL with an empty tail.

    Args:
      logits: float [..., R, K], no background column (detectron2's sigmoid loss has one and leaves it out).
      labels: int [..., R], 0..K-1 foreground, K background (a negative of all classes), -1 counts nowhere.
      annotated_classes: bool, broadcasts to [..., R, K] ([B, 1, K] for images of R rows): classes that are False give
        no negatives. None: all do.
      normalizer: scalar to divide by, instead of the number of rows with label >= 0.

    Returns:
      float32 scalar.

    Raises:
      ValueError: shapes or dtypes do not fit; outside jit also for labels out of range and NaN in rows that count.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    check_rows(logits, labels, extra_label=True)
    target = labels[..., None] == jnp.arange(logits.shape[-1])
    valid = (labels >= 0)[..., None]
    counted = valid
    if annotated_classes is not None:
        counted &= target | broadcast_bool("annotated_classes", annotated_classes, logits.shape)
    total = jnp.sum(sigmoid_bce(logits, target, counted))
    return divide_or_zero(total, jnp.sum(valid) if normalizer is None else normalizer)


def softmax_cross_entropy_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    background: bool = True,
    annotated_classes: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Softmax cross-entropy: detectron2's default box head, and plain classification.

    Args:
      logits: float [..., R, K + 1], background last; [..., R, K] without background.
      labels: int [..., R], 0..K, K is background; -1 counts nowhere.
      background: False for classification without background. It matters for annotated_classes alone.
      annotated_classes: bool, broadcasts to [..., R, K] ([B, 1, K] for images of R rows): classes that are False are
        left out of the denominator, except of their own objects' rows; background never is. None: all are in it.
      normalizer: scalar to divide by, instead of the number of rows with label >= 0.

    Returns:
      float32 scalar.

    Raises:
      ValueError: shapes or dtypes do not fit; outside jit also for labels out of range and NaN in rows that count.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    check_rows(logits, labels, extra_label=False)
    valid = labels >= 0
    target = labels[..., None] == jnp.arange(logits.shape[-1])
    if annotated_classes is not None:
        classes = (*labels.shape, logits.shape[-1] - background)
        annotated = broadcast_bool("annotated_classes", annotated_classes, classes)
        always = jnp.ones((*labels.shape, int(background)), bool)
        logits = jnp.where(target | jnp.concatenate([annotated, always], axis=-1), logits, -jnp.inf)
    total = jnp.sum(softmax_ce(logits, target, valid))
    return divide_or_zero(total, jnp.sum(valid) if normalizer is None else normalizer)
