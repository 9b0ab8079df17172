"""The package as a stranger gets it: its example runs, and JAX and NumPy are all it needs."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import eql_jax.losses
import eql_jax.losses.calibration

ROOT = Path(__file__).parents[2]

# Everything that the project installs besides JAX (and what JAX needs itself: NumPy, SciPy) is made unimportable.
PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"flax", "tensorflow", "optax", "orbax", "ml_collections", "PIL", "cv2", "lvis", "clu",
                                  "pycocotools", "absl", "tqdm"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
from eql_jax.losses import equalization_loss, tail_mask_from_letters

print(float(equalization_loss(np.zeros((2, 2), "f"), np.array([0, 2]), tail_mask_from_letters(["f", "r"]))))
print([name for name in sys.modules if name.startswith("eql_jax.") and not name.startswith("eql_jax.losses")])
"""


def test_needs_only_jax_and_numpy():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    loss, others = done.stdout.splitlines()
    assert abs(float(loss) - 3 * 0.6931472 / 2) < 1e-6  # three of four elements count
    assert others == "[]"


@pytest.mark.parametrize("module", [eql_jax.losses, eql_jax.losses.calibration])
def test_the_example_of_the_docstring_runs(module):
    result = doctest.testmod(module)
    assert result.attempted > 5 and result.failed == 0


def test_everything_public_is_documented():
    for name in eql_jax.losses.__all__:
        text = getattr(eql_jax.losses, name).__doc__
        if name[0].isupper():  # a state: its arrays and their shapes
            assert "float32 [" in text, name
            continue
        assert "Args:" in text and "Returns:" in text and "Raises:" in text, name
