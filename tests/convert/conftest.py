"""Weights of the recorded model, and a file of any tensors."""

import pickle

import pytest

from tests.models.golden import WEIGHTS


@pytest.fixture(scope="module")
def tensors():
    return pickle.loads(WEIGHTS.read_bytes())["model"]


@pytest.fixture
def write(tmp_path):
    """write(tensors) -> path of a pickle of them."""

    def write(tensors, author="test"):
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps({"model": tensors, "__author__": author}))
        return path

    return write
