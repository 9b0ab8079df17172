"""Time and memory of RoIAlign with adaptive sampling (detectron2's default) against the fixed 2 x 2 points a bin.

    python benchmarks/roi_align.py --compare

One 800 x 1333 image (padded to 1344), 256 channels, p2 to p5, 7 x 7 bins. Both are timed in turns, as `seconds` and
`fixed_seconds`. `--compare` runs every row below, once fixed and once adaptive, each in a process of its own for its
peak memory, and prints adaptive / fixed.

Boxes: 'usual' have sides as in a training step (log-uniform from 16 pixels to 2/3 of the shorter side). With 'thin' one
of them is 1333 x 8 pixels, which asks for more points than any other inside the image. With 'huge' one is a hundred
times as wide and high as the image (the model never makes such: it clips boxes), so that max_samples is reached on both
axes.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

STRIDES = (4, 8, 16, 32)
# (what, flags) of the rows that --compare runs; each is run with fixed and with adaptive sampling.
ROWS = [
    ("training, 512 RoIs, forward", ["--rois", "512"]),
    ("training, 512 RoIs, forward and backward", ["--rois", "512", "--backward"]),
    ("inference, 1000 RoIs, forward", ["--rois", "1000"]),
    ("512 RoIs, one thin, forward and backward", ["--rois", "512", "--backward", "--boxes", "thin"]),
    ("512 RoIs, one huge, bound 8, forward", ["--rois", "512", "--boxes", "huge", "--max_samples", "8"]),
    ("512 RoIs, one huge, bound 16, forward", ["--rois", "512", "--boxes", "huge", "--max_samples", "16"]),
]


def make_boxes(kind: str, count: int, height: int, width: int):
    """Boxes float32 [1, count, 4] of an image; see the module's docstring for `kind`."""
    import numpy as np

    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(16), np.log(min(height, width) / 1.5), (count, 2)))
    centre = rng.uniform(size / 2, np.array([width, height]) - size / 2)
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    if kind == "thin":
        boxes[0] = 0, height / 2, width, height / 2 + 8
    if kind == "huge":
        boxes[0] = -50 * width, -50 * height, 50 * width, 50 * height
    return boxes[None].astype(np.float32)


def most_points(boxes, pool_size: int, sampling_ratio: int, max_samples: int) -> int:
    """Points per bin of the box that has most."""
    import numpy as np

    from eql_jax.ops.roi_align import assign_levels

    if sampling_ratio:
        return sampling_ratio**2
    stride = np.array(STRIDES)[np.asarray(assign_levels(boxes, strides=STRIDES))]
    sides = (boxes[..., 2:] - boxes[..., :2]) / stride[..., None]
    return int(np.minimum(np.ceil(sides / pool_size), max_samples).prod(axis=-1).max())


def run(args: argparse.Namespace) -> dict[str, object]:
    import jax
    import jax.numpy as jnp

    from benchmarks import common
    from eql_jax.ops.roi_align import multilevel_roi_align

    height, width = args.size
    padded = [32 * math.ceil(side / 32) for side in args.size]
    keys = jax.random.split(jax.random.key(0), len(STRIDES))
    features = [
        jax.random.normal(key, (1, padded[0] // stride, padded[1] // stride, args.channels), args.dtype)
        for key, stride in zip(keys, STRIDES, strict=True)
    ]
    boxes = make_boxes(args.boxes, args.rois, height, width)

    def make(sampling_ratio):
        def forward(features, boxes):
            return multilevel_roi_align(
                features,
                boxes,
                strides=STRIDES,
                output_size=args.pool_size,
                sampling_ratio=sampling_ratio,
                max_samples=args.max_samples,
            )

        def both(features, boxes):
            pooled, back = jax.vjp(lambda f: forward(f, boxes), features)
            return pooled, back(pooled)

        return jax.jit(both if args.backward else forward)

    on_device = jax.device_put((features, jnp.asarray(boxes)))
    asked, fixed = make(args.sampling_ratio), make(2)
    jax.block_until_ready(asked(*on_device))
    peak = common.peak_memory_gib()  # before the other one runs
    jax.block_until_ready(fixed(*on_device))
    # In turns, so that a machine that slows down slows both.
    pairs = [
        [common.median_seconds(lambda f=f: f(*on_device), repeats=1, warmup=0) for f in (asked, fixed)]
        for _ in range(args.repeats)
    ]
    unit = common.matmul_unit()
    return {
        "benchmark": "roi_align",
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "size": [height, width],
        "channels": args.channels,
        "rois": args.rois,
        "boxes": args.boxes,
        "pool_size": args.pool_size,
        "dtype": args.dtype,
        "sampling_ratio": args.sampling_ratio,
        "max_samples": args.max_samples,
        "backward": args.backward,
        "most_points": most_points(boxes, args.pool_size, args.sampling_ratio, args.max_samples),
        "seconds": statistics.median(asked for asked, _ in pairs),
        "fixed_seconds": statistics.median(fixed for _, fixed in pairs),
        "seconds_ratio": statistics.median(asked / fixed for asked, fixed in pairs),
        "unit_seconds": unit,
        "units": statistics.median(asked for asked, _ in pairs) / unit,
        "peak_gib": peak,
    }


def compare(args: argparse.Namespace) -> None:
    """Runs every row of ROWS with fixed and with adaptive sampling, a process each, and prints the ratios."""
    common_flags = ["--size", *map(str, args.size), "--channels", str(args.channels), "--dtype", args.dtype]
    common_flags += ["--pool_size", str(args.pool_size), "--repeats", str(args.repeats)]
    for what, flags in ROWS:
        peaks = []
        for ratio in (2, 0):
            command = [sys.executable, __file__, "--sampling_ratio", str(ratio), *flags, *common_flags]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(out, end="", flush=True)
            row = json.loads(out.strip().splitlines()[-1])
            peaks.append(row["peak_gib"])
        ratios = {"seconds_ratio": row["seconds_ratio"], "peak_gib_ratio": round(peaks[1] / peaks[0], 3)}
        print(json.dumps({"adaptive against fixed": what, "points": row["most_points"], **ratios}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help="all rows, fixed and adaptive, one process each")
    parser.add_argument("--sampling_ratio", type=int, default=0, help="points per bin and axis; 0: adaptive")
    parser.add_argument("--max_samples", type=int, default=64)
    parser.add_argument("--rois", type=int, default=512)
    parser.add_argument("--boxes", choices=("usual", "thin", "huge"), default="usual")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--pool_size", type=int, default=7)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    from benchmarks import common

    if args.compare:
        compare(args)
    else:
        common.report(run(args))


if __name__ == "__main__":
    main()
