"""Group softmax (balanced group softmax, BAGS): classes of similar frequency compete among themselves only.

Shapes: R rows, K foreground classes, G groups with that of background, C = K + 1 + G columns of logits; "..." any
leading axes. Labels are 0..K-1, K for background, -1 for padding. Columns are group after group, each with its "others"
(everything outside the group) first and then its classes by index; the last group is [foreground, background].
Without background (classification) there is no such group: C = K + G.

Source: Li et al., "Overcoming Classifier Imbalance for Long-tail Object Detection with Balanced Group Softmax", CVPR
2020, arXiv 2006.10408, and the authors' release.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from eql_jax.losses.checks import check_range, check_rows, check_shape
from eql_jax.losses.elementwise import divide_or_zero, softmax_ce


@dataclasses.dataclass(frozen=True, eq=False)  # no pytree: close over it, or make it a static argument of jit
class ClassGroups:
    """The layout of the columns. NumPy; L labels, K + 1 with background, else K.

    group_of_class: int [L]. label_map: int [G, L], each label's place in each group, 0 for "others". sizes: int [G],
    columns of each group, "others" included. starts: int [G], its first column. background: whether the last group is
    that of background.
    """

    group_of_class: np.ndarray
    label_map: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    background: bool

    @property
    def num_logits(self) -> int:
        """C."""
        return int(self.sizes.sum())

    @property
    def num_classes(self) -> int:
        """K."""
        return self.group_of_class.size - self.background

    @property
    def label_columns(self) -> np.ndarray:
        """int [L], the column of each label in its group."""
        return self.starts[self.group_of_class] + self.label_map.max(axis=0)


def class_groups(
    counts: ArrayLike, *, bin_split: Sequence[float] = (10, 100, 1000), background: bool = True
) -> ClassGroups:
    """Groups of classes by their number of training objects.

    Args:
      counts: [K], objects per class.
      bin_split: rising limits; group i has the classes with bin_split[i - 1] <= n < bin_split[i], the last those of
        bin_split[-1] or more. The paper's are 10, 100 and 1000. A group may be without classes.
      background: add the group of background.

    Returns:
      ClassGroups with len(bin_split) + 1 groups, and the one of background.

    Raises:
      ValueError: counts are not [K], negative or NaN, or bin_split does not rise.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1:
        raise ValueError(f"counts has shape {counts.shape}; expected [K], one number per class")
    check_range("counts", counts, 0)
    split = np.asarray(bin_split)
    if split.ndim != 1 or not np.all(np.diff(split) > 0):
        raise ValueError(f"bin_split is {tuple(bin_split)}; expected limits that rise, such as (10, 100, 1000)")
    group_of_class = np.searchsorted(split, counts, side="right")
    num_groups = split.size + 1
    if background:
        group_of_class = np.append(group_of_class, num_groups)
        num_groups += 1
    label_map = np.zeros((num_groups, group_of_class.size), np.int32)
    for group in range(num_groups):
        members = np.flatnonzero(group_of_class == group)
        label_map[group, members] = 1 + np.arange(members.size)
    sizes = 1 + np.bincount(group_of_class, minlength=num_groups)
    return ClassGroups(group_of_class, label_map, sizes, np.cumsum(sizes) - sizes, background)


def group_softmax_weights(
    key: jax.Array, labels: ArrayLike, groups: ClassGroups, *, others_ratio: float = 8.0
) -> jax.Array:
    """The rows that count in each group: those of its classes, and at random some of the "others".

    For f rows of the group's classes, floor(others_ratio * f) of the other rows are kept (all, if there are not so
    many), so a group without objects in the batch has none. The group of background keeps all rows. The draw is over
    all rows of the array; `jax.vmap` draws image by image.

    Args:
      key: PRNG key, another one in each step.
      labels: int [..., R].
      groups: of `class_groups`.
      others_ratio: other rows for each row of the group's classes; the release's beta, 8.

    Returns:
      bool [G, ..., R].

    Raises:
      ValueError: others_ratio is negative.
    """
    check_range("others_ratio", others_ratio, 0)
    labels = jnp.asarray(labels)
    flat = labels.reshape(-1)
    valid = flat >= 0
    inside = (_labels_in_groups(flat, groups) > 0) & valid
    outside = ~inside & valid
    # Each outside row's rank in a random order, by sorting twice: ranks, unlike random numbers, have no ties.
    priority = jax.random.uniform(key, outside.shape)
    order = jnp.argsort(jnp.where(outside, priority, 2.0), axis=-1)
    rank = jnp.argsort(order, axis=-1)
    kept = jnp.floor(others_ratio * jnp.sum(inside, axis=-1, keepdims=True))
    weights = inside | (outside & (rank < kept))
    if groups.background:
        weights = weights.at[-1].set(valid)
    return weights.reshape(-1, *labels.shape)


