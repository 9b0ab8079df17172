"""What a training step or the detector needs of each device's memory, before the device is rented.

    python benchmarks/memory.py --topology v5e:2x4 --mesh data=8,model=1 --batch-per-device 2 4
    python benchmarks/memory.py --topology v4:2x2x1 --sweep
    python benchmarks/memory.py --topology present --mode inference --classes 80 1203
    python benchmarks/memory.py --topology cpu --kept --config.train.remat=True

The whole programme is compiled for the topology from shapes alone, one line of JSON for each combination of the
arguments. A TPU slice needs libtpu (`pip install "jax[tpu]"`) and no TPU; 'cpu' compiles for as many virtual CPU
devices as the mesh has, 'present' for the devices of this machine. Fields are bytes per device: arguments (parameters,
optimizer and batch), outputs, aliased (outputs in the place of donated arguments), temporaries, code, and total =
arguments + outputs - aliased + temporaries + code. Memory that the runtime takes for itself is not among them, so
leave some room. `--kept` compiles nothing and tells what the forward pass leaves for the gradient, as traced.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import aot, slices
from eql_jax.training.errors import UserError


def largest_fitting(need: Callable[[int], float | None], *, limit: float, start: int, most: int) -> int:
    """The largest batch in 0..most whose need is at most `limit`, 0 if none.

    Args:
      need: GiB of a batch, rising with it; None: too much, nobody knows how much. Each batch is asked for once.
      start: the first batch to try.
    """
    known: dict[int, float | None] = {}
    low, high = 0, most + 1  # the largest known to fit, the smallest known not to
    guess = min(start, most)
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        known[guess] = used = need(guess)
        if used is not None and used <= limit:
            low = guess
        else:
            high = guess
        points = sorted((b, n) for b, n in known.items() if n is not None)
        slope = (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0]) if len(points) > 1 else 0
        if slope > 0:  # memory is nearly linear in the batch: go where the line through the outer points crosses
            guess = int(points[0][0] + (limit - points[0][1]) / slope)
        else:
            guess = 2 * low if high > most else (low + high) // 2
    return low


def measure(setting: aot.Setting, mesh, args: argparse.Namespace, limit: float | None) -> dict[str, object]:
    """The row of one setting."""
    row = {
        "benchmark": "memory",
        "topology": args.topology,
        "device": mesh.devices.flat[0].device_kind,
        "mesh": dict(mesh.shape),
        **setting.row(),
        "batch": setting.batch_per_device * mesh.shape["data"],
    }
    if args.kept:
        kept = aot.kept_bytes(setting, mesh, config_file=args.config, overrides=args.overrides)
        return row | {"overrides": args.overrides, "kept": kept, "kept_gib": kept / 2**30}
    try:
        compiled = aot.compile_setting(setting, mesh, config_file=args.config, overrides=args.overrides)
    except aot.OutOfMemory as e:
        return row | {"total_gib": e.needs_gib, "limit_gib": limit, "fits": False, "compiler": "out of memory"}
    row |= aot.memory_row(compiled)
    return row if limit is None else row | {"limit_gib": limit, "fits": row["total_gib"] <= limit}


def run(args: argparse.Namespace) -> None:
    if args.sweep_most < 1:
        raise UserError(f"--sweep-most is {args.sweep_most}; expected at least 1")
    if args.limit_gib is not None and args.limit_gib <= 0:
        raise UserError(f"--limit-gib is {args.limit_gib}; expected more than 0")
    if args.kept and (args.sweep or args.mode != "train"):
        raise UserError(
            "--kept is of training and finds no largest batch; expected neither --sweep nor --mode inference"
        )
    chip = slices.chip_of(args.topology)
    limit = args.limit_gib if args.limit_gib is not None else chip.hbm_gib if chip else None
    if args.sweep and limit is None:
        raise UserError(f"--sweep needs --limit-gib: the memory of {args.topology!r} is not known")
    slices.prepare_environment(args.topology, args.mesh)
    mesh = slices.mesh_over(slices.find_devices(args.topology), args.mesh)

    import jax

    from benchmarks import common

    versions = {"jax": jax.__version__}
    for setting in aot.settings(args, [args.mode], mesh.shape["data"]):
        if not args.sweep:
            common.report(measure(setting, mesh, args, limit) | versions)
            continue

        def need(batch: int, setting=setting) -> float | None:
            row = measure(dataclasses.replace(setting, batch_per_device=batch), mesh, args, limit) | versions
            common.report(row)
            # What did not compile did not fit, whatever the compiler says it needs.
            return None if row["total_gib"] is None else max(row["total_gib"], 0 if row["fits"] else 1.001 * limit)

        best = largest_fitting(need, limit=limit, start=setting.batch_per_device, most=args.sweep_most)
        row = {"benchmark": "memory_sweep", "topology": args.topology, "mesh": dict(mesh.shape), **setting.row()}
        common.report(row | {"limit_gib": limit, "batch_per_device": best} | versions)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", default="present", help="cpu, present, or a TPU slice such as v5e:2x4")
    parser.add_argument("--mode", default="train", choices=aot.MODES)
    parser.add_argument("--limit-gib", type=float, help="memory of a device; TPU chips are known")
    parser.add_argument("--sweep", action="store_true", help="find the largest batch per device that fits")
    parser.add_argument("--kept", action="store_true", help="bytes left for the gradient, without compiling")
    parser.add_argument("--sweep-most", type=int, default=64, help="largest batch per device to look at")


def main(argv: list[str] | None = None) -> None:
    aot.main(run, __doc__, add_arguments, argv)


if __name__ == "__main__":
    main()
