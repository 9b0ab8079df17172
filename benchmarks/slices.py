"""Devices to compile for that need not be here: TPU slices, as libtpu describes them, and virtual CPUs.

One device of a mesh is one chip: v4 and v5p are compiled for both cores of a chip together, as Cloud TPUs are set up.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

from eql_jax.training.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What its maker publishes of a TPU chip (cloud.google.com/tpu/docs).

    hbm_gib: memory. flops: bfloat16 operations a second. bandwidth: bytes of memory a second. clock: cycles a second,
    the published peak divided by what the matrix units do in a cycle (v4 and v5p eight of 128 x 128, v5e four; v6e the
    equal of four of 256 x 256). interconnect: bytes a second that all its links to other chips send, and as many that
    they receive; None where nothing was found.
    """

    hbm_gib: float
    flops: float
    bandwidth: float
    clock: float
    interconnect: float | None = None


CHIPS = {
    "v4": Chip(32, 275e12, 1228e9, 275e12 / (8 * 2 * 128**2), 1.1e15 / 4096),
    "v5e": Chip(16, 197e12, 819e9, 197e12 / (4 * 2 * 128**2), 200e9),
    "v5p": Chip(95, 459e12, 2765e9, 459e12 / (8 * 2 * 128**2), 600e9),
    "v6e": Chip(32, 918e12, 1640e9, 918e12 / (4 * 2 * 256**2)),
}
EXAMPLES = "v4:2x2x1, v5e:2x4, v5p:2x2x1 or v6e:2x2"


def prepare_environment(topology: str, mesh: dict[str, int]) -> None:
    """What must be set before JAX starts: no search for a TPU that is not here; as many CPU devices as the mesh has."""
    if topology == "present":
        return
    # Another programme may be compiling; libtpu would stop at its lock, which guards a device that is not used here.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ["JAX_PLATFORMS"] = "cpu"
    if topology == "cpu":
        import jax

        jax.config.update("jax_num_cpu_devices", max(1, mesh["data"]) * max(1, mesh["model"]))


def find_devices(topology: str) -> list:
    """The devices to compile for: 'present' (JAX's own), 'cpu' (virtual ones), or those of a TPU slice, 'v5e:2x4'.

    Raises:
        UserError: libtpu is not installed, or knows no such slice.
    """
    import jax

    if topology == "present":
        return jax.devices()
    if topology == "cpu":
        return jax.devices("cpu")
    found = re.fullmatch(r"(\w+):\d+(x\d+)*", topology)
    if not found or found[1] not in CHIPS:
        raise UserError(f"--topology is {topology!r}; expected cpu, present, or a TPU slice such as {EXAMPLES}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f'compiling for {topology} needs libtpu, which is not installed: pip install "jax[tpu]"')
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if found[1] == "v4" else {}
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)
    except Exception as e:  # libtpu's errors have no class of their own
        message = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UserError(f"libtpu knows no slice {topology}: {message}. Expected such as {EXAMPLES}") from e


def chip_of(topology: str) -> Chip | None:
    """The published figures of a slice's chip; None for 'cpu' and 'present'."""
    return CHIPS.get(topology.partition(":")[0])


def mesh_over(devices: Sequence, sizes: dict[str, int]):
    """A mesh ('data', 'model') over `devices`.

    Raises:
        UserError: it does not use all of them.
    """
    from ml_collections import ConfigDict

    from eql_jax.training.mesh import make_mesh

    return make_mesh(ConfigDict(dict(mesh=sizes)), devices)
