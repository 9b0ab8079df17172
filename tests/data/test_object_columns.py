"""The packed path gives what checking every annotation by itself gives, in objects, faults and their order."""

import copy
import json

import numpy as np
import pytest

from eql_jax.data import object_columns
from eql_jax.data.annotations import load_annotations
from eql_jax.data.object_columns import ObjectColumns
from eql_jax.data.records import ImageIndex
from eql_jax.data.validation import AnnotationError
from tests.data.conftest import make_content

SPOILS = [
    lambda a, rng: a.update(bbox=[-5, 2, 40.5, 30]),
    lambda a, rng: a.update(bbox=[500, 2, 4, 3.5]),
    lambda a, rng: a.update(bbox=[1, 1, 0, 3]),
    lambda a, rng: a.update(bbox=["1", "2.5", 3, 4]),
    lambda a, rng: a.update(bbox=[1, 2, float("nan"), 4]),
    lambda a, rng: a.update(bbox=[1, 2, 10**400, 4]),
    lambda a, rng: a.pop("bbox", None),
    lambda a, rng: a.pop("area", None),
    lambda a, rng: a.update(area=10**400),
    lambda a, rng: a.update(area=float("inf")),
    lambda a, rng: a.update(area=True),
    lambda a, rng: a.update(iscrowd=1),
    lambda a, rng: a.update(ignore=1),
    lambda a, rng: a.update(id=int(rng.integers(1, 40))),
    lambda a, rng: a.update(id=None),
    lambda a, rng: a.update(id=True),
    lambda a, rng: a.update(id=2**63),
    lambda a, rng: a.update(id=0),
    lambda a, rng: a.update(image_id=99999),
    lambda a, rng: a.update(image_id=[1]),
    lambda a, rng: a.update(image_id=0),
    lambda a, rng: a.update(category_id=7),
    lambda a, rng: a.update(category_id="10"),
    lambda a, rng: a.update(segmentation=[[1, 1, 9, 1, 9, 9], [1, 2, 3, 4]]),
    lambda a, rng: a.update(segmentation=[[1, 1, 9, 1, 9, 9], [5, 5, 9.123456789, 5, 7, 8, 3, 6]]),
    lambda a, rng: a.update(segmentation=[[1 / 3, 1, 9, 1, 9, 9.125]]),
    lambda a, rng: a.update(segmentation=[[1, 1, 9, 1, 9, float("nan")]]),
    lambda a, rng: a.update(segmentation=[["1", "2", "3", "4", "5", "6"]]),
    lambda a, rng: a.update(segmentation=[]),
    lambda a, rng: a.update(segmentation=None),
    lambda a, rng: a.update(segmentation={"size": [60, 80], "counts": [100, 50, 4650]}),
    lambda a, rng: a.update(segmentation={"size": [60, 80], "counts": "nonsense"}),
    lambda a, rng: a.update(segmentation={"size": [80, 60], "counts": [4800]}),
    lambda a, rng: a.update(segmentation={"size": [1e999, 60], "counts": [4800]}),
]


def spoiled_content(seed):
    rng = np.random.default_rng(seed)
    content = make_content([(80, 60)] * 12, objects_per_image=4)
    rng.shuffle(content["annotations"])
    for annotation in content["annotations"]:
        annotation["segmentation"] = [np.round(rng.uniform(0, 60, 2 * rng.integers(3, 9)), 2).tolist()] * (
            1 + (rng.random() < 0.3)
        )
        for _ in range(rng.integers(0, 3)):
            if rng.random() < 0.4:
                SPOILS[rng.integers(len(SPOILS))](annotation, rng)
    return content


def assert_same_images(images, expected):
    """Equal to the last bit, and of the same types."""
    assert len(images) == len(expected)
    for a, b in zip(images, expected, strict=True):
        assert (a.id, a.path, a.width, a.height) == (b.id, b.path, b.width, b.height)
        arrays = [(a.neg_classes, b.neg_classes), (a.not_exhaustive_classes, b.not_exhaustive_classes)]
        arrays += list(zip(a.objects[:-1], b.objects[:-1], strict=True))
        arrays += list(zip(a.objects.segmentations.packed, b.objects.segmentations.packed, strict=True))
        for mine, theirs in arrays:
            assert np.asarray(mine).dtype == np.asarray(theirs).dtype
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("chunk", [1, 5, 8192])
@pytest.mark.parametrize("seed", range(6))
def test_packed_and_one_by_one(write_dataset, monkeypatch, seed, chunk):
    monkeypatch.setattr(object_columns, "_CHUNK", chunk)
    paths = write_dataset(make_content([(80, 60)] * 12), draw=True)
    paths.json.write_text(json.dumps(spoiled_content(seed)))
    packed = load_annotations(paths.json, paths.images)

    def refuse(self, record):
        raise ValueError

    with monkeypatch.context() as patch:
        patch.setattr(ObjectColumns, "_append_regular", refuse)
        single = load_annotations(paths.json, paths.images)
    assert packed.report.total > 3
    assert packed.report.counts == single.report.counts
    assert packed.report.examples == single.report.examples
    assert packed.categories == single.categories
    assert_same_images(packed.images, single.images)
    for stored, counted in zip(packed.index, ImageIndex.of(packed.images), strict=True):
        assert stored.dtype == counted.dtype
        np.testing.assert_array_equal(stored, counted)
    messages = []
    for patched in (False, True):
        with monkeypatch.context() as patch, pytest.raises(AnnotationError) as error:
            if patched:
                patch.setattr(ObjectColumns, "_append_regular", refuse)
            load_annotations(paths.json, paths.images, strict=True)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_any_order_of_the_lists(write_dataset):
    """LVIS v1 has its annotations before its images and categories."""
    content = spoiled_content(9)
    paths = write_dataset(make_content([(80, 60)] * 12))
    loaded = []
    for order in (
        ["annotations", "images", "categories"],
        ["categories", "annotations", "images"],
        ["images", "categories", "annotations"],
    ):
        paths.json.write_text(json.dumps({key: copy.deepcopy(content[key]) for key in order}))
        loaded.append(load_annotations(paths.json, paths.images))
    for other in loaded[1:]:
        assert other.report.examples == loaded[0].report.examples
        assert_same_images(other.images, loaded[0].images)


def test_records_by_position_and_slice(write_dataset):
    paths = write_dataset(make_content([(80, 60)] * 3))
    images = load_annotations(paths.json, paths.images).images
    assert images[-1].id == 103
    assert [image.id for image in images[1:]] == [102, 103]
    assert [image.id for image in images] == [101, 102, 103]
    with pytest.raises(IndexError):
        images[3]
