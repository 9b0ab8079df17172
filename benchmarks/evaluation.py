"""Time, memory and numbers of the LVIS evaluation against the `lvis` package: boxes and masks, 500,000 detections.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --images 100 --detections 25000

Made-up data of LVIS's proportions: 1203 classes by a Zipf law, 12 objects an image in 3 to 4 classes, polygons of 24
points, 10 classes verified absent, every other image with a class that is not exhaustively annotated. Of the detections
35 % are of the image's own classes (half of these near an object), 15 % of absent ones, the rest of others.

Each way runs in a process of its own, which first gets its results ready: dicts for the package, for this one columns
(`fast`), or the same dicts (`fast_dicts`). Timed is what follows, from the path of the annotations to the metrics of
boxes and masks: LVIS, LVISResults and LVISEval.run for each type as in detectron2, which takes the boxes from results
for the evaluation of masks, so that the area of the mask counts; `evaluate` here. `seconds` is wall-clock time,
`cpu_seconds` that of the processor, which other work on the machine changes less; all ways run on one core.
`gib_above_data` is the peak of the resident memory above what was resident before, `largest_difference` is over all
metrics, precision curves and recalls of classes, thresholds and area ranges.
"""

import argparse
import gc
import json
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.common import process_memory_gib

NUM_CLASSES = 1203
POINTS = 24
WAYS = ("official", "fast", "fast_dicts")


