"""Columns for classes that there are not, so that a classifier of any number of classes divides evenly over devices.

A classifier of K classes whose kernel [F, K] is spread over D devices needs K to be a multiple of D. `padded_count`
says how many columns to make instead, `pad_per_class` fills what a loss knows of each class (tail, counts), and
`pad_classes` hides the added columns, which come last, from a loss with one sigmoid per class: their logits are a
constant at which sigmoid cross-entropy and its gradient are exactly 0, so that the loss moves no parameter of theirs.

    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
    >>> from eql_jax.losses import equalization_loss, pad_classes, pad_per_class, padded_count
    >>> mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    >>> classes, features = 50_001, 4
    >>> columns = padded_count(classes, 128)  # a multiple of any number of devices that divides 128
    >>> columns
    50048
    >>> tail = pad_per_class(np.arange(classes) > 100, columns, False)
    >>> by_class = NamedSharding(mesh, P(None, "model"))
    >>> kernel = jax.device_put(np.zeros((features, columns), np.float32), by_class)
    >>> def loss(kernel, hidden, labels):
    ...     logits = jax.lax.with_sharding_constraint(hidden @ kernel, NamedSharding(mesh, P("data", "model")))
    ...     return equalization_loss(*pad_classes(logits, labels, classes), tail)
    >>> step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, by_class))
    >>> hidden, labels = jnp.ones((2, features)), jnp.array([7, classes])  # an object, and background
    >>> value, gradient = step(kernel, hidden, labels)
    >>> bool(gradient[:, :classes].any()), bool(gradient[:, classes:].any())
    (True, False)

Nothing of the size of the logits travels between devices: each computes the columns that it holds, and the sum of the
loss and the gradient of `hidden`, [R, F], are what is added up.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from eql_jax.losses.checks import check_integer_labels, check_label_values, check_shape
from eql_jax.losses.elementwise import NO_LOSS_LOGIT, loss_dtype


def padded_count(num_classes: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `num_classes`.

    Args:
      num_classes: K, at least 1.
      multiple: the number of devices that share the columns, or a multiple of it.

    Returns:
      The number of columns.

    Raises:
      ValueError: one of them is below 1.
    """
    if num_classes < 1 or multiple < 1:
        raise ValueError(f"num_classes is {num_classes} and multiple {multiple}; expected both to be at least 1")
    return -(-num_classes // multiple) * multiple


def pad_per_class(values: ArrayLike, columns: int, fill: float | bool) -> np.ndarray:
    """Values [..., K] of the classes, such as a tail mask or counts, with `fill` for the columns added at the end.

    Args:
      values: any dtype, which stays.
      columns: as `padded_count` gives it.
      fill: of the added columns; what it is changes no loss in this package that can be padded.

    Returns:
      NumPy array [..., columns].

    Raises:
      ValueError: there are fewer columns than classes.
    """
    values = np.asarray(values)
    if values.ndim < 1 or values.shape[-1] > columns:
        raise ValueError(f"values has shape {values.shape}; expected [..., at most {columns}], the number of columns")
    added = np.full((*values.shape[:-1], columns - values.shape[-1]), fill, values.dtype)
    return np.concatenate([values, added], axis=-1)


def pad_classes(logits: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Logits and labels under which a sigmoid loss takes no notice of the columns after the first `num_classes`.

    Args:
      logits: float [..., R, C], C at least K.
      labels: int [..., R], 0..K-1 foreground, K background, -1 for rows that count nowhere.
      num_classes: K.

    Returns:
      (logits [..., R, C] whose columns K..C-1 are a constant with no loss and no gradient, labels [..., R] with C for
      background). Float32 or wider, as in every loss.

    Raises:
      ValueError: shapes or dtypes do not fit; outside jit also a label that is out of range.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    dtype = loss_dtype(logits, "logits")
    check_integer_labels(labels)
    if logits.ndim < 2 or logits.shape[-1] < num_classes:
        raise ValueError(f"logits has shape {logits.shape}; expected [..., rows, at least {num_classes} classes]")
    check_shape("labels", labels, logits.shape[:-1], f"one label per row of logits, which has shape {logits.shape}")
    check_label_values(labels, num_classes, logits.shape)
    columns = logits.shape[-1]
    if columns == num_classes:
        return logits.astype(dtype), labels
    shown = jnp.where(jnp.arange(columns) < num_classes, logits.astype(dtype), NO_LOSS_LOGIT)
    return shown, jnp.where(labels == num_classes, columns, labels)
