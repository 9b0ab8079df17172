"""Time and memory of Mask R-CNN R50-FPN inference with 300 detections, in units of one 4096-cubed float32 matmul.

    python benchmarks/inference.py --classes 1203 --size 640 640 --batch 1

From uint8 images to boxes, scores, classes and 28 x 28 masks. `--compare 1203 80` starts one process for each class
count and prints the ratios. An untrained EQL head puts every (proposal, class) pair over the score threshold, the worst
case for the selection of detections.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


def run(args: argparse.Namespace) -> dict[str, object]:
    import jax
    import numpy as np

    from benchmarks import common
    from configs import base
    from eql_jax.models import build_model, init_model
    from eql_jax.training.eval_step import make_detector

    config = base.get_config()
    config.model.dtype = args.dtype
    config.model.backbone.depth = args.depth
    model = build_model(config, args.classes)
    variables = jax.jit(lambda: init_model(model, jax.random.key(0)))()
    detector = make_detector(model, config)
    height, width = args.size
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (args.batch, height, width, 3), np.uint8),
        "image_size": np.tile(np.array([height, width], np.int32), (args.batch, 1)),
    }
    found = detector(variables, batch)
    seconds = common.median_seconds(lambda: detector(variables, batch), repeats=args.repeats)
    peak = common.peak_memory_gib()
    unit = common.matmul_unit()
    return {
        "benchmark": "inference",
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "classes": args.classes,
        "size": [height, width],
        "batch": args.batch,
        "dtype": args.dtype,
        "detections": int((found["classes"] >= 0).sum()),
        "exact": bool(found["exact"].all()),
        "seconds": seconds,
        "images_per_second": args.batch / seconds,
        "unit_seconds": unit,
        "units": seconds / unit,
        "peak_gib": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--compare", type=int, nargs=2, metavar="K", help="two class counts, one process each")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 640), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    from benchmarks import common

    if args.compare:
        common.compare(__file__, args)
    else:
        common.report(run(args))


if __name__ == "__main__":
    main()
