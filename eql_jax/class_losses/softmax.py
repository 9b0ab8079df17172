"""Softmax cross-entropy, detectron2's default."""

import dataclasses

from eql_jax import losses
from eql_jax.class_losses.protocol import SoftmaxClassLoss


@dataclasses.dataclass(frozen=True, eq=False)
class Softmax(SoftmaxClassLoss):
    """`losses.softmax_cross_entropy_loss`. No options."""

    takes_annotated = True

    def loss(self, logits, labels, state, inputs):
        annotated = inputs.annotated if self.background else None
        return losses.softmax_cross_entropy_loss(logits, labels, annotated_classes=annotated), state
