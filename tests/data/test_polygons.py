"""Cropped masks: known shapes by hand, run lengths against pycocotools. For detectron2's targets see test_mapper.py."""

import numpy as np
import pytest
from pycocotools import mask as mask_api

from eql_jax.data.crops import crop_masks
from eql_jax.data.polygons import crop_mask, decode_run_lengths, decompress_counts, parse_run_lengths
from eql_jax.data.rasterize import fill_polygons
from eql_jax.data.segmentations import Segmentations
from tests.data.conftest import rectangle


def polygons(*parts):
    return tuple(np.array(part, np.float32).reshape(-1, 2) for part in parts)


def test_rectangle_fills_its_box():
    mask = crop_mask(polygons(rectangle(13.3, 7.7, 40, 9)[0]), np.array([13.3, 7.7, 53.3, 16.7]), mask_size=12)
    assert mask.dtype == np.uint8
    assert mask.shape == (12, 12)
    assert mask.all()


def test_half_of_the_box():
    """The left half of a box, then the upper: axes are not swapped."""
    box = np.array([10, 20, 30, 60], np.float32)
    left = crop_mask(polygons(rectangle(10, 20, 10, 40)[0]), box, mask_size=8)
    np.testing.assert_array_equal(left, np.tile([1, 1, 1, 1, 0, 0, 0, 0], (8, 1)))
    upper = crop_mask(polygons(rectangle(10, 20, 20, 20)[0]), box, mask_size=8)
    np.testing.assert_array_equal(upper, left.T)


def test_triangle_covers_half():
    mask = crop_mask(polygons([0, 0, 64, 0, 0, 64]), np.array([0, 0, 64, 64]), mask_size=64)
    rows, columns = np.mgrid[:64, :64]
    # Cells well inside and well outside; those on the diagonal may be either.
    assert mask[rows + columns < 62].all()
    assert not mask[rows + columns > 64].any()


def test_parts_are_merged_not_added():
    box = np.array([0, 0, 16, 16])
    parts = polygons(rectangle(0, 0, 8, 16)[0], rectangle(4, 0, 8, 16)[0])
    np.testing.assert_array_equal(crop_mask(parts, box, mask_size=4), np.tile([1, 1, 1, 0], (4, 1)))


def test_polygon_outside_the_box():
    """As in some LVIS v0.5 objects, whose box is not that of their polygon: empty, no error."""
    assert not crop_mask(polygons(rectangle(50, 50, 9, 9)[0]), np.array([0, 0, 10, 10]), mask_size=8).any()


def test_tiny_box():
    """Sides below .1 pixel are scaled as if they were .1, as in detectron2: half of the columns here, all rows."""
    mask = crop_mask(polygons(rectangle(5, 5, 0.05, 0.2)[0]), np.array([5, 5, 5.05, 5.2]), mask_size=8)
    np.testing.assert_array_equal(mask, np.tile([1, 1, 1, 1, 0, 0, 0, 0], (8, 1)))


def test_scale_invariance():
    """Object and box scaled together give the same crop; this is why crops are taken in the file's pixels."""
    part = np.array([[20, 10], [60, 25], [45, 70], [12, 40]], np.float64)
    box = np.array([12, 10, 60, 70], np.float64)
    first = crop_mask((part,), box, mask_size=28)
    second = crop_mask((part * (2.5, 1.25),), box * (2.5, 1.25, 2.5, 1.25), mask_size=28)
    np.testing.assert_array_equal(first, second)


def test_crop_of_run_lengths():
    """Against the definition: the pixel under each cell's centre."""
    mask = np.random.default_rng(0).integers(0, 2, (30, 40), dtype=np.uint8)
    encoded = mask_api.encode(np.asfortranarray(mask))
    rle = parse_run_lengths({"size": [30, 40], "counts": encoded["counts"]})
    x1, y1, x2, y2 = box = np.array([3.2, 5.0, 37.9, 30.0])
    cropped = crop_mask(rle, box, mask_size=9)
    for i in range(9):
        for j in range(9):
            x, y = x1 + (j + 0.5) / 9 * (x2 - x1), y1 + (i + 0.5) / 9 * (y2 - y1)
            assert cropped[i, j] == mask[int(y), int(x)]


def test_run_lengths_and_polygons_agree():
    """A circle of radius 20: at most 3 % of the cells differ."""
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    part = np.stack([32 + 20 * np.cos(angle), 30 + 20 * np.sin(angle)], axis=1)
    encoded = mask_api.merge(mask_api.frPyObjects([part.ravel()], 60, 64))
    box = np.array([12, 10, 52, 50])
    from_polygon = crop_mask((part,), box, mask_size=56)
    from_runs = crop_mask(parse_run_lengths(encoded), box, mask_size=56)
    assert np.mean(from_polygon != from_runs) < 0.03
    assert abs(from_polygon.mean() - np.pi / 4) < 0.01


def random_polygon(rng, height, width):
    """Points anywhere, on whole and on tenth places, far outside, or a walk: rounding and clipping of all kinds."""
    points = rng.uniform(-0.3, 1.3, (int(rng.integers(1, 30)), 2)) * (width, height)
    kind = rng.integers(5)
    if kind == 1:
        return np.round(points)
    if kind == 2:
        return np.round(points, 1)
    if kind == 3:
        return points * 20 - 300
    if kind == 4:
        return np.cumsum(rng.normal(0, 3, points.shape), axis=0) + (width / 2, height / 2)
    return points


