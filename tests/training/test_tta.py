"""The detector of test-time augmentation against its steps done one by one, with NumPy between the model's calls.

A model of a few lines stands in for the real one, which tests/models/test_detectron2_tta.py runs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from eql_jax.models import Detections, build_model, init_model
from eql_jax.ops import detections as box_detections
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.eval_step import make_detector
from eql_jax.training.tta import make_test_detector, make_tta_detector
from tests.ops.numpy_boxes import greedy_nms

K = 3
SIDES = (40, 64)
PADDED = ((64, 64), (64, 96))
FILES = np.array([[50, 75], [60, 60]])  # (height, width) of the images' files
FOUND, SIDE = 12, 4  # detections of an image, side of a mask
ENOUGH = 60  # candidates that prove a result exact


class Model:
    """Finds boxes at the brightest pixels of noise; masks depend on box, class, image and direction."""

    num_classes = K

    def __init__(self, threshold=0.0):
        self.threshold = threshold

    def apply(self, variables, *inputs, method, **options):
        return getattr(self, method)(*inputs, **options)

    def features(self, image, size):
        return [image.astype(jnp.float32)]

    def detect_boxes(self, pyramid, size, *, candidates):
        def one(pixels, size):
            width = pixels.shape[1]
            score, index = jax.lax.top_k((pixels @ jnp.array([1.0, 1 / 256, 1 / 65536]) / 256).reshape(-1), FOUND)
            red, green, blue = pixels.reshape(-1, 3)[index].T
            x, y, half = index % width, index // width, jnp.stack([1 + green % 17, 1 + blue % 13], -1)
            centre = jnp.stack([x, y], -1).astype(jnp.float32)
            limit = jnp.array([size[1], size[0]])
            boxes = jnp.concatenate([jnp.clip(centre - half, 0, limit), jnp.clip(centre + half, 0, limit)], -1)
            good = score > self.threshold
            return box_detections.Detections(
                jnp.where(good[:, None], boxes, 0),
                jnp.where(good, score, 0),
                jnp.where(good, (blue % K).astype(jnp.int32), -1),
                jnp.where(good, index, -1),
                jnp.array(candidates >= ENOUGH),
            )

        return jax.vmap(one)(pyramid[0], size)

    def masks(self, pyramid, boxes, classes):
        leaning = jnp.arange(SIDE) / SIDE + jnp.arange(SIDE)[:, None] / 100
        level = jnp.mean(pyramid[0], axis=(1, 2, 3))[:, None] + boxes @ jnp.array([0.5, 0.25, 0.125, 1]) + classes
        return leaning * level[..., None, None] / 100

    def masks_of_boxes(self, image, size, boxes, classes):
        return self.masks(self.features(image, size), boxes, classes)

    def detect(self, image, size, *, candidates):
        found = self.detect_boxes(self.features(image, size), size, candidates=candidates)
        return Detections(found.boxes, found.scores, found.classes, found.boxes, found.proposal_index, found.exact)


def tiny_config(**changes):
    c = base.get_config()
    c.model.test.update(detections_per_image=FOUND, candidates=ENOUGH)
    c.eval.tta.shorter_sides = SIDES
    c.update_from_flattened_dict(changes)
    return c


def make_batch(files=FILES, padded=PADDED, seed=0, plain=False):
    """Views of noise; the last row is padding."""
    rng = np.random.default_rng(seed)
    files = np.concatenate([files, [padded[0]]])
    batch = {"original_size": files.astype(np.int32), "image_size": files.astype(np.int32)}
    batch["image_id"] = np.array([*range(1, len(files)), -1])
    sides = [*zip(SIDES, padded, strict=True)] + ([(48, padded[1])] if plain else [])
    for i, (side, canvas) in enumerate(sides):
        sizes = np.array([[int(s * side / min(size) + 0.5) for s in size] for size in files[:-1]] + [canvas], np.int32)
        batch[f"view{i}/image_size"] = sizes
        image = batch[f"view{i}/image"] = np.zeros((len(files), *canvas, 3), np.uint8)
        for row, (height, width) in enumerate(sizes[:-1]):
            image[row, :height, :width] = rng.integers(0, 255, (height, width, 3))
    return batch


def step_by_step(config, model, batch):
    """boxes, scores, classes [B,D,..] and masks, image by image and view by view."""
    plain = make_detector(model, config)
    views = [(i, flip) for i in range(len(SIDES)) for flip in ((False, True) if config.eval.tta.flip else (False,))]

    def image_of(i, flip):
        image = batch[f"view{i}/image"].copy()
        for row, (_, width) in enumerate(batch[f"view{i}/image_size"]):
            if flip:
                image[row, :, :width] = image[row, :, :width][:, ::-1]
        return image

    count = config.model.test.detections_per_image
    files = batch["original_size"].astype(np.float32)
    parts = []
    for i, flip in views:
        size = batch[f"view{i}/image_size"].astype(np.float32)
        found = plain({}, {"image": image_of(i, flip), "image_size": batch[f"view{i}/image_size"]})
        boxes = found["boxes"].copy()
        if flip:
            boxes[..., [0, 2]] = size[:, None, [1]] - boxes[..., [2, 0]]
        ratio = (files / size)[:, None, [1, 0, 1, 0]]
        parts.append((boxes * ratio, found["scores"], found["classes"]))
    boxes, scores, classes = (np.concatenate(p, axis=1) for p in zip(*parts, strict=True))
    result = {
        "boxes": np.zeros((len(files), count, 4), np.float32),
        "scores": np.zeros((len(files), count), np.float32),
        "classes": np.full((len(files), count), -1),
    }
    for row, (height, width) in enumerate(files):
        clipped = np.clip(boxes[row], 0, [width, height, width, height]).astype(np.float32)
        kept = greedy_nms(
            clipped,
            scores[row],
            iou_threshold=config.model.test.nms_iou,
            max_output=count,
            valid=(scores[row] > 1e-8) & (classes[row] >= 0),
            groups=classes[row],
        )
        for key, values in (("boxes", clipped), ("scores", scores[row]), ("classes", classes[row])):
            result[key][row, : len(kept)] = values[kept]
    if not config.model.with_mask:
        return result
    masks = []
    for i, flip in views if config.eval.tta.masks else [(len(SIDES), False)]:
        size = batch[f"view{i}/image_size"].astype(np.float32)
        boxes = result["boxes"] * (size / files)[:, None, [1, 0, 1, 0]]
        if flip:
            boxes[..., [0, 2]] = size[:, None, [1]] - boxes[..., [2, 0]]
        found = np.asarray(model.masks_of_boxes(image_of(i, flip), size, boxes, result["classes"]))
        masks.append(found[..., ::-1] if flip else found)
    return result | {"masks": np.mean(masks, axis=0)}


def assert_same(found, expected):
    """All rows, padding ones too. The order is the same, as scores of noise are well apart."""
    np.testing.assert_array_equal(found["classes"], expected["classes"])
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-6)
    if "masks" in expected:
        there = expected["classes"] >= 0
        np.testing.assert_allclose(found["masks"][there], expected["masks"][there], atol=1e-4)
    else:
        assert found["masks"].shape == (*found["classes"].shape, 0, 0)


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({}, 4),
        ({"eval.tta.masks": False}, 1),
        ({"eval.tta.flip": False, "model.test.candidates": 1}, 1),
        ({"model.with_mask": False}, 1),
    ],
    ids=["four devices", "masks of the plain image", "not mirrored and too few candidates", "boxes alone"],
)
def test_against_its_steps(changes, devices):
    config, model = tiny_config(**changes), Model()
    batch = make_batch(np.concatenate([FILES, FILES[:1] + 9]), plain=not config.eval.tta.masks)
    found = make_tta_detector(model, config, mesh_lib.local_mesh() if devices == 4 else None)({}, batch)
    expected = step_by_step(config, model, batch)
    assert (expected["classes"][:-1] >= 0).all() and (expected["classes"][-1] < 0).any()
    assert_same(found, expected)
    assert found["exact"].all()


def test_nothing_found():
    found = make_tta_detector(Model(threshold=2.0), tiny_config())({}, make_batch())
    assert (found["classes"] == -1).all() and not found["scores"].any() and not found["boxes"].any()
    assert np.isfinite(found["masks"]).all()


def count_compilations(function):
    """How many programmes are compiled while the function runs."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        function()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(found)


