"""Equalization loss v2."""

import dataclasses

import jax

from eql_jax import losses
from eql_jax.class_losses.protocol import ClassLoss
from eql_jax.losses.checks import check_range


@dataclasses.dataclass(frozen=True, eq=False)
class Eqlv2(ClassLoss):
    """`losses.eqlv2_loss`: K + 1 columns, the last for objectness, and two numbers of memory for each class.

    gamma, mu, alpha: of `losses.eqlv2_weights`. All columns, objectness too, start at the same score, as in the
    authors' code.
    """

    gamma: float = 12.0
    mu: float = 0.8
    alpha: float = 4.0

    takes_annotated = True

    def __post_init__(self) -> None:
        check_range("gamma", self.gamma, 0)
        check_range("alpha", self.alpha, 0)

    @property
    def num_logits(self) -> int:
        return self.num_classes + self.background

    def init_state(self) -> dict[str, jax.Array]:
        return losses.eqlv2_init(self.num_classes)._asdict()

    def loss(self, logits, labels, state, inputs):
        loss, memory = losses.eqlv2_loss(
            logits,
            labels,
            losses.GradientMemory(**state),
            gamma=self.gamma,
            mu=self.mu,
            alpha=self.alpha,
            background=self.background,
            annotated_classes=inputs.annotated,
        )
        return loss, memory._asdict()

    def scores(self, logits: jax.Array) -> jax.Array:
        if not self.background:
            return jax.nn.sigmoid(logits)
        return losses.eqlv2_scores(logits)[..., : self.num_classes]
