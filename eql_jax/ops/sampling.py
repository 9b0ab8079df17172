"""Drawing a fixed number of positives and negatives for the RPN and box losses.

Shapes: N candidates of one image (anchors, or proposals followed by ground-truth boxes); `num` are drawn.

With n_pos positives and n_neg negatives among the candidates, k_pos = min(n_pos, int(num * positive_fraction)) and
k_neg = min(n_neg, num - k_pos) are drawn, as in detectron2's `subsample_labels`.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from eql_jax.ops.matching import IGNORED, NEGATIVE, POSITIVE
from eql_jax.ops.topk import top_k

# 'random': uniformly without replacement. 'spread': evenly through the list, k of n at floor(i * n / k): no randomness,
# for comparison with stored results.
Rule = Literal["random", "spread"]


class RoISample(NamedTuple):
    """Sampled RoIs of one image: foreground rows first, then background, then padding.

    Attributes:
      indices: int32 [num] into the candidates; 0 in padding.
      valid: bool [num].
      foreground: bool [num]. True only within the first int(num * positive_fraction) rows: heads that need the
        foreground alone (masks) take that static slice.
    """

    indices: Array
    valid: Array
    foreground: Array


def sample_anchors(
    labels: Array, *, num: int, positive_fraction: float, key: Array | None = None, rule: Rule = "random"
) -> Array:
    """Keeps `num` labels of an image and sets the others to -1.

    Args:
      labels: int [N], 1 positive, 0 negative, -1 neither.
      num: anchors to keep, fewer if there are not as many.
      positive_fraction: share of positives at most; negatives fill the rest.
      key: PRNG key of this image, for rule 'random'.
      rule: 'random' or 'spread'.

    Returns:
      int32 [N] in {1, 0, -1}.

    Raises:
      ValueError: for an unknown rule, or rule 'random' without a key.
    """
    chosen = _choose(labels, num=num, positive_fraction=positive_fraction, key=key, rule=rule)
    kept = jnp.full(labels.shape, IGNORED, jnp.int32)
    # Rows past the count go to an index out of range, which the scatter drops.
    kept = kept.at[jnp.where(chosen.positive_valid, chosen.positive, labels.shape[0])].set(POSITIVE, mode="drop")
    return kept.at[jnp.where(chosen.negative_valid, chosen.negative, labels.shape[0])].set(NEGATIVE, mode="drop")


def sample_rois(
    labels: Array, *, num: int, positive_fraction: float, key: Array | None = None, rule: Rule = "random"
) -> RoISample:
    """Draws `num` RoIs of an image by their labels [N]; arguments and errors as in `sample_anchors`."""
    chosen = _choose(labels, num=num, positive_fraction=positive_fraction, key=key, rule=rule)
    num_positive = jnp.sum(chosen.positive_valid)
    slot = jnp.arange(num)
    foreground = slot < num_positive
    valid = slot < num_positive + jnp.sum(chosen.negative_valid)
    limit = chosen.positive.shape[0]
    rows = jnp.where(foreground, slot, limit + slot - num_positive)
    indices = jnp.concatenate([chosen.positive, chosen.negative])[jnp.where(valid, rows, 0)]
    return RoISample(jnp.where(valid, indices, 0), valid, foreground)


class _Choice(NamedTuple):
    positive: Array  # int32 [int(num * positive_fraction)]
    positive_valid: Array  # bool, a prefix
    negative: Array  # int32 [num]
    negative_valid: Array  # bool, a prefix


def _choose(labels: Array, *, num: int, positive_fraction: float, key: Array | None, rule: Rule) -> _Choice:
    is_positive, is_negative = labels == POSITIVE, labels == NEGATIVE
    limit = int(num * positive_fraction)
    num_positive = jnp.minimum(jnp.sum(is_positive), limit)
    num_negative = jnp.minimum(jnp.sum(is_negative), num - num_positive)
    if rule == "random":
        if key is None:
            raise ValueError("sampling with rule='random' needs a PRNG key, one per image; pass key=")
        # One draw serves both lists, which have no candidate in common.
        luck = jax.random.uniform(key, labels.shape)
        positive, negative = _luckiest(is_positive, luck, limit), _luckiest(is_negative, luck, num)
    elif rule == "spread":
        positive, negative = _spread(is_positive, num_positive, limit), _spread(is_negative, num_negative, num)
    else:
        raise ValueError(f"unknown sampling rule {rule!r}, expected 'random' or 'spread'")
    return _Choice(positive, jnp.arange(limit) < num_positive, negative, jnp.arange(num) < num_negative)


def _luckiest(mask: Array, luck: Array, size: int) -> Array:
    """Places [size] of the largest `luck` in [0, 1) among the candidates of `mask`, those first."""
    indices = top_k(jnp.where(mask, luck, -1.0), size).indices
    return jnp.pad(indices, (0, size - indices.shape[0]))


def _spread(mask: Array, count: Array, size: int) -> Array:
    """Places [size] of `count` True entries of `mask`, the ones numbered floor(i * n / count) of its n."""
    places = jnp.cumsum(mask, dtype=jnp.int32)
    n = jnp.sum(mask, dtype=jnp.int32)
    if size * mask.shape[0] >= 2**31:
        raise ValueError(f"rule='spread' overflows int32 for {size} of {mask.shape[0]} candidates; use rule='random'")
    number = jnp.arange(size, dtype=jnp.int32) * n // jnp.maximum(count, 1)
    return jnp.minimum(jnp.searchsorted(places, number + 1), mask.shape[0] - 1).astype(jnp.int32)
