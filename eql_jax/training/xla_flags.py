"""Flags of XLA, set here and nowhere else; docs/performance.md says what they were measured to do.

They are set in $XLA_FLAGS, which XLA reads once, when JAX is first asked for a device. A flag that the user has set
there keeps its value, and EQL_JAX_XLA_FLAGS=none leaves all of it to the user.
"""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping

from eql_jax.training.errors import ConfigError

SWITCH = "EQL_JAX_XLA_FLAGS"
CHOICES = ("default", "none")
# For NVIDIA GPUs; on CPUs and TPUs nothing is set.
# - latency_hiding_scheduler: with several GPUs the all-reduce of one gradient runs beside the computation of the next.
#   Off by default in XLA, marked stable there, and on in NVIDIA's own JAX images.
CUDA_FLAGS = {"xla_gpu_enable_latency_hiding_scheduler": "true"}
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_PROBE = "import jax; jax.devices()"


def set_xla_flags(choice: str | None = None) -> dict[str, str]:
    """Adds the flags for this machine to $XLA_FLAGS and returns them; to be called before JAX is asked for a device.

    A flag that the installed jaxlib does not know would end the process, so a short process of its own tries them
    first (some seconds, with a GPU alone), and what it refuses is left out.

    Args:
        choice: one of CHOICES; None: what $EQL_JAX_XLA_FLAGS says, 'default' without it.

    Raises:
        ConfigError: another word.
    """
    name = "" if choice else f"{SWITCH}="
    choice = choice or os.environ.get(SWITCH) or "default"
    if choice not in CHOICES:
        raise ConfigError(f"{name}{choice}: expected one of {', '.join(CHOICES)}")
    set_by_user = os.environ.get("XLA_FLAGS", "").strip()
    if choice == "none" or not uses_cuda() or (set_by_user and not set_by_user.startswith("-")):  # the name of a file
        return {}
    given = set(re.findall(r"--(\w+)", set_by_user))
    wanted = {flag: value for flag, value in CUDA_FLAGS.items() if flag not in given}
    if wanted and not known(wanted):
        wanted = {flag: value for flag, value in wanted.items() if known({flag: value})}
    if wanted:
        os.environ["XLA_FLAGS"] = f"{set_by_user} {as_words(wanted)}".strip()
    return wanted


def uses_cuda() -> bool:
    """Whether JAX would look for an NVIDIA GPU: its plugin is installed and $JAX_PLATFORMS does not exclude it."""
    platforms = {word.strip() for word in os.environ.get("JAX_PLATFORMS", "").split(",")} - {""}
    installed = any(importlib.util.find_spec(plugin) is not None for plugin in PLUGINS)
    return installed and (not platforms or bool(platforms & {"cuda", "gpu"}))


def known(flags: Mapping[str, str]) -> bool:
    """Whether the installed jaxlib takes all these flags. One process, without a GPU."""
    env = os.environ | {"XLA_FLAGS": as_words(flags), "JAX_PLATFORMS": "cpu"}
    try:
        return subprocess.run([sys.executable, "-c", _PROBE], env=env, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def as_words(flags: Mapping[str, str]) -> str:
    """The flags as $XLA_FLAGS has them."""
    return " ".join(f"--{flag}={value}" for flag, value in flags.items())
