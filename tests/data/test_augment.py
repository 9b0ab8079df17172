"""Augmentation: hand-worked views, and known shapes drawn, augmented and found again where boxes and masks say."""

import numpy as np
import pytest

from eql_jax.data.augment import draw_view, read_recipe
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.placement import place_objects, polygon_extents, run_length_extent
from eql_jax.data.polygons import parse_run_lengths
from eql_jax.data.rasterize import fill_polygons
from eql_jax.data.segmentations import Polygons
from eql_jax.data.transforms import Size, random_stream
from eql_jax.data.views import View, Window, jittered_view, resized_view
from tests.data.shapes import box, check_example, corner, disk, rows_of, write_shapes

SHAPES = [
    (200, 150, [(0, disk(50, 60, 40)), (1, box(110, 20, 70, 50)), (2, corner(100, 85, 90, 60))]),
    (150, 200, [(3, corner(0, 0, 80, 90)), (4, disk(100, 130, 45)), (5, box(10, 120, 35, 79))]),  # two on the border
    (160, 160, [(6, box(0, 0, 160, 70)), (8, disk(80, 115, 40))]),
    (220, 140, [(0, box(15, 15, 60, 110)), (7, corner(100, 20, 100, 100))]),
]


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), SHAPES, as_runs={2, 5})


@pytest.fixture
def large(config):
    """Large enough for shapes to have an inside."""
    with config.unlocked():
        config.data.shorter_side = (150, 190)
        config.data.longest_side = 288
        config.data.buckets = ((192, 288), (288, 192))
        config.data.mask_size = 56
        config.data.max_objects = 20
        config.data.crop_size = (192, 160)
    return config


def test_resized_view_by_hand():
    """80 x 100 (height x width) to 40 x 200 is not asked for by any config; the arithmetic is that of each axis."""
    view = View(Size(80, 100), Size(40, 200), False, 0, 0, Size(64, 256))
    boxes = np.array([[10, 20, 30, 50], [0, 0, 100, 80]])
    np.testing.assert_array_equal(view.boxes(boxes), [[20, 10, 60, 25], [0, 0, 200, 40]])
    mirrored = view._replace(flip=True)
    np.testing.assert_array_equal(mirrored.boxes(boxes), [[140, 10, 180, 25], [0, 0, 200, 40]])
    np.testing.assert_array_equal(mirrored.points(np.array([[10, 20], [30, 50]])), [[180, 10], [140, 25]])
    assert mirrored.window == Window(0, 0, 40, 200)
    assert not mirrored.cuts
    assert view.boxes(np.zeros((0, 4))).shape == (0, 4)


def test_jittered_view_by_hand():
    """100 x 200 at 1.5 times 64 x 64: the factor is min(96 / 100, 96 / 200) = .48; 32 columns are too much."""
    view = jittered_view(Size(100, 200), canvas=Size(64, 64), scale=1.5, flip=False, down=0.9, right=0.5)
    assert view == View(Size(100, 200), Size(48, 96), False, 0, 16, Size(64, 64))
    assert view.window == Window(0, 0, 48, 64)
    assert view.cuts
    boxes = np.array([[50.0, 20, 150, 80], [10, 20, 150, 80], [0, 0, 20, 20]])
    whole = view.boxes(boxes)
    np.testing.assert_allclose(whole, [[8, 9.6, 56, 38.4], [-11.2, 9.6, 56, 38.4], [-16, 0, -6.4, 9.6]])
    np.testing.assert_allclose(view.clip(whole), [[8, 9.6, 56, 38.4], [0, 9.6, 56, 38.4], [0, 0, 0, 9.6]])
    mirrored = view._replace(flip=True)  # 96 - 72 - 16 = 8, 96 - 4.8 - 16 = 75.2
    np.testing.assert_allclose(mirrored.boxes(boxes)[1], [8, 9.6, 75.2, 38.4])
    assert view.source_box(view.window) == pytest.approx((16 / 0.48, 0, 80 / 0.48, 100))
    assert mirrored.source_box(view.window) == pytest.approx((16 / 0.48, 0, 80 / 0.48, 100))
    for one in (view, mirrored):
        np.testing.assert_allclose(one.file_boxes(one.boxes(boxes)), boxes)
    small = jittered_view(Size(100, 200), canvas=Size(64, 64), scale=0.1, flip=True, down=0.9, right=0.5)
    assert small == View(Size(100, 200), Size(3, 6), True, 0, 0, Size(64, 64))
    assert not small.cuts


