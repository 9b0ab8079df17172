"""A classification loss whose classifier has more columns than there are classes; see eql_jax.losses.padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from eql_jax import losses
from eql_jax.class_losses.protocol import ClassFrequencies, ClassLoss, LossInputs, State, check_frequencies


@dataclasses.dataclass(frozen=True, eq=False)
class Padded(ClassLoss):
    """`inner`, a loss of as many classes as there are columns, shown the first K of them; made by `pad_class_loss`."""

    inner: ClassLoss = dataclasses.field(kw_only=True)

    @property
    def takes_annotated(self) -> bool:
        return self.inner.takes_annotated

    @property
    def takes_tail(self) -> bool:
        return self.inner.takes_tail

    @property
    def takes_verified(self) -> bool:
        return self.inner.takes_verified

    @property
    def images_multiple(self) -> int:
        return self.inner.images_multiple

    @property
    def num_logits(self) -> int:
        return self.inner.num_logits

    def initial_bias(self, prior: float) -> np.ndarray:
        return self.inner.initial_bias(prior)

    def init_state(self) -> State:
        return self.inner.init_state()

    def loss(self, logits, labels, state, inputs):
        logits, labels = losses.pad_classes(logits, labels, self.num_classes)
        added = self.num_logits - self.num_classes
        widen = lambda x: None if x is None else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, added)])  # noqa: E731
        inputs = LossInputs(widen(inputs.verified), widen(inputs.annotated), inputs.key)
        return self.inner.loss(logits, labels, state, inputs)

    def scores(self, logits: jax.Array) -> jax.Array:
        return self.inner.scores(logits)[..., : self.num_classes]


def pad_class_loss(loss: ClassLoss, multiple: int) -> ClassLoss:
    """`loss` with as many further columns as make their number a multiple of `multiple`; itself where it is one.

    Value and gradient stay what they are.

    Raises:
      ValueError: the loss is not one sigmoid per class (`takes_padding`), or what it knows of the classes is of another
        number of them.
    """
    known = loss.frequencies
    check_frequencies(known)
    columns = losses.padded_count(loss.num_classes, multiple)
    if multiple > 1 and not loss.takes_padding:
        raise ValueError(
            f"{type(loss).__name__} with {loss.num_classes} classes and {loss.num_logits} columns cannot be given "
            f"further columns, for a multiple of {multiple}; expected a loss with a sigmoid per class and no column "
            "for background, such as 'eql'"
        )
    if columns == loss.num_classes:
        return loss

    def widen(values, fill):
        return None if values is None else losses.pad_per_class(values, columns, fill)

    # A class that is in no image might be divided by; that of the added columns has one.
    frequencies = ClassFrequencies(
        columns,
        None if known.letters is None else (*known.letters, *"f" * (columns - loss.num_classes)),
        widen(known.image_counts, 1),
        widen(known.instance_counts, 1),
        known.num_images,
        widen(known.tail, 0),
    )
    return Padded(known, loss.background, inner=dataclasses.replace(loss, frequencies=frequencies))
