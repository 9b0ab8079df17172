"""The reader: three formats, file lookup, classes, letters, run lengths and crowds."""

import json
from pathlib import Path

import numpy as np
import pytest

from eql_jax.data.annotations import load_annotations
from eql_jax.data.image_paths import ImageFinder
from eql_jax.data.polygons import RunLengths, decode_run_lengths
from eql_jax.data.records import frequency_letter
from eql_jax.data.validation import AnnotationError
from tests.data.conftest import make_content, rectangle


def test_lvis_v1(write_dataset):
    content = make_content([(80, 60), (60, 80)])
    content["images"][0]["neg_category_ids"] = [30]
    content["images"][0]["not_exhaustive_category_ids"] = [10]
    content["annotations"][0].update(bbox=[1.5, 2, 10, 20], category_id=20, area=123.0)
    content["categories"].reverse()  # classes follow the ids, not the order of the file
    paths = write_dataset(content)
    annotations = load_annotations(paths.json, paths.images, strict=True)
    assert annotations.report.total == 0
    assert annotations.report.summary() == ""
    assert annotations.class_ids.tolist() == [10, 20, 30]
    assert annotations.class_ids.dtype == np.int64
    assert [c.name for c in annotations.categories] == ["shape1", "shape2", "shape3"]
    assert [c.frequency for c in annotations.categories] == ["c", "f", "r"]
    assert annotations.raw == paths.json
    image = annotations.images[0]
    assert (image.id, image.width, image.height) == (101, 80, 60)
    assert image.path == paths.images / "train2017" / "000000000101.jpg"
    assert image.neg_classes.tolist() == [2]
    assert image.not_exhaustive_classes.tolist() == [0]
    first = image.objects.record(0)
    assert first.box.tolist() == [1.5, 2, 11.5, 22]
    assert (first.id, first.class_index, first.area, first.ignore) == (1, 1, 123.0, False)
    assert first.segmentation[0].shape == (4, 2)
    assert [o.id for o in image.objects.records()] == [1, 2]


def test_lvis_v05_in_a_flat_folder(write_dataset):
    """file_name is the old one of 2014 and leads nowhere; the files lie flat under the name in coco_url."""
    content = make_content([(80, 60)])
    content["images"][0]["file_name"] = "COCO_val2014_000000000101.jpg"
    paths = write_dataset(content, folder=".")
    image = load_annotations(paths.json, paths.images, strict=True).images[0]
    assert image.path == paths.images / "000000000101.jpg"


def test_validation_images_in_the_train_folder(write_dataset):
    content = make_content([(80, 60)])
    paths = write_dataset(content, folder="train2017")
    (paths.images / "val2017").mkdir()
    image = load_annotations(paths.json, paths.images).images[0]
    assert image.path.parent.name == "train2017"


def test_coco(write_dataset):
    """No letters, no counts, no synsets, no negatives; file_name; both forms of run lengths; a crowd."""
    content = make_content([(8, 6), (8, 6)], objects_per_image=0)
    for category in content["categories"]:
        del category["synset"], category["frequency"]
    for image in content["images"]:
        del image["coco_url"], image["neg_category_ids"], image["not_exhaustive_category_ids"]
        image["file_name"] = f"{image['id']:012d}.jpg"
    mask = np.zeros((6, 8), np.uint8)
    mask[1:4, 2:7] = 1
    from pycocotools import mask as mask_api

    compressed = mask_api.encode(np.asfortranarray(mask))["counts"].decode()
    runs = [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 8]  # five columns of three, the first after two columns and one pixel
    common = {"image_id": 101, "category_id": 20, "bbox": [2, 1, 5, 3], "area": 15}
    content["annotations"] = [
        {"id": 1, "iscrowd": 1, "segmentation": {"size": [6, 8], "counts": runs}, **common},
        {"id": 2, "iscrowd": 0, "segmentation": {"size": [6, 8], "counts": compressed}, **common},
        {"id": 3, "iscrowd": 0, "segmentation": rectangle(2, 1, 5, 3), **common},
    ]
    paths = write_dataset(content, folder=".")
    annotations = load_annotations(paths.json, paths.images, strict=True)
    objects = annotations.images[0].objects
    assert objects.ignore.tolist() == [True, False, False]
    for segmentation in objects.segmentations[:2]:
        assert isinstance(segmentation, RunLengths)
        np.testing.assert_array_equal(decode_run_lengths(segmentation), mask)
    shape2 = annotations.categories[1]
    assert (shape2.image_count, shape2.instance_count, shape2.frequency, shape2.synset) == (1, 3, "r", "")
    assert annotations.images[1].objects.size == 0  # kept: evaluation needs images without objects
    assert annotations.images[1].objects.boxes.shape == (0, 4)


@pytest.mark.parametrize(("count", "letter"), [(0, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f")])
def test_frequency_letter(count, letter):
    assert frequency_letter(count) == letter


def test_letters_are_computed_by_images(write_dataset):
    """Eleven images of one class, a twelfth object in the same image: common, eleven images."""
    content = make_content([(20, 16)] * 11, objects_per_image=1, num_categories=2)
    for annotation in content["annotations"]:
        annotation["category_id"] = 20
    content["annotations"].append({**content["annotations"][0], "id": 99})
    for category in content["categories"]:
        del category["frequency"]
    paths = write_dataset(content)
    categories = load_annotations(paths.json, paths.images).categories
    assert [(c.frequency, c.image_count, c.instance_count) for c in categories] == [("r", 0, 0), ("c", 11, 12)]


def test_images_without_annotations(write_dataset):
    """LVIS test sets list images only."""
    content = make_content([(80, 60)])
    del content["annotations"]
    content["annotations"] = []
    paths = write_dataset(content)
    del content["annotations"]
    paths.json.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="annotations"):
        load_annotations(paths.json, paths.images)
    annotations = load_annotations(paths.json, paths.images, require_annotations=False)
    assert annotations.images[0].objects.size == 0


def test_unchecked_files(tmp_path):
    """Without check_files the folder need not exist; the path tried first is kept."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(make_content([(80, 60)])))
    image = load_annotations(path, tmp_path / "nowhere", check_files=False).images[0]
    assert image.path == tmp_path / "nowhere" / "train2017" / "000000000101.jpg"


def test_candidates_of_a_record(tmp_path):
    finder = ImageFinder(tmp_path)
    record = {"id": 5, "coco_url": "http://host/a/b/val2017/x.jpg?size=3", "file_name": "sub/y.png"}
    expected = ["val2017/x.jpg", "x.jpg", "sub/y.png", "y.png", "000000000005.jpg"]
    assert finder.candidates(record) == [Path(name) for name in expected]
    assert finder.find(record) is None
    hostile = {"id": 5, "file_name": "../../secret.jpg"}
    assert finder.candidates(hostile) == [Path("secret.jpg"), Path("000000000005.jpg")]
    assert finder.candidates({"id": 5, "coco_url": "http://host/x.jpg"})[0] == Path("x.jpg")
