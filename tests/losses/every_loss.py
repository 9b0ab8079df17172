"""The classification losses without memory, in one form, for tests that hold for all of them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eql_jax import losses


class Case(NamedTuple):
    """loss(logits [..., R, columns], labels [..., R], normalizer=None) -> scalar.

    last_label: the largest label.
    """

    loss: Callable
    columns: int
    last_label: int


@functools.cache
def every_loss(num_classes: int) -> dict[str, Case]:
    """{name: Case} for K classes; what the losses draw is fixed, the same for all rows."""
    k = num_classes
    tail = np.arange(k) % 2 == 0
    smooth = np.linspace(0, 1, k, dtype=np.float32)
    drawn = np.arange(k) % 3 > 0
    counts = 3 ** np.arange(k) % 1009 + 1
    in_set = np.arange(k) % 3 != 2
    weights = losses.class_balanced_weights(counts, 0.99)
    groups = losses.class_groups(counts, bin_split=(3, 30))

    def with_options(loss, *args, **options):
        return lambda logits, labels, normalizer=None: loss(logits, labels, *args, normalizer=normalizer, **options)

    def group_softmax(logits, labels, normalizer=None):
        everything = jnp.ones((groups.sizes.size, *jnp.shape(labels)), bool)
        return losses.group_softmax_loss(logits, labels, groups, sample_weight=everything, normalizer=normalizer)

    sigmoids = {
        "sigmoid": with_options(losses.sigmoid_cross_entropy_loss),
        "eql": with_options(losses.equalization_loss, tail),
        "eql_smooth": with_options(losses.equalization_loss, smooth),
        "focal": with_options(losses.focal_loss),
        "focal_gamma_0.5": with_options(losses.focal_loss, alpha=None, gamma=0.5),
        "class_balanced_sigmoid": with_options(losses.class_balanced_loss, weights),
        "class_balanced_focal": with_options(losses.class_balanced_loss, weights, kind="focal"),
        "federated": with_options(losses.federated_loss, in_set),
    }
    softmaxes = {
        "softmax": with_options(losses.softmax_cross_entropy_loss),
        "seql": with_options(losses.softmax_equalization_loss, tail, beta=drawn),
        "seql_smooth": with_options(losses.softmax_equalization_loss, smooth, beta=drawn),
        "balanced_softmax": with_options(losses.balanced_softmax_loss, counts),
        "class_balanced_softmax": with_options(losses.class_balanced_loss, weights, kind="softmax"),
        "class_balanced_softmax_bce": with_options(losses.class_balanced_loss, weights, kind="softmax_bce"),
    }
    cases = {name: Case(loss, k, k) for name, loss in sigmoids.items()}
    cases |= {name: Case(loss, k, k - 1) for name, loss in softmaxes.items()}
    for name in ("seql", "balanced_softmax", "class_balanced_softmax"):
        cases[f"{name}_background"] = Case(softmaxes[name], k + 1, k)
    cases["group_softmax"] = Case(group_softmax, groups.num_logits, k)
    return cases


@functools.cache  # one jit per loss, so that tests with the same shapes share a compilation
def compiled(name: str, num_classes: int) -> Callable:
    """jit(value_and_grad) of a loss."""
    return jax.jit(jax.value_and_grad(every_loss(num_classes)[name].loss))


def value_and_grad(name: str, num_classes: int, logits, labels, **kwargs) -> tuple[float, np.ndarray]:
    """The loss and its gradient, as numbers of NumPy."""
    value, grad = compiled(name, num_classes)(logits, labels, **kwargs)
    return float(value), np.asarray(grad)
