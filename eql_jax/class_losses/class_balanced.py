"""Class-balanced weighting by the effective number of samples."""

import dataclasses
import functools

import numpy as np

from eql_jax import losses
from eql_jax.class_losses.options import COUNTS, check_choice
from eql_jax.class_losses.protocol import ClassLoss
from eql_jax.losses.checks import check_range

KINDS = ("sigmoid", "focal")


@dataclasses.dataclass(frozen=True, eq=False)
class ClassBalanced(ClassLoss):
    """`losses.class_balanced_loss` with the weights of `losses.class_balanced_weights`.

    A row has the weight of its class; the weights of the classes are 1 on average, and background rows have weight 1.
    kind: 'sigmoid' or 'focal', the loss that is weighted. beta: in [0, 1); near 1 rare classes weigh most. gamma: of
    'focal'. count_by: 'image' or 'instance', the training counts that the weights come from.
    """

    kind: str = "sigmoid"
    beta: float = 0.999
    gamma: float = 2.0
    count_by: str = "image"

    takes_annotated = True

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta is {self.beta}; expected at least 0 and less than 1")
        check_range("gamma", self.gamma, 0)
        check_choice("count_by", self.count_by, COUNTS)

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """float32 [K]."""
        return losses.class_balanced_weights(self.counts(self.count_by), self.beta)

    def loss(self, logits, labels, state, inputs):
        loss = losses.class_balanced_loss(
            logits, labels, self.weights, kind=self.kind, gamma=self.gamma, annotated_classes=inputs.annotated
        )
        return loss, state
