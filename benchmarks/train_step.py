"""Speed and memory of a training step of Mask R-CNN R50-FPN with EQL, on one device of any backend.

    python benchmarks/train_step.py --classes 1203 --size 640 640 --batch 1
    python benchmarks/train_step.py --batch 8 --dtype bfloat16 --size 800 1344 --torchvision
    python benchmarks/train_step.py --rows gpu --out rows.jsonl --minutes 9

needs only jax, flax, optax, numpy and ml_collections. Every row is one line of JSON; the objects are made up like
those of LVIS (lvis_like.py). A row says: `seconds` of a step, the median of `repeats` that are waited for, and
`images_per_second` by it; `pipelined_seconds` when steps are issued without waiting, as the training loop does;
`peak_gib` (the device's peak since the process began, its compilations included; on a CPU the process's) and
`planned_gib`, XLA's plan for the step; `trace_seconds` and `compile_seconds`; FLOPs and `mfu`, their share of the
chip's peak (flops.py); on a CPU `units`, the time in 4096-cubed float32 matmuls. With --set train.steps_per_call=N all
are of a step of N in one call, but for planned_gib and compiled_flops, which are of the call.

The weights are random, so RoIs are as bad as on the first steps of a training; every shape is the same as later on.
Memory is a peak of the whole process, so `--compare 1203 80` starts one process for each class count and prints the
ratios, `--torchvision` one for each package, and `--rows` one for each row of a list of rows.py.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


def run(args: argparse.Namespace) -> dict[str, object]:
    """Prints the row, then the lines of --profile and --stages, and returns the row."""
    import jax
    import numpy as np

    from benchmarks import common, flops, lvis_like
    from eql_jax.class_losses import ClassFrequencies
    from eql_jax.models import build_model, init_model, trainable_mask
    from eql_jax.training.mesh import batch_sharding, make_mesh, replicated
    from eql_jax.training.optimizer import make_optimizer
    from eql_jax.training.state import create_state
    from eql_jax.training.train_step import make_train_step

    config = common.detector_config(args)
    config.model.backbone.freeze_at = args.freeze_at
    model = build_model(config, args.classes, ClassFrequencies(args.classes, tail=np.arange(args.classes) % 2 == 0))
    mesh = make_mesh(config, jax.devices()[:1])
    variables = jax.jit(lambda: init_model(model, jax.random.key(0)))()
    params = variables["params"]
    optimizer = make_optimizer(config, params, trainable=trainable_mask(params, config)).transform
    state = jax.jit(lambda v: create_state(v, optimizer, ema=False))(variables)
    del variables, params
    height, width = args.size
    batch = lvis_like.make_batch(
        batch=args.batch,
        height=height,
        width=width,
        num_classes=args.classes,
        objects=args.objects,
        max_objects=config.data.max_objects,
        mask_size=config.data.mask_size,
    )
    objects = (batch["gt_classes"] >= 0).sum(axis=1)
    carry = {"state": jax.device_put(state, replicated(mesh))}
    batch = jax.device_put(batch, batch_sharding(mesh))
    del state

    count, one_step = config.train.steps_per_call, make_train_step(model, optimizer, config, mesh)
    call, given = (one_step, batch) if count == 1 else (one_step.several, (batch,) * count)
    with jax.set_mesh(mesh):
        step = common.compile_programme(call.jitted, carry["state"], given)
    step.facts["matmul_flops"] /= count

    def one() -> dict:
        carry["state"], carry["metrics"] = step.compiled(carry["state"], given)
        return carry["metrics"]

    times = common.timings(one, args, steps=count)
    peak = common.peak_memory_gib()  # before the unit is timed, which needs memory of its own
    row = {
        "benchmark": "train_step",
        **common.facts(args),
        "objects_mean": float(objects.mean()),
        "objects_max": int(objects.max()),
        "foreground_rois": float(np.ravel(carry["metrics"]["num_foreground"])[-1]),
        "loss": float(np.ravel(carry["metrics"]["loss"])[-1]),
        **times,
        "peak_gib": peak,
        **step.facts,
        **flops.utilisation(
            step.facts["matmul_flops"],
            times["seconds"],
            device_kind=jax.devices()[0].device_kind,
            dtype=args.dtype,
        ),
        **common.unit_fields(times["seconds"], args),
        "process_seconds": common.process_seconds(),
    }
    common.report(row)
    if args.profile:
        from benchmarks import profiling

        found = profiling.profile(one, args.profile, hlo_text=step.compiled.as_text())
        common.report(
            {"benchmark": "profile", "of": "train_step", **found, "process_seconds": common.process_seconds()}
        )
    if args.stages:
        from benchmarks import stages

        found = stages.training(
            model, optimizer, config, carry["state"], batch, repeats=common.repeats_of(args), whole=times["seconds"]
        )
        common.report({"benchmark": "stages", "of": "train_step", **found, "process_seconds": common.process_seconds()})
    return row


def main(argv: list[str] | None = None) -> None:
    from benchmarks import rows

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--freeze_at", type=int, default=2)
    parser.add_argument("--objects", type=int, default=0, help="in every image; 0: as LVIS has them")
    rows.main("train_step", run, parser, argv)


if __name__ == "__main__":
    main()
