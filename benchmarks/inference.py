"""Speed and memory of Mask R-CNN R50-FPN inference with 300 detections, on one device of any backend.

    python benchmarks/inference.py --classes 1203 --size 640 640 --batch 1
    python benchmarks/inference.py --batch 8 --dtype bfloat16 --size 800 1344 --torchvision
    python benchmarks/inference.py --rows gpu --out rows.jsonl --minutes 9

From uint8 images to boxes, scores, classes and 28 x 28 masks. `seconds` is the compiled programme on images that lie
on the device, the median of `repeats` calls that are waited for: the latency, at batch 1; `images_per_second` goes by
it. `host_seconds` (with --host) is the detector that evaluation uses, from NumPy images to NumPy results. The other
fields and options are those of train_step.py.

An untrained EQL head puts every (proposal, class) pair over the score threshold, the worst case for the selection of
detections.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


def run(args: argparse.Namespace) -> dict[str, object]:
    """Prints the row, then the lines of --profile and --stages, and returns the row."""
    import jax
    import numpy as np

    from benchmarks import common, flops
    from eql_jax.models import build_model, init_model
    from eql_jax.training.eval_step import make_detector

    config = common.detector_config(args)
    model = build_model(config, args.classes)
    variables = jax.jit(lambda: init_model(model, jax.random.key(0)))()
    height, width = args.size
    images = {
        "image": np.random.default_rng(0).integers(0, 256, (args.batch, height, width, 3), np.uint8),
        "image_size": np.tile(np.array([height, width], np.int32), (args.batch, 1)),
    }
    batch = jax.device_put(images)

    def detect(variables, image, image_size):
        return model.apply(variables, image, image_size, method="detect")

    programme = common.compile_programme(jax.jit(detect), variables, batch["image"], batch["image_size"])
    one = lambda: programme.compiled(variables, batch["image"], batch["image_size"])  # noqa: E731
    found = jax.device_get(one())
    times = common.timings(one, args, warmup=1)
    peak = common.peak_memory_gib()  # before the unit is timed, which needs memory of its own
    row = {
        "benchmark": "inference",
        **common.facts(args),
        "detections": int((found.classes >= 0).sum()),
        "exact": bool(np.all(found.exact)),
        **times,
        "peak_gib": peak,
        **programme.facts,
        **flops.utilisation(
            programme.facts["matmul_flops"],
            times["seconds"],
            device_kind=jax.devices()[0].device_kind,
            dtype=args.dtype,
        ),
    }
    if args.host:
        detector = make_detector(model, config)
        row["host_seconds"] = common.median_seconds(
            lambda: detector(variables, images), repeats=common.repeats_of(args)
        )
    row |= common.unit_fields(times["seconds"], args) | {"process_seconds": common.process_seconds()}
    common.report(row)
    if args.profile:
        from benchmarks import profiling

        lines = profiling.profile(one, args.profile, hlo_text=programme.compiled.as_text())
        common.report({"benchmark": "profile", "of": "inference", **lines, "process_seconds": common.process_seconds()})
    if args.stages:
        from benchmarks import stages

        lines = stages.inference(model, variables, batch, repeats=common.repeats_of(args), whole=times["seconds"])
        classes = lines.pop("classes")
        lines["same_classes"] = float(np.mean(np.asarray(classes) == found.classes))
        common.report({"benchmark": "stages", "of": "inference", **lines, "process_seconds": common.process_seconds()})
    return row


def main(argv: list[str] | None = None) -> None:
    from benchmarks import rows

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", action="store_true", help="also host_seconds, for which the programme compiles again")
    rows.main("inference", run, parser, argv)


if __name__ == "__main__":
    main()
