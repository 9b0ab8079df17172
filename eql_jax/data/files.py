"""Files here and in a bucket: `gs://`, `s3://` and the like are paths of `etils.epath`, all else is `pathlib`.

Nothing of `etils` is imported before the first remote path: it would take half of the start of the command line tools.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from etils import epath

    FilePath = Path | epath.Path
else:
    FilePath = Path

PARTIAL = ".partial"

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_remote(path: str | os.PathLike) -> bool:
    """Whether the path has a scheme, as gs://bucket/file."""
    return _REMOTE.match(os.fspath(path)) is not None


def as_path(path: str | os.PathLike) -> FilePath:
    """A `pathlib.Path`, or an `etils.epath.Path` where the path has a scheme.

    Raises:
      ImportError: the path is remote and etils is not installed.
    """
    if not is_remote(path):
        return Path(path)
    try:
        from etils import epath
    except ImportError as error:
        raise ImportError(
            f"{os.fspath(path)} is a remote path, and etils is not installed: pip install etils"
        ) from error
    return epath.Path(path)


def file_size(path: FilePath) -> int | None:
    """Bytes of a file, None where there is none."""
    try:
        return path.stat().st_size if isinstance(path, Path) else path.stat().length
    except FileNotFoundError:
        return None
    except Exception as error:
        if _not_found(error):
            return None
        raise


@contextlib.contextmanager
def write_whole(path: FilePath) -> Iterator[IO[bytes]]:
    """Opens a file for writing bytes; under its name there is all of it or what was there before, never a part.

    A local file is written beside its place, under the name with `PARTIAL` at its end, and renamed when it is on disk.
    In a bucket a file comes into being when it is closed, after an error, too: then it is removed again.
    """
    if not isinstance(path, Path):
        try:
            with path.open("wb") as stream:
                yield stream
        except BaseException:
            with contextlib.suppress(Exception):
                path.unlink(missing_ok=True)
            raise
        return
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _not_found(error: Exception) -> bool:
    return type(error).__name__ == "NotFoundError"  # of TensorFlow's file system, which is not imported here


def list_names(folder: FilePath) -> frozenset[str]:
    """Names of the files in a folder; none where it does not exist."""
    try:
        if isinstance(folder, Path):
            return frozenset(os.listdir(folder))
        return frozenset(entry.name for entry in folder.iterdir())
    except OSError:
        return frozenset()
    except Exception as error:
        if _not_found(error):
            return frozenset()
        raise
