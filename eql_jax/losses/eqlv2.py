"""Equalization loss v2: sigmoid cross-entropy whose weights balance each class's gradients of both signs.

Source: Tan et al., "Equalization Loss v2: A New Gradient Balance Approach for Long-tailed Object Detection", CVPR 2021,
arXiv 2012.08548, and the authors' release (tztztztztz/eqlv2), which adds the objectness column.

Shapes: R rows, K foreground classes; "..." any leading axes. See `eql_jax.losses.memory` for several devices.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from eql_jax.losses.checks import broadcast_bool, check_range, check_rows
from eql_jax.losses.elementwise import divide_or_zero, loss_dtype, sigmoid_bce
from eql_jax.losses.memory import (
    AxisName,
    GradientMemory,
    add_gradients,
    check_gradient_memory,
    empty_gradient_memory,
    gradient_ratio,
)

_RATIO_BEFORE = 100.0  # of a class without gradients yet: its weights are 1


def eqlv2_init(num_classes: int) -> GradientMemory:
    """The state before the first step: no gradients yet, all weights 1.

    Args:
      num_classes: K.

    Returns:
      GradientMemory of two float32 [K].

    Raises:
      ValueError: num_classes is not a positive integer.
    """
    return empty_gradient_memory(num_classes)


def eqlv2_weights(
    state: GradientMemory, *, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0
) -> tuple[jax.Array, jax.Array]:
    """The weights that the next step gives each class's positives and negatives (the paper's q and r).

    With g_j = (accumulated positive gradient) / (accumulated negative gradient) of class j, equations 5 to 8:

        negative_j = 1 / (1 + exp(-gamma (g_j - mu)))
        positive_j = 1 + alpha (1 - negative_j)

    Args:
      state: of the loss.
      gamma, mu, alpha: steepness, turning point and strength.

    Returns:
      positive and negative weights, float32 [K] each. Both are 1 for a class without gradients yet.

    Raises:
      ValueError: gamma or alpha is negative.
    """
    check_range("gamma", gamma, 0)
    check_range("alpha", alpha, 0)
    negative = jax.nn.sigmoid(gamma * (gradient_ratio(state, _RATIO_BEFORE) - mu))
    return 1 + alpha * (1 - negative), negative


def eqlv2_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    state: GradientMemory,
    *,
    gamma: float = 12.0,
    mu: float = 0.8,
    alpha: float = 4.0,
    background: bool = True,
    annotated_classes: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    normalizer: ArrayLike | None = None,
) -> tuple[jax.Array, GradientMemory]:
    """Equalization loss v2.

    For column j of K + 1 (class j, or objectness, whose target is 1 for background rows and whose weights are 1):

        loss = 1 / R sum_r sum_j (positive_j y_rj + negative_j (1 - y_rj)) BCE(z_rj, y_rj)

    with the weights of `eqlv2_weights`, taken from the state as it comes in. After that the state grows, for the K
    classes, by the weighted gradients of this batch, |sigmoid(z) - y| times the weight, summed over rows, positives
    and negatives apart. A background row is a negative of every class.

    Args:
      logits: float [..., R, K + 1], background (objectness) last; [..., R, K] without background. Widened to float32.
      labels: int [..., R], 0..K-1 foreground, K background, -1 for rows that count nowhere, in the loss and the state.
      state: of `eqlv2_init` or the step before, whose length is K.
      gamma, mu, alpha: of `eqlv2_weights`; the paper's values.
      background: False for classification without background: K columns, labels 0..K-1.
      annotated_classes: bool, broadcasts to [..., R, K] ([B, 1, K] for images of R rows): classes that are False give
        no negatives, neither to the loss nor to the state. None: all do.
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
    num_classes = jnp.shape(state.positive)[-1]
    columns = num_classes + background
    meaning = f"the state has {num_classes} classes" + (", plus one column for background" if background else "")
    check_rows(logits, labels, extra_label=False, columns=columns, columns_meaning=meaning)
    check_gradient_memory(state, num_classes, logits.shape)
    state = jax.lax.stop_gradient(state)
    logits = logits.astype(loss_dtype(logits, "logits"))

    positive_weight, negative_weight = eqlv2_weights(state, gamma=gamma, mu=mu, alpha=alpha)
    ones = jnp.ones(columns - num_classes, positive_weight.dtype)
    positive_weight = jnp.concatenate([positive_weight, ones])
    negative_weight = jnp.concatenate([negative_weight, ones])

    target = labels[..., None] == jnp.arange(columns)
    valid = labels >= 0
    counted = valid[..., None]
    if annotated_classes is not None:
        annotated = broadcast_bool("annotated_classes", annotated_classes, (*labels.shape, num_classes))
        objectness = jnp.ones((*labels.shape, columns - num_classes), bool)
        counted &= target | jnp.concatenate([annotated, objectness], axis=-1)
    weight = jnp.where(target, positive_weight, negative_weight)

    def loss_sum(logits):
        return jnp.sum(weight * sigmoid_bce(logits, target, counted))

    state, rows = add_gradients(state, loss_sum, logits, target, jnp.sum(valid), axis_name)
    return divide_or_zero(loss_sum(logits), rows if normalizer is None else normalizer), state


def eqlv2_scores(logits: ArrayLike) -> jax.Array:
    """Scores of the loss with background: a class's sigmoid times the probability that there is an object at all.

        score_j = sigmoid(z_j) (1 - sigmoid(z_background)),    score_background = sigmoid(z_background)

    Without background they are plain sigmoids.

    Args:
      logits: float [..., K + 1], background last.

    Returns:
      float32 [..., K + 1], background last. They do not add up to 1.

    Raises:
      ValueError: logits are not floating point.
    """
    logits = jnp.asarray(logits)
    logits = logits.astype(loss_dtype(logits, "logits"))
    background = logits[..., -1:]
    classes = jax.nn.sigmoid(logits[..., :-1]) * jax.nn.sigmoid(-background)
    return jnp.concatenate([classes, jax.nn.sigmoid(background)], axis=-1)
