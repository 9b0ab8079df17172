"""Softmax losses that know how frequent the classes are: softmax equalization loss (SEQL) and balanced softmax.

Shapes: R rows (pictures, or proposals), K classes; "..." any leading axes. Logits have K columns (classification), or
K + 1 with background last (detection). Labels are 0..K-1, K for background where it has a column, -1 for padding.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from eql_jax.losses.checks import broadcast_bool, check_per_class, check_range, check_rows
from eql_jax.losses.elementwise import divide_or_zero, loss_dtype, softmax_ce


def softmax_equalization_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    tail_mask: ArrayLike,
    *,
    beta: ArrayLike | None = None,
    key: jax.Array | None = None,
    gamma: ArrayLike | None = None,
    annotated_classes: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Softmax equalization loss (SEQL): tail classes are left out of other classes' denominators at random.

    EQL for classification without background (Tan et al., CVPR 2020, arXiv 2003.05176, section 3.3). A softmax that
    never saw a tail class as a negative could not learn to tell it from the rest, hence the draw:

        w_k  = 1 - beta_k T(f_k) (1 - y_k)              beta_k ~ Bernoulli(gamma), for each row and class
        loss = 1 / R sum_r -log(exp z_y / sum_k w_k exp z_k)

    The paper takes gamma .95 on CIFAR-100-LT and .9 on ImageNet-LT. gamma 0 is softmax cross-entropy.

    In a detector (K + 1 columns) background follows EQL's E(r): its column is in every denominator, and a background
    row keeps the whole one. The paper itself has no such case.

    Args:
      logits: float [..., R, K] or [..., R, K + 1], background last; widened to float32.
      labels: int [..., R], a column of logits, or -1 for rows that count nowhere. Other values are an error outside jit
        and undefined inside.
      tail_mask: [K], bool (tail classes) or float T(f) in [0, 1].
      beta: the draw, bool or numbers in [0, 1], broadcasts to [..., R, K]. In place of key and gamma.
      key: PRNG key to draw beta with. Under jit over a mesh the draw does not depend on the number of devices.
      gamma: probability that beta is 1, scalar.
      annotated_classes: bool, broadcasts to [..., R, K] ([B, 1, K] for images of R rows): classes that are False are
        left out of all denominators but their own objects'. None: all are annotated.
      normalizer: scalar to divide the sum by, instead of the number of rows with label >= 0.

    Returns:
      float32 scalar (float64 for float64 logits).

    Raises:
      ValueError: shapes or dtypes do not fit, or not exactly one of beta and (key, gamma) is given; outside jit also:
        labels out of range, T, beta or gamma outside [0, 1], NaN logits in rows that count.
    """
    logits, labels, tail_mask = jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(tail_mask)
    check_rows(logits, labels, extra_label=False)
    num_classes = _foreground_columns("tail_mask", tail_mask, logits)
    if tail_mask.dtype != jnp.bool_ and not jnp.issubdtype(tail_mask.dtype, jnp.floating):
        raise ValueError(f"tail_mask has dtype {tail_mask.dtype}; expected bool, or float thresholds T in [0, 1]")
    check_range("tail_mask", tail_mask, 0, 1)
    shape = (*labels.shape, num_classes)
    if (beta is None) == (key is None) or (key is None) != (gamma is None):
        given = [name for name, x in (("beta", beta), ("key", key), ("gamma", gamma)) if x is not None]
        raise ValueError(f"{', '.join(given) or 'nothing'} given; expected beta, or key and gamma")
    if beta is None:
        check_range("gamma", gamma, 0, 1)
        beta = jax.random.bernoulli(key, gamma, shape)
    else:
        beta = jnp.asarray(beta)
        check_range("beta", beta, 0, 1)
        try:
            beta = jnp.broadcast_to(beta, shape)
        except ValueError:
            raise ValueError(
                f"beta has shape {beta.shape}; expected one that broadcasts to {shape}, the rows of logits "
                f"{logits.shape} and the classes of tail_mask {tail_mask.shape}"
            ) from None

    dtype = loss_dtype(logits, "logits")
    target = labels[..., None] == jnp.arange(logits.shape[-1])
    keeps_all = target[..., :num_classes] | (labels == num_classes)[..., None]
    if annotated_classes is None:
        annotated = True
    else:
        annotated = target[..., :num_classes] | broadcast_bool("annotated_classes", annotated_classes, shape)
    if beta.dtype == jnp.bool_ and tail_mask.dtype == jnp.bool_:
        log_weight = jnp.where(beta & tail_mask, -jnp.inf, 0).astype(dtype)
    else:
        log_weight = jnp.log(1 - beta.astype(dtype) * tail_mask.astype(dtype))
    log_weight = jnp.where(annotated, jnp.where(keeps_all, 0, log_weight), -jnp.inf)
    valid = labels >= 0
    total = jnp.sum(softmax_ce(_add_to_foreground(logits.astype(dtype), log_weight), target, valid))
    return divide_or_zero(total, jnp.sum(valid) if normalizer is None else normalizer)


