"""The data pipeline against detectron2's DatasetMapper on four images of LVIS v0.5: sizes, boxes, classes, masks.

The pixels of the photographs are not here: drawn pictures of their sizes stand in for them. test_resize.py compares
pixels, and check_golden.py does it on the photographs.
"""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eql_jax.data.annotations import load_annotations
from eql_jax.data.examples import eval_example
from eql_jax.data.json_file import read_annotation_json
from eql_jax.data.transforms import Size
from tests.data import mapper
from tests.data.mapper import SETTINGS

TESTDATA = Path(__file__).parents[1] / "testdata"
IMAGE_IDS = (57672, 73946, 378515, 527220)


@pytest.fixture(scope="module")
def golden():
    with np.load(TESTDATA / "data_mapper.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def excerpt(tmp_path_factory):
    """The annotations, with a drawn picture for each image."""
    folder = tmp_path_factory.mktemp("lvis")
    path = folder / "annotations.json"
    path.write_bytes(gzip.decompress((TESTDATA / "data_lvis_v05_excerpt.json.gz").read_bytes()))
    images = folder / "val2017"
    images.mkdir()
    for image in read_annotation_json(path)["images"]:
        ramp = np.linspace(0, 255, image["width"]).astype(np.uint8)
        picture = Image.fromarray(np.tile(ramp, (image["height"], 1)))
        picture.save(images / f"{image['id']:012d}.jpg")
    return load_annotations(path, folder, strict=True)


@pytest.fixture(scope="module")
def records(excerpt):
    return {record.id: record for record in excerpt.images}


@pytest.fixture(scope="module", params=SETTINGS)
def case(request, records, excerpt, golden):
    """A setting's list of (record, setting, example, what detectron2 made of the image)."""
    cases = []
    for image_id in IMAGE_IDS:
        prefix = f"{image_id}/{request.param}/"
        expected = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
        example = mapper.example_of(records[image_id], SETTINGS[request.param], num_classes=excerpt.num_classes)
        cases.append((records[image_id], SETTINGS[request.param], example, expected))
    return cases


def test_excerpt_is_read_whole(excerpt, records, golden):
    """1230 classes in order of their ids, 131 objects in the order of the file, none left out."""
    assert excerpt.num_classes == 1230
    assert sorted(records) == sorted(IMAGE_IDS)
    for image_id, record in records.items():
        np.testing.assert_array_equal(record.objects.ids, golden[f"{image_id}/annotation_ids"])
    assert sum(record.objects.size for record in records.values()) == 131
    assert max(len(s) for s in records[57672].objects.segmentations) > 1


def test_sizes_boxes_and_classes(case):
    """Largest difference of a box found: 1.3e-4 pixels, two units of float32 at 1300."""
    for record, setting, example, expected in case:
        np.testing.assert_array_equal(example["image_size"], expected["size_hw"])
        np.testing.assert_array_equal(example["gt_classes"], expected["classes"])
        np.testing.assert_allclose(example["gt_boxes"], expected["boxes"], rtol=0, atol=2e-4)
        assert example["original_size"].tolist() == [record.height, record.width]
        seen = eval_example(
            record,
            bucket=Size(setting.longest_side, setting.longest_side),
            shorter_side=setting.shorter_side,
            longest_side=setting.longest_side,
        )
        np.testing.assert_array_equal(seen["image_size"], expected["size_hw"])


def test_polygons_and_full_masks(case):
    """The polygons as read, scaled to the resized image, and rasterised there.

    They are kept as float32, which moves a corner over the middle of a pixel now and then: 10 pixels of all five masks
    of image 57672 at 800 pixels and an area by 2 pixels; at 256 pixels none. Rounded to the file's two decimals first,
    they give every pixel.
    """
    for record, setting, example, expected in case:
        found = mapper.geometry(record, setting, example)
        np.testing.assert_allclose(found["polygon_area"], expected["polygon_area"], rtol=1e-5)
        corners = expected["polygon_bounding_boxes"]
        np.testing.assert_allclose(found["polygon_bounding_boxes"], corners, rtol=0, atol=2e-4)
        np.testing.assert_array_equal(found["mask_bounding_boxes"], expected["mask_bounding_boxes"])
        few = 2 if setting.shorter_side == 800 else 0
        np.testing.assert_allclose(found["mask_pixel_area"], expected["mask_pixel_area"], rtol=0, atol=few)
        differing = np.unpackbits(found["masks_first5_packed"] ^ expected["masks_first5_packed"]).sum()
        assert differing <= 5 * few
        # The area that the file states is that of the polygons: at most .14 % away.
        height, width = example["image_size"]
        stated = record.objects.areas * (height / record.height) * (width / record.width)
        np.testing.assert_allclose(stated, expected["polygon_area"], rtol=2e-3)


def test_mask_targets(records, golden):
    """Targets of 51 jittered boxes, 28 x 28, some objects in several parts: every cell equal."""
    count = 0
    for image_id in IMAGE_IDS:
        target = {key: golden[f"{image_id}/mask_target/{key}"] for key in ("boxes", "instance_index")}
        size = golden[f"{image_id}/s800_plain/size_hw"]
        found = mapper.targets(records[image_id], size, target["boxes"], target["instance_index"])
        packed = golden[f"{image_id}/mask_target/from_polygons_28"]
        np.testing.assert_array_equal(found, np.unpackbits(packed, axis=-1, count=28))
        count += len(found)
    assert count == 51


def test_cropped_masks_lie_where_the_full_ones_do(case):
    """gt_masks (112 x 112 in their box) put back into the resized image, against the full masks: also mirrored."""
    for _, _, example, expected in case:
        size = Size(*example["image_size"].tolist())
        full = np.unpackbits(expected["masks_first5_packed"], axis=-1, count=size.width).astype(bool)
        for i, mask in enumerate(full):
            back = mapper.pasted(example["gt_masks"][i], example["gt_boxes"][i], size)
            iou = (back & mask).sum() / (back | mask).sum()
            # pycocotools fills from outlines, so a contour differs by up to a pixel: much in a small object.
            assert iou >= (0.95 if mask.sum() >= 400 else 0.90), (i, iou, mask.sum())
            assert np.abs(mapper.mask_box(back) - mapper.mask_box(mask)).max() <= 4
