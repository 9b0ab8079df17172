"""Focal loss, and weights of classes by their effective number of samples.

Shapes: R rows, K foreground classes; "..." any leading axes. Labels are 0..K-1, K for background, -1 for padding.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from eql_jax.losses.checks import broadcast_bool, check_per_class, check_range, check_rows
from eql_jax.losses.elementwise import divide_or_zero, focal_bce, loss_dtype, sigmoid_bce, softmax_ce

KINDS = ("sigmoid", "focal", "softmax", "softmax_bce")  # of class_balanced_loss


def focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: float | None = 0.25,
    gamma: ArrayLike = 2.0,
    annotated_classes: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Focal loss: sigmoid cross-entropy in which what is already right counts little.

        loss = 1 / R sum_r sum_j a_t (1 - p_t)^gamma BCE(z_j, y_j)

    with p_t = p for y = 1 and 1 - p for y = 0, p = sigmoid(z), and a_t = alpha for y = 1 and 1 - alpha for y = 0.
    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv 1708.02002. (There the sum is divided by the
    number of anchors with an object; give that as `normalizer` for a one-stage detector.)

    Args:
      logits: float [..., R, K], no background column; widened to float32.
      labels: int [..., R], 0..K-1 foreground, K background (a negative of all classes), -1 for rows that count nowhere.
        Other values are an error outside jit and undefined inside.
      alpha: weight of positives, in [0, 1]; None: 1 for positives and negatives.
      gamma: scalar, not negative; 0 with alpha None is sigmoid cross-entropy.
      annotated_classes: bool, broadcasts to [..., R, K] ([B, 1, K] for images of R rows): classes that are False give
        no negatives. None: all do.
      normalizer: scalar to divide the sum by, instead of the number of rows with label >= 0.

    Returns:
      float32 scalar (float64 for float64 logits).

    Raises:
      ValueError: shapes or dtypes do not fit, or alpha is outside [0, 1]; outside jit also: labels out of range, a
        negative gamma, NaN logits in rows that count.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    check_rows(logits, labels, extra_label=True)
    check_range("gamma", gamma, 0)
    target, counted, valid = _sigmoid_rows(logits, labels, annotated_classes)
    terms = focal_bce(logits, target, counted, gamma)
    if alpha is not None:
        check_range("alpha", alpha, 0, 1)
        terms *= jnp.where(target, alpha, 1 - alpha).astype(terms.dtype)
    return divide_or_zero(jnp.sum(terms), jnp.sum(valid) if normalizer is None else normalizer)


def class_balanced_weights(counts: ArrayLike, beta: float = 0.9999, *, normalize: bool = True) -> np.ndarray:
    """Weights of classes by their effective number of samples, (1 - beta) / (1 - beta^n).

    A sample more tells less the more there are, as they overlap: n samples are worth (1 - beta^n) / (1 - beta). With
    beta 0 all classes weigh alike, with beta near 1 they weigh 1 / n. Cui et al., "Class-Balanced Loss Based on
    Effective Number of Samples", CVPR 2019, arXiv 1901.05555. NumPy only, once per training.

    Args:
      counts: [K], training samples (or images) per class, 0 or more.
      beta: in [0, 1); the paper tries .9, .99, .999 and .9999.
      normalize: scale the weights so that their mean over the classes with samples is 1 (over all of them, the authors'
        sum of K). False: as in the formula.

    Returns:
      float32 [K]. A class without samples has weight 0 and no part in the scale.

    Raises:
      ValueError: counts are not [K], negative or NaN, all 0, or beta is outside [0, 1).
    """
    n = np.asarray(counts, np.float64)
    if n.ndim != 1:
        raise ValueError(f"counts has shape {n.shape}; expected [K], one number per class")
    check_range("counts", n, 0)
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; expected at least 0 and less than 1")
    present = n > 0
    if not present.any():
        raise ValueError(f"counts are all 0 (counts has shape {n.shape}); expected samples per class")
    # 1 - beta^n without the cancellation of small n (1 - beta)
    effective = -np.expm1(n * np.log(beta)) if beta > 0 else np.ones_like(n)
    weights = np.where(present, (1 - beta) / np.where(present, effective, 1), 0)
    if normalize:
        weights *= present.sum() / weights.sum()
    return weights.astype(np.float32)


def class_balanced_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike,
    *,
    kind: str = "sigmoid",
    gamma: ArrayLike = 2.0,
    annotated_classes: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Class-balanced loss: each row's loss times the weight of the row's class; see `class_balanced_weights`.

        loss = 1 / R sum_r W_y l(z_r, y_r)          W = 1 for background

    with l by `kind`: 'sigmoid', cross-entropy summed over the K classes; 'focal', the same with factor (1 - p_t)^gamma
    (no alpha, whose place the weights take); 'softmax', softmax cross-entropy. Cui et al., CVPR 2019,
    arXiv 1901.05555, who have no background. The authors' code has two peculiarities. It divides 'sigmoid' by K as
    well: give normalizer = R * K for its numbers. And what it calls softmax is 'softmax_bce' here, binary cross-entropy
    between the softmax and the one-hot target, summed over classes, which it also divides by K.

    Args:
      logits: float [..., R, K] for 'sigmoid' and 'focal'; [..., R, K] or [..., R, K + 1], background last, for the
        softmax kinds. Widened to float32.
      labels: int [..., R], 0..K-1, K for background ('sigmoid' and 'focal' always take it, the softmax kinds where it
        has a column), -1 for rows that count nowhere. Other values are an error outside jit and undefined inside.
      weights: float [K], not negative.
      kind: 'sigmoid', 'focal', 'softmax' or 'softmax_bce'.
      gamma: of 'focal', not negative; the others do not read it.
      annotated_classes: bool, broadcasts to [..., R, K] ([B, 1, K] for images of R rows): classes that are False give
        no negatives. For 'sigmoid' and 'focal' only. None: all do.
      normalizer: scalar to divide the sum by, instead of the number of rows with label >= 0.

    Returns:
      float32 scalar (float64 for float64 logits).

    Raises:
      ValueError: shapes or dtypes do not fit, an unknown kind, annotated_classes for a softmax kind; outside jit also:
        labels out of range, negative weights or gamma, NaN logits in rows that count.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(map(repr, KINDS))}")
    sigmoid = kind in ("sigmoid", "focal")
    logits, labels, weights = jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights)
    check_rows(logits, labels, extra_label=sigmoid)
    columns = logits.shape[-1]
    num_classes = columns - 1 if not sigmoid and weights.shape == (columns - 1,) else columns
    check_per_class("weights", weights, num_classes, logits.shape, "one entry per class, which has a column of logits")
    check_range("weights", weights, 0)
    check_range("gamma", gamma, 0)
    if annotated_classes is not None and not sigmoid:
        raise ValueError(f"annotated_classes given with kind {kind!r}; expected kind 'sigmoid' or 'focal' with it")

    target, counted, valid = _sigmoid_rows(logits, labels, annotated_classes)
    if kind == "sigmoid":
        terms = sigmoid_bce(logits, target, counted).sum(-1)
    elif kind == "focal":
        terms = focal_bce(logits, target, counted, gamma).sum(-1)
    elif kind == "softmax":
        terms = softmax_ce(logits, target, valid)
    else:
        terms = _softmax_bce(logits, target, valid)
    # W_y by a sum over classes rather than a look-up, which would gather from arrays that are sharded over classes.
    own = jnp.sum(jnp.where(target[..., :num_classes], weights.astype(terms.dtype), 0), axis=-1)
    total = jnp.sum(jnp.where(labels == num_classes, 1, own) * terms)
    return divide_or_zero(total, jnp.sum(valid) if normalizer is None else normalizer)


def _sigmoid_rows(
    logits: jax.Array, labels: jax.Array, annotated_classes: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Targets [..., R, C], elements that count (broadcastable to it) and rows that count [..., R], all bool."""
    target = labels[..., None] == jnp.arange(logits.shape[-1])
    valid = labels >= 0
    counted = valid[..., None]
    if annotated_classes is not None:
        counted &= target | broadcast_bool("annotated_classes", annotated_classes, logits.shape)
    return target, counted, valid


def _softmax_bce(logits: jax.Array, target: jax.Array, valid: jax.Array) -> jax.Array:
    """Binary cross-entropy of the softmax, summed over columns: [..., C] -> [...]; exact where PyTorch clips at 100."""
    x = jnp.where(valid[..., None], logits.astype(loss_dtype(logits, "logits")), 0)
    log_p = jax.nn.log_softmax(x, axis=-1)
    # 1 - p cancels for the largest column alone; there it is the share of all the others.
    largest = jnp.arange(x.shape[-1]) == jnp.argmax(x, axis=-1, keepdims=True)
    log_others = jax.nn.logsumexp(jnp.where(largest, -jnp.inf, log_p), axis=-1, keepdims=True)
    log_not_p = jnp.where(largest, log_others, jnp.log1p(-jnp.exp(jnp.where(largest, -1, log_p))))
    return -jnp.sum(jnp.where(valid[..., None], jnp.where(target, log_p, log_not_p), 0), axis=-1)
