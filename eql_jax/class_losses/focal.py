"""Focal loss."""

import dataclasses

from eql_jax import losses
from eql_jax.class_losses.protocol import ClassLoss
from eql_jax.losses.checks import check_range


@dataclasses.dataclass(frozen=True, eq=False)
class Focal(ClassLoss):
    """`losses.focal_loss`, divided by the number of rows, background included.

    alpha: weight of positives, 1 - alpha that of negatives; a negative number leaves both at 1. gamma: the exponent.
    """

    alpha: float = 0.25
    gamma: float = 2.0

    takes_annotated = True
    takes_padding = True

    def __post_init__(self) -> None:
        if not self.alpha < 0:  # and so NaN is checked
            check_range("alpha", self.alpha, 0, 1)
        check_range("gamma", self.gamma, 0)

    def loss(self, logits, labels, state, inputs):
        alpha = self.alpha if self.alpha >= 0 else None
        loss = losses.focal_loss(logits, labels, alpha=alpha, gamma=self.gamma, annotated_classes=inputs.annotated)
        return loss, state
