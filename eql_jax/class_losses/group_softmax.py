"""Balanced group softmax (BAGS)."""

import dataclasses
import functools

import jax
import numpy as np

from eql_jax import losses
from eql_jax.class_losses.options import required_key
from eql_jax.class_losses.protocol import ClassLoss
from eql_jax.losses.checks import check_range
from eql_jax.losses.group_softmax import ClassGroups


@dataclasses.dataclass(frozen=True, eq=False)
class GroupSoftmax(ClassLoss):
    """`losses.group_softmax_loss` over groups of classes by their number of training objects.

    bin_split: limits of the groups. others_ratio: rows of other groups kept for each row of a group's classes. There is
    a group for background. The scores are each class's in its group times that of foreground, so that inference too
    needs the counts of the training set.
    """

    bin_split: tuple = (10, 100, 1000)
    others_ratio: float = 8.0

    def __post_init__(self) -> None:
        check_range("others_ratio", self.others_ratio, 0)
        losses.class_groups(np.zeros(0), bin_split=self.bin_split)  # checks the limits

    @functools.cached_property
    def groups(self) -> ClassGroups:
        """The layout of the columns."""
        return losses.class_groups(self.counts("instance"), bin_split=self.bin_split, background=self.background)

    @property
    def num_logits(self) -> int:
        """K, the "others" of each group, and a pair for background."""
        return self.num_classes + len(self.bin_split) + 1 + 2 * self.background

    @property
    def class_columns(self) -> np.ndarray:
        return self.groups.label_columns[: self.num_classes]

    def initial_bias(self, prior: float) -> np.ndarray:
        """Zeros: the columns of a group start alike."""
        del prior
        return np.zeros(self.num_logits, np.float32)

    def loss(self, logits, labels, state, inputs):
        key = required_key(self, inputs)
        return losses.group_softmax_loss(logits, labels, self.groups, key=key, others_ratio=self.others_ratio), state

    def scores(self, logits: jax.Array) -> jax.Array:
        return losses.group_softmax_scores(logits, self.groups)[..., : self.num_classes]
