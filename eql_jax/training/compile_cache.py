"""Compiled programmes kept between runs, so that a restart does not compile again."""

import hashlib
import os
import platform
from pathlib import Path

import jax


def enable_compile_cache() -> Path | None:
    """Keeps compiled programmes in ~/.cache/eql_jax (or $XDG_CACHE_HOME/eql_jax); returns the directory.

    $JAX_COMPILATION_CACHE_DIR names another one and JAX_ENABLE_COMPILATION_CACHE=false switches the cache off, as
    everywhere in JAX. The directory is particular to the processor: programmes for a CPU contain its instructions, and
    a home directory may be shared by different machines. None: left to the environment, or there is no home.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = root / "eql_jax" / f"jax-{_processor()}"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none that can be written: the cache is a convenience
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory


def _processor() -> str:
    """A short name of the CPU's kind and its instruction sets."""
    text = platform.machine() + platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        for key in ("model name", "flags", "Features"):
            text += next((line for line in lines if line.startswith(key)), "")
    except OSError:
        pass
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