def by_pycocotools(polygon, height, width):
    """Filled by pycocotools, which wants three points and fills nothing of fewer; the last is repeated."""
    padded = np.concatenate([polygon, np.repeat(polygon[-1:], 2, axis=0)])
    return mask_api.decode(mask_api.frPyObjects([padded.ravel().tolist()], height, width)[0])


def test_filling_equals_pycocotools():
    """1500 polygons on grids of all sizes, every cell; the union of several; mirrored."""
    rng = np.random.default_rng(0)
    for trial in range(500):
        height, width = (112, 112) if trial % 10 == 0 else rng.integers(1, 60, 2).tolist()
        parts = [random_polygon(rng, height, width) for _ in range(3)]
        expected = np.stack([by_pycocotools(part, height, width) for part in parts])
        points, sizes = np.concatenate(parts), [len(part) for part in parts]
        size = dict(height=height, width=width)
        np.testing.assert_array_equal(fill_polygons(points, sizes, np.arange(3), num_grids=3, **size), expected)
        union = fill_polygons(points, sizes, np.array([1, 1, 3]), num_grids=5, mirror=True, **size)
        np.testing.assert_array_equal(union[1], (expected[0] | expected[1])[:, ::-1])
        np.testing.assert_array_equal(union[3], expected[2][:, ::-1])
        assert not union[[0, 2, 4]].any()


def test_filling_nothing():
    none = fill_polygons(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, int), num_grids=2, height=4, width=3)
    np.testing.assert_array_equal(none, np.zeros((2, 4, 3), np.uint8))
    empty = fill_polygons(np.ones((3, 2)), np.array([0, 3]), np.array([0, 1]), num_grids=2, height=4, width=3)
    assert not empty.any()


@pytest.mark.parametrize("mirror", [False, True])
def test_many_masks_at_once(mirror):
    """Several polygons an object, run lengths among them, some of the objects, in any order."""
    rng = np.random.default_rng(1)
    masks = [tuple(np.round(random_polygon(rng, 50, 70), 2) for _ in range(int(rng.integers(1, 4)))) for _ in range(9)]
    bits = np.asfortranarray(rng.integers(0, 2, (50, 70), dtype=np.uint8))
    masks[4] = masks[7] = parse_run_lengths(mask_api.encode(bits))
    boxes = np.concatenate([rng.uniform(-5, 30, (9, 2)), rng.uniform(30, 80, (9, 2))], axis=1)
    indices = np.array([7, 0, 3, 4, 8, 1])
    got = crop_masks(Segmentations.pack(masks), indices, boxes[indices], mask_size=14, mirror=mirror)
    for found, i in zip(got, indices, strict=True):
        expected = crop_mask(masks[i], boxes[i], mask_size=14)
        np.testing.assert_array_equal(found, expected[:, ::-1] if mirror else expected)
    assert crop_masks(Segmentations.pack([]), np.zeros(0, int), np.zeros((0, 4)), mask_size=14).shape == (0, 14, 14)


@pytest.mark.parametrize("seed", range(6))
def test_compressed_run_lengths(seed):
    """Round trip through pycocotools, from noise (short runs) to large areas (long runs, several characters)."""
    rng = np.random.default_rng(seed)
    block = int(rng.integers(1, 80))
    noise = rng.random((300 // block + 1, 260 // block + 1)) < rng.random()
    mask = np.kron(noise, np.ones((block, block)))[:300, :260].astype(np.uint8)
    encoded = mask_api.encode(np.asfortranarray(mask))
    for counts in (encoded["counts"], encoded["counts"].decode()):
        rle = parse_run_lengths({"size": encoded["size"], "counts": counts})
        np.testing.assert_array_equal(decode_run_lengths(rle), mask)


@pytest.mark.parametrize("value", [0, 1])
def test_constant_masks(value):
    mask = np.full((7, 5), value, np.uint8)
    encoded = mask_api.encode(np.asfortranarray(mask))
    np.testing.assert_array_equal(decode_run_lengths(parse_run_lengths(encoded)), mask)


@pytest.mark.parametrize("counts", ["", "\x00", "a", "\u00e9\u00e9", "o" * 40 + "1"])
def test_malformed_strings(counts):
    with pytest.raises(ValueError, match="counts"):
        decompress_counts(counts)


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [4, 4], "counts": [3, 40]},
        {"size": [4, 4], "counts": [-1, 17]},
        {"size": [4, 4], "counts": []},
        {"size": [4, 4], "counts": [1.5, 14.5]},
        {"size": [4, 4], "counts": None},
        {"size": [4, 4]},
        {"size": 4, "counts": [16]},
        {"size": [0, 4], "counts": [0]},
        {"size": [4, 4], "counts": "05"},
    ],
)
def test_malformed_run_lengths(rle):
    """pycocotools reads beyond its memory for some of these."""
    with pytest.raises(ValueError):
        parse_run_lengths(rle)
