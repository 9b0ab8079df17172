"""Files here and in a bucket: `gs://`, `s3://` and the like are paths of `etils.epath`, all else is `pathlib`.

Nothing of `etils` is imported before the first remote path: it would take half of the start of the command line tools.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etils import epath

    FilePath = Path | epath.Path
else:
    FilePath = Path

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


def list_names(folder: FilePath) -> frozenset[str]:
    """Names of the files in a folder; none where it does not exist."""
    try:
        if isinstance(folder, Path):
            return frozenset(os.listdir(folder))
        return frozenset(entry.name for entry in folder.iterdir())
    except OSError:
        return frozenset()
    except Exception as error:
        if type(error).__name__ == "NotFoundError":  # of TensorFlow's file system, which is not imported here
            return frozenset()
        raise
