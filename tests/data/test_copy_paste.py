"""Copy-paste: order of occlusion by hand, known shapes found again after it, what is drawn and how often."""

import numpy as np
import pytest

from eql_jax.data.augment import CopyPaste
from eql_jax.data.copy_paste import Paste, fill_on_canvas, paste_objects
from eql_jax.data.examples import ExampleShape, train_example
from eql_jax.data.images import ImageError
from eql_jax.data.paste_draws import ObjectBank, draw_pasted, draw_position
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.placement import place_objects
from eql_jax.data.records import ObjectRecord, pack_objects
from eql_jax.data.transforms import Size, random_stream
from eql_jax.data.views import View
from tests.data.shapes import COLOURS, box, check_example, coloured, corner, disk, rows_of, write_shapes

WIDTH, HEIGHT = 120, 90
OPTIONS = CopyPaste(probability=1.0, source="bank", max_objects=4, scale=(1.0, 1.0), class_power=0.0)


def still(left=0, top=0, *, flip=False):
    """An image of the size of the canvas, moved by whole pixels."""
    return View(Size(HEIGHT, WIDTH), Size(HEIGHT, WIDTH), flip, -top, -left, Size(HEIGHT, WIDTH))


def paste(annotations, image, objects, view=None):
    record = annotations.images[image]
    return Paste(image, record, place_objects(record.objects, view or still(), np.array(objects, int)))


