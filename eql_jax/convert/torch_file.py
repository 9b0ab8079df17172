"""Reads PyTorch's .pth files without PyTorch: the zip form (since 1.6, 2020) and the stream before it.

Zip: <root>/data.pkl is a pickle in which every tensor refers to <root>/data/<key>, its raw numbers. Stream: magic
number, protocol, facts of the machine, the same pickle, the list of keys, then for each key a count and the numbers.
"""

import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from eql_jax.convert.errors import ConversionError
from eql_jax.convert.unpickle import (
    ALLOWED,
    DAMAGED,
    RestrictedUnpickler,
    check_elements,
    damaged,
    strided,
)

STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_PROTOCOL = 1001

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _StorageType:
    """Stands for torch.FloatStorage and its like: only its dtype matters."""

    def __init__(self, dtype: Any):
        self.dtype = np.dtype(dtype)


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> np.ndarray:
    del requires_grad, hooks, metadata
    return strided(storage, offset, tuple(size), tuple(stride))


def _parameter(data, requires_grad=False, hooks=None) -> np.ndarray:
    del requires_grad, hooks
    return data


def _nothing(*_: Any) -> None:
    """For torch.device and dtypes in the states of optimizers, which are not read."""


_ALLOWED = {
    **ALLOWED,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): _nothing,
    **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
    **{("torch", name): None for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32")},
}


def is_torch_zip(path: Path) -> bool:
    """Whether the file is a zip at all; what is in it shows when it is read."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_torch_zip(path: Path) -> Any:
    """The object that torch.save wrote, its tensors as NumPy arrays (bfloat16 too, a type of ml_dtypes).

    Raises:
      ConversionError: no archive of torch.save (a TorchScript module, say), one that asks for anything but tensors and
        containers, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path)
    except ConversionError:
        raise
    except (*DAMAGED, zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as e:
        raise damaged(path, e) from e


def _read_archive(archive: zipfile.ZipFile, path: Path) -> Any:
    names = set(archive.namelist())
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1 or f"{roots[0]}constants.pkl" in names:
        kind = "a TorchScript module" if roots else "a zip without data.pkl"
        raise ConversionError(
            f"{path} is {kind}; expected what torch.save(model.state_dict(), ..) or a trainer's checkpoint writes"
        )
    root = roots[0]
    order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in names else "little"
    storages: dict[str, np.ndarray] = {}

    def load_storage(pid: Any) -> np.ndarray:
        kind, storage_type, key, _location, count = pid[:5]
        dtype = _storage_dtype(kind, storage_type)
        if key not in storages:
            info = archive.getinfo(f"{root}data/{key}")
            check_elements(count, dtype.itemsize, info.file_size)
            raw = np.frombuffer(archive.read(info), dtype, count)  # zipfile compares the checksum
            storages[key] = raw if order == sys.byteorder else raw.byteswap()
        return storages[key]

    return RestrictedUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")), path, _ALLOWED, load_storage).load()


def read_torch_stream(path: Path) -> Any:
    """The object in a file of torch.save before PyTorch 1.6; results and errors as `read_torch_zip`."""
    size = path.stat().st_size
    storages: dict[str, np.ndarray] = {}

    def load_storage(pid: Any) -> np.ndarray:
        kind, storage_type, key, _location, count, view = pid
        dtype = _storage_dtype(kind, storage_type)
        if view is not None:
            raise pickle.UnpicklingError("a storage that is a view of another one")
        if key not in storages:
            check_elements(count, dtype.itemsize, size)
            storages[key] = np.empty(count, dtype)  # filled below: the tensors are views of it
        return storages[key]

    def load(file) -> Any:
        return RestrictedUnpickler(file, path, _ALLOWED, load_storage).load()

    with open(path, "rb") as file:
        try:
            if load(file) != STREAM_MAGIC or load(file) != STREAM_PROTOCOL:
                raise pickle.UnpicklingError("no file of torch.save")
            machine = load(file)
            if not machine.get("little_endian", True):
                raise pickle.UnpicklingError("numbers of a big-endian machine")
            content = load(file)
            for key in load(file):
                storage = storages[key]
                (count,) = struct.unpack("<q", file.read(8))
                if count != storage.size:
                    raise pickle.UnpicklingError(f"storage {key} has {count} elements, expected {storage.size}")
                data = file.read(storage.nbytes)
                storage[:] = np.frombuffer(data, storage.dtype, count)
            return content
        except ConversionError:
            raise
        except (*DAMAGED, struct.error) as e:
            raise damaged(path, e) from e


def _storage_dtype(kind: Any, storage_type: Any) -> np.dtype:
    if kind != "storage" or not isinstance(storage_type, _StorageType):
        raise pickle.UnpicklingError(f"a reference of kind {kind!r} to data of type {storage_type!r}")
    return storage_type.dtype
