"""A folder that stands for the buckets at gs://, under `etils.epath`."""

import os
from pathlib import Path

from etils.epath import backend, gpath


class Buckets(backend._OsPathBackend):
    """gs://NAME/x is ROOT/NAME/x; as in a bucket, folders come into being with their files."""

    def __init__(self, root: Path):
        self.root = root

    def _here(self, path) -> str:
        return str(path).replace("gs://", f"{self.root}/", 1)

    def _there(self, path) -> str:
        return str(path).replace(f"{self.root}/", "gs://", 1)

    def open(self, path, mode):
        here = self._here(path)
        if mode[0] in "wa":
            os.makedirs(os.path.dirname(here), exist_ok=True)
        return super().open(here, mode)

    def glob(self, path):
        return [self._there(found) for found in super().glob(self._here(path))]

    def walk(self, top, **options):
        for folder, folders, files in super().walk(self._here(top), **options):
            yield self._there(folder), folders, files

    def rename(self, path, dst):
        super().rename(self._here(path), self._here(dst))

    def replace(self, path, dst):
        super().replace(self._here(path), self._here(dst))

    def copy(self, path, dst, overwrite):
        super().copy(self._here(path), self._here(dst), overwrite)


def _of_one_path(name):
    return lambda self, path, *args, **kw: getattr(backend._OsPathBackend, name)(self, self._here(path), *args, **kw)


for _name in ("exists", "isdir", "listdir", "makedirs", "mkdir", "rmtree", "remove", "stat"):
    setattr(Buckets, _name, _of_one_path(_name))


def install(monkeypatch, root: Path) -> None:
    """Makes gs:// lead to `root` until the test is over."""
    buckets = Buckets(root)
    choose = property(lambda path: buckets if path._uri_scheme else backend.os_backend)
    monkeypatch.setattr(gpath._GPath if hasattr(gpath, "_GPath") else gpath.PosixGPath, "_backend", choose)