def example_of(annotations, pastes, **kwargs):
    shape = ExampleShape(max_objects=12, mask_size=40, num_classes=len(COLOURS))
    return train_example(annotations.images[0], view=still(), shape=shape, pastes=pastes, **kwargs)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Image 0: red, green, blue side by side. Images 1 to 3: shapes to paste."""
    return write_shapes(
        tmp_path_factory.mktemp("squares"),
        [
            (WIDTH, HEIGHT, [(0, box(0, 10, 40, 60)), (1, box(40, 10, 40, 60)), (2, box(80, 10, 40, 60))]),
            (WIDTH, HEIGHT, [(3, box(20, 30, 40, 20)), (8, box(60, 60, 30, 20))]),
            (WIDTH, HEIGHT, [(4, box(30, 20, 20, 40)), (5, disk(90, 45, 30))]),
            (WIDTH, HEIGHT, [(6, box(70, 0, 50, 80))]),
            (WIDTH, HEIGHT, [(7, corner(10, 10, 60, 60)), (3, box(80, 10, 30, 30))]),
        ],
        as_runs={5},
        crowds={10},
        suffix="png",
    )


@pytest.mark.parametrize("fast", [False, True])
def test_the_later_covers_the_earlier(squares, fast):
    """Yellow (3) over red and green; magenta (4) over all three. By hand."""
    example = example_of(squares, [paste(squares, 1, [0]), paste(squares, 2, [0])], fast=fast)
    assert example["gt_classes"].tolist() == [0, 1, 2, 3, 4, *[-1] * 7]
    own = [[0, 10, 40, 70], [40, 10, 80, 70], [80, 10, 120, 70]]
    np.testing.assert_array_equal(example["gt_boxes"][:5], [*own, [20, 30, 60, 50], [30, 20, 50, 60]])
    assert check_example(example, min_area=300) == 5
    # Of yellow, columns 20-30 and 50-60 are left: a quarter of the box at each end.
    np.testing.assert_array_equal(example["gt_masks"][3], np.tile([1] * 10 + [0] * 20 + [1] * 10, (40, 1)))
    # Green: columns 40-50 lack rows 20-60, columns 50-60 rows 30-50.
    green = np.ones((60, 40), np.uint8)
    green[10:50, :10] = 0
    green[20:40, 10:20] = 0
    cells = np.floor((np.arange(40) + 0.5) / 40 * 60).astype(int)
    np.testing.assert_array_equal(example["gt_masks"][1], green[cells])
    assert set(np.flatnonzero(example["verified_classes"])) == {0, 1, 2, 3, 4}
    # The other way round, yellow cuts magenta in two.
    example = example_of(squares, [paste(squares, 2, [0]), paste(squares, 1, [0])], fast=fast)
    np.testing.assert_array_equal(example["gt_boxes"][3:5], [[30, 20, 50, 60], [20, 30, 60, 50]])
    np.testing.assert_array_equal(example["gt_masks"][3][:, 0], [1] * 10 + [0] * 20 + [1] * 10)
    assert example["gt_masks"][4].all()


def test_boxes_shrink_and_objects_vanish(squares):
    """White (6) covers all of blue and ten columns of green; moved, it leaves blue one column, then five."""
    example = example_of(squares, [paste(squares, 3, [0])])
    assert example["gt_classes"].tolist() == [0, 1, 6, *[-1] * 9]
    np.testing.assert_array_equal(example["gt_boxes"][1], [40, 10, 70, 70])
    assert example["verified_classes"][2]  # nothing of it is left, but all that was there is known
    example = example_of(squares, [paste(squares, 3, [0], still(left=-1))])  # a fortieth of blue
    assert example["gt_classes"].tolist() == [0, 1, 6, *[-1] * 9]
    example = example_of(squares, [paste(squares, 3, [0], still(left=-5))])
    assert example["gt_classes"].tolist() == [0, 1, 2, 6, *[-1] * 8]
    np.testing.assert_array_equal(example["gt_boxes"][2], [115, 10, 120, 70])
    assert example["gt_masks"][2].all()
    # Pasted ones vanish, too, under later ones.
    example = example_of(squares, [paste(squares, 2, [0]), paste(squares, 3, [0], still(left=-50))])
    assert example["gt_classes"].tolist() == [0, 1, 2, 6, *[-1] * 8]
    np.testing.assert_array_equal(example["gt_boxes"][:2], [[0, 10, 20, 70], [70, 10, 80, 70]])


def test_objects_of_one_image_do_not_cover_each_other(squares):
    """Both parts of an image pasted at once, mirrored and moved, run lengths among them, cut by the border."""
    view = still(left=30, top=20, flip=True)
    example = example_of(squares, [paste(squares, 2, [1], view), paste(squares, 1, [0, 1], view)])
    assert example["gt_classes"].tolist()[3:6] == [5, 3, 8]
    np.testing.assert_array_equal(example["gt_boxes"][4:6], [[90, 50, 120, 70], [60, 80, 90, 90]])
    assert check_example(example, min_area=250) == 6


def test_a_paste_that_cannot_be_read_is_left_out(squares, tmp_path):
    broken = paste(squares, 1, [0])
    broken = broken._replace(record=broken.record._replace(path=tmp_path / "none.png"))
    with pytest.raises(ImageError, match="no such file"):
        example_of(squares, [broken])
    errors = []
    found = example_of(
        squares, [broken, paste(squares, 2, [0])], on_paste_error=lambda p, e: errors.append((p.index, e.kind, e.file))
    )
    assert errors == [(1, "missing image", tmp_path / "none.png")]
    expected = example_of(squares, [paste(squares, 2, [0])])
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])


def test_nothing_changes_without_objects(squares):
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    own = place_objects(squares.images[0].objects, still())
    pasted = paste_objects(canvas, own, [paste(squares, 1, [])], fast=False, on_error=None)
    assert not canvas.any() and not pasted.owners.any()
    assert pasted.layers[0].indices.tolist() == [0, 1, 2]
    assert pasted.layers[1].indices.size == 0


def test_drawn_from_an_image(squares):
    """One or two of the objects of image 1, crowds never, all choices taken; scaled about the top left."""
    options = OPTIONS._replace(source="batch")
    draws = [
        draw_pasted(random_stream(1, i), options, squares.images[1].objects, still(), Size(HEIGHT, WIDTH))
        for i in range(400)
    ]
    chosen = [tuple(draw.indices.tolist()) for draw in draws]
    for which, expected in (((0,), 100), ((1,), 100), ((0, 1), 200)):
        assert abs(chosen.count(which) - expected) < 50
    crowded = [
        draw_pasted(random_stream(1, i), options, squares.images[4].objects, still(), Size(HEIGHT, WIDTH))
        for i in range(50)
    ]
    assert squares.images[4].objects.ignore.tolist() == [False, True]
    assert {tuple(draw.indices.tolist()) for draw in crowded} == {(0,)}
    half = draw_pasted(
        random_stream(1), options._replace(scale=(0.5, 0.5)), squares.images[3].objects, still(), Size(HEIGHT, WIDTH)
    )
    np.testing.assert_array_equal(half.boxes, [[35, 0, 60, 40]])
    cut = draw_pasted(random_stream(1), options, squares.images[3].objects, still(), Size(40, 80))
    np.testing.assert_array_equal(cut.boxes, [[70, 0, 80, 40]])
    gone = draw_pasted(random_stream(1), options, squares.images[3].objects, still(), Size(40, 60))
    assert gone.indices.size == 0


def test_positions_of_the_bank(squares):
    """Anywhere within the area, whole; made smaller where it would not fit."""
    objects = squares.images[1].objects
    area = Size(70, 100)
    boxes = np.concatenate(
        [draw_position(random_stream(2, i), OPTIONS, objects, 0, still(), area).boxes for i in range(300)]
    )
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], np.tile([40, 20], (300, 1)))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [100, 70]).all()
    assert np.abs(boxes[:, :2].mean(axis=0) - [30, 25]).max() < 4  # standard deviation of the means 1
    small = draw_position(random_stream(2), OPTIONS, objects, 0, still(), Size(10, 100))
    np.testing.assert_allclose(small.boxes[:, 3] - small.boxes[:, 1], 10, atol=0.6)
    np.testing.assert_allclose(small.boxes[:, 2] - small.boxes[:, 0], 20, atol=0.6)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_classes_of_the_bank(squares, power):
    """Class 3 is in images 1 and 4, but there it is a crowd; the others are in one image each. Then with one of them
    in three images: a third of the others' weight under a power of 1."""
    bank = ObjectBank(squares.index, num_classes=9, class_power=power)
    drawn = [bank.draw(random_stream(3, i)) for i in range(1800)]
    classes = np.array([squares.images[i].objects.classes[j] for i, j in drawn])
    assert not any(squares.images[i].objects.ignore[j] for i, j in drawn)
    np.testing.assert_allclose(np.bincount(classes, minlength=9), 200, atol=60)  # standard deviation 13

    index = squares.index._replace(classes=np.array([0, 0, 2, 0, 8, 0, 2, 6, 7, 3], np.int32))
    bank = ObjectBank(index, num_classes=9, class_power=power)
    drawn = [bank.draw(random_stream(4, i)) for i in range(2000)]
    classes = np.array([index.classes[index.offsets[i] + j] for i, j in drawn])
    counts = np.bincount(classes, minlength=9)
    weights = np.array([1 / 3 if power else 1, 0, 1 / 2 if power else 1, 0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(counts / 2000, weights / weights.sum(), atol=0.04)
    assert counts[weights == 0].sum() == 0
    empty = ObjectBank(squares.index.select(np.zeros(0, int)), num_classes=9, class_power=power)
    with pytest.raises(ValueError, match="no image has a usable object"):
        empty.draw(random_stream(0))


@pytest.mark.parametrize("source", ["batch", "bank"])
@pytest.mark.parametrize("jitter", [(), (0.5, 2.0)])
def test_shapes_after_pasting(tmp_path, config, source, jitter):
    """Masks, boxes and colours agree in every batch; some objects are pasted, some are covered in part."""
    images = [
        (200, 150, [(0, disk(50, 60, 40)), (1, box(110, 20, 70, 50))]),
        (150, 200, [(2, corner(10, 10, 90, 90)), (3, disk(100, 152, 45))]),
        (180, 180, [(4, box(20, 20, 140, 60)), (5, disk(90, 130, 45))]),
        (190, 160, [(6, disk(95, 80, 60)), (8, box(10, 120, 30, 30))]),
    ]
    annotations = write_shapes(tmp_path, images, as_runs={4, 5})
    with config.unlocked():
        config.data.update(shorter_side=(150, 190), longest_side=288, buckets=((288, 288),))
        config.data.update(mask_size=112, max_objects=20, crop_size=(192, 192), scale_jitter=jitter)
        config.data.copy_paste.update(probability=1.0, source=source, max_objects=3, scale=(0.7, 1.2))
    iterator = make_train_iterator(annotations, config)
    own = {record.id: set(record.objects.classes.tolist()) for record in annotations.images}
    checked = pasted = 0
    for _ in range(6):
        for row in rows_of(next(iterator)):
            checked += check_example(row, covered=True)
            classes = set(row["gt_classes"][row["gt_classes"] >= 0].tolist())
            pasted += len(classes - own[int(row["image_id"])])
            assert set(np.flatnonzero(row["verified_classes"])) >= classes | own[int(row["image_id"])]
            assert not coloured(row["image"], 7)[: row["image_size"][0], : row["image_size"][1]].any()
    iterator.close()
    assert checked > 40
    assert pasted > 20


def test_objects_thinner_than_a_pixel_vanish_under_what_covers_them(tmp_path):
    """Two slivers that no pixel's centre lies in: one under the pasted square, one beside it."""
    slivers = [(0, box(30.1, 30.1, 0.3, 0.3)), (1, box(100.1, 30.1, 0.3, 8))]
    annotations = write_shapes(tmp_path, [(WIDTH, HEIGHT, slivers), (WIDTH, HEIGHT, [(2, box(20, 20, 40, 40))])])
    example = example_of(annotations, [paste(annotations, 1, [0])])
    assert example["gt_classes"][example["gt_classes"] >= 0].tolist() == [1, 2]


def test_an_object_of_hundreds_of_parts(monkeypatch):
    """Filled some parts at a time, equal to pycocotools' union of them all."""
    from pycocotools import mask as mask_api

    rng = np.random.default_rng(3)
    parts = tuple(box(*rng.uniform(0, 80, 2).round(2), *rng.uniform(1, 30, 2).round(2)) for _ in range(200))
    low = np.min([part.min(axis=0) for part in parts], axis=0)
    high = np.max([part.max(axis=0) for part in parts], axis=0)
    thing = ObjectRecord(1, np.concatenate([low, high]).astype(np.float32), 0, False, 1.0, parts)
    placed = place_objects(pack_objects([thing]), still())
    monkeypatch.setattr("eql_jax.data.copy_paste._FILLED_TOGETHER", 7 * WIDTH * HEIGHT)
    window, mask = fill_on_canvas(placed, 0)
    flat = [(part - (window.left, window.top)).ravel().tolist() for part in parts]
    union = mask_api.decode(mask_api.merge(mask_api.frPyObjects(flat, window.height, window.width)))
    np.testing.assert_array_equal(mask, union)
