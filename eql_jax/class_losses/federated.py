"""Federated loss."""

import dataclasses

import jax
import jax.numpy as jnp

from eql_jax import losses
from eql_jax.class_losses.options import COUNTS, check_choice, required_key
from eql_jax.class_losses.protocol import ClassLoss
from eql_jax.losses.checks import check_range


@dataclasses.dataclass(frozen=True, eq=False)
class Federated(ClassLoss):
    """`losses.federated_loss` on classes that `losses.federated_classes` draws in each step.

    num_sampled: places in the set, which the labels take first, background included. power: classes are drawn with
    probability ~ count^power. count_by: 'image' (detectron2's) or 'instance'. images_per_set: how many images share a
    set; 0: the whole global batch. detectron2 draws a set for the images of each device, 2 as a rule; one for 16 images
    has fewer places left for classes without objects.
    """

    num_sampled: int = 50
    power: float = 0.5
    count_by: str = "image"
    images_per_set: int = 0

    takes_annotated = True

    def __post_init__(self) -> None:
        check_range("num_sampled", self.num_sampled, 1)
        check_range("power", self.power, 0)
        check_range("images_per_set", self.images_per_set, 0)
        if self.images_per_set and not self.background:
            raise ValueError(
                f"images_per_set is {self.images_per_set}; expected 0 without background, where all rows share a set"
            )
        check_choice("count_by", self.count_by, COUNTS)

    @property
    def images_multiple(self) -> int:
        return max(1, self.images_per_set)

    def loss(self, logits, labels, state, inputs):
        counts, key = self.counts(self.count_by), required_key(self, inputs)

        def draw(key: jax.Array, labels: jax.Array) -> jax.Array:
            return losses.federated_classes(key, labels, counts, num_classes=self.num_sampled, power=self.power)

        if self.images_per_set == 0:
            classes = draw(key, labels)
        else:
            if labels.ndim != 2 or labels.shape[0] % self.images_per_set:
                raise ValueError(
                    f"labels has shape {labels.shape}; expected [images, rows] with a multiple of images_per_set, "
                    f"{self.images_per_set}, images"
                )
            groups = labels.reshape(labels.shape[0] // self.images_per_set, -1)
            sets = jax.vmap(draw)(jax.random.split(key, groups.shape[0]), groups)
            classes = jnp.repeat(sets, self.images_per_set, axis=0)[:, None]
        return losses.federated_loss(logits, labels, classes, annotated_classes=inputs.annotated), state
