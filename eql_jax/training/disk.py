"""Is there a disk to write to: probes, free space, and files that are there whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from eql_jax.data.files import FilePath, as_path, write_whole
from eql_jax.training.errors import CheckpointError


def check_writable(directory: str | Path, *, needed_bytes: int = 0) -> None:
    """Makes `directory`, writes and removes a probe file there, and compares the free space (not of a bucket).

    Raises:
        CheckpointError: it cannot be made or written, or has less than `needed_bytes` free.
    """
    directory = as_path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if isinstance(directory, Path):
            with tempfile.NamedTemporaryFile(dir=directory, prefix=".probe-") as probe:
                probe.write(bytes(1 << 16))
                probe.flush()
                os.fsync(probe.fileno())
        else:
            probe = directory / f".probe-{jax.process_index()}-{os.getpid()}"
            probe.write_bytes(b"probe")
            probe.unlink()
    except OSError as e:
        raise CheckpointError(
            f"cannot write to {directory}: {e.strerror or e}. Free some space or choose another --workdir"
        ) from e
    except Exception as e:  # clients of buckets have errors of their own
        if isinstance(directory, Path):
            raise
        raise CheckpointError(
            f"cannot write to {directory}: {type(e).__name__}: {e}. Check the name of the bucket and your credentials"
        ) from e
    free = free_bytes(directory)
    if free is not None and free < needed_bytes:
        raise CheckpointError(
            f"{directory} has {gigabytes(free)} free; a checkpoint needs {gigabytes(needed_bytes)}. Free some space "
            "or choose another --workdir"
        )


def state_bytes(state: Any) -> int:
    """Size of a tree of arrays in bytes, about what its checkpoint takes on disk."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def free_bytes(path: FilePath) -> int | None:
    """Bytes free on the file system of `path`; None of a bucket."""
    return shutil.disk_usage(path).free if isinstance(path, Path) else None


def free_space(path: FilePath) -> str:
    """'1.23 GB free', or that it is a bucket."""
    free = free_bytes(path)
    return "a bucket" if free is None else f"{gigabytes(free)} free"


def gigabytes(count: int) -> str:
    """'1.23 GB' of a number of bytes."""
    return f"{count / 1e9:.2f} GB"


def remove_folder(path: FilePath) -> None:
    """Removes a folder and all in it, as far as that is possible."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(Exception):
        path.rmtree()


def write_atomically(path: FilePath, text: str) -> None:
    """Writes `text` as a file: readers see the old one or the new one."""
    with write_whole(path) as stream:
        stream.write(text.encode())
