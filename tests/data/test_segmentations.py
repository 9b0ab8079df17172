"""Packed masks give back what went in, to the last bit."""

import numpy as np
import pytest

from eql_jax.data.polygons import RunLengths
from eql_jax.data.records import ImageIndex, ImageRecord, ObjectRecord, pack_objects
from eql_jax.data.segmentations import Segmentations


def polygons(rng, *sizes, places=2):
    return tuple(rng.uniform(-3, 700, (points, 2)).round(places) for points in sizes)


@pytest.mark.parametrize(("places", "kept_as"), [(2, np.int32), (0, np.int32), (3, np.float64), (12, np.float64)])
def test_polygons_come_back_exactly(places, kept_as):
    rng = np.random.default_rng(0)
    given = [polygons(rng, 3, places=places), polygons(rng, 40, 3, 7, places=places), polygons(rng, 5, places=places)]
    packed = Segmentations.pack(given)
    assert len(packed) == 3 and packed.packed.coordinates.dtype == kept_as
    for back, there in zip(packed, given, strict=True):
        assert isinstance(back, tuple) and len(back) == len(there)
        for a, b in zip(back, there, strict=True):
            assert a.dtype == np.float64
            np.testing.assert_array_equal(a, b)


def test_every_hundredth_that_an_image_can_have():
    """k / 100 is the double that a JSON parser makes of the decimal, for all of them."""
    hundredths = np.arange(0, 300_000)
    parsed = np.array([float(f"{k // 100}.{k % 100:02d}") for k in hundredths])
    np.testing.assert_array_equal(hundredths.astype(np.int32) / 100.0, parsed)


def test_large_coordinates_are_kept():
    huge = (np.array([[3e7, 0], [3e7 + 1, 5], [0, 1]]),)
    np.testing.assert_array_equal(Segmentations.pack([huge])[0][0], huge[0])


def test_run_lengths_between_polygons():
    rng = np.random.default_rng(1)
    rle = RunLengths(4, 5, np.array([3, 10, 7]))
    other = RunLengths(4, 5, np.array([0, 20]))
    square = polygons(rng, 4)
    packed = Segmentations.pack([rle, square, other])
    for back, there in ((packed[0], rle), (packed[-1], other)):
        assert (back.height, back.width) == (4, 5)
        np.testing.assert_array_equal(back.counts, there.counts)
    np.testing.assert_array_equal(packed[1][0], square[0])
    assert len(packed[:2]) == 2
    with pytest.raises(IndexError):
        packed[3]
    with pytest.raises(ValueError, match="one size"):
        Segmentations.pack([rle, RunLengths(5, 4, np.array([20]))])


@pytest.mark.parametrize("places", [2, 12])
def test_some_of_the_masks(places):
    """Polygons, several of one object, and run lengths, as int32 and as float64."""
    rng = np.random.default_rng(2)
    given = [
        polygons(rng, 3, 5, places=places),
        RunLengths(4, 5, np.array([3, 10, 7])),
        polygons(rng, 9, places=places),
        RunLengths(4, 5, np.array([0, 20])),
        polygons(rng, 4, 3, 3, places=places),
    ]
    packed = Segmentations.pack(given)
    for chosen in ([], [1], [0, 3], [2, 3, 4], [0, 1, 2, 3, 4]):
        some, expected = packed.select(np.array(chosen, int)).packed, Segmentations.pack([given[i] for i in chosen])
        assert len(packed.select(np.array(chosen, int))) == len(chosen)
        for name in ("coordinates", "points", "polygons", "runs", "num_runs"):
            found = getattr(some, name)
            assert chosen == [] or name == "coordinates" or found.dtype == getattr(expected.packed, name).dtype
            scale = 100.0 if found.dtype == np.int32 and name == "coordinates" else 1
            other = getattr(expected.packed, name)
            other = other / 100.0 if other.dtype == np.int32 and name == "coordinates" else other
            np.testing.assert_array_equal(found / scale, other)


def test_none():
    assert len(Segmentations.pack([])) == 0


def test_index_of_records():
    def record(image_id, classes, ignore):
        none = np.zeros(0, np.int32)
        triangle = (np.array([[0.0, 0], [1, 0], [0, 1]]),)
        things = [
            ObjectRecord(i, np.array([0, 0, 1, 1], np.float32), c, g, 1.0, triangle)
            for i, (c, g) in enumerate(zip(classes, ignore, strict=True))
        ]
        return ImageRecord(image_id, "x.jpg", 30, 20 + image_id, none, none, pack_objects(things))

    index = ImageIndex.of([record(1, [2, 2, 0], [0, 1, 0]), record(2, [], []), record(3, [1], [1])])
    assert index.object_counts().tolist() == [3, 0, 1] and index.usable_counts().tolist() == [2, 0, 0]
    assert index.heights.tolist() == [21, 22, 23] and index.widths.tolist() == [30] * 3
    some = index.select(np.array([2, 0, 1, 0]))
    assert some.ids.tolist() == [3, 1, 2, 1] and some.classes.tolist() == [1, 2, 2, 0, 2, 2, 0]
    assert some.classes_of(3).tolist() == [2, 2, 0] and some.ignore_of(3).tolist() == [False, True, False]
    usable = index.select(np.array([0, 2, 1]), usable_only=True)
    assert usable.object_counts().tolist() == [2, 0, 0] and usable.classes.tolist() == [2, 0]
    assert ImageIndex.of([]).offsets.tolist() == [0]
