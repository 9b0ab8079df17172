"""Calibration of a trained model for a long tail, after training: NorCal, LogN and logit adjustment.

No training, no memory: functions on the scores or logits of a trained classifier, to put between it and the choice of
detections. A calibrated detector needs a low score threshold, since rare classes rise from the bottom of the list.

Shapes: K foreground classes; "..." any leading axes, such as images and proposals.

    >>> import jax.numpy as jnp
    >>> from eql_jax.losses import adjust_logits, logn, logn_statistics, norcal
    >>> image_counts = jnp.array([1000, 10])
    >>> scores = jnp.array([[0.5, 0.1]])  # softmax: the other .4 is background
    >>> print(norcal(scores, image_counts, gamma=0.6).round(3))  # the rare class is ahead now
    [[0.018 0.058]]
    >>> logits = jnp.array([[4.0, -1.0, 1.0], [2.0, -2.0, 3.0]])  # of two proposals; background last
    >>> print(adjust_logits(logits, image_counts, tau=0.5).round(2))
    [[4.   1.31 1.  ]
     [2.   0.31 3.  ]]
    >>> statistics = logn_statistics(logits)  # of all training proposals: add batches with previous=statistics
    >>> print(logn(logits, statistics.mean, statistics.variance))
    [[-0.5 -2.   1. ]
     [-2.5 -4.   3. ]]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from eql_jax.losses.checks import check_floating, check_range, check_shape
from eql_jax.losses.elementwise import loss_dtype


def norcal(
    scores: ArrayLike,
    counts: ArrayLike,
    *,
    gamma: float = 0.6,
    background: ArrayLike | None = None,
    sigmoid: bool = False,
) -> jax.Array:
    """NorCal: foreground scores divided by a power of the class's training count, and normalised again.

    Pan et al., "On Model Calibration for Long-Tailed Object Detection and Instance Segmentation", NeurIPS 2021, arXiv
    2107.02170. Of a softmax with background b, whose exponential is not divided:

        p_c' = (exp(z_c) / N_c^gamma) / (sum_k exp(z_k) / N_k^gamma + exp(z_b))
             = (p_c / N_c^gamma)      / (sum_k p_k / N_k^gamma      + p_b)

    which the second form takes from the probabilities. With one sigmoid per class there is no common sum. Then, as an
    extension of this package, each class is normalised with its own complement, the sigmoid's other exponential:

        p_c' = (p_c / N_c^gamma) / (p_c / N_c^gamma + 1 - p_c)

    Args:
      scores: float [..., K], probabilities of the foreground classes; widened to float32.
      counts: [K], training images of each class (the paper's N; objects do as well). Below 1 they are taken for 1.
      gamma: 0 leaves the scores alone; .6 is about the paper's choice for softmax on LVIS.
      background: float [...], probability of background. None: 1 - sum of the scores, whose rounding error of 1e-7 the
        division makes up to 1e-7 N_c^gamma where a class leaves nothing to background. Give 0 for classification
        without background.
      sigmoid: the scores are one sigmoid per class, and background must be None.

    Returns:
      float32 [..., K].

    Raises:
      ValueError: shapes or dtypes do not fit, gamma or (outside jit) a count is negative, or a score is outside [0, 1]
        by more than rounding; background is given with sigmoid.
    """
    scores, counts = _per_class(scores, "scores", counts, "counts")
    check_range("scores", scores, -1e-5, 1 + 1e-5)
    check_range("gamma", gamma, 0)
    scores = scores.astype(loss_dtype(scores, "scores"))
    # exp of the logarithm, so that counts of many digits and a large gamma do not overflow on the way.
    divided = scores * jnp.exp(-gamma * jnp.log(jnp.maximum(counts, 1))).astype(scores.dtype)
    if sigmoid:
        if background is not None:
            raise ValueError("background is given; sigmoid scores have none, expected None")
        return divided / _at_least_tiny(divided + 1 - scores)
    if background is None:
        rest = jnp.maximum(1 - jnp.sum(scores, axis=-1), 0)
    else:
        rest = jnp.asarray(background, scores.dtype)
        rest = jnp.broadcast_to(rest, scores.shape[:-1]) if rest.ndim == 0 else rest
        check_shape("background", rest, scores.shape[:-1], f"one per row of scores, which has shape {scores.shape}")
    return divided / _at_least_tiny(jnp.sum(divided, axis=-1) + rest)[..., None]


class LogNStatistics(NamedTuple):
    """Mean and variance of each column of logits over `count` rows: float32 [C], [C] and []."""

    mean: jax.Array
    variance: jax.Array
    count: jax.Array


def logn_statistics(
    logits: ArrayLike, valid: ArrayLike | None = None, previous: LogNStatistics | None = None
) -> LogNStatistics:
    """Mean and variance of the logits over training proposals, batch after batch.

    The paper's are running averages of a BatchNorm with momentum 1e-4 over an epoch. These are the ones of all rows,
    merged batch by batch without cancellation; up to rounding the order makes no difference.

    Args:
      logits: float [..., C]; C = K + 1 with a background column.
      valid: bool [...], rows that count. None: all do.
      previous: statistics to add these rows to. None: these rows alone.

    Returns:
      LogNStatistics. The variance is that of the population (divided by the count).

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    logits = jnp.asarray(logits)
    check_floating("logits", logits)
    dtype = loss_dtype(logits, "logits")
    if logits.ndim < 2:
        raise ValueError(f"logits has shape {logits.shape}; expected [..., rows, columns]")
    valid = jnp.ones(logits.shape[:-1], bool) if valid is None else jnp.asarray(valid, bool)
    check_shape("valid", valid, logits.shape[:-1], f"one per row of logits, which has shape {logits.shape}")
    rows = tuple(range(logits.ndim - 1))
    count = jnp.sum(valid, dtype=dtype)
    x = jnp.where(valid[..., None], logits.astype(dtype), 0)
    mean = jnp.sum(x, axis=rows) / jnp.maximum(count, 1)
    deviation = jnp.where(valid[..., None], x - mean, 0)
    variance = jnp.sum(deviation * deviation, axis=rows) / jnp.maximum(count, 1)
    if previous is None:
        return LogNStatistics(mean, variance, count)
    check_shape("previous.mean", jnp.asarray(previous.mean), mean.shape, "the columns of logits")
    total = previous.count + count
    share = count / jnp.maximum(total, 1)
    difference = mean - previous.mean
    merged = (1 - share) * previous.variance + share * variance + share * (1 - share) * difference * difference
    return LogNStatistics(previous.mean + share * difference, merged, total)


def logn(logits: ArrayLike, mean: ArrayLike, variance: ArrayLike, *, background: bool = True) -> jax.Array:
    """LogN: each class's logits standardised by their statistics over training proposals.

    Zhao et al., "Logit Normalization for Long-Tail Object Detection", arXiv 2203.17020 (IJCV 2024):

        z_c' = (z_c - (mean_c - beta)) / sqrt(variance_c),   beta = min_k mean_k over the foreground classes

    and background's logit stays as it is. The scores are softmax or sigmoid of the result, as in training.

    Args:
      logits: float [..., K + 1], background last; [..., K] without background.
      mean, variance: of `logn_statistics`, one per column of logits; background's are not used.
      background: False where there is no background column.

    Returns:
      float32, of logits' shape.

    Raises:
      ValueError: shapes or dtypes do not fit; outside jit also a variance that is negative or NaN.
    """
    logits, mean = _per_class(logits, "logits", mean, "mean", low=None)
    variance = jnp.asarray(variance)
    check_shape("variance", variance, mean.shape, f"one per column of logits, which has shape {logits.shape}")
    check_range("variance", variance, 0)
    num_classes = logits.shape[-1] - background
    logits = logits.astype(loss_dtype(logits, "logits"))
    shift = mean - jnp.min(mean[:num_classes])
    scale = jax.lax.rsqrt(jnp.maximum(variance, 1e-11))  # the release's floor
    foreground = jnp.arange(logits.shape[-1]) < num_classes
    return jnp.where(foreground, (logits - shift) * scale, logits).astype(logits.dtype)


def adjust_logits(logits: ArrayLike, counts: ArrayLike, *, tau: float = 1.0) -> jax.Array:
    """Logit adjustment after training: the logarithm of the class's share in training is taken off.

    Menon et al., "Long-tail Learning via Logit Adjustment", ICLR 2021, arXiv 2007.07314, section 4.1:

        z_c' = z_c - tau log(pi_c),    pi_c = N_c / sum_k N_k

    With K counts for K + 1 columns the last one, background, stays as it is, and pi is a share of the objects: every
    foreground class rises against background, rare ones most. `norcal` of the softmax scores is the same with N_c in
    place of pi_c, so that every class falls. With a count of background rows among the counts all columns are adjusted.

    Args:
      logits: float [..., C].
      counts: [C], training count of each column, or [C - 1], of all but background, the last. Below 1 they are taken
        for 1.
      tau: strength; 1 is the Bayes-optimal correction of calibrated probabilities.

    Returns:
      float32, of logits' shape.

    Raises:
      ValueError: shapes or dtypes do not fit, or outside jit a count is negative or NaN.
    """
    logits, counts = jnp.asarray(logits), jnp.asarray(counts)
    check_floating("logits", logits)
    if logits.ndim < 1 or counts.ndim != 1 or logits.shape[-1] - counts.shape[0] not in (0, 1):
        raise ValueError(
            f"counts has shape {counts.shape}, logits {logits.shape}; expected one count per column of logits, or one "
            "for each but the last (background)"
        )
    check_range("counts", counts, 0)
    logits = logits.astype(loss_dtype(logits, "logits"))
    counts = jnp.maximum(counts, 1).astype(logits.dtype)
    shift = tau * (jnp.log(counts) - jnp.log(jnp.sum(counts)))
    return logits - jnp.concatenate([shift, jnp.zeros(logits.shape[-1] - counts.shape[0], shift.dtype)])


def _per_class(
    x: ArrayLike, name: str, per_class: ArrayLike, per_class_name: str, low: float | None = 0
) -> tuple[jax.Array, jax.Array]:
    x, per_class = jnp.asarray(x), jnp.asarray(per_class)
    check_floating(name, x)
    check_shape(per_class_name, per_class, x.shape[-1:], f"one per column of {name}, which has shape {x.shape}")
    if low is not None:
        check_range(per_class_name, per_class, low)
    return x, per_class


def _at_least_tiny(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)
