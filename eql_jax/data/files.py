"""Files here and in a bucket: `gs://`, `s3://` and the like are paths of `etils.epath`, all else is `pathlib`.

Nothing of `etils` is imported before the first remote path: it would take half of the start of the command line tools.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from etils import epath

    FilePath = Path | epath.Path
else:
    FilePath = Path

T = TypeVar("T")

PARTIAL = ".partial"

RETRY_PAUSES = (0.1, 0.5, 2.0)  # seconds before the second, third and fourth try
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class ReadError(OSError):
    """A file that is there could not be read, again and again: nothing is known of what it holds."""


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


def read_file(path: FilePath) -> bytes:
    """The bytes of a file; see `patiently`."""
    return patiently(path.read_bytes, path)


def patiently(read: Callable[[], T], path: FilePath) -> T:
    """Returns read(). What may pass, as a busy disk or a network, is tried again for some seconds.

    Raises:
      FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError: what is wrong is the path.
      ReadError: it cannot be read for another reason, which did not pass.
    """
    for pause in (*RETRY_PAUSES, None):
        try:
            return read()
        except _LASTING:
            raise
        except Exception as error:  # OSError, and whatever remote file systems have
            if _not_found(error):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
            if pause is None:
                raise ReadError(
                    f"{path} cannot be read: {type(error).__name__}: {error} (tried {len(RETRY_PAUSES) + 1} times). "
                    "See to the disk or the network, and run the command again"
                ) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


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
    """Names of the files in a folder; none where it does not exist or is no folder.

    Raises:
      PermissionError, ReadError: it is there and cannot be read, see `patiently`.
    """

    def read() -> frozenset[str]:
        try:
            if isinstance(folder, Path):
                return frozenset(os.listdir(folder))
            return frozenset(entry.name for entry in folder.iterdir())
        except ValueError:  # a null byte: no folder has such a name
            return frozenset()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return frozenset()
            raise

    try:
        return patiently(read, folder)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
