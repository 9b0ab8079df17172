"""Classification losses as objects that a head can be given, by name; needs jax and numpy only, like eql_jax.losses.

    >>> from eql_jax.class_losses import ClassFrequencies, LossInputs, make_class_loss
    >>> import numpy as np, jax.numpy as jnp
    >>> frequencies = ClassFrequencies(3, tail=np.array([False, False, True]))
    >>> eql = make_class_loss("eql", frequencies)
    >>> eql.num_logits, eql.initial_bias(prior=0.001).round(2)
    (3, array([-6.91, -6.91, -6.91], dtype=float32))
    >>> logits, labels = jnp.zeros((2, 3)), jnp.array([0, 3])  # an object of class 0, and background
    >>> loss, memory = eql.loss(logits, labels, eql.init_state(), LossInputs())
    >>> eql.scores(logits).shape, memory  # a loss without memory
    ((2, 3), {})

A loss of your own is a file like `sigmoid.py` and a line in REGISTRY; or, without touching this package, the name
'module:Class'. docs/losses.md lists them all, docs/porting.md shows how to write one.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from eql_jax.class_losses.balanced_softmax import BalancedSoftmax
from eql_jax.class_losses.class_balanced import ClassBalanced
from eql_jax.class_losses.ecm import Ecm
from eql_jax.class_losses.efl import Efl
from eql_jax.class_losses.eql import Eql
from eql_jax.class_losses.eqlv2 import Eqlv2
from eql_jax.class_losses.federated import Federated
from eql_jax.class_losses.focal import Focal
from eql_jax.class_losses.group_softmax import GroupSoftmax
from eql_jax.class_losses.padded import pad_class_loss
from eql_jax.class_losses.protocol import (
    ClassFrequencies,
    ClassLoss,
    LossInputs,
    SoftmaxClassLoss,
    check_frequencies,
    option_defaults,
    sigmoid_bias,
)
from eql_jax.class_losses.seesaw import Seesaw
from eql_jax.class_losses.seql import Seql
from eql_jax.class_losses.sigmoid import Sigmoid
from eql_jax.class_losses.softmax import Softmax

__all__ = [
    "REGISTRY",
    "ClassFrequencies",
    "ClassLoss",
    "LossInputs",
    "SoftmaxClassLoss",
    "class_loss_type",
    "make_class_loss",
    "option_defaults",
    "pad_class_loss",
    "sigmoid_bias",
]

REGISTRY: dict[str, type[ClassLoss]] = {
    "balanced_softmax": BalancedSoftmax,
    "class_balanced": ClassBalanced,
    "ecm": Ecm,
    "efl": Efl,
    "eql": Eql,
    "eqlv2": Eqlv2,
    "federated": Federated,
    "focal": Focal,
    "group_softmax": GroupSoftmax,
    "seesaw": Seesaw,
    "seql": Seql,
    "sigmoid": Sigmoid,
    "softmax": Softmax,
}


def class_loss_type(name: str) -> type[ClassLoss]:
    """The class behind a name of REGISTRY, or behind 'module:Class', which is imported.

    Raises:
      ValueError: no such loss.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"expected one of {', '.join(map(repr, sorted(REGISTRY)))}, or 'module:Class'{hint}")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise ValueError(f"expected the name of a class that can be imported: {e}") from e
    if not (isinstance(kind, type) and issubclass(kind, ClassLoss)):
        raise ValueError(f"expected a subclass of eql_jax.class_losses.ClassLoss; {attribute} of {module} is {kind!r}")
    return kind


def make_class_loss(
    name: str,
    frequencies: ClassFrequencies,
    *,
    background: bool = True,
    options: Mapping[str, Any] | None = None,
) -> ClassLoss:
    """The loss of a name.

    Args:
      name: of REGISTRY, or 'module:Class' of a subclass of ClassLoss.
      frequencies: of the classes; what the loss does not need may be None in it.
      background: False for image classification.
      options: the loss's own; what is not given has the default of the class.

    Raises:
      ValueError: no such loss or option, a value that is not allowed, or counts, letters or a tail of another number of
        classes.
    """
    try:
        kind = class_loss_type(name)
    except ValueError as e:
        raise ValueError(f"loss is {name!r}; {e}") from e
    check_frequencies(frequencies)
    options, defaults = dict(options or {}), option_defaults(kind)
    for key, value in options.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"loss {name!r} has no option {key!r}; it has {', '.join(defaults) or 'none'}{hint}")
        options[key] = _as_type_of(defaults[key], value, f"option {key!r} of loss {name!r}")
    return kind(frequencies, background, **options)


def _as_type_of(default: Any, value: Any, what: str) -> Any:
    """value as the type of the default; an int will do for a float, a list for a tuple."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if type(value) is not type(default):
        raise ValueError(f"{what} is {value!r}; expected {type(default).__name__}, such as {default!r}")
    return value
