"""Time and memory of a training step of Mask R-CNN R50-FPN, in units of one 4096-cubed float32 matmul.

    python benchmarks/train_step.py --classes 1203 --size 640 640 --batch 1

needs only jax, flax, optax, numpy and ml_collections, any backend. Memory is the process's peak (CPU) or the device's,
so give one class count per process to compare them: `--compare 1203 80` starts one process each and prints the ratios.
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
    from eql_jax.class_losses import ClassFrequencies
    from eql_jax.models import build_model, init_model, trainable_mask
    from eql_jax.training.mesh import make_mesh
    from eql_jax.training.optimizer import make_optimizer
    from eql_jax.training.state import create_state
    from eql_jax.training.train_step import make_train_step

    config = base.get_config()
    config.train.batch_size = args.batch
    config.model.dtype = args.dtype
    config.model.backbone.depth = args.depth
    config.model.backbone.freeze_at = args.freeze_at
    num_classes = args.classes
    frequencies = ClassFrequencies(num_classes, tail=np.arange(num_classes) % 2 == 0)
    model = build_model(config, num_classes, frequencies)
    mesh = make_mesh(config)
    variables = jax.jit(lambda: init_model(model, jax.random.key(0)))()
    params = variables["params"]
    optimizer = make_optimizer(config, params, trainable=trainable_mask(params, config)).transform
    state = jax.jit(lambda v: create_state(v, optimizer, ema=False))(variables)
    del variables, params
    step = make_train_step(model, optimizer, config, mesh)
    height, width = args.size
    batch = common.synthetic_batch(
        batch=args.batch,
        height=height,
        width=width,
        num_classes=num_classes,
        objects=args.objects,
        max_objects=config.data.max_objects,
        mask_size=config.data.mask_size,
    )
    batch = {k: jax.device_put(v) for k, v in batch.items()}
    carry = {"state": state}
    del state
    metrics = {}

    def one():
        carry["state"], out = step(carry["state"], batch)
        metrics.update(out)
        return out

    seconds = common.median_seconds(one, repeats=args.repeats, warmup=2)
    peak = common.peak_memory_gib()  # before the unit is timed, which needs memory of its own
    unit = common.matmul_unit()
    return {
        "benchmark": "train_step",
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "classes": num_classes,
        "size": [height, width],
        "batch": args.batch,
        "dtype": args.dtype,
        "foreground_rois": float(metrics["num_foreground"]),
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
    parser.add_argument("--freeze_at", type=int, default=2)
    parser.add_argument("--objects", type=int, default=20)
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
