"""The golden arrays of the classification losses (tests/testdata/README.md) and how they are compared."""

import functools
from pathlib import Path

import jax
import numpy as np

TESTDATA = Path(__file__).parents[1] / "testdata"


@functools.cache
def long_tail() -> dict[str, np.ndarray]:
    """losses_long_tail.npz, with the inputs, counts and frequencies of losses_classification.npz."""
    with np.load(TESTDATA / "losses_classification.npz") as arrays:
        golden = {name: arrays[name] for name in arrays if "/in/" in name or "/" not in name}
        golden |= {name: arrays[name] for name in arrays if name.endswith("eql_lambda_0.0011/tail_mask")}
    with np.load(TESTDATA / "losses_long_tail.npz") as arrays:
        return golden | dict(arrays)


def assert_equals_golden(loss, logits, key: str) -> None:
    """A loss of logits alone, and its gradient, against `key`/loss and `key`/grad."""
    golden = long_tail()
    value, grad = jax.jit(jax.value_and_grad(loss))(logits)
    expected = golden[f"{key}/grad"]
    np.testing.assert_allclose(value, golden[f"{key}/loss"], rtol=1e-5)
    np.testing.assert_allclose(grad, expected, rtol=0, atol=5e-6 * np.abs(expected).max())
    assert np.all(np.isfinite(grad))
