"""Weight files of any of the known forms as {name: array}."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eql_jax.convert.errors import ConversionError
from eql_jax.convert.torch_file import STREAM_MAGIC, is_torch_zip, read_torch_stream, read_torch_zip
from eql_jax.convert.unpickle import read_pickle


class WeightFile(NamedTuple):
    """tensors: {name: array}, floats widened or narrowed to float32 (`cast` lists which); author: '__author__' of the
    model zoo's files, 'Caffe2' for those without, '' for PyTorch's."""

    path: Path
    tensors: dict[str, np.ndarray]
    author: str
    cast: tuple[str, ...]


def read_weights(path: str | Path) -> WeightFile:
    """Reads a model-zoo .pkl, a .pth of torch.save (either form) or the weights inside a trainer's checkpoint.

    The form is told by the contents, not by the name. Nothing in the file is run.

    Raises:
      ConversionError: no such file, a damaged or refused one, or one without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"{path} does not exist; expected a file of weights")
    head = path.open("rb").read(256)
    if is_torch_zip(path):
        content, form = read_torch_zip(path), "torch"
    elif head[:1] == b"\x80" or head[:2] in (b"(d", b"}q", b"cc"):
        form = "torch" if _is_stream(head) else "pickle"
        content = read_torch_stream(path) if form == "torch" else read_pickle(path)
    else:
        raise ConversionError(f"{path} is no file of weights: {_looks_like(head)}")
    return _find_tensors(path, content, form)


def _is_stream(head: bytes) -> bool:
    # The first pickle of a stream is the magic number alone.
    start = pickle.dumps(STREAM_MAGIC, protocol=2)
    return head.startswith(start)


def _looks_like(head: bytes) -> str:
    if not head:
        return "it is empty"
    if head.lstrip()[:1] == b"<":
        return "it is a web page (the link led to a page and not to the file)"
    if head.startswith(b"version https://git-lfs"):
        return "it is the pointer of a Git LFS file, not the file"
    return f"its first bytes are {head[:8]!r}; expected a pickle (.pkl) or what torch.save writes (.pth)"


def _find_tensors(path: Path, content: Any, form: str) -> WeightFile:
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path} holds a {type(content).__name__}; expected a dict of weights")
    author = str(content.get("__author__", "" if form == "torch" else "Caffe2"))
    for key in ("model", "state_dict", "model_state"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if "blobs" in content:
        raise ConversionError(
            f"{path} is a whole detector of Detectron 1 (it has 'blobs'); expected detectron2's names. detectron2 can "
            "load it and save it anew"
        )
    tensors, cast, others = {}, [], []
    for name, value in content.items():
        name = str(name).removeprefix("module.")
        if not isinstance(value, np.ndarray) or value.dtype.hasobject:
            if isinstance(value, np.generic | int | float | str | type(None)):
                continue  # counters and notes
            others.append(name)
            continue
        if value.dtype.kind == "f" or value.dtype.name == "bfloat16":
            if value.dtype != np.float32:
                cast.append(name)
            value = np.asarray(value, np.float32)
        if name.endswith("_momentum"):
            continue  # Caffe2's optimizer memory
        tensors[name] = value
    if not tensors or others:
        found = f"entries that are no arrays: {', '.join(others[:5])}" if others else "no arrays"
        raise ConversionError(f"{path} holds {found}; expected {{name: array}}, or that under the key 'model'")
    return WeightFile(path, tensors, author, tuple(cast))
