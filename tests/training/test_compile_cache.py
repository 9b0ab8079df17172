"""Where compiled programmes are kept."""

import jax
import pytest

from eql_jax.training.compile_cache import enable_compile_cache


@pytest.fixture(autouse=True)
def jax_setting():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_in_the_users_cache_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = enable_compile_cache()
    assert directory.parent == tmp_path / "eql_jax" and directory.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(directory)
    assert enable_compile_cache() == directory  # the same processor, the same directory


def test_left_alone(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert enable_compile_cache() is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no directory can be made there
    assert enable_compile_cache() is None
    assert jax.config.jax_compilation_cache_dir == before
