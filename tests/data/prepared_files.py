"""Annotation files of several kinds, and what prepared folders of them hold, for the tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.test_object_columns import SPOILS, assert_same_images


def contents(folder):
    """name -> bytes of all files of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


def below(images, folder):
    """The images with their paths below a folder."""
    return [image._replace(path=image.path.relative_to(folder)) for image in images]


def assert_equal_to_json(prepared, loaded, paths):
    assert prepared.categories == loaded.categories
    np.testing.assert_array_equal(prepared.class_ids, loaded.class_ids)
    assert prepared.report.counts == loaded.report.counts
    summary = loaded.report.summary().replace(f"{paths.json}, id", f"{paths.json.name}, id")
    assert prepared.report.summary() == summary.replace(f" in {paths.images}", "")
    assert_same_images(below(prepared.images, prepared.raw.parent), below(loaded.images, paths.images))
    for record, original in zip(prepared.images, loaded.images, strict=True):
        assert record.encoded == original.path.read_bytes()
    for mine, theirs in zip(prepared.index, loaded.index, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def lvis_v1(content):
    """Annotations first, as in the files of LVIS v1, whose validation images are in train2017 for the most part."""
    return {key: content[key] for key in ("annotations", "images", "categories")}


def lvis_v05(content):
    for image in content["images"]:
        image["file_name"] = f"COCO_val2014_{image['id']:012d}.jpg"
        image["coco_url"] = image["coco_url"].replace("train2017", "val2017")
        image["not_exhaustive_category_ids"] = [20]
    return content


def coco(content):
    """No letters, a crowd in run lengths, category ids with gaps (10, 20, 30, as always here)."""
    for category in content["categories"]:
        del category["synset"], category["frequency"]
    for image in content["images"]:
        del image["coco_url"], image["neg_category_ids"], image["not_exhaustive_category_ids"]
        image["file_name"] = f"{image['id']:012d}.jpg"
    for annotation in content["annotations"][::3]:
        width, height = next((i["width"], i["height"]) for i in content["images"] if i["id"] == annotation["image_id"])
        counts = [3 * height, 40, width * height - 3 * height - 40]
        annotation.update(iscrowd=1, segmentation={"size": [height, width], "counts": counts})
    return content


def with_faults(content):
    rng = np.random.default_rng(3)
    for annotation, spoil in zip(content["annotations"], SPOILS, strict=False):
        spoil(annotation, rng)
    content["images"].insert(2, {"id": 900, "width": 5, "height": 5})
    content["images"].append({"id": 901, "width": 0, "height": 5})
    content["images"][1]["neg_category_ids"] = [10, 77]
    return content


def spoil_images(paths):
    """103 cut off, 105 of another size, 106 gone, 108 turned by EXIF (and stated turned), 110 no image."""
    folder = paths.images / "train2017"
    whole = (folder / "000000000103.jpg").read_bytes()
    (folder / "000000000103.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (40, 30)).save(folder / "000000000105.jpg")
    (folder / "000000000106.jpg").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 80)).save(folder / "000000000108.jpg", exif=exif)
    (folder / "000000000110.jpg").write_text("no image")