def balanced_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    counts: ArrayLike,
    *,
    tau: ArrayLike = 1.0,
    annotated_classes: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Balanced softmax, or logit-adjusted loss: cross-entropy of logits to which the log of the class prior is added.

        loss = 1 / R sum_r -log(n_y^tau exp z_y / sum_k n_k^tau exp z_k)

    So the softmax of the training distribution is z + log n, and z itself, used at inference, that of a distribution
    with equally many samples of each class. Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition",
    NeurIPS 2020, arXiv 2007.10740 (tau 1); Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021,
    arXiv 2007.07314 (any tau). tau 0 is softmax cross-entropy.

    In a detector (K + 1 columns) the classes get tau log(n_k / mean n) and background gets 0: the prior among objects
    becomes uniform, and that of objects against background stays what sampling makes it. With log n alone, each class
    would have its n-fold advantage over background in training and lose it at inference, and nothing would be detected.
    (Without background a constant changes nothing.) The papers have no such case.

    Args:
      logits: float [..., R, K] or [..., R, K + 1], background last; widened to float32.
      labels: int [..., R], a column of logits, or -1 for rows that count nowhere. Other values are an error outside jit
        and undefined inside.
      counts: [K], samples or images per class in training, more than 0 (take at least 1 for a class without any).
      tau: scalar, not negative.
      annotated_classes: bool, broadcasts to [..., R, K] ([B, 1, K] for images of R rows): classes that are False are
        left out of all denominators but their own objects'. None: all are annotated.
      normalizer: scalar to divide the sum by, instead of the number of rows with label >= 0.

    Returns:
      float32 scalar (float64 for float64 logits).

    Raises:
      ValueError: shapes or dtypes do not fit; outside jit also: labels out of range, counts that are not positive, a
        negative tau, NaN logits in rows that count.
    """
    logits, labels, counts = jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(counts)
    check_rows(logits, labels, extra_label=False)
    num_classes = _foreground_columns("counts", counts, logits)
    check_range("counts", counts, 0, above=True)
    check_range("tau", tau, 0)

    dtype = loss_dtype(logits, "logits")
    log_prior = jnp.log(counts.astype(dtype))
    # Shares of the mean: log n - log mean n, the mean by way of the largest count so that no sum of counts overflows.
    largest = jnp.max(log_prior)
    log_prior -= largest + jnp.log(jnp.mean(jnp.exp(log_prior - largest)))
    offset = tau * log_prior
    target = labels[..., None] == jnp.arange(logits.shape[-1])
    if annotated_classes is not None:
        annotated = broadcast_bool("annotated_classes", annotated_classes, (*labels.shape, num_classes))
        offset = jnp.where(target[..., :num_classes] | annotated, offset, -jnp.inf)
    valid = labels >= 0
    total = jnp.sum(softmax_ce(_add_to_foreground(logits.astype(dtype), offset), target, valid))
    return divide_or_zero(total, jnp.sum(valid) if normalizer is None else normalizer)


def _foreground_columns(name: str, per_class: jax.Array, logits: jax.Array) -> int:
    """K of a [K] argument, where logits have K columns, or K + 1 with background."""
    columns = logits.shape[-1]
    if per_class.shape == (columns - 1,):
        return columns - 1
    meaning = f"one entry per column of logits, or all but the last, background; not {(columns - 1,)} either"
    check_per_class(name, per_class, columns, logits.shape, meaning)
    return columns


def _add_to_foreground(logits: jax.Array, offset: jax.Array) -> jax.Array:
    """Logits [..., C] plus offset [..., K], K = C or C - 1; a last column beyond K stays."""
    if logits.shape[-1] != offset.shape[-1]:
        widths = [(0, 0)] * (offset.ndim - 1) + [(0, 1)]
        offset = jnp.pad(offset, widths)
    return logits + offset
