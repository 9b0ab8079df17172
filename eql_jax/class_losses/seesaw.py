"""Seesaw loss."""

import dataclasses

import jax
import numpy as np

from eql_jax import losses
from eql_jax.class_losses.protocol import ClassLoss
from eql_jax.losses.checks import check_range


@dataclasses.dataclass(frozen=True, eq=False)
class Seesaw(ClassLoss):
    """`losses.seesaw_loss`: K columns and a pair for foreground and background, and a count of each label as memory.

    p, q: strength of mitigation and compensation. eps: smallest score in the compensation. mean_over_foreground: divide
    the part over classes by foreground rows, not by all. The paper's classifier is config.model.box_head.classifier
    'cosine', of temperature 20.
    """

    p: float = 0.8
    q: float = 2.0
    eps: float = 0.01
    mean_over_foreground: bool = False

    exclusive_scores = True
    takes_annotated = True

    def __post_init__(self) -> None:
        check_range("p", self.p, 0)
        check_range("q", self.q, 0)
        check_range("eps", self.eps, 0, above=True)

    @property
    def num_logits(self) -> int:
        return self.num_classes + 2 * self.background

    def initial_bias(self, prior: float) -> np.ndarray:
        """Zeros: all classes, and foreground and background, start alike."""
        del prior
        return np.zeros(self.num_logits, np.float32)

    def init_state(self) -> dict[str, jax.Array]:
        return losses.seesaw_init(self.num_classes, background=self.background)._asdict()

    def loss(self, logits, labels, state, inputs):
        loss, state = losses.seesaw_loss(
            logits,
            labels,
            losses.SeesawState(**state),
            p=self.p,
            q=self.q,
            eps=self.eps,
            background=self.background,
            mean_over_foreground=self.mean_over_foreground,
            annotated_classes=inputs.annotated,
        )
        return loss, state._asdict()

    def scores(self, logits: jax.Array) -> jax.Array:
        if not self.background:
            return jax.nn.softmax(logits, axis=-1)
        return losses.seesaw_scores(logits)[..., : self.num_classes]
