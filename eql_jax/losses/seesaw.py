"""Seesaw loss: softmax whose negatives weigh less for rarer classes and more for classes that are mistaken.

Source: Wang et al., "Seesaw Loss for Long-Tailed Instance Segmentation", CVPR 2021, arXiv 2008.10032, and mmdetection's
`seesaw_loss.py`. The paper's classifier is a normalised cosine one with temperature 20; the loss takes any logits.

Shapes: R rows, K foreground classes; "..." any leading axes. See `eql_jax.losses.memory` for several devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from eql_jax.losses.checks import broadcast_bool, check_per_class, check_range, check_rows
from eql_jax.losses.elementwise import divide_or_zero, loss_dtype, softmax_ce
from eql_jax.losses.memory import AxisName, check_num_classes, sum_over_devices, sum_rows


class SeesawState(NamedTuple):
    """Rows seen so far per label.

    samples: float32 [K + 1], background last ([K] without background). Counts are exact up to 2^24 = 16.8 million;
    beyond that, a step's additions are rounded to the spacing of float32 numbers there.
    """

    samples: jax.Array


def seesaw_init(num_classes: int, *, background: bool = True) -> SeesawState:
    """The state before the first step: no rows seen.

    Args:
      num_classes: K.
      background: False for classification without background.

    Returns:
      SeesawState with zeros, float32 [K + 1] ([K] without background).

    Raises:
      ValueError: num_classes is not a positive integer.
    """
    check_num_classes(num_classes)
    return SeesawState(jnp.zeros(num_classes + background, jnp.float32))


def seesaw_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    state: SeesawState,
    *,
    p: float = 0.8,
    q: float = 2.0,
    eps: float = 0.01,
    background: bool = True,
    mean_over_foreground: bool = False,
    annotated_classes: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    normalizer: ArrayLike | None = None,
) -> tuple[jax.Array, SeesawState]:
    """Seesaw loss over classes plus, with background, cross-entropy of an objectness pair.

    The labels of this batch are counted first: N_i rows of class i so far, this batch's of all devices among them.
    Then, over foreground rows with label i (equations 3 to 7 of the paper):

        loss   = 1 / R sum_r -log( exp(z_i) / (exp(z_i) + sum_{j != i} S_ij exp(z_j)) )
        S_ij   = M_ij C_ij
        M_ij   = min(1, N_j / N_i)^p                         (mitigation; counts are at least 1)
        C_ij   = max(1, s_j / max(s_i, eps))^q               (compensation)

    with s the softmax over the K classes, without gradient. Objectness is two-way cross-entropy of the last two
    columns, foreground before background, over all rows, divided by R as well.

    Args:
      logits: float [..., R, K + 2], K classes, foreground, background; [..., R, K] without background. Widened to
        float32.
      labels: int [..., R], 0..K-1 foreground, K background, -1 for rows that count nowhere, in the loss and the state.
      state: of `seesaw_init` or the step before; its length says K.
      p: strength of the mitigation, 0 for none.
      q: strength of the compensation, 0 for none.
      eps: smallest s_i in the compensation.
      background: False for classification without background: K columns, labels 0..K-1.
      mean_over_foreground: True divides the loss over classes by the number of foreground rows, as mmdetection's
        function does by itself; False by R, as its box head makes it do in training. Ignored without background, where
        both are the same.
      annotated_classes: bool, broadcasts to [..., R, K] ([B, 1, K] for images of R rows): classes that are False are
        left out of both softmaxes, except of their own objects' rows. None: all are in them.
      axis_name: mapped axis (or axes) over which the rows are spread, inside shard_map or pmap. The loss is then this
        device's share, the state the one of all devices; see `eql_jax.losses.memory`.
      normalizer: scalar to divide by, instead of R, the number of rows with label >= 0 (of all devices).

    Returns:
      float32 scalar (float64 for float64 logits), and the state with this batch counted.

    Raises:
      ValueError: shapes or dtypes do not fit, p or q is negative, eps is not positive; outside jit also labels that are
        out of range and logits that are NaN in a row that counts. Inside jit the results are undefined then.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    num_labels = jnp.shape(state.samples)[-1]
    num_classes = num_labels - background
    _check(logits, labels, state, num_classes, background)
    check_range("p", p, 0)
    check_range("q", q, 0)
    check_range("eps", eps, 0, above=True)

    valid = labels >= 0
    foreground = valid & (labels < num_classes)
    samples, total_rows, total_foreground = sum_over_devices(
        (
            sum_rows(labels[..., None] == jnp.arange(num_labels)),
            jnp.sum(valid, dtype=jnp.float32),
            jnp.sum(foreground, dtype=jnp.float32),
        ),
        axis_name,
    )
    state = jax.lax.stop_gradient(SeesawState(state.samples + samples))
    count = total_rows if normalizer is None else normalizer

    # Rows that do not count are zeroed before the exponentials, so that nothing in them can reach the gradient.
    logits = logits.astype(loss_dtype(logits, "logits"))
    classes = jnp.where(foreground[..., None], logits[..., :num_classes], 0)
    target = labels[..., None] == jnp.arange(num_classes)
    if annotated_classes is not None:
        annotated = broadcast_bool("annotated_classes", annotated_classes, classes.shape)
        classes = jnp.where(target | annotated | ~foreground[..., None], classes, -jnp.inf)
    factors = _log_factors(jax.lax.stop_gradient(classes), target, state.samples[:num_classes], p, q, eps)
    loss = divide_or_zero(
        jnp.sum(softmax_ce(classes + factors, target, foreground)),
        total_foreground if mean_over_foreground and background else count,
    )
    if background:
        pair = jnp.stack([foreground, labels == num_classes], axis=-1)
        loss += divide_or_zero(jnp.sum(softmax_ce(logits[..., num_classes:], pair, valid)), count)
    return loss, state


