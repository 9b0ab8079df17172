"""Checks of arguments that the losses share. Each raises a ValueError that names the argument and the shapes.

Shapes and dtypes are checked always. Values are checked where they can be seen: outside jit, also under grad and jvp of
a function that is not jitted. Inside jit, vmap, pmap and shard_map, and of an array spread over several processes, they
cannot be, and what a loss makes of wrong ones is undefined there. Looking at values waits for the array and copies it
to the host; a training step is jitted and does not.
"""

import jax
import jax.numpy as jnp
import numpy as np


def values_of(x: jax.Array | np.ndarray | float) -> np.ndarray | None:
    """The numbers in x as a NumPy array, or None where they cannot be seen (inside jit and the like)."""
    if isinstance(x, jax.core.Tracer):
        x = jax.lax.stop_gradient(x)  # under grad alone this is the array itself
        if isinstance(x, jax.core.Tracer):
            return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return None
    return np.asarray(x)


def check_shape(name: str, x: jax.Array, expected: tuple[int, ...], meaning: str) -> None:
    """Raises ValueError unless x has the expected shape; `meaning` says where that shape comes from."""
    if x.shape != expected:
        raise ValueError(f"{name} has shape {x.shape}; expected {expected} ({meaning})")


def check_integer_labels(labels: jax.Array) -> None:
    """Raises ValueError unless labels are integers."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels have dtype {labels.dtype}; expected integer class indices")


def check_bool(name: str, x: jax.Array) -> None:
    """Raises ValueError unless x is bool: a label array passed as a mask would silently count wrong rows."""
    if x.dtype != jnp.bool_:
        raise ValueError(f"{name} has dtype {x.dtype}; expected bool")


def check_floating(name: str, x: jax.Array) -> None:
    """Raises ValueError unless x is floating point."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {x.dtype}; expected floating point")


def check_rows(
    logits: jax.Array,
    labels: jax.Array,
    *,
    extra_label: bool,
    columns: int | None = None,
    columns_meaning: str = "",
    last_label: int | None = None,
) -> None:
    """Checks logits [..., R, C] and labels [..., R] of a classification loss.

    Args:
      logits: floating point.
      labels: integers, -1 for padding.
      extra_label: labels go to C, a background label without a column (sigmoid losses); else to C - 1.
      columns: the C that other arguments ask for; None: any.
      columns_meaning: where `columns` comes from, for the message.
      last_label: the largest label, where columns do not say it.

    Raises:
      ValueError: dtypes or shapes do not fit; a label is out of range, or a row that counts holds a NaN, where values
        can be seen.
    """
    check_floating("logits", logits)
    check_integer_labels(labels)
    if logits.ndim < 2:
        raise ValueError(f"logits has shape {logits.shape}; expected [..., rows, classes]")
    check_shape("labels", labels, logits.shape[:-1], f"one label per row of logits, which has shape {logits.shape}")
    if columns is not None:
        check_shape("logits", logits, (*labels.shape, columns), columns_meaning)
    last = logits.shape[-1] if extra_label else logits.shape[-1] - 1
    check_label_values(labels, last if last_label is None else last_label, logits.shape)
    check_no_nan(logits, labels)


def check_label_values(labels: jax.Array, last: int, shape: tuple[int, ...], of: str = "logits") -> None:
    """Raises ValueError where a visible label is neither -1 nor 0..last; `shape` is that of the argument `of`."""
    values = values_of(labels)
    if values is None:
        return
    wrong = (values < -1) | (values > last)
    if wrong.any():
        raise ValueError(
            f"labels{_first(wrong)} is {values[wrong][0]}; expected 0..{last}, or -1 for padding "
            f"(labels has shape {values.shape}, {of} {shape})"
        )


def check_no_nan(logits: jax.Array, labels: jax.Array) -> None:
    """Raises ValueError where a visible logit of a row that counts, label >= 0, is NaN."""
    values, rows = values_of(logits), values_of(labels)
    if values is None or rows is None:
        return
    wrong = np.isnan(values) & (rows >= 0)[..., None]
    if wrong.any():
        raise ValueError(
            f"logits{_first(wrong)} is nan, in a row with label {rows[wrong.any(-1)][0]}; expected numbers in all rows "
            f"but those with label -1 (logits has shape {values.shape}, labels {rows.shape})"
        )


def check_per_class(name: str, x: jax.Array, num_classes: int, logits_shape: tuple[int, ...], meaning: str) -> None:
    """Raises ValueError unless x is [K]; `meaning` says what one entry belongs to, a column of logits for instance."""
    check_shape(name, x, (num_classes,), f"{meaning}; logits has shape {logits_shape}")


def check_range(
    name: str, x: jax.Array | np.ndarray | float, low: float, high: float = np.inf, *, above: bool = False
) -> None:
    """Raises ValueError where a visible entry of x, an array or a number, is outside [low, high], or NaN.

    Args:
      name: of the argument.
      x: any shape.
      low, high: limits.
      above: `low` itself is wrong as well.
    """
    values = values_of(x)
    if values is None:
        return
    right = (values > low if above else values >= low) & (values <= high)  # written so that NaN fails as well
    if not right.all():
        limits = f"{'more than' if above else 'at least'} {low:g}" + (f" and at most {high:g}" if high < np.inf else "")
        where = _first(~right) if values.ndim else ""
        shape = f" ({name} has shape {values.shape})" if values.ndim else ""
        raise ValueError(f"{name}{where} is {values[~right].ravel()[0]}; expected {limits}{shape}")


def broadcast_bool(name: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x, a bool array, broadcast to `shape`; ValueError where it is not bool or does not broadcast."""
    x = jnp.asarray(x)
    check_bool(name, x)
    try:
        return jnp.broadcast_to(x, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {x.shape}; expected one that broadcasts to {shape}") from None


def _first(wrong: np.ndarray) -> str:
    return str([int(i) for i in np.argwhere(wrong)[0]])
