"""Time and memory of planning batches at step 0, a million and a million millions.

    python benchmarks/samplers.py

100,000 images in three buckets, batches of 16, each kind of data.sampler. `resume_ms`: a new sampler and its first
batch, with the order of the epoch; `us_per_batch`: the batches after it, in which the order of a new epoch may fall
(the same number of steps everywhere); both are medians over `--repeats` fresh samplers, the steps in turns. `kib`: the
most memory held meanwhile beyond the weights, once; it is larger where the end of an epoch falls among the batches, as
the orders of two epochs are then held. `_ratio`: to the same at step 0. The kind `mixed` is repeat_factor for two sets,
the second with 26 % of the images and of the rows, more of them in some buckets than in others; `rows_off` is how far
the rows of that set have ever been from its share in the first `--batches` times ten steps. A last row has the making
of the weights from the classes of as many images, 12.7 objects each as in LVIS v1.
"""

import argparse
import pathlib
import statistics
import sys
import time
import tracemalloc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.common import report
from eql_jax.data.samplers import Sampler
from eql_jax.data.sampling_weights import class_aware_probabilities, repeat_factors

STEPS = (0, 10**6, 10**12)


def synthetic_classes(images: int, num_classes: int = 1203) -> tuple[np.ndarray, np.ndarray]:
    """Classes and offsets of images with 12.7 objects each, classes by a Zipf law."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.poisson(12.7, images))])
    return np.minimum(rng.zipf(1.3, offsets[-1]) - 1, num_classes - 1).astype(np.int32), offsets


def measure(make, step: int, batches: int) -> tuple[float, float]:
    """Seconds of resuming at a step, and of each of the batches after it."""
    start = time.perf_counter()
    sampler = make()
    sampler.batch(step)
    resumed = time.perf_counter()
    for i in range(1, batches + 1):
        sampler.batch(step + i)
    return resumed - start, (time.perf_counter() - resumed) / batches


def peak_bytes(make, step: int, batches: int) -> int:
    """The most memory held while a sampler is made and used."""
    tracemalloc.start()
    sampler = make()
    for i in range(batches):
        sampler.batch(step + i)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def rows_off(sampler: Sampler, sets: np.ndarray, share: float, steps: int) -> float:
    """The largest distance of the rows that set 1 has had from its share of them, over the first steps."""
    rows = np.cumsum([np.count_nonzero(sets[sampler.batch(step).indices]) for step in range(steps)])
    return float(np.abs(rows - share * sampler.batch_size * np.arange(1, steps + 1)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=16, help="images of the global batch")
    parser.add_argument("--batches", type=int, default=2000, help="batches after the first")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    classes, offsets = synthetic_classes(args.images)
    times = []
    for make in (
        lambda: repeat_factors(classes, offsets, num_classes=1203, threshold=1e-3),
        lambda: class_aware_probabilities(classes, offsets, num_classes=1203),
    ):
        start = time.perf_counter()
        weights = make()
        times.append((time.perf_counter() - start, weights))
    (factor_seconds, factors), (probability_seconds, probabilities) = times

    buckets = np.random.default_rng(1).choice(3, args.images, p=[0.7, 0.25, 0.05])
    # Set 1 is half of bucket 2, a third of bucket 1 and the rest of its images in bucket 0.
    sets = (np.random.default_rng(2).random(args.images) < np.array([0.22, 0.34, 0.5])[buckets]).astype(np.int64)
    share = float(sets.mean())
    kinds = {
        "uniform": {},
        "repeat_factor": {"factors": factors},
        "class_aware": {"probabilities": probabilities},
        "mixed": {"factors": factors, "sets": sets, "shares": (1 - share, share)},
    }
    for kind, weights in kinds.items():

        def make(weights=weights):
            return Sampler(buckets=buckets, batch_size=args.batch, seed=0, **weights)

        measured = {step: [] for step in STEPS}
        for _ in range(args.repeats):
            for step in STEPS:
                measured[step].append(measure(make, step, args.batches))
        first = None
        for step in STEPS:
            resume, batch = (statistics.median(values) for values in zip(*measured[step], strict=True))
            row = {
                "resume_ms": 1e3 * resume,
                "us_per_batch": 1e6 * batch,
                "kib": peak_bytes(make, step, args.batches) / 1024,
            }
            first = first or row
            ratios = {f"{key}_ratio": row[key] / first[key] for key in row}
            report({"sampler": kind, "images": args.images, "step": step, **row, **ratios})
    report({"sampler": "mixed", "share": share, "rows_off": rows_off(make(), sets, share, 10 * args.batches)})
    report(
        {
            "images": args.images,
            "objects": int(offsets[-1]),
            "repeat_factors_ms": 1e3 * factor_seconds,
            "class_aware_probabilities_ms": 1e3 * probability_seconds,
        }
    )


if __name__ == "__main__":
    main()