def seesaw_scores(logits: ArrayLike) -> jax.Array:
    """Scores of the loss with background: softmax over classes times the foreground probability of the pair.

    Without background they are a plain softmax.

    Args:
      logits: float [..., K + 2], K classes, foreground, background.

    Returns:
      float32 [..., K + 1], the probability of background last. They add up to 1.

    Raises:
      ValueError: logits are not floating point, or have less than three columns.
    """
    logits = jnp.asarray(logits)
    logits = logits.astype(loss_dtype(logits, "logits"))
    if logits.ndim < 1 or logits.shape[-1] < 3:
        raise ValueError(f"logits has shape {logits.shape}; expected [..., K + 2], classes, foreground, background")
    pair = jax.nn.softmax(logits[..., -2:], axis=-1)
    return jnp.concatenate([jax.nn.softmax(logits[..., :-2], axis=-1) * pair[..., :1], pair[..., 1:]], axis=-1)


def _log_factors(logits: jax.Array, target: jax.Array, samples: jax.Array, p: float, q: float, eps: float) -> jax.Array:
    # log S_ij [..., R, K] of each row's label i, 0 at the label itself. In logarithms, powers of ratios are products.
    log_samples = jnp.log(jnp.maximum(samples, 1)).astype(logits.dtype)
    own_samples = jnp.sum(jnp.where(target, log_samples, 0), axis=-1, keepdims=True)
    mitigation = p * jnp.minimum(log_samples - own_samples, 0)
    log_scores = jax.nn.log_softmax(logits, axis=-1)
    own_score = jnp.sum(jnp.where(target, log_scores, 0), axis=-1, keepdims=True)
    compensation = q * jnp.maximum(log_scores - jnp.maximum(own_score, jnp.log(eps)), 0)
    return jnp.where(target, 0, mitigation + compensation)


def _check(logits: jax.Array, labels: jax.Array, state: SeesawState, num_classes: int, background: bool) -> None:
    meaning = f"the state has {num_classes} classes"
    if background:
        meaning += ", plus two columns for foreground and background"
    columns = num_classes + 2 * background
    last_label = num_classes - 1 + background
    check_rows(logits, labels, extra_label=False, columns=columns, columns_meaning=meaning, last_label=last_label)
    samples = jnp.asarray(state.samples)
    check_per_class("state.samples", samples, num_classes + background, logits.shape, "one entry per label")
    check_range("state.samples", samples, 0)
