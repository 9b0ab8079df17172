"""The gradient of the classifier's weights, class by class, and what it is made of (the paper's Figures 1 and 2).

R rows (RoIs), F hidden units, C columns of logits, K classes. Labels are 0..K-1, K for background, -1 for no row.

The gradient of a class's weights is a sum over rows: those labelled with the class pull its score up (positives), all
others, background among them, push it down (negatives). Figure 1 of the paper is the L2 norm of both sums, in the mean
over batches; Figure 2 the mean score that positives get for their class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eql_jax.analysis.groups import Confusion, empty_confusion, group_confusion


class Probe(NamedTuple):
    """What one batch shows.

    labels: int [R]. scores: float32 [R, K]. positive, negative: float32 [K] L2 norms of the two parts of the gradient
    of each class's weights; None for a loss without a column for each class.
    """

    labels: np.ndarray
    scores: np.ndarray
    positive: np.ndarray | None
    negative: np.ndarray | None


def own_entries(labels: jax.Array, columns: np.ndarray, num_logits: int) -> jax.Array:
    """bool [R, C]: whether the column is that of the row's label. `columns`: int [K], the column of each class."""
    class_of = np.full(num_logits, -2)  # what is the column of no class has no positives; -1 is a label
    class_of[columns] = np.arange(len(columns))
    return labels[:, None] == class_of


def split_gradient(
    classifier: Callable[[jax.Array], jax.Array], kernel: jax.Array, dlogits: jax.Array, own: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradient of the classifier's weights in two parts, from positives and from negatives.

    Args:
      classifier: weights [F, C] -> logits [R, C] of the rows, column by column: weights of one column touch no other.
      kernel: [F, C], the weights.
      dlogits: [R, C] gradient of the loss with respect to the logits.
      own: bool [R, C] of `own_entries`.

    Returns:
      Two arrays [F, C], whose sum is the gradient of the loss.
    """
    _, pull = jax.vjp(classifier, kernel)
    return pull(jnp.where(own, dlogits, 0))[0], pull(jnp.where(own, 0, dlogits))[0]


def column_norms(x: np.ndarray | jax.Array, columns: np.ndarray) -> jax.Array:
    """float32 [K]: L2 norm of those columns of [F, C]."""
    return jnp.linalg.norm(jnp.asarray(x, jnp.float32), axis=0)[columns]


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the batches of a run show.

    Attributes:
      batches: how many there were.
      positives: int [K] rows labelled with each class, in all of them.
      probability: float64 [K] mean score of these rows for their class, NaN without any.
      positive, negative: float64 [K] norms of the gradient's parts, in the mean over all batches; a batch without
        positives of a class counts with 0. None for a loss without a column for each class.
      confusion: of the rows by frequency group.
    """

    batches: int
    positives: np.ndarray
    probability: np.ndarray
    positive: np.ndarray | None
    negative: np.ndarray | None
    confusion: Confusion


def summarize(probes: Iterable[Probe], letters: Sequence[str], *, score_threshold: float) -> Findings:
    """Counts the batches together.

    Args:
      probes: of the batches, at least one.
      letters: K frequency letters.
      score_threshold: see `groups.group_confusion`.

    Raises:
      ValueError: there is no batch.
    """
    num_classes = len(letters)
    count, sums = np.zeros(num_classes, np.int64), np.zeros(num_classes)
    positive, negative = [], []
    confusion, batches = empty_confusion(), 0
    for probe in probes:
        batches += 1
        labels, scores = np.asarray(probe.labels), np.asarray(probe.scores, np.float64)
        rows = np.flatnonzero((labels >= 0) & (labels < num_classes))
        own = labels[rows]
        count += np.bincount(own, minlength=num_classes)
        sums += np.bincount(own, weights=scores[rows, own], minlength=num_classes)
        confusion += group_confusion(scores, labels, letters, score_threshold=score_threshold)
        if probe.positive is not None:
            positive.append(np.asarray(probe.positive, np.float64))
            negative.append(np.asarray(probe.negative, np.float64))
    if not batches:
        raise ValueError("probes is empty; expected those of at least one batch")
    mean = np.divide(sums, count, out=np.full(num_classes, np.nan), where=count > 0)
    norms = (np.mean(positive, axis=0), np.mean(negative, axis=0)) if positive else (None, None)
    return Findings(batches, count, mean, *norms, confusion)
