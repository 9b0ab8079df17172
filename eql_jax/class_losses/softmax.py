"""Softmax cross-entropy, detectron2's default."""

import dataclasses

from eql_jax import losses
from eql_jax.class_losses.protocol import SoftmaxClassLoss


@dataclasses.dataclass(frozen=True, eq=False)
class Softmax(SoftmaxClassLoss):
    """`losses.softmax_cross_entropy_loss`. No options."""

    takes_annotated = True

    def loss(self, logits, labels, state, inputs):
        loss = losses.softmax_cross_entropy_loss(
            logits, labels, background=self.background, annotated_classes=inputs.annotated
        )
        return loss, state
