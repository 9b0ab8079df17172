"""Weak scaling, read off compiled programmes: what a device computes, moves and sends as devices are added.

    python benchmarks/scaling.py --slices v5e:2x4 v5e:4x4 v5e:4x8 v5e:8x8 v5e:16x16
    python benchmarks/scaling.py --slices cpu:1 cpu:2 cpu:4 cpu:8 --dtype float32
    python benchmarks/scaling.py --full --size 1024 1024 --classes 1203 --batch-per-device 8 --slices v4:2x2x2 v4:4x4x4

The training step is compiled for each slice with the same number of images on every device. TPU slices need libtpu
(`pip install "jax[tpu]"`) and no TPU; cpu:N are virtual devices. Nothing is run. One line of JSON for each slice as it
is done, then a table, and how far the figures of slices of eight devices and more lie apart.

By default the model is narrow and its images are small (see NARROW), because a full one takes the compiler four
to ten minutes of one core for each slice: how figures change with devices is then shown, not how large they are.
`--full` takes the config as it is.

- FLOPs, bytes of memory: the compiler's cost analysis, per device.
- collectives: bytes of the results on one device, from the HLO.
- communication: 2 (n - 1) / n times the bytes that are all-reduced, over the bandwidth of the chip's links that its
  maker publishes. Modelled: it knows nothing of latency, of contention and of what is hidden behind arithmetic.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import aot, hlo, slices
from eql_jax.training.errors import UserError

NARROW = tuple(
    f"--config.{key}"
    for key in (
        "model.backbone.depth=18",
        "model.backbone.width=8",
        "model.fpn.channels=16",
        "model.box_head.fc_dim=64",
        "model.mask_head.channels=16",
        "model.roi.batch_per_image=16",
        "data.max_objects=4",
    )
)
SLICES = ("v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:16x16")


def communication_seconds(collectives: dict[str, dict[str, int]], devices: int, bandwidth: float) -> float:
    """Seconds that the collectives take at `bandwidth` bytes a second, each device sending and receiving at once.

    An all-reduce sends 2 (n - 1) / n times its result, an all-gather or all-to-all (n - 1) / n, a reduce-scatter
    (n - 1) times its own, a permutation once.
    """
    share = (devices - 1) / devices
    factors = {"all-reduce": 2 * share, "all-gather": share, "all-to-all": share, "reduce-scatter": devices - 1}
    return sum(factors.get(kind, 1.0) * found["bytes"] for kind, found in collectives.items()) / bandwidth


def measure(setting: aot.Setting, name: str, mesh, *, config_file: str, overrides: Sequence[str]) -> dict[str, object]:
    """The row of one slice."""
    compiled = aot.compile_setting(setting, mesh, config_file=config_file, overrides=overrides)
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    collectives = hlo.Program(compiled.as_text()).collectives()
    row = {
        "benchmark": "scaling",
        "slice": name,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        **setting.row(),
        "flops": cost.get("flops", 0.0),
        "bytes_accessed": cost.get("bytes accessed", 0.0),
        "collectives": collectives,
        "collective_bytes": sum(found["bytes"] for found in collectives.values()),
        "memory_bytes": aot.memory_row(compiled)["total"],
    }
    chip = slices.chip_of(name)
    if chip and chip.interconnect:
        seconds = communication_seconds(collectives, mesh.shape["data"], chip.interconnect)
        row |= {"modelled": True, "communication_seconds_modelled": seconds}
    return row


def spread(rows: Sequence[dict[str, object]], key: str) -> float:
    """Largest over smallest, less 1."""
    values = [row[key] for row in rows]
    return max(values) / min(values) - 1 if min(values) else float(max(values) > 0)


def table(rows: Sequence[dict[str, object]]) -> str:
    """Markdown: a line for each slice."""
    lines = [
        "| slice | devices | GFLOPs | memory traffic, MB | memory, MB | collectives | MB sent | communication, us |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        kinds = ", ".join(f"{found['count']} {kind}" for kind, found in row["collectives"].items()) or "none"
        seconds = row.get("communication_seconds_modelled")
        cells = [
            row["slice"],
            row["devices"],
            f"{row['flops'] / 1e9:.4f}",
            f"{row['bytes_accessed'] / 1e6:.2f}",
            f"{row['memory_bytes'] / 1e6:.1f}",
            kinds,
            f"{row['collective_bytes'] / 1e6:.4f}",
            "" if seconds is None else f"{1e6 * seconds:.2f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    sizes = {}
    for name in args.slices:
        found = re.fullmatch(r"cpu:([1-9]\d*)", name)
        if not found and slices.chip_of(name) is None:
            raise UserError(f"--slices has {name!r}; expected cpu:N or TPU slices such as {slices.EXAMPLES}")
        sizes[name] = int(found[1]) if found else 0
    slices.prepare_environment("cpu", {"data": max(1, *sizes.values()), "model": 1})
    # All slices first: a name that is wrong should not be found out after an hour.
    meshes = {}
    for name, size in sizes.items():
        devices = slices.find_devices("cpu")[:size] if size else slices.find_devices(name)
        meshes[name] = slices.mesh_over(devices, args.mesh)
    overrides = args.overrides if args.full else [*NARROW, *args.overrides]
    rows = []
    for name, mesh in meshes.items():
        for setting in aot.settings(args, ("train",), mesh.shape["data"]):
            rows.append(measure(setting, name, mesh, config_file=args.config, overrides=overrides))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    many = [row for row in rows if row["mesh"]["data"] >= 8]
    if len(many) > 1:
        keys = ("flops", "bytes_accessed", "collective_bytes")
        print("largest over smallest, from 8 devices on:", *(f"{key} +{100 * spread(many, key):.2f} %" for key in keys))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slices", nargs="+", default=SLICES, help=f"cpu:N, or TPU slices such as {slices.EXAMPLES}")
    parser.add_argument("--full", action="store_true", help="the config as it is, not a narrow model")


def main(argv: list[str] | None = None) -> None:
    aot.main(run, __doc__, add_arguments, argv, size=(64, 64), classes=[30], batch_per_device=[1])


if __name__ == "__main__":
    main()
