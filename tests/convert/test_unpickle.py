"""A weight file cannot run code: what is asked for outside of the allow-list is refused; damage is told as damage."""

import collections
import datetime
import io
import os
import pickle
import subprocess

import numpy as np
import pytest

from eql_jax.convert.errors import ConversionError
from eql_jax.convert.files import read_weights
from eql_jax.convert.unpickle import read_pickle, strided, write_pickle

ARRAYS = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([0.5, 2], np.float16),
    "int": np.arange(3),
    "bool": np.array([True, False]),
    "scalar": np.array(3.0, np.float32),
    "none": np.zeros((0, 4), np.float32),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">f4"),
}


class Call:
    """Unpickles to function(*arguments) in a careless reader."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def attacks(witness):
    touch = f"touch {witness}"
    inner = pickle.dumps(Call(os.system, touch))
    return {
        "posix.system": Call(os.system, touch),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(witness)]),
        "builtins.eval": Call(eval, f"open({str(witness)!r}, 'w')"),
        "builtins.getattr": Call(getattr, "text", "join"),
        "_pickle.loads": Call(pickle.loads, inner),
        "io.open": Call(io.open, str(witness), "w"),
        "datetime.date": datetime.date(2020, 1, 1),  # harmless, and not needed either
    }


@pytest.mark.parametrize("name", list(attacks("x")))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_and_not_run(tmp_path, name, protocol):
    witness, path = tmp_path / "witness", tmp_path / "model.pkl"
    content = {"model": {"w": np.ones(3, np.float32), "evil": attacks(witness)[name]}, "__author__": "x"}
    path.write_bytes(pickle.dumps(content, protocol))
    asked = {"posix.system": "posix.system", "builtins.eval": r"(builtins|__builtin__)\.eval"}.get(name, r"\w+\.\w+")
    with pytest.raises(ConversionError, match=rf"asks for {asked}, which no weight file needs: it is refused"):
        read_weights(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntVb\ntR.",  # of another class
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntVb\ntR.",  # of a terabyte
        b"cnumpy\nndarray\n((I9\ntVf4\nVabc\ntR.",  # more than its buffer holds
        b"cnumpy\ndtype\n((lp0\ntR.",
        b"c_codecs\nencode\n(Vabc\nVzip\ntR.",
        b"Vkey\nP1\n.",  # a reference to data elsewhere
    ],
)
def test_allowed_names_used_for_something_else(tmp_path, content):
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02" + content)
    with pytest.raises(ConversionError, match="is cut off or damaged"):
        read_pickle(path)


@pytest.mark.parametrize("protocol", range(6))
def test_reads_what_pickle_writes(tmp_path, protocol):
    path = tmp_path / "model.pkl"
    content = {"model": collections.OrderedDict(ARRAYS), "iteration": np.float64(7.5), "done": {1, 2}}
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_pickle(path)
    assert found["iteration"] == 7.5 and found["done"] == {1, 2}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found["model"][name], array)
        assert found["model"][name].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")


def test_reads_a_pickle_of_python_2(tmp_path):
    """As the oldest files of the model zoo: text and the arrays' bytes are byte strings."""
    raw = ARRAYS["float"].tobytes()
    stream = (
        b"\x80\x02}U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(raw)]) + raw + b"tbs."
    )
    path = tmp_path / "R-50.pkl"
    path.write_bytes(stream)
    found = read_weights(path)
    assert found.author == "Caffe2" and list(found.tensors) == ["conv1_w"]
    np.testing.assert_array_equal(found.tensors["conv1_w"], ARRAYS["float"])


def test_written_pickles_read_back_here_and_in_plain_python(tmp_path):
    path = tmp_path / "model.pkl"
    with open(path, "wb") as file:
        write_pickle({"model": ARRAYS, "__author__": "eql_jax"}, file)
    for found in (read_pickle(path), pickle.loads(path.read_bytes())):
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found["model"][name], array)
            assert found["model"][name].flags.writeable
    # No module that NumPy has renamed is named.
    assert b"multiarray" not in path.read_bytes()


def test_every_truncation_is_told(tmp_path):
    whole = pickle.dumps({"model": {k: ARRAYS[k] for k in ("float", "int")}}, protocol=4)
    path = tmp_path / "model.pkl"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ConversionError, match="cut off or damaged|no file of weights"):
            read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x89PNG\r\n", r"first bytes are b'\\x89PNG"),
        (pickle.dumps([1, 2]), "holds a list; expected a dict"),
        (pickle.dumps({"model": {}}), "holds no arrays"),
        (pickle.dumps({"model": {"a": np.ones(2), "b": [1, 2]}}), "entries that are no arrays: b"),
        (pickle.dumps({"model": {"a": np.array([None])}}), "entries that are no arrays: a"),
        (pickle.dumps({"blobs": {"conv1_w": np.ones(2)}}), "Detectron 1"),
    ],
)
def test_files_of_something_else(tmp_path, content, message):
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        read_weights(path)


def test_no_such_file(tmp_path):
    with pytest.raises(ConversionError, match="does not exist"):
        read_weights(tmp_path / "none.pkl")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (3, 3), (3, 1)), (1, (8,), (1,)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2,), ())],
)
def test_a_tensor_cannot_leave_its_storage(offset, size, stride):
    with pytest.raises(pickle.UnpicklingError):
        strided(np.arange(8, dtype=np.float32), offset, size, stride)
