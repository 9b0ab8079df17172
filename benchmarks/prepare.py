"""Reads and prepares a synthetic data set of the size of LVIS v1: peak memory and images per second.

    python benchmarks/prepare.py                                     # 1.27 million annotations, a JSON of 1.1 GB
    python benchmarks/prepare.py --images 4000 --annotations 50000 --picture 640x480

The JSON is made as LVIS v1 train is: annotations first, as many objects and points. By default all pictures are one
tiny file under many names (hard links), since the size of the JSON is what is to be seen; with --picture they are noise
and gradients of that size, 20 different ones. Each step runs in a process of its own, which prints its peak resident
memory.
"""

import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import process_memory_gib

CLASSES = 1203


def write_json(path: pathlib.Path, *, images: int, annotations: int, width: int, height: int, seed: int = 0) -> None:
    """Writes an LVIS-like annotation file; images have ids 1, 2, ..., their annotations are scattered as in LVIS."""
    rng = np.random.default_rng(seed)
    with path.open("w") as stream:
        stream.write('{"info": {"description": "synthetic"}, "annotations": [')
        order = rng.permutation(images)
        image_of = order[np.sort(rng.integers(0, images, annotations))] + 1
        for i in range(annotations):
            points = int(
                np.clip(rng.lognormal(3.56, 0.9), 4, 2000)
            )  # 50 on average, in pictures this small as many bytes as in LVIS
            split = [points] if points < 8 or rng.random() < 0.85 else [points // 2, points - points // 2]
            x, y = rng.uniform(0, (0.7 * width, 0.7 * height))
            w, h = rng.uniform(4, (0.25 * width, 0.25 * height))
            polygons = [np.round(rng.uniform((x, y), (x + w, y + h), (n, 2)), 2).ravel().tolist() for n in split]
            record = {
                "area": round(w * h / 2, 2),
                "id": i + 1,
                "segmentation": polygons,
                "image_id": int(image_of[i]),
                "bbox": [round(v, 2) for v in (x, y, w, h)],
                "category_id": int(rng.integers(1, CLASSES + 1)),
            }
            stream.write((", " if i else "") + json.dumps(record))
        stream.write('], "images": [')
        for i in range(images):
            record = {
                "date_captured": "2013-11-14 11:18:45",
                "neg_category_ids": rng.integers(1, CLASSES + 1, 12).tolist(),
                "id": i + 1,
                "license": 4,
                "height": height,
                "width": width,
                "flickr_url": f"http://farm8.staticflickr.com/7187/{i:010d}_4f08387bdf_z.jpg",
                "coco_url": f"http://images.cocodataset.org/train2017/{i + 1:012d}.jpg",
                "not_exhaustive_category_ids": rng.integers(1, CLASSES + 1, 2).tolist(),
            }
            stream.write((", " if i else "") + json.dumps(record))
        categories = [
            {"id": i, "name": f"thing{i}", "synset": f"thing{i}.n.01", "frequency": "f", "image_count": 500}
            | {"instance_count": 1000, "def": "something that is there", "synonyms": [f"thing{i}"]}
            for i in range(1, CLASSES + 1)
        ]
        stream.write(f'], "licenses": [], "categories": {json.dumps(categories)}}}')


def write_pictures(folder: pathlib.Path, *, images: int, width: int, height: int) -> None:
    """Writes up to 20 different JPEGs and links to them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i in range(images):
        path = folder / f"{i + 1:012d}.jpg"
        if i >= 20:
            os.link(folder / f"{i % 20 + 1:012d}.jpg", path)
            continue
        ramp = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
        picture = np.clip(ramp + rng.normal(0, 9, (height, width, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=92)
        path.write_bytes(buffer.getvalue())


def step(name: str, args: argparse.Namespace) -> None:
    """One measured step, in this process."""
    folder = pathlib.Path(args.folder)
    start = time.perf_counter()
    if name == "load":
        from eql_jax.data.annotations import load_annotations

        annotations = load_annotations(folder / "train.json", folder / "images")
    elif name == "prepare":
        from eql_jax.data.prepare import prepare

        annotations = prepare(
            folder / "train.json", folder / "images", folder / "out", workers=args.workers, progress=False
        )
    else:
        from eql_jax.data.prepared import load_prepared

        annotations = load_prepared(folder / "out")
    objects = annotations.index.classes.size
    seconds = time.perf_counter() - start
    positions = np.random.default_rng(2).integers(0, len(annotations.images), 2000)
    start = time.perf_counter()
    for position in positions.tolist():
        annotations.images[position].objects.segmentations[0:1]
    row = {
        "step": name,
        "images": len(annotations.images),
        "objects": objects,
        "seconds": round(seconds, 1),
        "images_per_s": round(len(annotations.images) / seconds, 1),
        "records_read_per_s": round(len(positions) / (time.perf_counter() - start)),
        "peak_gib": round(process_memory_gib("VmHWM"), 2),
    }
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_170)
    parser.add_argument("--annotations", type=int, default=1_270_141)
    parser.add_argument("--picture", default="64x48", help="width x height (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", help="an empty folder to work in, which stays; default: a temporary one")
    parser.add_argument("--json-only", action="store_true", help="write the data set to --folder and stop")
    parser.add_argument("--step", choices=("load", "prepare", "open"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        step(args.step, args)
        return
    width, height = map(int, args.picture.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or temporary
        folder = pathlib.Path(args.folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "train.json", images=args.images, annotations=args.annotations, width=width, height=height)
        write_pictures(folder / "images" / "train2017", images=args.images, width=width, height=height)
        print(json.dumps({"json_mb": round((folder / "train.json").stat().st_size / 1e6)}), flush=True)
        for name in () if args.json_only else ("load", "prepare", "open"):
            command = [
                sys.executable,
                __file__,
                "--step",
                name,
                "--folder",
                args.folder,
                "--workers",
                str(args.workers),
            ]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
