"""Equalized focal loss: focal loss whose focusing grows, class by class, with the imbalance of the gradients.

Source: Li et al., "Equalized Focal Loss for Dense Long-Tailed Object Detection", CVPR 2022, arXiv 2201.02593, and the
authors' release (ModelTC/EOD, now United-Perception), made for one-stage detectors. What differs here is in
`equalized_focal_loss`.

Shapes: R rows, K foreground classes; "..." any leading axes. See `eql_jax.losses.memory` for several devices.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from eql_jax.losses.checks import broadcast_bool, check_range, check_rows
from eql_jax.losses.elementwise import divide_or_zero, focal_bce, loss_dtype
from eql_jax.losses.memory import (
    AxisName,
    GradientMemory,
    add_gradients,
    check_gradient_memory,
    empty_gradient_memory,
    gradient_ratio,
)


def equalized_focal_init(num_classes: int) -> GradientMemory:
    """The state before the first step: no gradients yet, every class as in plain focal loss.

    Args:
      num_classes: K.

    Returns:
      GradientMemory of two float32 [K].

    Raises:
      ValueError: num_classes is not a positive integer.
    """
    return empty_gradient_memory(num_classes)


def equalized_focal_focusing(state: GradientMemory, *, gamma: float = 2.0, scale: float = 8.0) -> jax.Array:
    """The exponent of each class in the next step: gamma_j = gamma + scale (1 - g_j) (equations 2 and 3).

    Args:
      state: of the loss. g_j is its positive over its negative gradients, clipped to [0, 1], and 1 before any.
      gamma: the exponent of plain focal loss.
      scale: how far the exponent grows for a class with negatives only.

    Returns:
      float32 [K].

    Raises:
      ValueError: gamma is not positive, or scale is negative.
    """
    check_range("gamma", gamma, 0, above=True)
    check_range("scale", scale, 0)
    return gamma + scale * (1 - jnp.clip(gradient_ratio(state, 1.0), 0, 1))


def equalized_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    state: GradientMemory,
    *,
    gamma: float = 2.0,
    scale: float = 8.0,
    alpha: float = 0.25,
    annotated_classes: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    normalizer: ArrayLike | None = None,
) -> tuple[jax.Array, GradientMemory]:
    """Equalized focal loss, on the rows of a two-stage detector or classifier as well as on anchors.

    With p_t = sigmoid(z) for the positive and 1 - sigmoid(z) for a negative, a_t = alpha and 1 - alpha (equation 4):

        loss = 1 / R sum_r sum_j -a_t (gamma_j / gamma) (1 - p_t)^gamma_j log(p_t)

    with gamma_j of `equalized_focal_focusing`, taken from the state as it comes in. After that the state grows by the
    absolute gradients of this very loss, summed over rows, positives and negatives apart:

        |d loss_rj / d z_rj| = a_t (gamma_j / gamma) (1 - p_t)^gamma_j (1 - p_t - gamma_j p_t log p_t)

    Adapted: the release divides by the number of positive anchors, this by that of all rows, like the other losses
    here (`normalizer` for another number); and it accumulates the gradients after that division, this before it, which
    gives the same g as long as that number is the same in every step.

    Args:
      logits: float [..., R, K], no background column; widened to float32.
      labels: int [..., R], 0..K-1 foreground, K background (a negative of every class), -1 for rows that count nowhere,
        in the loss and the state.
      state: of `equalized_focal_init` or the step before, whose length is K.
      gamma, scale: of `equalized_focal_focusing`; the paper's values.
      alpha: weight of positives, 1 - alpha that of negatives. None leaves both at 1.
      annotated_classes: bool, broadcasts to [..., R, K] ([B, 1, K] for images of R rows): classes that are False give
        no negatives, neither to the loss nor to the state. None: all do.
      axis_name: mapped axis (or axes) over which the rows are spread, inside shard_map or pmap. The loss is then this
        device's share, the state the one of all devices; see `eql_jax.losses.memory`.
      normalizer: scalar to divide the sum by, instead of the number of rows with label >= 0 (of all devices).

    Returns:
      float32 scalar (float64 for float64 logits), and the state after this step.

    Raises:
      ValueError: shapes or dtypes do not fit, gamma is not positive, scale is negative, alpha is outside [0, 1];
        outside jit also labels that are out of range and logits that are NaN in a row that counts. Inside jit the
        results are undefined then.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    num_classes = jnp.shape(state.positive)[-1]
    meaning = f"the state has {num_classes} classes; no background column"
    check_rows(logits, labels, extra_label=True, columns=num_classes, columns_meaning=meaning)
    check_gradient_memory(state, num_classes, logits.shape)
    if alpha is not None:
        check_range("alpha", alpha, 0, 1)
    state = jax.lax.stop_gradient(state)
    logits = logits.astype(loss_dtype(logits, "logits"))

    target = labels[..., None] == jnp.arange(num_classes)
    valid = labels >= 0
    counted = valid[..., None]
    if annotated_classes is not None:
        counted &= target | broadcast_bool("annotated_classes", annotated_classes, logits.shape)

    focusing = equalized_focal_focusing(state, gamma=gamma, scale=scale)
    weight = focusing / gamma
    if alpha is not None:
        weight = jnp.where(target, alpha * weight, (1 - alpha) * weight)

    def loss_sum(logits):
        return jnp.sum(weight * focal_bce(logits, target, counted, focusing))

    state, rows = add_gradients(state, loss_sum, logits, target, jnp.sum(valid), axis_name)
    return divide_or_zero(loss_sum(logits), rows if normalizer is None else normalizer), state
