"""One sigmoid cross-entropy per class, EQL's baseline."""

import dataclasses

from eql_jax import losses
from eql_jax.class_losses.protocol import ClassLoss


@dataclasses.dataclass(frozen=True, eq=False)
class Sigmoid(ClassLoss):
    """`losses.sigmoid_cross_entropy_loss`. No options."""

    takes_annotated = True
    takes_padding = True

    def loss(self, logits, labels, state, inputs):
        return losses.sigmoid_cross_entropy_loss(logits, labels, annotated_classes=inputs.annotated), state
