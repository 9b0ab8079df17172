"""Effective class-margin loss."""

import dataclasses

import jax
import numpy as np

from eql_jax import losses
from eql_jax.class_losses.options import COUNTS, check_choice
from eql_jax.class_losses.protocol import ClassLoss
from eql_jax.losses.checks import check_range
from eql_jax.losses.effective_class_margin import BACKGROUND_RATIO


@dataclasses.dataclass(frozen=True, eq=False)
class Ecm(ClassLoss):
    """`losses.effective_class_margin_loss`: K + 1 columns, the last for background.

    background_ratio: background rows for each foreground row, where they are not counted; without background unused.
    count_by: 'image' or 'instance', the training counts that margins and weights come from. count_samples: count the
    labels of the training rows instead, background's too, from nothing on; that is a memory of K + 1 numbers.
    The authors' classifier is config.model.box_head.classifier 'cosine', of temperature 20.
    """

    background_ratio: float = BACKGROUND_RATIO
    count_by: str = "image"
    count_samples: bool = False

    takes_annotated = True

    def __post_init__(self) -> None:
        check_range("background_ratio", self.background_ratio, 0, above=True)
        check_choice("count_by", self.count_by, COUNTS)

    @property
    def num_logits(self) -> int:
        return self.num_classes + self.background

    def init_state(self) -> dict[str, jax.Array]:
        return self._samples(np.zeros(self.num_classes))._asdict() if self.count_samples else {}

    def loss(self, logits, labels, state, inputs):
        if self.count_samples:
            samples = losses.EffectiveClassMarginState(**state)
        else:
            samples = self._samples(self.counts(self.count_by))
        loss, samples = losses.effective_class_margin_loss(
            logits,
            labels,
            samples,
            background=self.background,
            count_samples=self.count_samples,
            annotated_classes=inputs.annotated,
        )
        return loss, samples._asdict() if self.count_samples else {}

    def scores(self, logits: jax.Array) -> jax.Array:
        if not self.background:
            return jax.nn.sigmoid(logits)
        return losses.effective_class_margin_scores(logits)[..., : self.num_classes]

    def _samples(self, counts: np.ndarray) -> losses.EffectiveClassMarginState:
        ratio = self.background_ratio if self.background else None
        return losses.effective_class_margin_init(counts, background_ratio=ratio)
