"""The softmax equalization loss."""

import dataclasses

from eql_jax import losses
from eql_jax.class_losses.options import required_key
from eql_jax.class_losses.protocol import SoftmaxClassLoss
from eql_jax.losses.checks import check_range


@dataclasses.dataclass(frozen=True, eq=False)
class Seql(SoftmaxClassLoss):
    """`losses.softmax_equalization_loss` with the tail of ClassFrequencies.

    gamma: probability that a tail class is left out of the denominator of a row that is not of it. The paper's is .95
    on CIFAR-100-LT, .9 on ImageNet-LT. Background, where there is some, has a column that is never left out, and its
    rows leave out no class.
    """

    gamma: float = 0.95

    takes_annotated = True
    takes_tail = True

    def __post_init__(self) -> None:
        check_range("gamma", self.gamma, 0, 1)

    def loss(self, logits, labels, state, inputs):
        loss = losses.softmax_equalization_loss(
            logits,
            labels,
            self.tail(),
            key=required_key(self, inputs),
            gamma=self.gamma,
            annotated_classes=inputs.annotated,
        )
        return loss, state
