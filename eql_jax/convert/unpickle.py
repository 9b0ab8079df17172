"""Reads pickles of weights with an allow-list: what is not on it is refused, and nothing from the file is ever run.

A pickle is a programme: it may name any function of any installed module and call it. Here every name it asks for is
looked up in `ALLOWED` alone, whose entries only build arrays, numbers and containers, and check what they are given.
"""

import codecs
import collections
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from eql_jax.convert.errors import ConversionError

# What unpickling a cut-off or damaged file raises, apart from what the allowed functions raise themselves.
DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    UnicodeError,
    ValueError,
)


def _reconstruct(cls: Any, shape: Any, code: Any) -> np.ndarray:
    """numpy's own: an empty array that the next opcode fills. Any other use is refused."""
    if cls is not _array or tuple(shape) != (0,):
        raise pickle.UnpicklingError(f"an array of class {cls!r} and initial shape {shape!r}")
    return np.empty(0, np.int8)


def _array(shape: Any, dtype: Any, buffer: Any) -> np.ndarray:
    """numpy.ndarray(shape, dtype, buffer), the form that `write_pickle` uses; a buffer of the right size is needed."""
    return np.ndarray(tuple(shape), _dtype(dtype), bytearray(buffer))


def _dtype(code: Any, align: Any = False, copy: Any = False) -> np.dtype:
    del align, copy
    if not isinstance(code, str):
        raise pickle.UnpicklingError(f"an array type {code!r} that is not a plain number")
    return np.dtype(code, copy=True)  # the next opcode may set the byte order, in place


def _frombuffer(buffer: Any, dtype: np.dtype, shape: Any, order: Any, *_axes: Any) -> np.ndarray:
    """numpy's own since pickle protocol 5."""
    if dtype.hasobject or order not in ("C", "F") or _axes not in ((), (None,)):
        raise pickle.UnpicklingError(f"an array of type {dtype} in order {order!r} {_axes}")
    return np.frombuffer(bytearray(buffer), dtype).reshape(tuple(shape), order=order)


def _scalar(dtype: np.dtype, data: Any) -> Any:
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    if dtype.hasobject or len(raw) != dtype.itemsize:
        raise pickle.UnpicklingError(f"a scalar of type {dtype} from {len(raw)} bytes")
    return np.frombuffer(raw, dtype)[0]


def _bytearray(content: Any = b"", encoding: Any = "latin1") -> bytearray:
    return bytearray(_encode(content, encoding) if isinstance(content, str) else bytes(memoryview(content)))


def _no_bytes() -> bytes:
    return b""  # how protocols 0 to 2 write it


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in encoding {encoding!r}")
    return codecs.encode(str(text), "latin1")


ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _array,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "Counter"): collections.Counter,
    ("builtins", "bytearray"): _bytearray,
    ("__builtin__", "bytearray"): _bytearray,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that finds the names of `allowed` and no others.

    Args:
      file: the pickle.
      path: for messages.
      allowed: {(module, name): replacement}.
      load_storage: what a persistent id is (PyTorch's tensors refer to their data so); None: there are none.
    """

    def __init__(
        self,
        file: BinaryIO,
        path: Path,
        allowed: Mapping[tuple[str, str], Any] = ALLOWED,
        load_storage: Callable[[Any], Any] | None = None,
    ):
        super().__init__(file, encoding="latin1")  # strings of Python 2, as in the model zoo's oldest files
        self._path, self._allowed, self._load_storage = path, allowed, load_storage

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise ConversionError(
                f"{self._path} asks for {module}.{name}, which no weight file needs: it is refused, and nothing in it "
                "was run. A checkpoint that holds objects besides its weights can be saved without them in PyTorch: "
                "torch.save({'model': model.state_dict()}, ...)"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        if self._load_storage is None:
            raise pickle.UnpicklingError("a reference to data outside of the pickle")
        return self._load_storage(pid)


def read_pickle(path: Path) -> Any:
    """The object in a pickle file of weights.

    Raises:
      ConversionError: the file asks for something outside of `ALLOWED`, or is damaged.
    """
    with open(path, "rb") as file:
        try:
            return RestrictedUnpickler(file, path).load()
        except ConversionError:
            raise
        except DAMAGED as e:
            raise damaged(path, e) from e


def damaged(path: Path, error: Exception) -> ConversionError:
    """The error for a file that breaks off or is not what its first bytes promise."""
    reason = str(error).strip() or type(error).__name__
    return ConversionError(
        f"{path} ({path.stat().st_size:,} bytes) is cut off or damaged: {reason}. Download it again and compare "
        "its size"
    )


class _PortablePickler(pickle.Pickler):
    """Writes arrays as numpy.ndarray(shape, dtype, buffer), which every version of NumPy can read: its own form names
    a module that NumPy 2 renamed."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return np.ndarray, (obj.shape, obj.dtype.str, bytearray(np.ascontiguousarray(obj).tobytes()))
        return NotImplemented


def write_pickle(content: Any, file: BinaryIO) -> None:
    """Pickles nested dicts of NumPy arrays (protocol 4, readable from Python 3.4 on)."""
    _PortablePickler(file, protocol=4).dump(content)


def check_elements(count: int, itemsize: int, available: int) -> None:
    """Refuses a tensor that is larger than the file that is said to hold it."""
    if count < 0 or count * itemsize > available:
        raise pickle.UnpicklingError(f"{count} elements of {itemsize} bytes where {available} bytes are left")


def strided(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """A view of `storage` [n] as a tensor of `size` whose steps are `stride` elements; refuses to leave the storage."""
    if len(size) != len(stride) or offset < 0 or any(n < 0 for n in size) or any(n < 0 for n in stride):
        raise pickle.UnpicklingError(f"a tensor of size {size}, strides {stride} and offset {offset}")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.size:
        raise pickle.UnpicklingError(f"a tensor that ends at element {last} of a storage of {storage.size}")
    if not math.prod(size):
        return np.empty(size, storage.dtype)
    steps = tuple(s * storage.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)
