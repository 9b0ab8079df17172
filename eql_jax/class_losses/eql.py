"""The equalization loss."""

import dataclasses

from eql_jax import losses
from eql_jax.class_losses.protocol import ClassLoss


@dataclasses.dataclass(frozen=True, eq=False)
class Eql(ClassLoss):
    """`losses.equalization_loss` with the tail of ClassFrequencies.

    background_keeps_negatives: E(r) of the loss. From a config it is config.model.eql.background_keeps_negatives.
    """

    background_keeps_negatives: bool = True

    takes_annotated = True
    takes_tail = True
    takes_verified = True
    takes_padding = True

    def loss(self, logits, labels, state, inputs):
        loss = losses.equalization_loss(
            logits,
            labels,
            self.tail(),
            background_keeps_negatives=self.background_keeps_negatives,
            exempt_classes=inputs.verified,
            annotated_classes=inputs.annotated,
        )
        return loss, state
