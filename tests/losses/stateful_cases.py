"""The losses with memory in one form, for tests that hold for all of them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from eql_jax import losses
from tests.losses.numpy_steps import K

COUNTS = np.array([5000, 2000, 900, 400, 200, 100, 50, 20, 10, 5, 2, 1])


class Case(NamedTuple):
    """loss(logits [..., R, columns], labels [..., R], state, **kwargs) -> (scalar, state); labels to last_label."""

    loss: Callable
    state: Any
    columns: int
    last_label: int


def cases() -> dict[str, Case]:
    """{name: Case} over K classes, with and without background."""

    def without(loss, **options):
        return functools.partial(loss, background=False, **options)

    margin, margin_init = losses.effective_class_margin_loss, losses.effective_class_margin_init
    return {
        "eqlv2": Case(losses.eqlv2_loss, losses.eqlv2_init(K), K + 1, K),
        "eqlv2_plain": Case(without(losses.eqlv2_loss), losses.eqlv2_init(K), K, K - 1),
        "seesaw": Case(losses.seesaw_loss, losses.seesaw_init(K), K + 2, K),
        "seesaw_mean": Case(
            functools.partial(losses.seesaw_loss, mean_over_foreground=True), losses.seesaw_init(K), K + 2, K
        ),
        "seesaw_plain": Case(without(losses.seesaw_loss), losses.seesaw_init(K, background=False), K, K - 1),
        "ecm": Case(margin, margin_init(COUNTS), K + 1, K),
        "ecm_counting": Case(functools.partial(margin, count_samples=True), margin_init(np.zeros(K)), K + 1, K),
        "ecm_plain": Case(without(margin), margin_init(COUNTS, background_ratio=None), K, K - 1),
        "efl": Case(losses.equalized_focal_loss, losses.equalized_focal_init(K), K, K),
    }


def batch(case: Case, *, shape=(16,), scale=3.0, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [*shape, columns] and labels [*shape] with objects, background and padding."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, case.last_label + 1, shape)
    labels[..., :3] = [-1, 0, case.last_label]
    return (scale * rng.normal(size=(*shape, case.columns))).astype(np.float32), labels


@functools.cache
def compiled(name: str) -> Callable:
    """jit(value_and_grad): (logits, labels, state, **kwargs) -> ((loss, state), gradient)."""
    return jax.jit(jax.value_and_grad(cases()[name].loss, has_aux=True))


def warm_state(name: str) -> Any:
    """The state after two steps."""
    case = cases()[name]
    state = case.state
    for seed in (11, 12):
        (_, state), _ = compiled(name)(*batch(case, seed=seed), state)
    return state
