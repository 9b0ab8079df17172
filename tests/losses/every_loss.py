"""The classification losses without memory, in one form, for tests that hold for all of them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eql_jax import losses

BIN_SPLIT = (3, 30)  # groups of group softmax


class Case(NamedTuple):
    """loss(logits [..., R, columns], labels [..., R], normalizer=None) -> scalar.

    last_label: the largest label.
    """

    loss: Callable
    columns: int
    last_label: int


def known(num_classes: int) -> dict[str, np.ndarray]:
    """What the losses know of K classes, some of each kind; `drawn` is beta of SEQL, the same for all rows."""
    classes = np.arange(num_classes)
    counts = 3**classes % 1009 + 1
    return {
        "tail": classes % 2 == 0,
        "smooth": np.linspace(0, 1, num_classes, dtype=np.float32),
        "drawn": classes % 3 > 0,
        "counts": counts,
        "in_set": classes % 3 != 2,
        "weights": losses.class_balanced_weights(counts, 0.99),
    }


# {name: loss(logits, labels, known, **normalizer)}: what is known of the classes is an argument, not compiled in
SIGMOIDS = {
    "sigmoid": lambda z, y, k, **n: losses.sigmoid_cross_entropy_loss(z, y, **n),
    "eql": lambda z, y, k, **n: losses.equalization_loss(z, y, k["tail"], **n),
    "eql_smooth": lambda z, y, k, **n: losses.equalization_loss(z, y, k["smooth"], **n),
    "focal": lambda z, y, k, **n: losses.focal_loss(z, y, **n),
    "focal_gamma_0.5": lambda z, y, k, **n: losses.focal_loss(z, y, alpha=None, gamma=0.5, **n),
    "class_balanced_sigmoid": lambda z, y, k, **n: losses.class_balanced_loss(z, y, k["weights"], **n),
    "class_balanced_focal": lambda z, y, k, **n: losses.class_balanced_loss(z, y, k["weights"], kind="focal", **n),
    "federated": lambda z, y, k, **n: losses.federated_loss(z, y, k["in_set"], **n),
}
SOFTMAXES = {
    "softmax": lambda z, y, k, **n: losses.softmax_cross_entropy_loss(z, y, **n),
    "seql": lambda z, y, k, **n: losses.softmax_equalization_loss(z, y, k["tail"], beta=k["drawn"], **n),
    "seql_smooth": lambda z, y, k, **n: losses.softmax_equalization_loss(z, y, k["smooth"], beta=k["drawn"], **n),
    "balanced_softmax": lambda z, y, k, **n: losses.balanced_softmax_loss(z, y, k["counts"], **n),
    "class_balanced_softmax": lambda z, y, k, **n: losses.class_balanced_loss(z, y, k["weights"], kind="softmax", **n),
    "class_balanced_softmax_bce": lambda z, y, k, **n: losses.class_balanced_loss(
        z, y, k["weights"], kind="softmax_bce", **n
    ),
}


@functools.cache
def losses_of_known(num_classes: int) -> dict[str, Case]:
    """{name: Case} of loss(logits, labels, known, **normalizer) for K classes; all but group softmax."""
    k = num_classes
    cases = {name: Case(loss, k, k) for name, loss in SIGMOIDS.items()}
    cases |= {name: Case(loss, k, k - 1) for name, loss in SOFTMAXES.items()}
    for name in ("softmax", "seql", "balanced_softmax", "class_balanced_softmax"):
        cases[f"{name}_background"] = Case(SOFTMAXES[name], k + 1, k)
    return cases


def group_softmax(groups: Any) -> Callable:
    """loss(logits, labels, normalizer=None) of group softmax without a draw: all rows count in all groups."""

    def loss(logits, labels, normalizer=None):
        everything = jnp.ones((groups.sizes.size, *jnp.shape(labels)), bool)
        return losses.group_softmax_loss(logits, labels, groups, sample_weight=everything, normalizer=normalizer)

    return loss


@functools.cache
def every_loss(num_classes: int) -> dict[str, Case]:
    """{name: Case} for K classes, of which is known what `known` says."""
    about = known(num_classes)

    def bound(loss):
        return lambda logits, labels, normalizer=None: loss(logits, labels, about, normalizer=normalizer)

    cases = {name: case._replace(loss=bound(case.loss)) for name, case in losses_of_known(num_classes).items()}
    groups = losses.class_groups(about["counts"], bin_split=BIN_SPLIT)
    cases["group_softmax"] = Case(group_softmax(groups), groups.num_logits, num_classes)
    return cases


@functools.cache  # one jit per loss, so that tests with the same shapes share a compilation
def compiled(name: str, num_classes: int) -> Callable:
    """jit(value_and_grad) of a loss."""
    return jax.jit(jax.value_and_grad(every_loss(num_classes)[name].loss))


def value_and_grad(name: str, num_classes: int, logits, labels, **kwargs) -> tuple[float, np.ndarray]:
    """The loss and its gradient, as numbers of NumPy."""
    value, grad = compiled(name, num_classes)(logits, labels, **kwargs)
    return float(value), np.asarray(grad)
