"""Test-time augmentation gives detectron2's numbers: step by step, and from the picture to the pasted masks.

The recording is of detectron2's GeneralizedRCNNWithTTA on a photograph of 160 x 192 pixels, shorter sides 128 and 208,
each plain and mirrored, with the weights of test_detectron2_inference.py; see tests/testdata/README.md. The set "other"
declares the picture to be 219 x 263 pixels large, and asks for results of that size.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from eql_jax.data.eval_batches import make_prediction_batches
from eql_jax.evaluation.paste import paste_masks
from eql_jax.ops import tta
from eql_jax.training.tta import make_tta_detector
from tests.models.golden import BOXES, CONFIG, SCORES, TESTDATA, WEIGHTS, load_golden

PADDED = (224, 256)  # detectron2 ran three views in a batch and padded them all to the largest
VIEWS = ((0, False), (1, True), (2, False), (3, True))  # number of the recording, mirrored


@pytest.fixture(scope="module")
def golden():
    golden = load_golden(WEIGHTS, CONFIG, TESTDATA / "detectron2_tta.npz")
    with golden.config.unlocked():
        golden.config.eval.tta.shorter_sides = tuple(golden.arrays["min_sizes"].tolist())
        golden.config.eval.tta.longest_side = int(golden.arrays["max_size"])
        golden.config.model.test.detections_per_image = 100
    model = golden.model.clone(config=golden.config.model.copy_and_resolve_references())
    return golden._replace(model=model)


def recorded(golden, other, key):
    return golden.arrays[f"other/{key}" if other else key]


def sizes(golden, other, view):
    """(size of the view, size of the file), [1, 2]."""
    return golden.arrays[f"aug{view}_size"][None], recorded(golden, other, "original_size")[None]


def matched(boxes, classes, golden_boxes, golden_classes):
    """Row of the recording for each detection, by class and nearest box; every row of it once."""
    distance = np.abs(boxes[:, None] - golden_boxes[None]).max(-1)
    distance[classes[:, None] != golden_classes[None]] = np.inf
    rows = distance.argmin(1)
    assert len(set(rows)) == len(golden_boxes) == len(boxes)
    return rows


both_sets = pytest.mark.parametrize("other", [False, True], ids=["plain", "other"])


@both_sets
def test_union_of_the_views(golden, other):
    """The recorded detections of every view, in the pixels of the file."""
    parts = []
    for view, flip in VIEWS:
        boxes = golden.arrays[f"aug{view}_det_boxes"][None]
        parts.append(tta.boxes_from_view(boxes, *sizes(golden, other, view), flip)[0])
    np.testing.assert_allclose(np.concatenate(parts), recorded(golden, other, "union_boxes"), rtol=0, atol=1e-4)


@both_sets
def test_merged_boxes(golden, other):
    """The recorded union merged: same boxes, classes and scores."""
    union = [jnp.asarray(recorded(golden, other, f"union_{key}")) for key in ("boxes", "scores", "classes")]
    size = jnp.asarray(recorded(golden, other, "original_size"))
    merged = jax.device_get(tta.merge_detections(*union, size, iou_threshold=0.5, max_detections=100))
    boxes, scores, classes = (recorded(golden, other, f"merged_{key}") for key in ("boxes", "scores", "classes"))
    rows = matched(merged.boxes, merged.classes, boxes, classes)
    assert np.all(np.diff(merged.scores) <= 0)
    np.testing.assert_array_equal(merged.boxes, boxes[rows])
    np.testing.assert_array_equal(merged.scores, scores[rows])


@pytest.mark.parametrize(("view", "flip"), VIEWS)
def test_merged_boxes_in_every_view(golden, view, flip):
    boxes = tta.boxes_to_view(golden.arrays["merged_boxes"][None], *sizes(golden, False, view), flip)[0]
    np.testing.assert_allclose(boxes, golden.arrays[f"aug{view}_merged_boxes"], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def batch(golden, tmp_path_factory):
    """The picture's views as the package makes them of a file."""
    path = tmp_path_factory.mktemp("tta") / "picture.png"
    Image.fromarray(golden.arrays["image_bgr_hwc"][..., ::-1]).save(path)
    (batch,) = make_prediction_batches([path], golden.config, batch_size=1, augmented=True)
    return batch


def test_views(golden, batch):
    """Sizes and pixels of the views are detectron2's, the mirrored ones (made on the device) too."""
    for view, flip in VIEWS:
        image, size = (batch[f"view{view // 2}/{key}"] for key in ("image", "image_size"))
        np.testing.assert_array_equal(size[0], golden.arrays[f"aug{view}_size"])
        mirrored = np.asarray(tta.mirror_image(image[0], size[0])) if flip else image[0]
        height, width = size[0]
        assert mirrored[height:].max(initial=0) == mirrored[:, width:].max(initial=0) == 0
        pixels = np.ascontiguousarray(mirrored[:height, :width, ::-1])
        assert zlib.crc32(pixels.tobytes()) == golden.arrays[f"aug{view}_crc32"]


def padded(batch, original_size):
    """The batch with detectron2's padding and another size of the file."""
    new = dict(batch)
    for i in (0, 1):
        height, width = batch[f"view{i}/image_size"][0]
        new[f"view{i}/image"] = np.zeros((1, *PADDED, 3), np.uint8)
        new[f"view{i}/image"][0, :height, :width] = batch[f"view{i}/image"][0, :height, :width]
    new["image_size"] = new["original_size"] = np.asarray(original_size, np.int32)[None]
    return new


@pytest.fixture(scope="module")
def detector(golden):
    return make_tta_detector(golden.model, golden.config)


@both_sets
def test_end_to_end(golden, detector, batch, other):
    size = tuple(recorded(golden, other, "original_size").tolist())
    found = {key: value[0] for key, value in detector(golden.variables, padded(batch, size)).items()}
    boxes, scores, classes = (recorded(golden, other, f"merged_{key}") for key in ("boxes", "scores", "classes"))
    rows = matched(found["boxes"], found["classes"], boxes, classes)
    assert np.abs(found["boxes"] - boxes[rows]).max() <= BOXES
    assert np.abs(found["scores"] - scores[rows]).max() <= SCORES
    if not other:
        assert np.abs(found["masks"] - golden.arrays["mean_mask_probs"][rows]).max() <= 1e-4

    assert found["boxes"].shape == recorded(golden, other, "out_boxes").shape  # none is empty
    masks = paste_masks(found["masks"], found["boxes"], size=size)
    expected = np.unpackbits(recorded(golden, other, "out_masks_packed"), axis=-1)[..., : size[1]].astype(bool)
    assert (masks != expected[rows]).mean() <= 1e-4


def test_pasted_masks(golden):
    """Recorded probabilities and boxes -> recorded pixels, through the package's pasting."""
    size = tuple(golden.arrays["original_size"].tolist())
    masks = paste_masks(golden.arrays["mean_mask_probs"], golden.arrays["out_boxes"], size=size)
    expected = np.unpackbits(golden.arrays["out_masks_packed"], axis=-1)[..., : size[1]].astype(bool)
    assert (masks != expected).mean() <= 1e-4
    np.testing.assert_allclose(masks.sum((1, 2)), golden.arrays["out_mask_area"], atol=1)
