"""Effective class-margin loss (ECM): sigmoid cross-entropy with a margin and a weight from each class's rarity.

Source: Cho and Krähenbühl, "Long-tail Detection with Effective Class-Margins", ECCV 2022, arXiv 2301.09724, and the
authors' release (janghyuncho/ECM-Loss), whose treatment of background this follows. Its classifier is a normalised
cosine one with temperature 20; the loss takes any logits.

Shapes: R rows, K foreground classes; "..." any leading axes. See `eql_jax.losses.memory` for several devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from eql_jax.losses.checks import broadcast_bool, check_per_class, check_range, check_rows
from eql_jax.losses.elementwise import divide_or_zero, loss_dtype, sigmoid_bce
from eql_jax.losses.eqlv2 import eqlv2_scores
from eql_jax.losses.memory import AxisName, sum_over_devices, sum_rows

BACKGROUND_RATIO = 6.3313  # background rows per foreground row, measured by the authors on Mask R-CNN


class EffectiveClassMarginState(NamedTuple):
    """How many positives each column has.

    samples: float32 [K + 1], background last ([K] without background).
    """

    samples: jax.Array


def effective_class_margin_init(
    image_counts: ArrayLike, *, background_ratio: float | None = BACKGROUND_RATIO
) -> EffectiveClassMarginState:
    """The state from training counts.

    Args:
      image_counts: [K], training images of each class (as the release counts; objects do as well). Zeros to start from
        nothing and count in training.
      background_ratio: background's count as a multiple of the sum of all others. None: no background column.

    Returns:
      EffectiveClassMarginState, float32 [K + 1] ([K] without background).

    Raises:
      ValueError: image_counts are not [K], or negative, or the ratio is not positive.
    """
    counts = np.asarray(image_counts, np.float64)
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(f"image_counts has shape {counts.shape}; expected [K], one number per class")
    check_range("image_counts", counts, 0, np.finfo(np.float32).max)
    if background_ratio is not None:
        check_range("background_ratio", background_ratio, 0, above=True)
        counts = np.append(counts, counts.sum() * background_ratio)
    return EffectiveClassMarginState(jnp.asarray(counts, jnp.float32))


def effective_class_margins(state: EffectiveClassMarginState) -> tuple[jax.Array, jax.Array]:
    """The weight and the shift of each column's logits.

    With n_c positives of column c and n_-c = (sum of all n) - n_c negatives, a_c = n_-c / n_c (theorem 2), and the
    effective margins of equation 8:

        m_c      = a_c log((1 + a_c) / a_c)
        margin+  = n_-c^(1/4) / (n_c^(1/4) + n_-c^(1/4)),  margin- = n_c^(1/4) / (n_c^(1/4) + n_-c^(1/4))
        shift_c  = log(margin- / margin+) = (log n_c - log n_-c) / 4

    Args:
      state: of the loss. Counts, and numbers of negatives, below 1 are taken for 1.

    Returns:
      m and shift, float32, of the state's length.

    Raises:
      Nothing.
    """
    samples = jnp.asarray(state.samples)
    negatives = jnp.maximum(jnp.sum(samples) - samples, 1)
    positives = jnp.maximum(samples, 1)
    ratio = negatives / positives
    return ratio * jnp.log1p(1 / ratio), (jnp.log(positives) - jnp.log(negatives)) / 4


def effective_class_margin_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    state: EffectiveClassMarginState,
    *,
    background: bool = True,
    count_samples: bool = False,
    annotated_classes: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    normalizer: ArrayLike | None = None,
) -> tuple[jax.Array, EffectiveClassMarginState]:
    """Effective class-margin loss.

    Equations 10 and 11 of the paper: cross-entropy of a surrogate score whose threshold the margins shift,

        s_c  = (1/margin+) exp(z_c) / ((1/margin+) exp(z_c) + (1/margin-) exp(-z_c)) = sigmoid(2 z_c + shift_c)
        loss = 1 / R sum_r sum_c -m_c (y_c log s_c + (1 - y_c) log(1 - s_c))

    with m, margins and shift of `effective_class_margins`. Background is a column with a count of its own, positive for
    background rows; a background row is a negative of every class.

    Args:
      logits: float [..., R, K + 1], background last; [..., R, K] without background. Widened to float32.
      labels: int [..., R], 0..K-1 foreground, K background, -1 for rows that count nowhere, in the loss and the state.
      state: of `effective_class_margin_init` or the step before; its length is the number of columns.
      background: False for classification without background: K columns, labels 0..K-1.
      count_samples: False, as in the release: the counts stay those of the data set. True adds this batch's labels
        before the loss (as Seesaw does), which follows a sampler that changes the frequencies and measures the share
        of background instead of assuming it.
      annotated_classes: bool, broadcasts to [..., R, K] ([B, 1, K] for images of R rows): classes that are False give
        no negatives. None: all do.
      axis_name: mapped axis (or axes) over which the rows are spread, inside shard_map or pmap. The loss is then this
        device's share, the state the one of all devices; see `eql_jax.losses.memory`.
      normalizer: scalar to divide the sum by, instead of the number of rows with label >= 0 (of all devices).

    Returns:
      float32 scalar (float64 for float64 logits), and the state after this step.

    Raises:
      ValueError: shapes or dtypes do not fit; outside jit also labels that are out of range and logits that are NaN in
        a row that counts. Inside jit the results are undefined then.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    samples = jnp.asarray(state.samples)
    columns = samples.shape[-1]
    meaning = f"the state has {columns} entries" + (", the last for background" if background else "")
    check_rows(logits, labels, extra_label=False, columns=columns, columns_meaning=meaning)
    check_per_class("state.samples", samples, columns, logits.shape, "one entry per column")
    check_range("state.samples", samples, 0)
    logits = logits.astype(loss_dtype(logits, "logits"))

    target = labels[..., None] == jnp.arange(columns)
    valid = labels >= 0
    counted = valid[..., None]
    if annotated_classes is not None:
        annotated = broadcast_bool("annotated_classes", annotated_classes, (*labels.shape, columns - background))
        objectness = jnp.ones((*labels.shape, int(background)), bool)
        counted &= target | jnp.concatenate([annotated, objectness], axis=-1)

    statistics = {"rows": jnp.sum(valid, dtype=jnp.float32)}
    if count_samples:
        statistics["samples"] = sum_rows(target)
    statistics = sum_over_devices(statistics, axis_name)
    if count_samples:
        state = EffectiveClassMarginState(samples + statistics["samples"])
    state = jax.lax.stop_gradient(state)
    weight, shift = effective_class_margins(state)
    total = jnp.sum(weight * sigmoid_bce(2 * logits + shift, target, counted))
    return divide_or_zero(total, statistics["rows"] if normalizer is None else normalizer), state


def effective_class_margin_scores(logits: ArrayLike) -> jax.Array:
    """Scores of the loss with background, those of EQL v2: sigmoid(z_j) (1 - sigmoid(z_background)).

    Neither the factor 2 nor the shift of the surrogate is in them. Without background they are plain sigmoids.

    Args:
      logits: float [..., K + 1], background last.

    Returns:
      float32 [..., K + 1], sigmoid(z_background) last. They do not add up to 1.

    Raises:
      ValueError: logits are not floating point.
    """
    return eqlv2_scores(logits)
