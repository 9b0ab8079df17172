"""Losses between pairs of boxes that look at their overlap: generalized, distance and complete IoU.

Shapes: "..." any axes of pairs. A box is (x1, y1, x2, y2) in any unit, with x2 >= x1 and y2 >= y1; a box without area
is allowed. Each function is 1 - IoU and a penalty that also pulls boxes together that do not meet, where IoU alone has
no gradient. All three are what detectron2 takes from fvcore, a stabilising `eps` in every quotient included; at ties,
such as equal edges, each of two equal numbers gets half of the gradient, as in PyTorch.

Boxes of one pair must be in the same frame. Where a head predicts deltas, decode them first: the gradient goes through.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from eql_jax.losses.checks import check_bool, check_shape, values_of
from eql_jax.losses.elementwise import divide_or_zero, loss_dtype

EPS = 1e-7


def giou_loss(boxes: ArrayLike, targets: ArrayLike, *, eps: float = EPS) -> jax.Array:
    """Generalized IoU loss (Rezatofighi et al., CVPR 2019, arXiv 1902.09630): 1 - IoU + (C - U) / C, from 0 to 2.

    U is the area of the union and C that of the smallest box that holds both. The gradient goes to both arguments.

    Args:
      boxes: float [..., 4], predicted.
      targets: float [..., 4], same shape.
      eps: added to both denominators.

    Returns:
      [...] float32 (float64 for float64 boxes), one loss per pair.

    Raises:
      ValueError: shapes or dtypes do not fit; outside jit also a box that is inverted or not finite, whose loss is
        undefined inside jit.
    """
    pair = _pair(boxes, targets)
    union = pair.areas - pair.intersection
    enclosing = _product(pair.enclosing_size)
    return 1 - pair.intersection / (union + eps) + (enclosing - union) / (enclosing + eps)


def diou_loss(boxes: ArrayLike, targets: ArrayLike, *, eps: float = EPS) -> jax.Array:
    """Distance IoU loss (Zheng et al., AAAI 2020, arXiv 1911.08287): 1 - IoU + d^2 / c^2, from 0 to 2.

    d is the distance of the centres and c the diagonal of the smallest box that holds both.

    Args:
      boxes: float [..., 4], predicted.
      targets: float [..., 4], same shape.
      eps: added to both denominators.

    Returns:
      [...] float32 (float64 for float64 boxes), one loss per pair.

    Raises:
      ValueError: as `giou_loss`.
    """
    return _diou(_pair(boxes, targets), eps)[1]


def ciou_loss(boxes: ArrayLike, targets: ArrayLike, *, eps: float = EPS) -> jax.Array:
    """Complete IoU loss (Zheng et al., AAAI 2020, arXiv 1911.08287): DIoU + alpha v, which also compares shapes.

    v = 4 / pi^2 (atan(w_t / h_t) - atan(w / h))^2 for widths w and heights h, and alpha = v / (1 - IoU + v), a weight
    without gradient. A box of no height counts as infinitely wide, one that is a point as having the shape 0.

    Args:
      boxes: float [..., 4], predicted.
      targets: float [..., 4], same shape.
      eps: added to the three denominators.

    Returns:
      [...] float32 (float64 for float64 boxes), one loss per pair.

    Raises:
      ValueError: as `giou_loss`.
    """
    pair = _pair(boxes, targets)
    iou, loss = _diou(pair, eps)
    v = (4 / np.pi**2) * jnp.square(_shape_angle(pair.target_size) - _shape_angle(pair.size))
    # Rounding may carry IoU above 1.
    alpha = jax.lax.stop_gradient(v / (jnp.maximum(1 - iou, 0) + v + eps))
    return loss + alpha * v


BOX_PAIR_LOSSES: dict[str, Callable[..., jax.Array]] = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def box_pair_regression_loss(
    boxes: ArrayLike,
    targets: ArrayLike,
    foreground: ArrayLike,
    *,
    kind: str = "giou",
    valid: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Box head or RPN: one of the pair losses over the foreground rows, divided by the number of all valid rows.

    `box_regression_loss` is the same with deltas. detectron2 calls the kinds BBOX_REG_LOSS_TYPE.

    Args:
      boxes: float [..., R, 4], decoded from the predicted deltas.
      targets: float [..., R, 4], ground truth; only foreground rows are read, of both.
      foreground: bool [..., R].
      kind: 'giou', 'diou' or 'ciou'.
      valid: bool [..., R], foreground and background rows, without padding; they are counted for the divisor. None: all
        rows count.
      normalizer: scalar to divide by. Needed where the arrays hold the foreground rows only; excludes `valid`.

    Returns:
      float32 scalar; 0 without rows.

    Raises:
      ValueError: shapes, dtypes or the kind do not fit, or both `valid` and `normalizer` are given; outside jit also a
        foreground box that is inverted or not finite.
    """
    if kind not in BOX_PAIR_LOSSES:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(BOX_PAIR_LOSSES)}")
    boxes, targets, foreground = jnp.asarray(boxes), jnp.asarray(targets), jnp.asarray(foreground)
    check_bool("foreground", foreground)
    check_shape("boxes", boxes, (*foreground.shape, 4), "4 numbers per row of foreground")
    check_shape("targets", targets, boxes.shape, "the shape of boxes")
    if valid is not None:
        if normalizer is not None:
            raise ValueError("valid and normalizer both given; expected one of them, as both set the divisor")
        valid = jnp.asarray(valid)
        check_bool("valid", valid)
        check_shape("valid", valid, foreground.shape, "the shape of foreground")
        foreground &= valid
        normalizer = jnp.sum(valid)
    # Rows that do not count become a unit box, whose loss against itself has no gradient.
    unit = jnp.array([0, 0, 1, 1], boxes.dtype)
    counted = foreground[..., None]
    pairs = BOX_PAIR_LOSSES[kind](jnp.where(counted, boxes, unit), jnp.where(counted, targets, unit))
    total = jnp.sum(jnp.where(foreground, pairs, 0))
    return divide_or_zero(total, foreground.size if normalizer is None else normalizer)


