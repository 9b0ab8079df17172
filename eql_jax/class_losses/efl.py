"""Equalized focal loss."""

import dataclasses

import jax

from eql_jax import losses
from eql_jax.class_losses.protocol import ClassLoss
from eql_jax.losses.checks import check_range


@dataclasses.dataclass(frozen=True, eq=False)
class Efl(ClassLoss):
    """`losses.equalized_focal_loss`: a sigmoid per class, and two numbers of memory for each.

    gamma, scale: of `losses.equalized_focal_focusing`. alpha: weight of positives against 1 - alpha of negatives;
    negative: 1 for both.
    """

    gamma: float = 2.0
    scale: float = 8.0
    alpha: float = 0.25

    takes_annotated = True
    takes_padding = True

    def __post_init__(self) -> None:
        check_range("gamma", self.gamma, 0, above=True)
        check_range("scale", self.scale, 0)
        if not self.alpha < 0:  # and so NaN is checked
            check_range("alpha", self.alpha, 0, 1)

    def init_state(self) -> dict[str, jax.Array]:
        return losses.equalized_focal_init(self.num_classes)._asdict()

    def loss(self, logits, labels, state, inputs):
        loss, memory = losses.equalized_focal_loss(
            logits,
            labels,
            losses.GradientMemory(**state),
            gamma=self.gamma,
            scale=self.scale,
            alpha=self.alpha if self.alpha >= 0 else None,
            annotated_classes=inputs.annotated,
        )
        return loss, memory._asdict()
