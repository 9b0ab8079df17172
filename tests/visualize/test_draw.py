"""Pictures: what is drawn where, on small images, without objects, and with records that lack something."""

import numpy as np
import pytest
from PIL import Image

from eql_jax.visualize import ClassLabel, class_labels, draw_detections, draw_objects, side_by_side
from eql_jax.visualize.draw import class_color

LABELS = class_labels(
    [1, 2], ["a_rather_long_name_of_a_class_that_no_small_picture_has_room_for" * 3, "cup"], ["r", ""]
)
GREY = np.full((96, 128, 3), 100, np.uint8)


def thing(box, category_id=2, **more):
    x, y, w, h = box
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {"category_id": category_id, "bbox": list(box), "segmentation": polygon, **more}


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert draw_objects(GREY, [], LABELS).size == (640, 480)
    assert draw_objects(np.zeros((700, 500, 3), np.uint8), [], LABELS).size == (500, 700)


def test_mask_is_tinted_and_the_rest_is_untouched():
    picture = np.asarray(draw_objects(GREY, [thing((60, 40, 30, 30))], LABELS)).astype(int)
    inside = picture[275:325, 325:425].reshape(-1, 3)  # far from contour, box and label (scale 5)
    expected = 0.58 * 100 + 0.42 * np.array(class_color(1))
    assert np.abs(inside - expected).max() <= 1
    assert np.abs(picture[400:, :200] - 100).max() == 0
    assert np.abs(picture[:150, :200] - 100).max() == 0
    edge = picture[300, 300:303]
    assert np.abs(edge - np.array(class_color(1))).sum(axis=1).min() < 60, "a box or contour in the class's colour"


def test_threshold_order_and_limit():
    results = [thing((5, 5, 30, 30), score=0.2), thing((60, 40, 30, 30), score=0.9), thing((5, 60, 20, 20), score=0.5)]
    plain = np.asarray(draw_objects(GREY, [], LABELS)).astype(int)
    changed = np.asarray(draw_detections(GREY, results, LABELS, max_objects=1)).astype(int) != plain
    assert changed[300:325, 325:425].all() and not changed[325:400, 30:120].any()
    nothing = np.asarray(draw_detections(GREY, results, LABELS, score_threshold=0.95)).astype(int)
    assert (nothing[:40] != plain[:40]).any() and (nothing[60:] == plain[60:]).all(), "only the note in the corner"
    assert draw_detections(GREY, [], LABELS).size == (640, 480)


def test_odd_objects_do_not_stop_the_drawing():
    odd = [
        thing((0, 0, 128, 96), 1, score=1.0),  # the whole picture, with a name that is too long
        thing((120, 90, 50, 50), score=0.5),  # leaves the picture
        thing((-20, -20, 5, 5), score=0.4),  # outside
        thing((10, 10, 0, 0), score=0.4),
        {"category_id": 2, "bbox": [30, 30, 9, 9], "score": 0.7},  # without a mask
        {"category_id": 2, "bbox": [30, 30, 9, 9], "segmentation": [[1, 2, 3, 4]]},  # a polygon of two points
        {"category_id": 2, "bbox": [1, 1, 9, 9], "segmentation": {"size": [5, 5], "counts": [0, 25]}},  # another size
        {"category_id": 2, "bbox": [1, 1, 9, 9], "segmentation": {"size": [96, 128], "counts": [0, 96 * 128]}},
    ]
    assert draw_objects(GREY, odd * 6, LABELS).size == (640, 480)
    assert draw_objects(np.zeros((1, 1, 3), np.uint8), [], LABELS).size == (640, 640)
    with pytest.raises(KeyError, match="no label for categories \\[7\\]"):
        draw_objects(GREY, [thing((1, 1, 5, 5), 7)], LABELS)


def test_labels_and_colours():
    assert LABELS[2] == ClassLabel("cup", "", 1)
    colors = {class_color(i) for i in range(60)}
    assert len(colors) == 60
    distance = [np.abs(np.subtract(class_color(i), class_color(i + 1))).sum() for i in range(40)]
    assert min(distance) > 100, "neighbouring classes are told apart"


def test_side_by_side():
    pictures = [draw_objects(GREY, [], LABELS), Image.new("RGB", (640, 480))]
    sheet = side_by_side(pictures, ["detections", "ground truth"])
    assert sheet.width == 2 * 640 + 8 and sheet.height > 480
    np.testing.assert_array_equal(np.asarray(sheet)[-480:, :640], np.asarray(pictures[0]))