# ------------------------------------------------------------------------------------------------------------ data
def outlines(rng: np.random.Generator, boxes: np.ndarray, radii: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Star-shaped polygons [n, 2 * POINTS] in boxes [n, 4] (xywh), clipped to the image; radii [n, POINTS] up to 1."""
    angles = np.arange(POINTS) * (2 * np.pi / POINTS)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * radii[..., None]
    points = boxes[:, None, :2] + (unit + 1) / 2 * boxes[:, None, 2:]
    return np.clip(points, 0, np.array(size)[::-1]).round(2).reshape(len(boxes), -1)


def make_image(rng: np.random.Generator, image_id: int, count: int) -> tuple[dict, list[dict], list[dict]]:
    """Image, annotations and `count` results."""
    from pycocotools import mask as mask_api

    size = [(480, 640), (640, 480), (427, 640), (640, 427)][rng.integers(4)]
    height, width = size
    present = np.unique(np.minimum(rng.zipf(1.25, 1 + rng.poisson(2.7)) - 1, NUM_CLASSES - 1))
    classes = np.repeat(present, np.minimum(rng.zipf(1.7, len(present)), 16))
    n = len(classes)
    sides = np.exp(rng.normal(np.log(60), 0.9, (n, 2))).clip(6, [width * 0.9, height * 0.9])
    boxes = np.concatenate([rng.uniform(0, 1, (n, 2)) * ([width, height] - sides), sides], axis=1).round(2)
    radii = rng.uniform(0.65, 1, (n, POINTS))
    polygons = outlines(rng, boxes, radii, size)
    rles = mask_api.frPyObjects(polygons.tolist(), height, width)
    annotations = [
        {
            "image_id": image_id,
            "category_id": int(c) + 1,
            "bbox": box,
            "area": float(mask_api.area(rle)),
            "segmentation": [polygon],
        }
        for c, box, rle, polygon in zip(classes, boxes.tolist(), rles, polygons.tolist(), strict=True)
    ]
    absent = np.setdiff1d(rng.choice(NUM_CLASSES, 14, replace=False), present)[:10]
    others = np.setdiff1d(np.arange(NUM_CLASSES), np.concatenate([present, absent]))
    image = {"id": image_id, "height": height, "width": width, "neg_category_ids": (absent + 1).tolist()}
    image["not_exhaustive_category_ids"] = (present[:1] + 1).tolist() if rng.random() < 0.5 else []

    kind = rng.random(count)
    near = np.flatnonzero(kind < 0.175)
    source = rng.integers(0, n, count)
    found_class = np.select(
        [kind < 0.175, kind < 0.35, kind < 0.5],
        [classes[source], rng.choice(present, count), rng.choice(absent, count)],
        rng.choice(others, count),
    )
    found_sides = np.exp(rng.normal(np.log(60), 0.9, (count, 2))).clip(6, [width * 0.9, height * 0.9])
    found_boxes = np.concatenate([rng.uniform(0, 1, (count, 2)) * ([width, height] - found_sides), found_sides], axis=1)
    found_radii = rng.uniform(0.65, 1, (count, POINTS))
    amount = rng.uniform(0, 0.2, (len(near), 1))
    moved = boxes[source[near]].copy()
    moved[:, :2] += rng.normal(0, 1, (len(near), 2)) * amount * moved[:, 2:]
    moved[:, 2:] *= np.exp(rng.normal(0, 1, (len(near), 2)) * amount)
    found_boxes[near], found_radii[near] = moved, radii[source[near]]
    found_boxes[:, :2] = found_boxes[:, :2].clip(0, [width - 2, height - 2])
    found_boxes[:, 2:] = np.minimum(found_boxes[:, 2:], [width, height] - found_boxes[:, :2])
    found_rles = mask_api.frPyObjects(outlines(rng, found_boxes, found_radii, size).tolist(), height, width)
    scores = rng.beta(0.6, 3, count)
    scores[near] = rng.beta(1.5, 2, len(near))
    results = [
        {
            "image_id": image_id,
            "category_id": int(c) + 1,
            "score": score,
            "bbox": box,
            "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
        }
        for c, score, box, rle in zip(
            found_class, scores.round(6).tolist(), found_boxes.round(3).tolist(), found_rles, strict=True
        )
    ]
    return image, annotations, results


def make_data(folder: pathlib.Path, images: int, detections: int) -> dict[str, int]:
    """Writes annotations.json and results.json; the same for the same arguments."""
    from eql_jax.evaluation.results import ResultWriter

    rng = np.random.default_rng(0)
    categories = [
        {"id": i + 1, "name": f"class_{i + 1}", "frequency": "f" if i < 405 else "c" if i < 866 else "r"}
        for i in range(NUM_CLASSES)
    ]
    content: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
    counts = np.diff(np.linspace(0, detections, images + 1).astype(int))
    with ResultWriter(folder / "results.json") as writer:
        for number, count in enumerate(counts.tolist()):
            image, annotations, results = make_image(rng, number + 1, count)
            content["images"].append(image)
            content["annotations"] += annotations
            writer.write(results)
    for number, annotation in enumerate(content["annotations"], 1):
        annotation["id"] = number
    (folder / "annotations.json").write_text(json.dumps(content))
    return {"images": images, "objects": len(content["annotations"]), "detections": writer.count}


# ------------------------------------------------------------------------------------------------------ one way each
def run_official(folder: pathlib.Path) -> None:
    from eql_jax.evaluation import lvis_api

    api = lvis_api.load()  # with the NumPy fix
    boxes = json.loads((folder / "results.json").read_text())
    masks = [{k: v for k, v in result.items() if k != "bbox"} for result in boxes]  # the same objects, new dicts

    def evaluate():
        found, seconds = {}, {}
        for iou_type, results in (("bbox", boxes), ("segm", masks)):
            start = time.perf_counter()
            truth = api.LVIS(str(folder / "annotations.json"))
            evaluation = api.LVISEval(truth, api.LVISResults(truth, results, max_dets=300), iou_type)
            evaluation.run()
            seconds[iou_type] = time.perf_counter() - start
            found[iou_type] = (evaluation.results, evaluation.eval["precision"], evaluation.eval["recall"])
        return found, seconds

    measure(evaluate, folder / "official.npz")


def run_fast(folder: pathlib.Path, *, dicts: bool) -> None:
    from eql_jax.evaluation import ResultTable, evaluate, load_results

    path = folder / "results.json"
    results = load_results(path) if dicts else ResultTable.from_file(path)

    def both():
        result = evaluate(folder / "annotations.json", results)
        return {t: (result.metrics[t], *result.curves[t]) for t in result.metrics}, {}

    measure(both, folder / "fast.npz")


def measure(evaluate, out: pathlib.Path) -> None:
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start, processor = process_memory_gib("VmRSS"), time.perf_counter(), time.process_time()
    found, parts = evaluate()
    row = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - processor}
    row |= {f"seconds_{k}": v for k, v in parts.items()}
    row |= {"gib_above_data": process_memory_gib("VmHWM") - before, "gib_data": before}
    arrays = {}
    for iou_type, (metrics, precision, recall) in found.items():
        names = sorted(name for name in metrics if not name.startswith("AP50") or name == "AP50")  # the package's
        arrays[f"{iou_type}_metrics"] = np.array([metrics[name] for name in names])
        arrays[f"{iou_type}_precision"], arrays[f"{iou_type}_recall"] = precision, recall
        row[f"{iou_type}_AP"] = float(metrics["AP"])
    np.savez(out, **arrays)
    print(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--detections", type=int, default=500_000, help="over all images")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        run_official(args.folder) if args.way == "official" else run_fast(args.folder, dicts=args.way == "fast_dicts")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        print(json.dumps(make_data(folder, args.images, args.detections)), flush=True)
        rows = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--folder", temporary]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows[way] = json.loads(out.strip().splitlines()[-1])
            if way != "official":
                for name in ("seconds", "cpu_seconds"):
                    rows[way][f"{name}_ratio"] = rows["official"][name] / rows[way][name]
                with np.load(folder / "official.npz") as a, np.load(folder / "fast.npz") as b:
                    differences = [np.abs(a[key] - b[key]).max() for key in a.files]
                    rows[way]["largest_difference"] = float(max(differences))
                    rows[way]["numbers"] = sum(a[key].size for key in a.files)
            rounded = {k: v if k == "largest_difference" else round(v, 3) for k, v in rows[way].items()}
            print(json.dumps({"way": way, **rounded}), flush=True)


if __name__ == "__main__":
    main()
