"""Which flags get into $XLA_FLAGS: none without a GPU, the user's first, and none that jaxlib does not know."""

import importlib.util
import os

import pytest

from eql_jax.training import xla_flags
from eql_jax.training.errors import ConfigError

FLAG = "xla_gpu_enable_latency_hiding_scheduler"


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU as far as `set_xla_flags` looks, which knows every flag; and what it was asked for."""
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "jax_cuda12_plugin" or None)
    monkeypatch.setattr(xla_flags, "known", lambda flags: asked.append(dict(flags)) or True)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv(xla_flags.SWITCH, raising=False)
    return asked


def test_jaxlib_here_knows_the_flags_and_refuses_others():
    assert xla_flags.known(xla_flags.CUDA_FLAGS)
    assert not xla_flags.known(xla_flags.CUDA_FLAGS | {"xla_gpu_no_such_flag": "true"})


def test_set_once(machine):
    assert xla_flags.set_xla_flags() == xla_flags.CUDA_FLAGS
    assert os.environ["XLA_FLAGS"] == f"--{FLAG}=true"
    assert xla_flags.set_xla_flags() == {} and os.environ["XLA_FLAGS"] == f"--{FLAG}=true"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"--{FLAG}=false", f"--{FLAG}=false"),
        ("--xla_dump_to=/tmp/x", f"--xla_dump_to=/tmp/x --{FLAG}=true"),
        ("flags.txt", "flags.txt"),  # XLA reads a file
    ],
)
def test_what_the_user_has_set_is_kept(machine, monkeypatch, before, after):
    monkeypatch.setenv("XLA_FLAGS", before)
    xla_flags.set_xla_flags()
    assert os.environ["XLA_FLAGS"] == after


@pytest.mark.parametrize(
    ("variable", "value"), [(xla_flags.SWITCH, "none"), ("JAX_PLATFORMS", "cpu"), ("JAX_PLATFORMS", "tpu,cpu")]
)
def test_nothing_is_set(machine, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert xla_flags.set_xla_flags() == {} and "XLA_FLAGS" not in os.environ and machine == []
    monkeypatch.setenv(variable, "cuda,cpu" if variable == "JAX_PLATFORMS" else "default")
    assert xla_flags.set_xla_flags() == xla_flags.CUDA_FLAGS


def test_no_gpu_no_flags(machine, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert xla_flags.set_xla_flags() == {} and machine == []


def test_a_flag_that_jaxlib_does_not_know_is_left_out(machine, monkeypatch):
    monkeypatch.setattr(xla_flags, "CUDA_FLAGS", {"new": "1", "gone": "1"})
    monkeypatch.setattr(xla_flags, "known", lambda flags: "gone" not in flags)
    assert xla_flags.set_xla_flags() == {"new": "1"}
    assert os.environ["XLA_FLAGS"] == "--new=1"


def test_words_that_make_no_sense(machine, monkeypatch):
    with pytest.raises(ConfigError, match="fast: expected one of default, none"):
        xla_flags.set_xla_flags("fast")
    monkeypatch.setenv(xla_flags.SWITCH, "off")
    with pytest.raises(ConfigError, match="EQL_JAX_XLA_FLAGS=off: expected"):
        xla_flags.set_xla_flags()
