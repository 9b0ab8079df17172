"""Time and memory of an ensemble of two or more results files, 300 detections an image in each.

    python benchmarks/ensemble.py
    python benchmarks/ensemble.py --images 1000 --files 4 --ways wbf

Made-up results in images of LVIS's sizes: in each image 300 objects of some 30 classes by a Zipf law, found by every
file with its own noise in place, outline and score; two fifths of the classes are drawn anew by each file. So about
half of the detections meet one of another file. Each way runs in a process of its own, from the command line to the
file that it writes; `peak_mib` is the peak of its resident memory. `nms_masks` averages the masks of what is
suppressed. `read` is one file alone, with nothing fused.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.common import report
from benchmarks.evaluation import NUM_CLASSES, POINTS, outlines

DETECTIONS = 300
WAYS = {
    "read": ["--iou", "1"],
    "nms": ["--fuse", "nms"],
    "nms_masks": ["--fuse", "nms", "--average_masks", "0.5"],
    "wbf": ["--fuse", "wbf"],
}
CODE = """
import sys, time
sys.path.insert(0, {root!r})
from eql_jax.ensemble.__main__ import main
started = time.process_time()
assert main(sys.argv[1:]) == 0
status = open("/proc/self/status").read().splitlines()
peak = next(line for line in status if line.startswith("VmHWM")).split()[1]
print(time.process_time() - started, int(peak) / 1024)
"""


def make_files(folder: pathlib.Path, images: int, files: int) -> list[str]:
    """Writes results files; returns their paths."""
    from pycocotools import mask as mask_api

    from eql_jax.evaluation.results import ResultWriter

    rng = np.random.default_rng(0)
    writers = [ResultWriter(folder / f"{number}.json") for number in range(files)]
    for image_id in range(1, images + 1):
        height, width = [(480, 640), (640, 480), (427, 640)][rng.integers(3)]
        limits = np.array([width, height])
        sides = np.exp(rng.normal(np.log(60), 0.9, (DETECTIONS, 2))).clip(6, limits * 0.9)
        corners = rng.random((DETECTIONS, 2)) * (limits - sides)
        radii = rng.uniform(0.65, 1, (DETECTIONS, POINTS))
        pool = np.minimum(rng.zipf(1.25, 60) - 1, NUM_CLASSES - 1)
        classes = rng.choice(pool, DETECTIONS)
        for writer in writers:
            amount = rng.uniform(0, 0.15, (DETECTIONS, 1))
            found = (corners + rng.normal(0, 1, (DETECTIONS, 2)) * amount * sides).clip(0, limits - 2)
            found_sides = np.minimum(sides * np.exp(rng.normal(0, 1, (DETECTIONS, 2)) * amount), limits - found)
            boxes = np.concatenate([found, found_sides], axis=1)
            found_radii = (radii + rng.normal(0, 0.05, radii.shape)).clip(0.3, 1)
            polygons = outlines(rng, boxes, found_radii, (height, width))
            rles = mask_api.frPyObjects(polygons.tolist(), height, width)
            own = np.where(rng.random(DETECTIONS) < 0.6, classes, rng.choice(pool, DETECTIONS))
            scores = np.sort(rng.beta(0.6, 3, DETECTIONS))[::-1].round(6)
            writer.write(
                {
                    "image_id": image_id,
                    "category_id": category + 1,
                    "score": score,
                    "bbox": box,
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                }
                for category, score, box, rle in zip(
                    own.tolist(), scores.tolist(), boxes.round(3).tolist(), rles, strict=True
                )
            )
    for writer in writers:
        writer.close()
    return [str(writer.path) for writer in writers]


def measure(paths: list[str], out: pathlib.Path, options: list[str]) -> dict[str, float]:
    """Seconds on the clock and of the processor, and the peak of the resident memory."""
    code = CODE.format(root=str(pathlib.Path(__file__).resolve().parents[1]))
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "--results", *paths, *options, "--out", str(out)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds = time.perf_counter() - started
    cpu_seconds, peak = map(float, done.stdout.splitlines()[-1].split())
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        paths = make_files(folder, args.images, args.files)
        for way in args.ways:
            measured = measure(paths[:1] if way == "read" else paths, folder / "out.json", WAYS[way])
            rate = {"images_per_cpu_second": args.images / measured["cpu_seconds"]}
            report({"way": way, "images": args.images, "files": 1 if way == "read" else args.files, **measured, **rate})


if __name__ == "__main__":
    main()
