"""What losses with options and draws share: checks of a choice, and the key that they cannot do without."""

from collections.abc import Sequence

import jax

from eql_jax.class_losses.protocol import ClassLoss, LossInputs

COUNTS = ("image", "instance")  # what ClassLoss.counts takes


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless the value of the option `name` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def required_key(loss: ClassLoss, inputs: LossInputs) -> jax.Array:
    """The key of the step; ValueError where there is none."""
    if inputs.key is None:
        raise ValueError(f"{type(loss).__name__} draws at random in each step; expected a PRNG key in LossInputs.key")
    return inputs.key