def test_draws(config):
    """Fixed by the stream, all choices taken, sides and flips independent of each other."""
    recipe = read_recipe(config.data)._replace(shorter_sides=(48, 64, 80))
    source, canvas = Size(90, 90), Size(96, 96)
    draw = lambda step, r=recipe: draw_view(random_stream(1, step, 0, 5), r, source, canvas)  # noqa: E731
    views = [draw(step) for step in range(900)]
    assert views == [draw(step) for step in range(900)]
    for side in (48, 64, 80):
        for flip in (False, True):
            count = sum(view.scaled == (side, side) and view.flip == flip for view in views)
            assert 110 < count < 190  # 150 expected, standard deviation 11
    assert draw_view(random_stream(-1, 2**40, 1, -(2**62)), recipe, source, canvas)  # any integers
    plain = recipe._replace(shorter_sides=(48,), flip=False)
    assert {draw(step, plain) for step in range(50)} == {View(source, Size(48, 48), False, 0, 0, canvas)}
    jitter = [draw(step, recipe._replace(scale_jitter=(0.1, 2.0))) for step in range(900)]
    sides = np.array([view.scaled.height for view in jitter]) / 96
    assert abs(sides.mean() - 1.05) < 0.06  # standard deviation of the mean .018
    assert sides.min() < 0.12 and sides.max() > 1.98
    large = [view for view in jitter if view.scaled.height > 150]
    assert abs(np.corrcoef([v.top for v in large], [v.left for v in large])[0, 1]) < 0.25
    assert {min(v.top for v in large), min(v.left for v in large)} <= {0, 1, 2}


@pytest.mark.parametrize("fast", [False, True])
def test_shapes_in_multi_scale_training(shapes, large, fast):
    large.data.fast_pixels = fast
    checked = [check_example(row) for batch in take(make_train_iterator(shapes, large), 6) for row in rows_of(batch)]
    assert min(checked) >= 2


@pytest.mark.parametrize("fast", [False, True])
def test_shapes_in_large_scale_jitter(shapes, large, fast):
    """Also cut by the canvas; every batch has its size; the classes of objects cut off are verified all the same."""
    large.data.scale_jitter = (0.3, 2.5)
    large.data.fast_pixels = fast
    checked, objects, cut = 0, 0, 0
    records = {record.id: record for record in shapes.images}
    for batch in take(make_train_iterator(shapes, large), 10):
        assert batch["image"].shape == (4, 192, 160, 3)
        for row in rows_of(batch):
            checked += check_example(row)
            record = records[int(row["image_id"])]
            count = int((row["gt_classes"] >= 0).sum())
            objects += count
            cut += record.objects.size - count
            assert set(np.flatnonzero(row["verified_classes"])) == set(record.objects.classes.tolist())
    assert checked > 0.7 * objects
    assert cut > 0


