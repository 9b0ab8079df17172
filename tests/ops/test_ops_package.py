"""The package as a stranger gets it: JAX and NumPy are all it needs, and what it exports is documented."""

import inspect
import subprocess
import sys
from pathlib import Path

import eql_jax.ops

PROGRAM = """
import sys
import eql_jax.ops
names = {name.split(".")[0] for name in sys.modules}
print(sorted(names & {"flax", "tensorflow", "optax", "orbax", "ml_collections", "PIL", "cv2", "lvis", "pycocotools"}))
print(sorted(name for name in sys.modules if name.startswith("eql_jax.") and not name.startswith("eql_jax.ops")))
"""


def test_needs_only_jax_and_numpy():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_everything_exported_is_documented():
    assert eql_jax.ops.__all__ == sorted(eql_jax.ops.__all__)
    for name in eql_jax.ops.__all__:
        public = getattr(eql_jax.ops, name)
        assert public.__doc__ and public.__module__.startswith("eql_jax.ops."), name
        if inspect.isfunction(public):
            assert "[" in public.__doc__ or "Args:" in public.__doc__, f"{name} states no shapes"
