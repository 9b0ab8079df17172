"""Is there a disk to write to: probes, free space, and files that are there whole or not at all."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from eql_jax.training.errors import CheckpointError


def check_writable(directory: str | Path, *, needed_bytes: int = 0) -> None:
    """Makes `directory`, writes and removes a probe file there, and compares the free space.

    Raises:
        CheckpointError: it cannot be made or written, or has less than `needed_bytes` free.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".probe-") as probe:
            probe.write(bytes(1 << 16))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as e:
        raise CheckpointError(
            f"cannot write to {directory}: {e.strerror or e}. Free some space or choose another --workdir"
        ) from e
    free = free_bytes(directory)
    if free < needed_bytes:
        raise CheckpointError(
            f"{directory} has {gigabytes(free)} free; a checkpoint needs {gigabytes(needed_bytes)}. Free some space "
            "or choose another --workdir"
        )


def state_bytes(state: Any) -> int:
    """Size of a tree of arrays in bytes, about what its checkpoint takes on disk."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def free_bytes(path: Path) -> int:
    """Bytes free on the file system of `path`."""
    return shutil.disk_usage(path).free


def gigabytes(count: int) -> str:
    """'1.23 GB' of a number of bytes."""
    return f"{count / 1e9:.2f} GB"


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` beside `path` and renames it there: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
