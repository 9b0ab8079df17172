"""From right and wrong detections to precision and recall curves, and to the metrics of the LVIS protocol.

K classes, T = 10 IoU thresholds, R = 101 recall points, A = 4 area ranges (all, small, medium, large), P = 4 pools.
Every number is the official package's: the same divisions in the same order, -1 where there is no object.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eql_jax.evaluation.ground_truth import LETTERS
from eql_jax.evaluation.matching import NUM_AREAS, NUM_THRESHOLDS

RECALLS = np.linspace(0, 1, 101)
_AREA_NAMES = ("", "s", "m", "l")
_BLOCK_VALUES = 1 << 19  # of detections times states, worked on together


class Outcomes(NamedTuple):
    """What became of the D detections that count, image by image and, within one, class by class by falling score.

    Attributes:
      classes: int64 [D], class index.
      scores: float64 [D].
      right, wrong: uint64 [D], the states (`matching`) in which each is so; else it is ignored.
      num_objects: int64 [K, A], objects that are not ignored.
    """

    classes: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    num_objects: np.ndarray


class Curves(NamedTuple):
    """precision float64 [T, R, K, A] and recall float64 [T, K, A], K classes or pools; -1 without objects."""

    precision: np.ndarray
    recall: np.ndarray


def class_curves(outcomes: Outcomes) -> Curves:
    """The curves of every class."""
    order = np.lexsort((-outcomes.scores, outcomes.classes))  # stable: of equal scores the first image comes first
    classes, right, wrong = outcomes.classes[order], outcomes.right[order], outcomes.wrong[order]
    num_classes = len(outcomes.num_objects)
    borders = np.searchsorted(classes, np.arange(num_classes + 1))
    curves = _no_curves(num_classes)
    for k in np.flatnonzero(outcomes.num_objects.any(axis=1)).tolist():
        part = slice(borders[k], borders[k + 1])
        precision, recall = _curve(right[part], wrong[part], outcomes.num_objects[k])
        curves.precision[:, :, k], curves.recall[:, k] = precision, recall
    return curves


def pooled_curves(outcomes: Outcomes, letters: Sequence[str]) -> Curves:
    """The curves of four pools, in each of which the detections of all its classes rank together.

    The pools are all classes, and the rare, the common and the frequent ones.

    Args:
      outcomes: of matching class by class, as ever.
      letters: of the K classes.
    """
    order = np.argsort(-outcomes.scores, kind="stable")
    classes, right, wrong = outcomes.classes[order], outcomes.right[order], outcomes.wrong[order]
    letters = np.array(letters)
    curves = _no_curves(1 + len(LETTERS))
    for pool, members in enumerate([np.ones(len(letters), bool), *(letters == letter for letter in LETTERS)]):
        num_objects = outcomes.num_objects[members].sum(axis=0)
        if not num_objects.any():
            continue
        mine = members[classes]
        curves.precision[:, :, pool], curves.recall[:, pool] = _curve(right[mine], wrong[mine], num_objects)
    return curves


def _no_curves(count: int) -> Curves:
    return Curves(
        np.full((NUM_THRESHOLDS, len(RECALLS), count, NUM_AREAS), -1.0),
        np.full((NUM_THRESHOLDS, count, NUM_AREAS), -1.0),
    )


def _curve(right: np.ndarray, wrong: np.ndarray, num_objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, R, A] and recall [T, A] of detections by falling score, uint64 [n]; num_objects int64 [A]."""
    precision = np.full((NUM_AREAS, NUM_THRESHOLDS, len(RECALLS)), -1.0)
    recall = np.full((NUM_AREAS, NUM_THRESHOLDS), -1.0)
    rows = np.repeat(num_objects > 0, NUM_THRESHOLDS)
    counts = np.repeat(num_objects, NUM_THRESHOLDS)
    states = np.flatnonzero(rows)
    step = max(1, _BLOCK_VALUES // max(1, len(right)))
    for start in range(0, len(states), step):
        part = states[start : start + step]
        flat = precision.reshape(-1, len(RECALLS)), recall.reshape(-1)
        flat[0][part], flat[1][part] = _curves_of_states(right, wrong, part, counts[part])
    return precision.transpose(1, 2, 0), recall.T


def _curves_of_states(
    right: np.ndarray, wrong: np.ndarray, states: np.ndarray, num_objects: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [S, R] and recall [S] of S states, bits int64 [S], with num_objects int64 [S] > 0."""
    n, shifts = len(right), states.astype(np.uint64)[:, None]
    if not n:
        return np.zeros((len(states), len(RECALLS))), np.zeros(len(states))
    # float64 as in the official code; the counts are exact.
    true = np.cumsum((right[None] >> shifts) & np.uint64(1), axis=1, dtype=np.float64)
    false = np.cumsum((wrong[None] >> shifts) & np.uint64(1), axis=1, dtype=np.float64)
    precision = true / (false + true + np.spacing(1))
    # The largest precision at this recall or beyond it.
    np.maximum.accumulate(precision[:, ::-1], axis=1, out=precision[:, ::-1])
    # The first detection that reaches each recall, of all states at once: their counts become one rising sequence.
    needed = np.stack([_needed_for_recalls(count) for count in num_objects.tolist()])
    shift = np.arange(len(states))[:, None] * (n + 1)
    at = np.searchsorted((true + shift).ravel(), (np.minimum(needed, n + 1) + shift).ravel()).reshape(needed.shape)
    at -= np.arange(len(states))[:, None] * n
    found = np.take_along_axis(precision, np.minimum(at, n - 1), axis=1)
    found[at >= n] = 0
    return found, true[:, -1] / num_objects


@functools.lru_cache(maxsize=4096)
def _needed_for_recalls(num_objects: int) -> np.ndarray:
    """How many right detections reach each recall, int64 [R]: by the division of the official code, in float64."""
    return np.searchsorted(np.arange(num_objects + 1) / num_objects, RECALLS, side="left")


def summarize(curves: Curves, letters: Sequence[str], max_detections: int) -> dict[str, float]:
    """The metrics of a federated evaluation: means over thresholds, recall points and classes that have objects.

    Args:
      curves: of K classes.
      letters: of the K classes.
      max_detections: the limit per image, which is part of the names of recalls.
    """
    letters = np.array(letters)
    everything = curves.precision[..., 0]
    metrics = {"AP": mean_of_valid(everything), **_at_50_and_75(everything)}
    metrics |= {f"AP{name}": mean_of_valid(curves.precision[..., a]) for a, name in enumerate(_AREA_NAMES) if name}
    for letter in LETTERS:
        metrics[f"AP{letter}"] = mean_of_valid(everything[:, :, letters == letter])
    for a, name in enumerate(_AREA_NAMES):
        metrics[f"AR{name}@{max_detections}"] = mean_of_valid(curves.recall[:, :, a])
    for letter in LETTERS:
        metrics[f"AP50{letter}"] = mean_of_valid(everything[0][:, letters == letter])
    return metrics


def summarize_pools(curves: Curves, max_detections: int) -> dict[str, float]:
    """The same metrics of the pools of `pooled_curves`; those with a letter are of that pool."""
    everything = Curves(curves.precision[:, :, :1], curves.recall[:, :1])
    metrics = summarize(everything, [""], max_detections)
    for pool, letter in enumerate(LETTERS, 1):
        metrics[f"AP{letter}"] = mean_of_valid(curves.precision[:, :, pool, 0])
        metrics[f"AP50{letter}"] = mean_of_valid(curves.precision[0, :, pool, 0])
    return metrics


def _at_50_and_75(precision: np.ndarray) -> dict[str, float]:
    return {"AP50": mean_of_valid(precision[0]), "AP75": mean_of_valid(precision[5])}


def mean_of_valid(values: np.ndarray) -> float:
    """The mean of the values that are not -1, else -1."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0
