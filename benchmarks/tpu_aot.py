"""Training step and detector compiled for TPU slices on a machine without a TPU: what the compiler says of them.

    JAX_PLATFORMS=cpu python benchmarks/tpu_aot.py --topology v4:2x2x1 v5e:2x2 --mode train --batch-per-device 8

needs libtpu (`pip install "jax[tpu]"`). One line of JSON for each slice and mode: memory of a chip, FLOPs and bytes,
collectives, loops, the compiler's own time, and the costliest operations with the model's line they come from. Nothing
is run: every time is modelled, and the fields say so.

- `optimal_seconds` is the compiler's roofline: each operation at the peak of arithmetic or memory, whichever takes
  longer, the body of a loop once. It counts -1 for every operation it knows nothing of (`unknown_operations`: changes
  of name, custom calls to ConcatBitcast), which `seconds_modelled` takes out again. Where there is no such figure,
  `seconds_modelled` is cycles_modelled / clock, and `seconds_from` says so.
- `cycles_modelled` is the sum of the compiler's `estimated_cycles`, loops with a fixed number of rounds counted as
  often as they run, the others once. Gathers, scatters, sorts, collectives and copies have no estimate, and `top` is
  without them; `without_estimate` lists them with the bytes they write, by kind and the largest.
- `limit_seconds_modelled`: FLOPs / peak and bytes / bandwidth of the chip as published, the least that the programme
  could take.

A full model takes the compiler ten to twenty minutes of one core. `--save DIR` keeps HLO text and costs.
"""

import argparse
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import aot, hlo, slices
from eql_jax.training.errors import UserError

TOPOLOGIES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")


def modelled_seconds(cost: Mapping[str, float], cycles: int, chip: slices.Chip) -> dict[str, object]:
    """Seconds of one step by the compiler's cost analysis, or by cycles where that has none.

    An operation that the analysis does not know counts -1, so the whole seconds below the sum are their number if all
    others take less than a second together. Their time is at most that of all arithmetic and all memory traffic one
    after the other; half a second of that leaves room for the compiler's own idea of the chip's peaks.
    """
    raw = cost.get("optimal_seconds")
    unknown = max(0, -math.floor(raw)) if raw is not None and math.isfinite(raw) else 0
    row = {"optimal_seconds": raw, "unknown_operations": unknown}
    at_most = cost.get("flops", 0.0) / chip.flops + cost.get("bytes accessed", 0.0) / chip.bandwidth
    if raw is not None and raw + unknown > 0 and (not unknown or at_most < 0.5):
        return row | {"seconds_modelled": raw + unknown, "seconds_from": "optimal_seconds"}
    return row | {"seconds_modelled": cycles / chip.clock, "seconds_from": "estimated_cycles / clock"}


def describe(text: str, cost: Mapping[str, float], setting: aot.Setting, chip: slices.Chip, *, top: int) -> dict:
    """The row of a compiled programme, but for memory.

    Args:
        text: its HLO.
        cost: its cost analysis, per device.
        top: how many operations to list.
    """
    program = hlo.Program(text)
    operations = program.operations()
    estimated = [o for o in operations if o.cycles is not None]
    cycles = sum(o.cycles for o in estimated)
    seconds = modelled_seconds(cost, cycles, chip)
    kinds: dict[str, list[int]] = {}
    unestimated = [o for o in operations if o.cycles is None]
    for o in unestimated:
        count = kinds.setdefault(o.kind, [0, 0])
        count[0] += o.times
        count[1] += o.bytes
    flops, accessed = cost.get("flops", 0.0), cost.get("bytes accessed", 0.0)
    return {
        "flops": flops,
        "bytes_accessed": accessed,
        "limit_seconds_modelled": {"flops": flops / chip.flops, "bytes": accessed / chip.bandwidth},
        **seconds,
        "images_per_second_per_chip_modelled": setting.batch_per_device / seconds["seconds_modelled"],
        "cycles_modelled": cycles,
        "cycles_seconds_modelled": cycles / chip.clock,
        "share_of_cycles_by_file": _by_file(estimated, cycles),
        "collectives": program.collectives(),
        "loops": [vars(x) for x in program.loops()],
        "top": [
            {"share_of_cycles": round(o.cycles / cycles, 4), "cycles": o.cycles, **_who(o)} for o in estimated[:top]
        ],
        "without_estimate": {
            "kinds": {k: {"count": c, "bytes": b} for k, (c, b) in sorted(kinds.items(), key=lambda kv: -kv[1][1])},
            "largest": [{"bytes": o.bytes, **_who(o)} for o in sorted(unestimated, key=lambda o: -o.bytes)[:top]],
        },
    }


