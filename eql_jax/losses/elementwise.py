"""Element-wise losses and the safe division that the other modules of this package share.

All of them compute in float32 at least, whatever the inputs (bfloat16 and float16 are widened first, float64 stays).
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from eql_jax.losses.checks import check_floating, check_shape

# sigmoid cross-entropy of this logit against target 0, and its gradient, are exactly 0 in float32 and float64. An
# element that must not count is set to it *before* exp and log, so that not even a NaN in it reaches the gradient.
NO_LOSS_LOGIT = -1e4


def loss_dtype(x: jax.Array, name: str) -> jnp.dtype:
    """The type a loss of `x` is computed in: float32, or float64 for float64 input. ValueError if x is not float."""
    check_floating(name, x)
    return jnp.promote_types(x.dtype, jnp.float32)


def divide_or_zero(total: jax.Array, count: jax.Array | float) -> jax.Array:
    """total / count, and 0 (with zero gradient) where count is not positive."""
    count = jnp.asarray(count, total.dtype)
    positive = count > 0
    return jnp.where(positive, total, 0) / jnp.where(positive, count, 1)


def sigmoid_bce(logits: jax.Array, targets: jax.Array, counted: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy per element, 0 where not `counted`.

    Args:
      logits: float [...].
      targets: [...], bool, or numbers in [0, 1] as probabilities.
      counted: bool, broadcastable to [...].

    Returns:
      [...] float32. Exact for any finite logit: max(x, 0) + log(1 + exp(-|x|)) has no overflow and no cancellation.
    """
    logits = logits.astype(loss_dtype(logits, "logits"))
    if targets.dtype == jnp.bool_:
        # BCE(z, 1) = BCE(-z, 0): one softplus serves both targets.
        return _softplus(jnp.where(counted, jnp.where(targets, -logits, logits), NO_LOSS_LOGIT))
    x = jnp.where(counted, logits, NO_LOSS_LOGIT)
    return _softplus(x, minus=x * jnp.where(counted, targets, 0).astype(x.dtype))


def focal_bce(logits: jax.Array, targets: jax.Array, counted: jax.Array, gamma: jax.Array | float) -> jax.Array:
    """(1 - p_t)^gamma BCE per element, p_t the probability given to the target; 0 where not `counted`.

    Args:
      logits: float [...].
      targets: bool [...].
      counted: bool, broadcastable to [...].
      gamma: not negative, broadcastable to [...].

    Returns:
      [...] float32. The power is taken in the logarithm, so its derivative is finite for every gamma and logit.
    """
    logits = logits.astype(loss_dtype(logits, "logits"))
    x = jnp.where(counted, jnp.where(targets, -logits, logits), NO_LOSS_LOGIT)
    positive = x >= 0  # see _softplus
    small = jnp.log1p(jnp.exp(-jnp.where(positive, x, -x)))
    log_wrong = jnp.where(positive, 0, x) - small  # log(1 - p_t)
    return jnp.exp(gamma * log_wrong) * (jnp.where(positive, x, 0) + small)


def softmax_ce(logits: jax.Array, targets: jax.Array, counted: jax.Array) -> jax.Array:
    """Softmax cross-entropy per row, 0 where not `counted`.

    Args:
      logits: float [..., C]; -inf takes a column out of the denominator.
      targets: bool [..., C], one column per row that counts and none elsewhere.
      counted: bool [...].

    Returns:
      [...] float32.
    """
    # Rows that do not count are zeroed before the exponentials so that nothing in them can reach the gradient.
    x = jnp.where(counted[..., None], logits.astype(loss_dtype(logits, "logits")), 0)
    return -jnp.sum(jnp.where(targets, jax.nn.log_softmax(x, axis=-1), 0), axis=-1)


def _softplus(x: jax.Array, minus: jax.Array | float = 0.0) -> jax.Array:
    # log(1 + exp(x)) - minus; the subtraction comes before the small term is added, or that would be lost in rounding.
    # Both selects take the side of x >= 0 at x = 0, so that their derivatives 1 and 1 add up to the sigmoid's .5 there;
    # jnp.maximum and jnp.abs have derivatives .5 and 1 at 0, which add up to 0.
    positive = x >= 0
    return (jnp.where(positive, x, 0) - minus) + jnp.log1p(jnp.exp(-jnp.where(positive, x, -x)))


def smooth_l1(predictions: ArrayLike, targets: ArrayLike, *, beta: float = 0.0) -> jax.Array:
    """Smooth L1 (Huber) loss per element: d^2 / (2 beta) where |d| < beta, |d| - beta / 2 elsewhere.

    Args:
      predictions: float [...].
      targets: float [...], same shape.
      beta: where the quadratic part ends, in units of the inputs; 0 is plain L1 (with gradient 0 at d = 0).

    Returns:
      [...] float32.

    Raises:
      ValueError: shapes differ, predictions are not float, or beta is negative.
    """
    if beta < 0:
        raise ValueError(f"beta is {beta}; expected 0 (L1) or a positive number")
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    check_shape("targets", targets, predictions.shape, "the shape of predictions")
    dtype = loss_dtype(predictions, "predictions")
    difference = predictions.astype(dtype) - targets.astype(dtype)
    # d sign(d) has derivative 0 at d = 0, PyTorch's convention; that of jnp.abs is 1.
    distance = difference * jnp.sign(difference)
    if beta == 0:
        return distance
    return jnp.where(distance < beta, (0.5 / beta) * difference * difference, distance - 0.5 * beta)


def masked_smooth_l1_sum(predictions: jax.Array, targets: jax.Array, counted: jax.Array, beta: float) -> jax.Array:
    """Sum of smooth L1 over the rows counted (bool [...]) of [..., 4] arrays; other rows may hold inf or NaN."""
    counted = counted[..., None]
    zero = jnp.zeros((), predictions.dtype)
    return jnp.sum(smooth_l1(jnp.where(counted, predictions, zero), jnp.where(counted, targets, 0), beta=beta))
