"""Where an evaluation writes its files: a folder, or a local one whose files are copied into a bucket."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from eql_jax.data.files import as_path, is_remote, read_file, write_whole


class WorkFolder:
    """A context manager. For a folder here it is that folder, and copying does nothing.

    local: the `pathlib.Path` to write to; with a bucket a temporary folder, gone at the end.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._remote = as_path(folder) if is_remote(folder) else None
        self.local = Path(tempfile.mkdtemp(prefix="eql_jax_")) if self._remote else Path(folder)

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, *_) -> None:
        if self._remote:
            shutil.rmtree(self.local, ignore_errors=True)

    def share(self, name: str) -> None:
        """Copies a file into the bucket, for other hosts."""
        if self._remote:
            target = self._remote / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(target) as stream, open(self.local / name, "rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)

    def collect(self, name: str) -> None:
        """Fetches a file that another host shared; FileNotFoundError where it did not."""
        if self._remote and not (self.local / name).exists():
            (self.local / name).write_bytes(read_file(self._remote / name))

    def share_all(self) -> None:
        """Copies all files into the bucket."""
        for path in sorted(self.local.rglob("*")) if self._remote else ():
            if path.is_file():
                self.share(path.relative_to(self.local).as_posix())