def _by_file(operations: list[hlo.Operation], cycles: int) -> dict[str, float]:
    """Shares of the cycles by source file, largest first; '' are operations that the compiler made itself."""
    shares: dict[str, float] = {}
    for o in operations:
        name = o.where.partition(":")[0]
        shares[name] = shares.get(name, 0) + o.cycles / cycles
    return {k: round(v, 4) for k, v in sorted(shares.items(), key=lambda kv: -kv[1])}


def _who(o: hlo.Operation) -> dict[str, object]:
    return {"times": o.times, "kind": o.kind, "name": o.name, "op_name": o.op_name, "where": o.where}


def measure(setting: aot.Setting, topology: str, mesh, args: argparse.Namespace) -> dict[str, object]:
    """Compiles one setting for one slice and describes it."""
    chip = slices.chip_of(topology)
    row = {
        "benchmark": "tpu_aot",
        "modelled": True,
        "topology": topology,
        "device": mesh.devices.flat[0].device_kind,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        **setting.row(),
    }
    start = time.perf_counter()
    try:
        compiled = aot.compile_setting(setting, mesh, config_file=args.config, overrides=args.overrides)
    except aot.OutOfMemory as e:
        return row | {"compiler": "out of memory", "total_gib": e.needs_gib, "hbm_gib": chip.hbm_gib, "fits": False}
    row["compile_seconds"] = time.perf_counter() - start
    memory = aot.memory_row(compiled)
    row |= {"memory": memory, "hbm_gib": chip.hbm_gib, "fits": memory["total_gib"] <= chip.hbm_gib}
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    text = compiled.as_text()
    if args.save:
        name = f"{topology.replace(':', '_')}_{setting.mode}_{setting.classes}_{setting.dtype}"
        path = pathlib.Path(args.save) / f"{name}_{setting.size[0]}x{setting.size[1]}_{setting.batch_per_device}"
        path.with_suffix(".hlo").write_text(text)
        path.with_suffix(".json").write_text(json.dumps(row | {"cost": cost}))
    return row | describe(text, cost, setting, chip, top=args.top)


def run(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise UserError(f"--top is {args.top}; expected at least 1")
    for topology in args.topology:
        if slices.chip_of(topology) is None:
            raise UserError(f"--topology is {topology!r}; expected TPU slices such as {slices.EXAMPLES}")
    if args.save:
        try:
            pathlib.Path(args.save).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"--save: {e}") from e
    slices.prepare_environment(args.topology[0], args.mesh)
    # All slices first: a name that is wrong should not be found out after an hour.
    meshes = {t: slices.mesh_over(slices.find_devices(t), args.mesh) for t in args.topology}
    todo = [(t, m, s) for t, m in meshes.items() for s in aot.settings(args, args.mode, m.shape["data"])]

    import importlib.metadata

    import jax

    from benchmarks import common

    versions = {"jax": jax.__version__, "libtpu": importlib.metadata.version("libtpu")}
    for topology, mesh, setting in todo:
        common.report(measure(setting, topology, mesh, args) | versions)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES, help=f"TPU slices such as {slices.EXAMPLES}")
    parser.add_argument("--mode", nargs="+", default=aot.MODES, choices=aot.MODES)
    parser.add_argument("--top", type=int, default=10, help="operations to list")
    parser.add_argument("--save", default="", metavar="DIR", help="keep HLO text and costs there")


def main(argv: list[str] | None = None) -> None:
    aot.main(run, __doc__, add_arguments, argv)


if __name__ == "__main__":
    main()