def group_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    groups: ClassGroups,
    *,
    key: jax.Array | None = None,
    others_ratio: float = 8.0,
    sample_weight: ArrayLike | None = None,
    normalizer: ArrayLike | None = None,
) -> jax.Array:
    """Group softmax: a softmax cross-entropy in each group of classes, over rows drawn for the group.

        loss = sum_g  sum_r w_gr CE(z_g, y_rg) / max(sum_r w_gr, 1)

    z_g are the columns of group g, y_rg the place of row r's label in it, "others" if it is not of the group, and w_gr
    the draw of `group_softmax_weights`. Frequent classes are negatives of rare ones only as members of "others", which
    the draw keeps in proportion.

    Unlike the other losses here, each group is divided by its own number of rows.

    Args:
      logits: float [..., R, C], C = groups.num_logits, laid out as above; widened to float32.
      labels: int [..., R], 0..K-1, K background (where groups have it), -1 for rows that count nowhere. Other values
        are an error outside jit and undefined inside.
      groups: of `class_groups`.
      key: PRNG key to draw the rows with; in place of sample_weight.
      others_ratio: see `group_softmax_weights`; not read with sample_weight.
      sample_weight: [G, ..., R], bool or numbers that are not negative, in place of the draw.
      normalizer: scalar or [G] to divide the sums of the groups by.

    Returns:
      float32 scalar (float64 for float64 logits).

    Raises:
      ValueError: shapes or dtypes do not fit, or not exactly one of key and sample_weight is given; outside jit also:
        labels out of range, negative weights, NaN logits in rows that count.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    num_groups, num_labels = groups.label_map.shape
    meaning = f"one column per class and group, of {groups.num_classes} classes in groups of {groups.sizes.tolist()}"
    check_rows(
        logits,
        labels,
        extra_label=False,
        columns=groups.num_logits,
        columns_meaning=f"{meaning}; labels has shape {labels.shape}",
        last_label=num_labels - 1,
    )
    if (key is None) == (sample_weight is None):
        given = "nothing" if key is None else "both"
        raise ValueError(f"{given} of key and sample_weight given; expected one of them")
    if sample_weight is None:
        sample_weight = group_softmax_weights(key, labels, groups, others_ratio=others_ratio)
    sample_weight = jnp.asarray(sample_weight)
    meaning = f"a weight per group and row; labels has shape {labels.shape}"
    check_shape("sample_weight", sample_weight, (num_groups, *labels.shape), meaning)
    check_range("sample_weight", sample_weight, 0)

    valid = labels >= 0
    places = _labels_in_groups(labels, groups)
    sums, counts = [], []
    for group, (start, size) in enumerate(zip(groups.starts, groups.sizes, strict=True)):
        target = (places[group][..., None] == jnp.arange(size)) & valid[..., None]
        terms = softmax_ce(logits[..., start : start + size], target, valid)
        weight = jnp.where(valid, sample_weight[group], 0).astype(terms.dtype)
        sums.append(jnp.sum(weight * terms))
        counts.append(jnp.maximum(jnp.sum(weight), 1))
    divisor = jnp.stack(counts)
    if normalizer is not None:
        normalizer = jnp.asarray(normalizer)
        if normalizer.shape not in ((), (num_groups,)):
            raise ValueError(f"normalizer has shape {normalizer.shape}; expected () or {(num_groups,)}, one per group")
        divisor = jnp.broadcast_to(normalizer, num_groups)
    return jnp.sum(divide_or_zero(jnp.stack(sums), divisor))


def group_softmax_scores(logits: ArrayLike, groups: ClassGroups) -> jax.Array:
    """Class probabilities: each class's in the softmax of its group, times that of foreground.

    Args:
      logits: float [..., C].
      groups: of `class_groups`.

    Returns:
      float32 [..., K + 1], background last; [..., K] without background. They need not add up to 1.

    Raises:
      ValueError: logits have not C columns.
    """
    logits = jnp.asarray(logits)
    if logits.shape[-1:] != (groups.num_logits,):
        raise ValueError(f"logits has shape {logits.shape}; expected (..., {groups.num_logits}), the columns of groups")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    parts = [
        jax.nn.softmax(logits[..., start : start + size], axis=-1)
        for start, size in zip(groups.starts, groups.sizes, strict=True)
    ]
    scores = jnp.concatenate(parts, axis=-1)[..., groups.label_columns]
    if not groups.background:
        return scores
    foreground = parts[-1][..., :1]
    return jnp.concatenate([scores[..., :-1] * foreground, scores[..., -1:]], axis=-1)


def _labels_in_groups(labels: jax.Array, groups: ClassGroups) -> jax.Array:
    """Labels [..., R] -> places [G, ..., R]; of padding anything."""
    return jnp.take(jnp.asarray(groups.label_map), jnp.maximum(labels, 0), axis=1, mode="clip")
