"""Converts synthetic tables of Open Images: boxes per second and peak memory.

    python benchmarks/open_images.py                         # 2 million boxes
    python benchmarks/open_images.py --boxes 14600000 --read # all of the challenge's, and then the file is read as well

8.4 boxes and 4 verified labels an image, 500 classes with a long tail under 50 parents. Sizes come from a table, as the
folder's are a matter of its disk. Each step runs in a process of its own, which prints its peak resident memory.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import process_memory_gib

CLASSES, PARENTS = 500, 50
BOXES_PER_IMAGE, LABELS_PER_IMAGE = 8.4, 4
BLOCK = 1 << 17


def write_tables(folder: pathlib.Path, boxes: int, seed: int = 0) -> None:
    """Writes boxes (sorted by image, as those of Open Images are), image-level labels, classes, hierarchy and sizes."""
    rng = np.random.default_rng(seed)
    labels = [f"/m/0{k:04x}" for k in range(CLASSES)]
    (folder / "classes.csv").write_text("".join(f"{label},Class {k}\n" for k, label in enumerate(labels)))
    tree = [
        {
            "LabelName": labels[p],
            "Subcategory": [{"LabelName": labels[k]} for k in range(PARENTS + p, CLASSES, PARENTS)],
        }
        for p in range(PARENTS)
    ]
    (folder / "hierarchy.json").write_text(json.dumps({"LabelName": "/m/0bl9f", "Subcategory": tree}))
    images = np.unique(rng.integers(0, 2**63, round(boxes / BOXES_PER_IMAGE), dtype=np.uint64))
    weights = 1 / np.arange(1, CLASSES + 1) ** 1.2
    weights /= weights.sum()
    with (folder / "boxes.csv").open("w") as stream:
        stream.write("ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,")
        stream.write("IsDepiction,IsInside\n")
        of_image = np.sort(rng.integers(0, len(images), boxes))
        for start in range(0, boxes, BLOCK):
            of_block = images[of_image[start : start + BLOCK]].tolist()
            classes = rng.choice(CLASSES, len(of_block), p=weights).tolist()
            corners = np.sort(rng.random((len(of_block), 2, 2)), axis=2).reshape(-1, 4).tolist()
            groups = (rng.random(len(of_block)) < 0.06).astype(int).tolist()
            stream.writelines(
                f"{image:016x},xclick,{labels[k]},1,{x1:.6f},{x2:.6f},{y1:.6f},{y2:.6f},0,0,{group},0,0\n"
                for image, k, (x1, x2, y1, y2), group in zip(of_block, classes, corners, groups, strict=True)
            )
    with (folder / "sizes.csv").open("w") as stream:
        stream.write("ImageID,Width,Height\n")
        stream.writelines(f"{image:016x},1024,{683 + image % 86}\n" for image in images.tolist())
    with (folder / "labels.csv").open("w") as stream:
        stream.write("ImageID,Source,LabelName,Confidence\n")
        for start in range(0, len(images), BLOCK):
            part = images[start : start + BLOCK].tolist()
            drawn = rng.integers(0, CLASSES, (len(part), LABELS_PER_IMAGE)).tolist()
            stream.writelines(
                f"{image:016x},verification,{labels[k]},0\n"
                for image, absent in zip(part, drawn, strict=True)
                for k in absent
            )


def step(name: str, folder: pathlib.Path) -> None:
    """One measured step, in this process."""
    start = time.perf_counter()
    if name == "convert":
        from eql_jax.data.open_images import convert

        tables = {key: folder / f"{key}.csv" for key in ("boxes", "classes", "labels", "sizes")}
        made = convert(out=folder / "out.json", hierarchy=folder / "hierarchy.json", **tables)
        counts = {"images": made.images, "boxes": made.boxes, "faults": made.report.total}
    else:
        from eql_jax.data.annotations import load_annotations

        made = load_annotations(folder / "out.json", folder, masks=False, check_files=False)
        counts = {"images": len(made.images), "boxes": made.index.classes.size, "faults": made.report.total}
    seconds = {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time(), 1)}
    row = {"step": name, **seconds, **counts}
    row |= {"peak_gib": round(process_memory_gib("VmHWM"), 2)}
    row |= {"json_mb": round((folder / "out.json").stat().st_size / 1e6)}
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=2_000_000)
    parser.add_argument("--read", action="store_true", help="read the annotation file as well")
    parser.add_argument("--folder", help="where the files go (default: one that is removed)")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        step(args.step, pathlib.Path(args.folder))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write_tables(pathlib.Path(folder), args.boxes)
        size = (pathlib.Path(folder) / "boxes.csv").stat().st_size
        print(json.dumps({"lines": args.boxes, "csv_mb": round(size / 1e6)}), flush=True)
        for name in ["convert", "read"] if args.read else ["convert"]:
            subprocess.run([sys.executable, __file__, "--step", name, "--folder", folder], check=True)


if __name__ == "__main__":
    main()
