"""Files that PyTorch wrote, read without it: both forms, a trainer's checkpoint and tensors of every kind."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from eql_jax.convert.errors import ConversionError
from eql_jax.convert.files import read_weights
from tests.models.golden import TESTDATA

FORMS = ("zip", "stream")
GRID = np.arange(20, dtype=np.float32).reshape(4, 5)


@pytest.mark.parametrize("form", FORMS)
def test_trainer_checkpoint(form):
    """The weights are found beside the states of optimizer and scheduler."""
    found = read_weights(TESTDATA / f"torch_trainer_{form}.pth")
    assert found.author == "" and found.cast == ()
    np.testing.assert_array_equal(found.tensors["conv.weight"], np.arange(54, dtype=np.float32).reshape(3, 2, 3, 3))
    np.testing.assert_array_equal(found.tensors["fc.weight"], np.arange(6).reshape(2, 3) + 0.5)
    np.testing.assert_array_equal(found.tensors["fc.bias"], [-1, 2])
    np.testing.assert_array_equal(found.tensors["pixel_mean"].ravel(), np.float32([103.53, 116.28, 123.675]))
    assert found.tensors["bn.num_batches_tracked"] == 0 and len(found.tensors) == 9


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_every_kind(form):
    found = read_weights(TESTDATA / f"torch_odd_{form}.pth")
    expected = {
        "transposed": GRID.T,
        "column": GRID[:, 2],
        "shared": GRID[1:3],
        "empty": np.zeros((0, 3)),
        "scalar": np.float32(3.5),
        "half": [0.5, -2],
        "bfloat16": [1.5, -3],
        "double": np.float32([0.1]),
        "counter": 12,
        "parameter": [7, 8],
        "boolean": [True, False],
    }
    assert found.tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found.tensors[name], array, err_msg=name)
    assert set(found.cast) == {"half", "bfloat16", "double"}
    assert found.tensors["half"].dtype == np.float32


@pytest.mark.parametrize("form", FORMS)
def test_truncations(form, tmp_path):
    whole = (TESTDATA / f"torch_trainer_{form}.pth").read_bytes()
    path = tmp_path / "model.pth"
    for length in range(20, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ConversionError, match="cut off or damaged"):
            read_weights(path)


def test_a_flipped_byte_in_the_numbers_is_found(tmp_path):
    """The zip has a checksum for every tensor."""
    whole = bytearray((TESTDATA / "torch_trainer_zip.pth").read_bytes())
    place = whole.index(np.arange(54, dtype=np.float32).tobytes()) + 100
    whole[place] ^= 1
    path = tmp_path / "model.pth"
    path.write_bytes(whole)
    with pytest.raises(ConversionError, match="cut off or damaged: .*CRC"):
        read_weights(path)


def archive(path, data_pkl, **entries):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data_pkl)
        for name, content in entries.items():
            file.writestr(f"archive/{name}", content)
    return path


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI%d\ntQI%d\n(I%d\nt(I%d\ntI00\nNtR"
)


def test_tensors_that_lie_about_their_storage(tmp_path):
    data = {"data/0": struct.pack("<4f", 1, 2, 3, 4)}
    good = TENSOR % (4, 1, 3, 1)
    path = archive(tmp_path / "good.pth", b"(dVw\n" + good + b"s.", **data)
    np.testing.assert_array_equal(read_weights(path).tensors["w"], [2, 3, 4])
    for bad in (TENSOR % (5, 0, 4, 1), TENSOR % (4, 2, 3, 1), TENSOR % (4, 0, 2, 4), TENSOR % (4, 0, 4, -1)):
        path = archive(tmp_path / "bad.pth", b"(dVw\n" + bad + b"s.", **data)
        with pytest.raises(ConversionError, match="cut off or damaged"):
            read_weights(path)


def test_code_in_a_torch_file_is_refused(tmp_path):
    path = archive(tmp_path / "model.pth", b"cposix\nsystem\n(Vtouch /tmp/x\ntR.")
    with pytest.raises(ConversionError, match=r"asks for posix\.system"):
        read_weights(path)
    magic, protocol = (pickle.dumps(v, protocol=2) for v in (0x1950A86A20F9469CFC6C, 1001))
    path.write_bytes(magic + protocol + pickle.dumps({"little_endian": True}, 2) + b"cposix\nsystem\n(Vx\ntR.")
    with pytest.raises(ConversionError, match=r"asks for posix\.system"):
        read_weights(path)


def test_other_archives(tmp_path):
    path = archive(tmp_path / "script.pth", b"N.", **{"constants.pkl": b"N."})
    with pytest.raises(ConversionError, match="TorchScript"):
        read_weights(path)
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ConversionError, match="zip without data.pkl"):
        read_weights(path)
