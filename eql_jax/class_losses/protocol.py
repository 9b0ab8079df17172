"""What a detector or classifier asks of a classification loss: columns, first bias, loss, scores, and memory if any.

Shapes: R rows (proposals, RoIs or pictures), C columns of logits, K foreground classes; "..." any leading axes. Labels
are 0..K-1, K for background, -1 for rows that count nowhere.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

State = Mapping[str, Any]  # a pytree of arrays; {} where a loss has no memory


class ClassFrequencies(NamedTuple):
    """How often the K classes occur in training. What a loss has no use for may be None.

    letters: K strings 'r', 'c' or 'f'. image_counts, instance_counts: int [K], training images with the class and
    objects of it. num_images: training images, the denominator of frequencies. tail: bool or float32 [K], T(f) of the
    equalization losses.
    """

    num_classes: int
    letters: tuple[str, ...] | None = None
    image_counts: np.ndarray | None = None
    instance_counts: np.ndarray | None = None
    num_images: int | None = None
    tail: np.ndarray | None = None

    def _content(self) -> tuple:
        return tuple((x.dtype.str, x.shape, x.tobytes()) if isinstance(x, np.ndarray) else x for x in self)

    # By content, so that a Flax module which has one can be compared and hashed.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassFrequencies) and self._content() == other._content()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._content())


class LossInputs(NamedTuple):
    """What a loss may be told about a batch besides logits and labels; None where there is nothing to tell.

    verified: bool, broadcasts to [..., R, K]: classes annotated or verified absent in an image, which EQL spares
    nothing. annotated: bool, likewise: classes that nobody looked for in an image are False and get no negatives from
    it. key: PRNG key of this step, the same on all devices, for losses that draw.
    """

    verified: jax.Array | None = None
    annotated: jax.Array | None = None
    key: jax.Array | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ClassLoss(abc.ABC):
    """Base of all classification losses that a head can be given. Subclasses add their options as fields.

    A subclass overrides `loss`, and the rest where it is not that of a sigmoid per class. See docs/porting.md.

    Attributes:
      frequencies: of the classes.
      background: True for detectors, whose rows may be background. False for image classification: no label K, and no
        column for it.
    """

    frequencies: ClassFrequencies
    background: bool = True
    _: dataclasses.KW_ONLY

    # Whether the scores of a row's classes and of background add up to 1, as those of a softmax do
    exclusive_scores: ClassVar[bool] = False
    takes_annotated: ClassVar[bool] = False  # whether `loss` reads LossInputs.annotated
    takes_tail: ClassVar[bool] = False  # whether it reads ClassFrequencies.tail
    takes_verified: ClassVar[bool] = False  # whether it reads LossInputs.verified
    # Whether each class has a sigmoid of its own, so that columns of classes without objects can be added at the end
    takes_padding: ClassVar[bool] = False

    @property
    def num_classes(self) -> int:
        """K."""
        return self.frequencies.num_classes

    @property
    def num_logits(self) -> int:
        """C, the classifier's columns."""
        return self.num_classes

    @property
    def class_columns(self) -> np.ndarray | None:
        """int [K]: the column of logits that each class has for itself; None where classes have none.

        Nothing in training depends on it; whoever looks at the weights and gradients of a class does.
        """
        return np.arange(self.num_classes)

    @property
    def images_multiple(self) -> int:
        """What the number of images of a step must be a multiple of."""
        return 1

    def initial_bias(self, prior: float) -> np.ndarray:
        """float32 [C] of the classifier's bias; `prior` is the score that all classes shall start with."""
        return np.full(self.num_logits, sigmoid_bias(prior), np.float32)

    def init_state(self) -> State:
        """The memory before the first step."""
        return {}

    @abc.abstractmethod
    def loss(self, logits: jax.Array, labels: jax.Array, state: State, inputs: LossInputs) -> tuple[jax.Array, State]:
        """Logits [..., R, C] and int labels [..., R] -> float32 scalar and the memory after this step.

        Sums run over the whole arrays, so that under jit over a mesh both are those of the global batch.
        """

    def scores(self, logits: jax.Array) -> jax.Array:
        """Logits [..., C] -> probabilities [..., K] of the foreground classes."""
        return jax.nn.sigmoid(logits)

    # ------------------------------------------------------------------ for subclasses
    def counts(self, kind: str = "image") -> np.ndarray:
        """int [K] training counts: 'image' (images with the class) or 'instance' (objects of it).

        Raises:
          ValueError: they are not known, or kind is another.
        """
        if kind not in ("image", "instance"):
            raise ValueError(f"counts is {kind!r}; expected 'image' or 'instance'")
        found = self.frequencies.image_counts if kind == "image" else self.frequencies.instance_counts
        if found is None or len(found) == 0:
            raise ValueError(
                f"{type(self).__name__} needs the {kind} counts of the {self.num_classes} classes in training; the "
                f"ClassFrequencies that it was given have {kind}_counts {found}"
            )
        return np.asarray(found)

    def tail(self) -> np.ndarray:
        """bool or float32 [K], T(f). Raises ValueError where it is not known."""
        if self.frequencies.tail is None:
            raise ValueError(
                f"{type(self).__name__} needs the tail of the {self.num_classes} classes; the ClassFrequencies that it "
                "was given have tail None. See eql_jax.losses.tail"
            )
        return np.asarray(self.frequencies.tail)


@dataclasses.dataclass(frozen=True, eq=False)
class SoftmaxClassLoss(ClassLoss):
    """Base of losses with one softmax over K + 1 columns, background last (K columns without background)."""

    exclusive_scores = True

    @property
    def num_logits(self) -> int:
        return self.num_classes + self.background

    def initial_bias(self, prior: float) -> np.ndarray:
        """Zeros: all classes and background start alike."""
        del prior
        return np.zeros(self.num_logits, np.float32)

    def scores(self, logits: jax.Array) -> jax.Array:
        probabilities = jax.nn.softmax(logits, axis=-1)
        return probabilities[..., : self.num_classes]


def sigmoid_bias(prior: float) -> float:
    """The bias under which a sigmoid starts at `prior`: -log((1 - prior) / prior)."""
    return -math.log((1 - prior) / prior)


def check_frequencies(frequencies: ClassFrequencies) -> None:
    """Raises ValueError unless all that is known of the classes is of as many classes."""
    count = frequencies.num_classes
    for name in ("letters", "image_counts", "instance_counts", "tail"):
        known = getattr(frequencies, name)
        shape = None if known is None else np.shape(known)
        if shape not in (None, (count,), (0,)):  # (0,): not known, as checkpoints have it
            raise ValueError(f"{name} of the classes has shape {shape}; expected ({count},), the number of classes")


def option_defaults(kind: type[ClassLoss]) -> dict[str, Any]:
    """{name: default} of a loss's options: its fields besides those of ClassLoss."""
    own = {f.name for f in dataclasses.fields(ClassLoss)}
    return {f.name: f.default for f in dataclasses.fields(kind) if f.name not in own}
