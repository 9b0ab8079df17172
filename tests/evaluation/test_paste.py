"""Pasted masks equal detectron2's to the pixel, and their run lengths equal pycocotools'."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from eql_jax.evaluation import paste

GOLDEN = Path(__file__).parent.parent / "testdata" / "evaluation_paste.npz"


def encode(mask):
    return mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


@pytest.mark.parametrize("image", ["astronaut", "oddsize"])
def test_equals_detectron2(image):
    with np.load(GOLDEN) as file:
        golden = {key.split("/")[1]: file[key] for key in file.files if key.startswith(image)}
    size = tuple(golden["out_size"].tolist())
    scaled = paste.scale_boxes(golden["det_boxes"], from_size=tuple(golden["image_size"].tolist()), to_size=size)
    np.testing.assert_array_equal(scaled.index, np.arange(len(golden["det_boxes"])))
    np.testing.assert_array_equal(scaled.boxes, golden["out_boxes"])

    probabilities = 1 / (1 + np.exp(-golden["mask_logits"]))
    pasted = paste.paste_masks(probabilities, scaled.boxes, size=size)
    expected = np.unpackbits(golden["out_masks_packed"], axis=-1)[..., : size[1]].astype(bool)
    # Equal on the machine that this was written on; one pixel in 100,000 leaves room for other matrix products.
    assert np.count_nonzero(pasted != expected) <= 1e-5 * expected.size
    rles = paste.masks_to_rles(probabilities, scaled.boxes, size=size)
    assert [rle["counts"] for rle in rles] == [encode(mask) for mask in pasted]
    assert all(rle["size"] == list(size) for rle in rles)


def test_scales_each_axis_clips_and_drops():
    boxes = np.array(
        [
            [10, 10, 20, 20],
            [-5, -5, 500, 500],  # leaves the image on every side
            [60, 10, 70, 20],  # right of the image
            [5, 5, 5, 9],  # no width
            [0, 39.999, 50, 40],
            [np.nan, 1, 2, 3],
        ],
        np.float32,
    )
    scaled = paste.scale_boxes(boxes, from_size=(40, 50), to_size=(80, 75))
    assert scaled.index.tolist() == [0, 1, 4]
    np.testing.assert_allclose(scaled.boxes, [[15, 20, 30, 40], [0, 0, 75, 80], [0, 79.998, 75, 80]], rtol=1e-6)
    assert scaled.boxes.dtype == np.float32
    assert paste.scale_boxes(np.zeros((0, 4)), from_size=(4, 5), to_size=(8, 7)).boxes.shape == (0, 4)


def test_full_mask_fills_the_pixels_whose_centre_is_in_the_box():
    mask = np.ones((1, 28, 28), np.float32)
    pasted = paste.paste_masks(mask, np.array([[2.4, 1.6, 6.4, 3.6]], np.float32), size=(6, 8))[0]
    expected = np.zeros((6, 8), bool)
    expected[2:4, 2:6] = True  # centres 2.5 .. 5.5 lie in 2.4 .. 6.4, and 2.5, 3.5 in 1.6 .. 3.6
    np.testing.assert_array_equal(pasted, expected)


def test_bilinear_by_hand():
    # Two columns, 0 and 1, over a box 4 wide: centres at .5, 1.5, 2.5, 3.5 sample at -.25, .25, .75, 1.25.
    # Values .0, .25, .75, and .75 (a quarter of the outside's zero).
    mask = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    box = np.array([0, 0, 4, 4], np.float32)
    crop = paste.paste_crop(mask, box, size=(4, 4), threshold=0.25)
    # Row 1 and 2 see the full column, rows 0 and 3 three quarters of it.
    np.testing.assert_array_equal(crop.mask[1], [False, True, True, True])
    np.testing.assert_array_equal(crop.mask[0], [False, False, True, True])
    crop = paste.paste_crop(mask, box, size=(4, 4), threshold=0.5625)
    np.testing.assert_array_equal(crop.mask[0], [False, False, True, True])  # .75 * .75 is .5625 exactly: at least
    crop = paste.paste_crop(mask, box, size=(4, 4), threshold=0.5626)
    assert not crop.mask[0].any()


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_equal_pycocotools(seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        size = tuple(rng.integers(1, 12, 2).tolist())
        canvas = np.zeros(size, bool)
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        height, width = rng.integers(1, size[0] - top + 1), rng.integers(1, size[1] - left + 1)
        # Dense and sparse ones, so that runs join over the ends of full columns.
        patch = rng.random((height, width)) < rng.choice([0, 0.1, 0.5, 0.9, 1])
        canvas[top : top + height, left : left + width] = patch
        rle = paste.crop_to_rle(paste.Crop(patch, int(top), int(left)), size=size)
        assert rle == {"size": list(size), "counts": encode(canvas)}
        np.testing.assert_array_equal(mask_utils.decode(rle), canvas)


def test_no_detections():
    assert paste.masks_to_rles(np.zeros((0, 28, 28)), np.zeros((0, 4)), size=(5, 6)) == []
    assert paste.paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), size=(5, 6)).shape == (0, 5, 6)
