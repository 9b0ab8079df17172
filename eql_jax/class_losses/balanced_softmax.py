"""Balanced softmax, or the logit-adjusted loss."""

import dataclasses

import numpy as np

from eql_jax import losses
from eql_jax.class_losses.options import COUNTS, check_choice
from eql_jax.class_losses.protocol import SoftmaxClassLoss
from eql_jax.losses.checks import check_range


@dataclasses.dataclass(frozen=True, eq=False)
class BalancedSoftmax(SoftmaxClassLoss):
    """`losses.balanced_softmax_loss`; its scores are those of a plain softmax.

    tau: strength of the adjustment; 1 is balanced softmax. count_by: 'instance' or 'image', the training counts that
    stand for the class prior; a class that never occurs counts once. The column of background, where there is one, is
    not adjusted, and the adjustments of the classes leave objects and background the odds that they have in training.
    """

    tau: float = 1.0
    count_by: str = "instance"

    takes_annotated = True

    def __post_init__(self) -> None:
        check_range("tau", self.tau, 0)
        check_choice("count_by", self.count_by, COUNTS)

    def loss(self, logits, labels, state, inputs):
        counts = np.maximum(self.counts(self.count_by), 1)
        loss = losses.balanced_softmax_loss(logits, labels, counts, tau=self.tau, annotated_classes=inputs.annotated)
        return loss, state
