"""How many supershapes images one core makes in a second, annotations and JPEG files included.

    python benchmarks/supershapes.py --images 600 --size 128

Prints images per second of wall-clock and of processor time, each against the goal of 100 at 128 pixels.
"""

import argparse
import pathlib
import resource
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


def processor_seconds() -> float:
    """User and system time of this process and of its finished children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    from benchmarks import common
    from eql_jax.data.supershapes import ensure_supershapes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--classes", type=int, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wall, processor = time.perf_counter(), processor_seconds()
        ensure_supershapes(
            pathlib.Path(folder) / "data",
            workers=1,
            progress=False,
            num_classes=args.classes,
            train_images=args.images,
            val_images=args.classes,
            image_size=args.size,
        )
        wall, processor = time.perf_counter() - wall, processor_seconds() - processor
    made = args.images + args.classes
    common.report(
        {
            "benchmark": "supershapes",
            "images": made,
            "size": args.size,
            "images_per_second": made / wall,
            "images_per_processor_second": made / processor,
            "ratio_to_goal_of_100": made / wall / 100,
        }
    )


if __name__ == "__main__":
    main()
