"""Losses of a two-stage detector besides classification: RPN objectness, box regression and masks.

Shapes: N anchors, R sampled RoIs, M side of the mask grid; "..." any leading axes, such as images. Each function sums
over the whole array and divides by one count, so that a batch that is spread over devices gives the same number as on
one. Rows that do not count may hold anything, NaN included. Without rows a loss is 0, with zero gradient.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from eql_jax.losses.checks import check_bool, check_integer_labels, check_shape
from eql_jax.losses.elementwise import divide_or_zero, loss_dtype, masked_smooth_l1_sum, sigmoid_bce


def rpn_objectness_loss(logits: ArrayLike, labels: ArrayLike, *, normalizer: ArrayLike | None = None) -> jax.Array:
    """Binary cross-entropy of the sampled anchors.

    Args:
      logits: float [..., N].
      labels: int [..., N], 1 positive, 0 negative, -1 not sampled.
      normalizer: scalar to divide by, instead of the number of sampled anchors. detectron2 takes anchors per image
        (256) * images, even where fewer could be sampled.

    Returns:
      float32 scalar.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    check_integer_labels(labels)
    check_shape("labels", labels, logits.shape, "one label per anchor of logits")
    sampled = labels >= 0
    total = jnp.sum(sigmoid_bce(logits, labels == 1, sampled))
    return divide_or_zero(total, jnp.sum(sampled) if normalizer is None else normalizer)


def rpn_box_loss(
    deltas: ArrayLike,
    targets: ArrayLike,
    labels: ArrayLike,
    *,
    beta: float = 0.0,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """L1 or smooth L1 between predicted and target deltas of the positive anchors.

    Args:
      deltas: float [..., N, 4], predicted.
      targets: float [..., N, 4]; only rows with label 1 are read.
      labels: int [..., N], 1 positive, 0 negative, -1 not sampled.
      beta: see `smooth_l1`; 0 is L1.
      normalizer: scalar to divide by, instead of the number of sampled anchors (not of positives). detectron2 takes
        anchors per image (256) * images, as for the objectness.

    Returns:
      float32 scalar.

    Raises:
      ValueError: shapes, dtypes or beta do not fit.
    """
    deltas, targets, labels = jnp.asarray(deltas), jnp.asarray(targets), jnp.asarray(labels)
    check_integer_labels(labels)
    _check_deltas(deltas, targets, labels.shape)
    total = masked_smooth_l1_sum(deltas, targets, labels == 1, beta)
    return divide_or_zero(total, jnp.sum(labels >= 0) if normalizer is None else normalizer)


def box_regression_loss(
    deltas: ArrayLike,
    targets: ArrayLike,
    foreground: ArrayLike,
    *,
    valid: ArrayLike | None = None,
    beta: float = 0.0,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Box head: L1 or smooth L1 over the foreground RoIs, divided by the number of all valid RoIs.

    Dividing by foreground and background together, as detectron2 does, gives every foreground RoI the same weight in
    each image and batch, however many there are.

    Args:
      deltas: float [..., R, 4], predicted for the class of each RoI (already selected if the head is class-specific).
      targets: float [..., R, 4]; only foreground rows are read.
      foreground: bool [..., R].
      valid: bool [..., R], foreground and background rows, without padding; they are counted for the divisor. None: all
        rows count.
      beta: see `smooth_l1`; 0 is L1.
      normalizer: scalar to divide by. Needed where the arrays hold the foreground rows only; excludes `valid`.

    Returns:
      float32 scalar.

    Raises:
      ValueError: shapes, dtypes or beta do not fit, or both `valid` and `normalizer` are given.
    """
    deltas, targets, foreground = jnp.asarray(deltas), jnp.asarray(targets), jnp.asarray(foreground)
    check_bool("foreground", foreground)
    _check_deltas(deltas, targets, foreground.shape)
    if valid is not None:
        if normalizer is not None:
            raise ValueError("valid and normalizer both given; expected one of them, as both set the divisor")
        valid = jnp.asarray(valid)
        check_bool("valid", valid)
        check_shape("valid", valid, foreground.shape, "the shape of foreground")
        foreground &= valid
        normalizer = jnp.sum(valid)
    total = masked_smooth_l1_sum(deltas, targets, foreground, beta)
    return divide_or_zero(total, foreground.size if normalizer is None else normalizer)


def mask_loss(
    logits: ArrayLike, targets: ArrayLike, foreground: ArrayLike, *, normalizer: ArrayLike | None = None
) -> jax.Array:
    """Mask head: binary cross-entropy, averaged over the cells of a RoI and over the foreground RoIs.

    Args:
      logits: float [..., R, M, M], the map of each RoI's class (already selected if the head is class-specific).
      targets: [..., R, M, M], bool, or 0/1 or probabilities in any dtype.
      foreground: bool [..., R], the RoIs that have a mask.
      normalizer: number of RoIs to divide by (cells are always averaged), instead of the count of `foreground`.

    Returns:
      float32 scalar.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    logits, targets, foreground = jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(foreground)
    check_bool("foreground", foreground)
    check_shape("targets", targets, logits.shape, "the shape of logits")
    check_shape("foreground", foreground, logits.shape[:-2], "one entry per mask of logits")
    total = jnp.sum(sigmoid_bce(logits, targets, foreground[..., None, None]))
    cells = logits.shape[-2] * logits.shape[-1]
    return divide_or_zero(total / cells, jnp.sum(foreground) if normalizer is None else normalizer)


def _check_deltas(deltas: jax.Array, targets: jax.Array, rows: tuple[int, ...]) -> None:
    loss_dtype(deltas, "deltas")
    check_shape("deltas", deltas, (*rows, 4), "4 numbers per row of the labels or masks")
    check_shape("targets", targets, deltas.shape, "the shape of deltas")
