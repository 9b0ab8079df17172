"""How much each file counts for each class: weights, experts and factors that re-score.

F files, S classes that are treated by themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eql_jax.ensemble.errors import EnsembleError

EXPERT_MODES = ("raise", "only")


class ClassWeights(NamedTuple):
    """Weights and factors of F files, by class.

    Attributes:
      ids: int64 [S], rising: the classes that differ from the others.
      weights: float64 [S + 1, F]: how much a file counts; the last row is for all other classes.
      factors: float64 [S + 1, F]: what its scores are multiplied with before.
    """

    ids: np.ndarray
    weights: np.ndarray
    factors: np.ndarray

    def rows(self, classes: np.ndarray) -> np.ndarray:
        """The row of each class, int64 [N]."""
        place = np.searchsorted(self.ids, classes)
        found = np.append(self.ids, 0)[place] == classes
        return np.where(found & (place < len(self.ids)), place, len(self.ids))


def class_weights(
    weights: Sequence[float],
    *,
    experts: Mapping[int, Collection[int]] | None = None,
    mode: str = "raise",
    expert_weight: float = 2.0,
    elsewhere: float = 1.0,
    factors: Mapping[int, Mapping[int, float]] | None = None,
) -> ClassWeights:
    """Makes the table of weights.

    Args:
      weights: of the F files, at least 0.
      experts: the classes (category ids) of files that are experts, by the number of the file.
      mode: 'raise': for its classes an expert's weight is multiplied by `expert_weight`; 'only': for a class that has
        experts, the other files count 0.
      expert_weight: see `mode`; not used by 'only'.
      elsewhere: the weight of an expert is multiplied by this for all classes but its own; 0: not used there.
      factors: what the scores of a file are multiplied with, by number of the file and category id; 1 for the others.

    Raises:
      EnsembleError: a value is below 0 or not finite, or no file counts for some class.
    """
    experts, factors = experts or {}, factors or {}
    if mode not in EXPERT_MODES:
        raise EnsembleError(f"expert mode: expected one of {EXPERT_MODES}, found {mode!r}")
    for name, value in [*(("weights", w) for w in weights), ("expert weight", expert_weight), ("elsewhere", elsewhere)]:
        if not 0 <= value < float("inf"):
            raise EnsembleError(f"{name}: expected numbers of at least 0, found {value}")
    special = [*experts.values(), *(of_file.keys() for of_file in factors.values())]
    ids = np.array(sorted({category for classes in special for category in classes}), np.int64)
    table = np.tile(np.array(weights, np.float64), (len(ids) + 1, 1))
    is_expert = np.zeros_like(table, bool)
    for file, classes in experts.items():
        is_expert[:-1, file] = np.isin(ids, list(classes))
        table[:, file] *= np.where(is_expert[:, file], expert_weight if mode == "raise" else 1.0, elsewhere)
    if mode == "only":
        table[is_expert.any(axis=1, keepdims=True) & ~is_expert] = 0
    scale = np.ones_like(table)
    for file, of_file in factors.items():
        for category, factor in of_file.items():
            scale[np.searchsorted(ids, category), file] = factor
    silent = np.flatnonzero(~(table > 0).any(axis=1))
    if len(silent):
        named = f"class {ids[silent[0]]}" if silent[0] < len(ids) else "classes without an expert"
        raise EnsembleError(
            f"no file has a weight above 0 for {named}: see the weights, and those of experts elsewhere"
        )
    return ClassWeights(ids, table, scale)
