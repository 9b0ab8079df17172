"""A folder that stands for the buckets at gs://: under `etils.epath`, and served as Google's storage serves them to
TensorStore, which writes the arrays of checkpoints."""

import contextlib
import json
import os
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils


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


class _Storage(BaseHTTPRequestHandler):
    """The requests of Google's JSON API that TensorStore makes."""

    protocol_version = "HTTP/1.1"
    root: Path
    lock = threading.Lock()

    def log_message(self, *_):
        pass

    def _parse(self) -> tuple[str, Path, dict[str, str]]:
        """Name of the object ("" for none), its place here, and the options of the request."""
        url = urllib.parse.urlparse(self.path)
        options = dict(urllib.parse.parse_qsl(url.query))
        bucket, _, name = url.path.partition("/b/")[2].partition("/o")
        name = urllib.parse.unquote(name.removeprefix("/")) or options.get("name", "")
        return name, self.root / bucket / name, options

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _generation(self, path: Path) -> str:
        return str(path.stat().st_mtime_ns) if path.is_file() else "0"

    def _describe(self, name: str, path: Path) -> dict[str, str]:
        return {"name": name, "generation": self._generation(path), "size": str(path.stat().st_size)}

    def do_GET(self):
        name, path, options = self._parse()
        if not name:
            names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
            names = [n for n in names if n.startswith(options.get("prefix", ""))]
            found = {"items": [self._describe(n, path / n) for n in names]}
            return self._answer(200, json.dumps(found).encode(), Content_Type="application/json")
        if not path.is_file():
            return self._answer(404)
        generation = {"x_goog_generation": self._generation(path)}
        data, wanted = path.read_bytes(), self.headers.get("Range")
        if not wanted:
            return self._answer(200, data, **generation)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or len(data)), len(data) - 1)
        self._answer(206, data[begin : end + 1], Content_Range=f"bytes {begin}-{end}/{len(data)}", **generation)

    def do_POST(self):
        name, path, options = self._parse()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            if options.get("ifGenerationMatch", self._generation(path)) != self._generation(path):
                return self._answer(412)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._answer(200, json.dumps(self._describe(name, path)).encode(), Content_Type="application/json")

    def do_DELETE(self):
        _, path, _ = self._parse()
        path.unlink(missing_ok=True)
        self._answer(204)


@contextlib.contextmanager
def served(root: Path) -> Iterator[str]:
    """The address at which the buckets in `root` are served."""
    handler = type("Storage", (_Storage,), {"root": root})
    server = ThreadingHTTPServer(("localhost", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def install(monkeypatch, root: Path) -> None:
    """Makes gs:// lead to `root` until the test is over."""
    buckets = Buckets(root)
    choose = property(lambda path: buckets if path._uri_scheme else backend.os_backend)
    monkeypatch.setattr(gpath._GPath, "_backend", choose)
    monkeypatch.setattr(gcs_utils, "get_bucket", lambda name: None)  # asks the network what kind of bucket it is
