"""Federated loss: sigmoid cross-entropy on the classes of the batch and a few drawn at random.

Shapes: R rows, K foreground classes; "..." any leading axes. Labels are 0..K-1, K for background, -1 for padding.

Source: Zhou et al., "Probabilistic two-stage detection", arXiv 2103.07461, section on LVIS; released in CenterNet2 and
in detectron2 (`ROI_BOX_HEAD.USE_FED_LOSS`), whose defaults are 50 classes and power .5.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from eql_jax.losses.checks import (
    broadcast_bool,
    check_integer_labels,
    check_label_values,
    check_range,
    check_rows,
)
from eql_jax.losses.elementwise import divide_or_zero, sigmoid_bce


def federated_classes(
    key: jax.Array, labels: ArrayLike, counts: ArrayLike, *, num_classes: int = 50, power: float = 0.5
) -> jax.Array:
    """The classes that count in a step: those of the labels, filled up by a draw without replacement.

    The distinct labels take places first, background being one of them, as in the released code, although it has no
    column: with background among the labels, `num_classes` - 1 classes come out. The places left are drawn from the
    other classes with probability proportional to n^power. If there are more distinct labels than places, all of them
    count and none is drawn. Classes of count 0 are never drawn; if too few are left, all of them count.

    Draws by the largest log(n^power) + Gumbel noise, whose order is that of drawing one after the other without
    replacement. All shapes are fixed, so this runs under jit and vmap.

    Args:
      key: PRNG key, another one in each step. Under jit over a mesh the draw does not depend on the number of devices.
      labels: int, any shape, 0..K-1, K background, -1 padding (no label). All of them share one set: the released code
        draws one per device and step, for the rows of all its images; `jax.vmap` over groups of images does so here.
      counts: [K], images (or objects) per class in training, 0 or more.
      num_classes: places, a Python int; with K + 1 or more, all classes count that have a count or a label.
      power: of the counts; 0 draws uniformly.

    Returns:
      bool [K].

    Raises:
      ValueError: counts are not [K], labels no integers, num_classes below 1, power negative; outside jit also: labels
        out of range, negative counts.
    """
    labels, counts = jnp.asarray(labels), jnp.asarray(counts)
    check_integer_labels(labels)
    if counts.ndim != 1:
        raise ValueError(f"counts has shape {counts.shape}; expected [K], one number per class")
    size = counts.shape[0]
    check_range("counts", counts, 0)
    check_range("num_classes", num_classes, 1)
    check_range("power", power, 0)
    check_label_values(labels, size, counts.shape, of="counts")

    present = jnp.any(labels.reshape(-1, 1) == jnp.arange(size + 1), axis=0)
    places = num_classes - jnp.sum(present)
    present = present[:size]
    log_weight = jnp.where(counts > 0, power * jnp.log(jnp.where(counts > 0, counts, 1).astype(jnp.float32)), -jnp.inf)
    noisy = jnp.where(present, -jnp.inf, log_weight + jax.random.gumbel(key, (size,)))
    best, classes = jax.lax.top_k(noisy, min(num_classes, size))
    drawn = (jnp.arange(best.size) < places) & (best > -jnp.inf)
    return present.at[classes].max(drawn)


def federated_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    classes: ArrayLike,
    *,
    annotated_classes: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Federated loss: sigmoid cross-entropy summed over a set of classes, that of `federated_classes` as a rule.

        loss = 1 / R sum_r sum_(j in set) BCE(z_j, y_j)

    In an image of a federated data set most classes were never looked for, and in any batch most classes have no
    object; leaving classes out of most steps spares the rare ones most of their negatives. (CenterNet2's softmax form
    gives the set as class weights to the cross-entropy. Those touch the target's class alone, which is always in the
    set, so it is plain cross-entropy.)

    Args:
      logits: float [..., R, K], no background column (detectron2 has one and leaves it out); widened to float32.
      labels: int [..., R], 0..K-1 foreground, K background (a negative of the classes in the set), -1 for rows that
        count nowhere. Other values are an error outside jit and undefined inside.
      classes: bool, [K], or broadcasts to [..., R, K] where images have sets of their own: the set. An object whose
        class is not in it has no positive.
      annotated_classes: bool, broadcasts to [..., R, K] ([B, 1, K] for images of R rows): classes that are False give
        no negatives. None: all do.
      normalizer: scalar to divide the sum by, instead of the number of rows with label >= 0.

    Returns:
      float32 scalar (float64 for float64 logits).

    Raises:
      ValueError: shapes or dtypes do not fit; outside jit also: labels out of range, NaN logits in rows that count.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    check_rows(logits, labels, extra_label=True)
    target = labels[..., None] == jnp.arange(logits.shape[-1])
    valid = (labels >= 0)[..., None]
    counted = valid & broadcast_bool("classes", classes, logits.shape)
    if annotated_classes is not None:
        counted &= target | broadcast_bool("annotated_classes", annotated_classes, logits.shape)
    total = jnp.sum(sigmoid_bce(logits, target, counted))
    return divide_or_zero(total, jnp.sum(valid) if normalizer is None else normalizer)
