"""Checks the data pipeline against detectron2's on real photographs; not part of the test suite.

    python -m tests.data.check_golden --golden DIR --annotations lvis_v0.5_val_40.json --images DIR

--golden has a <image id, 12 digits>.npz for each image: what detectron2's DatasetMapper made of it, with bytes of the
photographs, which are not redistributed here (tests/testdata/data_mapper.npz has the other keys of the same files).
Prints the largest difference of every key for each image and setting, then over all, and returns 1 if one is too large.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from eql_jax.data.annotations import load_annotations
from eql_jax.data.examples import eval_example
from eql_jax.data.transforms import Size
from tests.data import mapper

# What may differ, and by how much: all else must be equal.
ALLOWED = {
    "channel_mean_rgb": 1e-9,  # grey levels; float64 sums in another order
    "channel_std_rgb": 1e-9,
    "boxes": 2e-4,  # pixels; float32
    "polygon_bounding_boxes": 2e-4,
    "polygon_area": 0.1,  # square pixels, of up to 300,000
    "mask_pixel_area": 2,  # pixels; polygons are kept as float32, corners may cross the middle of a pixel
    "masks_first5_packed": 10,
}


def compare(record, golden, num_classes):
    """Yields (setting, key, largest difference) for one image; masks: the number of differing pixels."""
    for name, setting in mapper.SETTINGS.items():
        example = mapper.example_of(record, setting, num_classes=num_classes)
        height, width = example["image_size"]
        image = example["image"][:height, :width]
        y, x = golden[f"{name}/crop_yx"]
        flat = image.reshape(-1, 3).astype(np.float64)
        found = mapper.geometry(record, setting, example) | {
            "crop_rgb_64": image[y : y + 64, x : x + 64],
            "channel_mean_rgb": flat.mean(axis=0),
            "channel_std_rgb": flat.std(axis=0),
            "image_rgb": image,
        }
        for key, value in found.items():
            if f"{name}/{key}" in golden:
                yield name, key, difference(key, value, golden[f"{name}/{key}"])
        if not setting.flip:  # the evaluation's image is the very same
            bucket = Size(setting.longest_side, setting.longest_side)
            seen = eval_example(
                record, bucket=bucket, shorter_side=setting.shorter_side, longest_side=setting.longest_side
            )
            yield name, "evaluation image", difference("", seen["image"], example["image"])
    target = {key: golden[f"mask_target/{key}"] for key in ("boxes", "instance_index", "from_polygons_28")}
    found = mapper.targets(record, golden["s800_plain/size_hw"], target["boxes"], target["instance_index"])
    yield "mask_target", "from_polygons_28", difference("_packed", np.packbits(found, -1), target["from_polygons_28"])


def difference(key, found, expected):
    """Largest absolute difference; for packed masks the number of pixels; infinity for other shapes."""
    if found.shape != expected.shape:
        return np.inf
    if key.endswith("_packed"):
        return int(np.unpackbits(found ^ expected).sum())
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    options = parser.parse_args()
    files = sorted(options.golden.glob("[0-9]" * 12 + ".npz"))
    if not files:
        parser.error(f"{options.golden} has no file named like 000000057672.npz")
    annotations = load_annotations(options.annotations, options.images, strict=True)
    records = {record.id: record for record in annotations.images}
    worst = {}
    for file in files:
        with np.load(file) as data:
            golden = dict(data)
        record = records[int(file.stem)]
        if not np.array_equal(record.objects.ids, golden["annotation_ids"]):
            print(f"{file.stem}: other objects, or another order of them")
            return 1
        for setting, key, value in compare(record, golden, annotations.num_classes):
            print(f"{file.stem} {setting:12} {key:24} {value:.3g}")
            worst.setdefault(key, []).append(value)
    print("\nlargest difference of each key, number of comparisons")
    failed = False
    for key, values in worst.items():
        bad = not max(values) <= ALLOWED.get(key, 0)
        failed |= bad
        print(f"{key:24} {max(values):.3g} of {len(values)}{'   TOO LARGE' if bad else ''}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
