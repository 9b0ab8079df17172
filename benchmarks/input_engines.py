"""Training batches by config.data.engine: this package's threads against tf.data, which takes the same batches over.

    python benchmarks/input_engines.py [--annotations lvis.json --images FOLDER] [--batch 8] [--batches 12]

Each engine makes batches of 800 x 1333 training, exact and fast pixels, in turns; prints images per second and the
median ratio over the turns. Without --annotations the pictures are supershapes of 512 pixels.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import report
from configs import base
from eql_jax.data.annotations import load_annotations
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.supershapes import ensure_supershapes

ENGINES = ("threads", "tf.data")


def images_per_second(annotations, config, batches: int) -> float:
    """Of batches 2 and later; the first two fill the queues."""
    iterator = make_train_iterator(annotations, config)
    try:
        for _ in range(2):
            next(iterator)
        start = time.perf_counter()
        for _ in range(batches):
            next(iterator)
        return config.train.batch_size * batches / (time.perf_counter() - start)
    finally:
        iterator.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations")
    parser.add_argument("--images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.annotations:
            made = ensure_supershapes(out=folder, num_classes=20, train_images=60, val_images=2, image_size=512, seed=0)
            args.annotations, args.images = made.train_annotations, made.images
        annotations = load_annotations(args.annotations, args.images)
        config = base.get_config()
        config.data.drop_empty_images = True
        config.train.batch_size = args.batch
        for fast in (False, True):
            config.data.fast_pixels = fast
            rates = {engine: [] for engine in ENGINES}
            for _ in range(args.turns):
                for engine in ENGINES:
                    config.data.engine = engine
                    rates[engine].append(images_per_second(annotations, config, args.batches))
            pairs = zip(*rates.values(), strict=True)
            row = {f"{engine} images/s": round(statistics.median(values), 1) for engine, values in rates.items()}
            report({"fast_pixels": fast, **row, "threads / tf.data": statistics.median(a / b for a, b in pairs)})


if __name__ == "__main__":
    main()