class _Pair(NamedTuple):
    """size, target_size, centre_shift, enclosing_size [..., 2] as (x, y); intersection and sum of both areas [...]."""

    size: jax.Array
    target_size: jax.Array
    centre_shift: jax.Array
    enclosing_size: jax.Array
    intersection: jax.Array
    areas: jax.Array


def _pair(boxes: ArrayLike, targets: ArrayLike) -> _Pair:
    boxes, targets = jnp.asarray(boxes), jnp.asarray(targets)
    dtype = loss_dtype(boxes, "boxes")
    loss_dtype(targets, "targets")
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes has shape {boxes.shape}; expected [..., 4]")
    check_shape("targets", targets, boxes.shape, "the shape of boxes")
    _check_boxes("boxes", boxes)
    _check_boxes("targets", targets)
    boxes, targets = boxes.astype(dtype), targets.astype(dtype)
    low, high = boxes[..., :2], boxes[..., 2:]
    target_low, target_high = targets[..., :2], targets[..., 2:]
    size, target_size = high - low, target_high - target_low
    common = jnp.minimum(high, target_high) - jnp.maximum(low, target_low)
    # Boxes that only touch have no gradient from the intersection.
    meet = jnp.all(common > 0, axis=-1)
    return _Pair(
        size,
        target_size,
        0.5 * ((low + high) - (target_low + target_high)),
        jnp.maximum(high, target_high) - jnp.minimum(low, target_low),
        jnp.where(meet, _product(common), 0),
        _product(size) + _product(target_size),
    )


def _product(size: jax.Array) -> jax.Array:
    return size[..., 0] * size[..., 1]


def _diou(pair: _Pair, eps: float) -> tuple[jax.Array, jax.Array]:
    """IoU and the DIoU loss [...]."""
    iou = pair.intersection / (pair.areas - pair.intersection + eps)
    distance = jnp.sum(jnp.square(pair.centre_shift), axis=-1)
    diagonal = jnp.sum(jnp.square(pair.enclosing_size), axis=-1)
    return iou, 1 - iou + distance / (diagonal + eps)


def _shape_angle(size: jax.Array) -> jax.Array:
    """atan(width / height) [...], also where the height is 0; 0 with no gradient for a point."""
    # The derivative divides by the sum of squares, which must not underflow.
    is_point = jnp.all(jnp.abs(size) < 1e-15, axis=-1)
    return jnp.arctan2(jnp.where(is_point, 0, size[..., 0]), jnp.where(is_point, 1, size[..., 1]))


def _check_boxes(name: str, boxes: jax.Array) -> None:
    """Raises ValueError for a visible box that is inverted or not finite."""
    values = values_of(boxes)
    if values is None:
        return
    values = values.reshape(-1, 4).astype(np.float64)
    faulty = ~np.all(np.isfinite(values), axis=-1) | np.any(values[:, 2:] < values[:, :2], axis=-1)
    if faulty.any():
        row = int(np.flatnonzero(faulty)[0])
        raise ValueError(
            f"{name} of shape {boxes.shape} has {values[row].tolist()} in row {row} of {len(values)}; "
            "expected finite x1 <= x2 and y1 <= y2"
        )