def test_number_of_compilations():
    """New sizes of images in known padded sizes compile nothing; a new padded size two programmes."""
    detector = make_test_detector(Model(), tiny_config())
    assert count_compilations(lambda: detector({}, make_batch())) >= 5
    for seed, files in enumerate(([[50, 70], [60, 61]], [[480, 640], [33, 44]], [[90, 91], [30, 31]]), start=1):
        assert count_compilations(lambda f=files, s=seed: detector({}, make_batch(np.array(f), seed=s))) == 0
    one_more = make_batch(padded=(PADDED[0], (96, 96)))
    assert count_compilations(lambda: detector({}, one_more)) == 2


REAL = {
    "cascade": {"model.cascade.ious": (0.5, 0.6, 0.7), "model.box_head.class_agnostic_boxes": True},
    "c4": {"model.architecture": "c4", "model.box_head.pool_size": 14, "model.mask_head.num_convs": 0},
}


@pytest.mark.parametrize("name", REAL)
def test_other_architectures_have_the_methods(name):
    """Shapes alone, nothing is compiled: features -> boxes, and the same features with given boxes -> masks."""
    config = tiny_config(**REAL[name])
    config.model.backbone.update(width=8)
    model = build_model(config, K)
    image, size = np.zeros((2, 64, 96, 3), np.uint8), np.full((2, 2), 60, np.int32)

    def run(variables):
        pyramid = model.apply(variables, image, size, method="features")
        found = model.apply(variables, pyramid, size, candidates=ENOUGH, method="detect_boxes")
        masks = model.apply(variables, pyramid, found.boxes, found.classes, method="masks")
        return (
            found.boxes,
            masks,
            model.apply(variables, image, size, found.boxes, found.classes, method="masks_of_boxes"),
        )

    shapes = jax.eval_shape(lambda: init_model(model, jax.random.key(0)))
    boxes, masks, same = jax.eval_shape(run, shapes)
    side = 14 if name == "c4" else 28
    assert boxes.shape == (2, FOUND, 4) and masks.shape == same.shape == (2, FOUND, side, side)