def test_colours_change_and_geometry_does_not(shapes, large):
    large.data.scale_jitter = (0.5, 1.5)
    plain = take(make_train_iterator(shapes, large), 3)
    large.data.photometric.update(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    changed = take(make_train_iterator(shapes, large), 3)
    for before, after in zip(plain, changed, strict=True):
        for key in before:
            if key != "image":
                np.testing.assert_array_equal(before[key], after[key])
        for row, (height, width) in enumerate(before["image_size"]):
            assert (before["image"][row] != after["image"][row])[:height, :width].mean() > 0.5
            assert not after["image"][row, height:].any()
            assert not after["image"][row, :, width:].any()


def test_objects_cut_off(tmp_path):
    """On a canvas that shows columns 50 to 100 of 200: outside, a sliver under a pixel, half an L, whole, touching."""
    objects = [
        (0, box(0, 0, 40, 40)),
        (1, box(10, 50, 40.5, 40)),
        (2, corner(20, 20, 100, 40)),  # of its upper half, only columns 20 to 70 are there
        (3, box(60, 60, 20, 20)),
        (4, box(100, 0, 30, 30)),
        (5, disk(100, 80, 18)),
    ]
    for as_runs in (set(), set(range(1, 7))):
        folder = tmp_path / str(len(as_runs))
        record = write_shapes(folder, [(200, 100, objects)], as_runs=as_runs).images[0]
        view = View(Size(100, 200), Size(100, 200), False, 0, 50, Size(100, 50))
        placed = place_objects(record.objects, view)
        assert placed.indices.tolist() == [2, 3, 5]
        assert placed.altered.tolist() == [True, False, True]
        np.testing.assert_allclose(placed.boxes, [[0, 20, 50, 60], [10, 60, 30, 80], [32, 62, 50, 98]], atol=0.6)
        # Columns 80 to 130: of the L only the lower half is left, and its box is as low.
        placed = place_objects(record.objects, view._replace(left=80))
        assert placed.indices.tolist() == [2, 4, 5]
        np.testing.assert_allclose(placed.boxes, [[0, 40, 40, 60], [20, 0, 50, 30], [2, 62, 38, 98]], atol=0.6)
        none = place_objects(record.objects, view._replace(top=99, canvas=Size(1, 50)))
        assert none.indices.size == 0
        assert none.boxes.shape == (0, 4)


def test_extents_of_cut_polygons():
    """Against the polygon filled on a grid twenty times as fine."""
    rng = np.random.default_rng(3)
    rect = np.array([10.0, 20.0, 40.0, 35.0])
    fine, empty = 20, 0
    for trial in range(150):
        parts = [rng.uniform(-10, 70, (int(rng.integers(3, 7)), 2)) for _ in range(2)]
        sizes = np.array([len(part) for part in parts])
        points = np.concatenate(parts)
        masks = np.array([0, 0]) if trial % 2 else np.array([0, 1])
        got = polygon_extents(Polygons(points, sizes, masks), rect, count=2)
        width, height = ((rect[2:] - rect[:2]) * fine).astype(int).tolist()
        filled = fill_polygons((points - rect[:2]) * fine, sizes, masks, num_grids=2, height=height, width=width)
        for found, grid in zip(got, filled, strict=True):
            if not grid.any():
                empty += 1
                assert found[2] - found[0] < 0.2 or found[3] - found[1] < 0.2  # too thin for the grid, or nothing
                continue
            rows, columns = np.flatnonzero(grid.any(axis=1)), np.flatnonzero(grid.any(axis=0))
            expected = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / fine + np.tile(rect[:2], 2)
            # A thin spike may slip between the cells.
            assert (found[:2] <= expected[:2] + 0.1).all() and (found[2:] >= expected[2:] - 0.1).all()
            assert np.abs(found - expected).max() < 1.5
    assert empty > 20


def test_extents_of_cut_run_lengths():
    from pycocotools import mask as mask_api

    rng = np.random.default_rng(4)
    for density in (0.02, 0.5, 1.0):
        bits = (rng.random((30, 40)) < density).astype(np.uint8)
        rle = parse_run_lengths(mask_api.encode(np.asfortranarray(bits)))
        for rect in ([0, 0, 40, 30], [5.2, 3.7, 20.1, 22.9], [39.4, 0, 40, 30], [7, 7, 9, 9], [3.6, 0, 4.4, 30]):
            centres_x, centres_y = np.arange(40) + 0.5, np.arange(30) + 0.5
            inside = np.outer(
                (centres_y >= rect[1]) & (centres_y < rect[3]), (centres_x >= rect[0]) & (centres_x < rect[2])
            )
            left = bits * inside
            found = run_length_extent(rle, np.array(rect))
            if not left.any():
                assert found is None
                continue
            rows, columns = np.flatnonzero(left.any(axis=1)), np.flatnonzero(left.any(axis=0))
            np.testing.assert_array_equal(found, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_images_without_objects_and_with_many(tmp_path, large):
    """An image whose objects are all cut off, one that has none, and one of 400 of which the largest stay."""
    many = [(i % 9, box(1 + 8 * (i % 25), 1 + 9 * (i // 25), 6 if i % 4 else 7, 7)) for i in range(400)]
    annotations = write_shapes(tmp_path, [(210, 160, []), (210, 160, [(0, box(0, 0, 5, 5))]), (210, 160, many)])
    large.train.batch_size = 3
    large.data.drop_empty_images = False
    large.data.scale_jitter = (3.0, 3.0)
    counts = {1: [], 2: [], 3: []}
    for batch in take(make_train_iterator(annotations, large), 8):
        for row in rows_of(batch):
            counts[int(row["image_id"])].append(int((row["gt_classes"] >= 0).sum()))
            assert not row["gt_boxes"][row["gt_classes"] < 0].any()
            assert not row["gt_masks"][row["gt_classes"] < 0].any()
            sides = row["gt_boxes"][row["gt_classes"] >= 0, 2:] - row["gt_boxes"][row["gt_classes"] >= 0, :2]
            assert (sides >= 1).all()
    assert set(counts[1]) == {0}
    assert 0 in counts[2]
    assert set(counts[3]) == {20}


@pytest.mark.parametrize("source", ["batch", "bank"])
def test_everything_at_once_is_the_same_on_any_hosts(shapes, large, source):
    """Jitter, colours and copy-paste: again, from a later step, on two and four hosts."""
    large.data.scale_jitter = (0.3, 2.0)
    large.data.photometric.update(brightness=0.2, hue=0.1)
    large.data.copy_paste.update(probability=0.8, source=source, max_objects=3, scale=(0.5, 1.5))
    whole = take(make_train_iterator(shapes, large), 3)
    resumed = take(make_train_iterator(shapes, large, start_step=2), 1)
    for key in whole[2]:
        np.testing.assert_array_equal(whole[2][key], resumed[0][key], err_msg=key)
    for num_hosts in (2, 4):
        parts = [take(make_train_iterator(shapes, large, host=h, num_hosts=num_hosts), 3) for h in range(num_hosts)]
        for step, batch in enumerate(whole):
            for key in batch:
                np.testing.assert_array_equal(batch[key], np.concatenate([part[step][key] for part in parts]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_jitter": (2.0, 1.0)}, "data.scale_jitter is .2.0, 1.0."),
        ({"scale_jitter": (1.0,)}, "expected .smallest, largest."),
        ({"shorter_side": ()}, "data.shorter_side"),
    ],
)
def test_bad_values(config, change, message):
    config.data.update(change)
    with pytest.raises(ValueError, match=message):
        read_recipe(config.data)


def test_resized_view_is_that_of_the_sizes():
    view = resized_view(Size(480, 640), canvas=Size(800, 1344), shorter_side=800, longest_side=1333, flip=True)
    assert view == View(Size(480, 640), Size(800, 1067), True, 0, 0, Size(800, 1344))
    shrunk = resized_view(Size(640, 480), canvas=Size(800, 1344), shorter_side=800, longest_side=1333, flip=False)
    assert shrunk.scaled == (800, 599)  # 800 x 1067 before, which loses a pixel
