"""eql_jax.ops.masks against detectron2's rasterised targets, hand-worked crops and the full 1x1 convolution."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from eql_jax.ops import masks

TESTDATA = pathlib.Path(__file__).parent.parent / "testdata"
crop = jax.jit(masks.crop_and_resize_masks, static_argnames="size")


def test_targets_against_detectron2():
    equal = []
    with np.load(TESTDATA / "ops_masks.npz") as data:
        for i in range(2):
            targets = np.unpackbits(data[f"targets_packed{i}"], axis=-1)[..., :28].astype(bool)
            out = crop(
                np.unpackbits(data[f"gt_masks_packed{i}"], axis=-1),
                data[f"gt_boxes{i}"],
                data[f"rois{i}"],
                data[f"matched{i}"],
            )
            assert out.dtype == bool and out.shape == targets.shape
            equal.append((np.asarray(out) == targets).mean(axis=(1, 2)))
    equal = np.concatenate(equal)
    # Rasterising a polygon anew (detectron2) and sampling its 112 x 112 mask differ along the contour.
    assert equal.mean() >= 0.995 and equal.min() >= 0.985, (equal.mean(), equal.min())


def numpy_crop(mask, box, roi, size):
    """Bilinear sampling pixel by pixel, zeros outside, in float64."""
    cells = mask.shape[0]
    padded = np.pad(mask.astype(np.float64), 1)
    out = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        y = (roi[1] + (i + 0.5) / size * (roi[3] - roi[1]) - box[1]) / (box[3] - box[1]) * cells + 0.5
        x = (roi[0] + (j + 0.5) / size * (roi[2] - roi[0]) - box[0]) / (box[2] - box[0]) * cells + 0.5
        if 0 <= y < cells + 1 and 0 <= x < cells + 1:
            top, left = int(y), int(x)
            fy, fx = y - top, x - left
            patch = padded[top : top + 2, left : left + 2]
            out[i, j] = np.array([1 - fy, fy]) @ patch @ np.array([1 - fx, fx])
    return out


def test_crop_equals_numpy():
    rng = np.random.default_rng(0)
    objects, rois = 5, 40
    gt_masks = rng.random((objects, 9, 9)) < 0.6
    corner = rng.uniform(0, 40, (objects, 2))
    gt_boxes = np.concatenate([corner, corner + rng.uniform(2, 30, (objects, 2))], -1).astype(np.float32)
    matched = rng.integers(0, objects, rois)
    roi = gt_boxes[matched] + rng.uniform(-6, 6, (rois, 4)).astype(np.float32)
    out = np.asarray(crop(gt_masks, gt_boxes, roi, jnp.asarray(matched), size=6))
    for r in range(rois):
        expected = numpy_crop(gt_masks[matched[r]], gt_boxes[matched[r]].astype(float), roi[r].astype(float), 6)
        clear = np.abs(expected - 0.5) > 2e-3
        np.testing.assert_array_equal(out[r][clear], expected[clear] >= 0.5, err_msg=f"RoI {r}")
    assert 0.2 < out.mean() < 0.8


def test_crop_by_hand():
    left_half = np.zeros((1, 8, 8), np.uint8)
    left_half[:, :, :4] = 1
    boxes = np.array([[10, 20, 26, 36]], np.float32)  # two pixels a cell
    rois = np.array(
        [
            [10, 20, 26, 36],  # the box itself
            [10, 20, 18, 36],  # its left half
            [18, 20, 26, 36],  # its right half
            [2, 20, 18, 36],  # half outside on the left
            [10, 12, 26, 28],  # half outside at the top
            [60, 60, 70, 70],  # elsewhere
            [12, 22, 12, 22],  # without area, inside the object
            [10, 20, 26, 36],  # a padding row
        ],
        np.float32,
    )
    matched = jnp.array([0, 0, 0, 0, 0, 0, 0, -1])
    out = np.asarray(crop(left_half, boxes, rois, matched, size=4))
    columns = np.array([1, 1, 0, 0], bool)
    for got, expected in zip(
        out,
        [
            np.tile(columns, (4, 1)),
            np.ones((4, 4)),
            np.zeros((4, 4)),
            np.tile(~columns, (4, 1)),
            [[0] * 4, [0] * 4, columns, columns],
            np.zeros((4, 4)),
            np.ones((4, 4)),
            np.tile(columns, (4, 1)),
        ],
        strict=True,
    ):
        np.testing.assert_array_equal(got, np.asarray(expected, bool))


def test_exact_halves_are_set():
    # From 8 cells to 4, samples lie midway between cells: a checkerboard gives exact halves everywhere.
    checkerboard = (np.indices((8, 8)).sum(0) % 2)[None]
    for shift in (0.0, 17.3, 801.7):  # where float32 rounding differs
        box = np.array([[shift, shift, shift + 33.1, shift + 21.9]], np.float32)
        assert np.asarray(crop(checkerboard, box, box, jnp.zeros(1, int), size=4)).all()


def test_crop_without_objects_or_rois_and_with_empty_boxes():
    no_boxes, no_index = np.zeros((0, 4), np.float32), jnp.zeros(0, int)
    one_mask, one_box = np.ones((1, 8, 8), np.uint8), np.array([[0, 0, 8, 8]], np.float32)
    assert crop(one_mask, one_box, no_boxes, no_index).shape == (0, 28, 28)
    out = crop(np.ones((0, 8, 8), np.uint8), no_boxes, one_box, jnp.zeros(1, int), size=4)
    assert out.shape == (1, 4, 4) and not out.any()
    padding = crop(0 * one_mask, 0 * one_box, 0 * one_box, jnp.full(1, -1), size=4)
    assert not padding.any()


def test_crop_under_vmap():
    rng = np.random.default_rng(1)
    gt_masks = rng.random((2, 3, 8, 8)) < 0.5
    boxes = np.tile(np.array([[4, 4, 20, 20]], np.float32), (2, 3, 1))
    rois = np.sort(rng.uniform(0, 24, (2, 5, 2, 2)).astype(np.float32), axis=2).reshape(2, 5, 4)
    matched = rng.integers(0, 3, (2, 5))
    together = jax.vmap(crop)(gt_masks, boxes, rois, matched)
    for b in range(2):
        one = crop(gt_masks[b], boxes[b], rois[b], matched[b])
        np.testing.assert_array_equal(together[b], one)


@pytest.mark.parametrize(
    ("gt_masks", "gt_boxes", "rois", "matched"),
    [((2, 8, 9), (2, 4), (3, 4), (3,)), ((2, 8, 8), (3, 4), (3, 4), (3,)), ((2, 8, 8), (2, 4), (3, 4), (2,))],
)
def test_crop_refuses(gt_masks, gt_boxes, rois, matched):
    with pytest.raises(ValueError, match="expected"):
        masks.crop_and_resize_masks(
            *(jnp.zeros(shape) for shape in (gt_masks, gt_boxes, rois)), jnp.zeros(matched, int)
        )


@pytest.mark.parametrize("num_classes", [1, 7])
def test_class_conv_equals_full_convolution_and_its_gradient(num_classes):
    rng = np.random.default_rng(2)
    features = rng.standard_normal((2, 6, 3, 3, 5), np.float32)
    kernel = rng.standard_normal((5, num_classes), np.float32)
    bias = rng.standard_normal(num_classes).astype(np.float32)
    classes = rng.integers(0, num_classes, (2, 6))
    classes[0, 0] = classes[1, 0]  # one class twice: gradients add up
    grad = rng.standard_normal((2, 6, 3, 3), np.float32)
    out, vjp = jax.vjp(lambda f, k, b: masks.class_conv_1x1(f, k, b, classes), features, kernel, bias)

    full = features @ kernel + bias
    np.testing.assert_allclose(out, np.take_along_axis(full, classes[..., None, None, None], -1)[..., 0], atol=1e-5)
    one_hot = np.eye(num_classes, dtype=np.float32)[classes]
    grad_full = grad[..., None] * one_hot[..., None, None, :]
    expected = (
        grad_full @ kernel.T,
        np.einsum("bfhwc,bfhwk->ck", features, grad_full),
        grad_full.sum((0, 1, 2, 3)),
    )
    for got, want in zip(vjp(grad), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_class_conv_clips_padding_and_refuses_misfits():
    features, kernel, bias = jnp.ones((3, 2, 2, 4)), jnp.arange(12.0).reshape(4, 3), jnp.zeros(3)
    out = masks.class_conv_1x1(features, kernel, bias, jnp.array([-1, 3, 1]))
    np.testing.assert_array_equal(out[:, 0, 0], [18, 26, 22])
    with pytest.raises(ValueError, match=r"expected \[..., F, S, S, C\]"):
        masks.class_conv_1x1(features, kernel, bias, jnp.zeros((1, 3), int))
    with pytest.raises(ValueError, match=r"expected \[..., F, S, S, C\]"):
        masks.class_conv_1x1(features, kernel.T, bias, jnp.zeros(3, int))


def test_class_conv_keeps_the_dtype_of_the_features():
    out = masks.class_conv_1x1(jnp.ones((3, 2, 2, 4), jnp.bfloat16), jnp.ones((4, 3)), jnp.zeros(3), jnp.zeros(3, int))
    assert out.dtype == jnp.bfloat16


def test_class_conv_on_several_devices_reduces_only_the_parameters():
    mesh = jax.make_mesh((4, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    by_image, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    features, classes = jax.device_put((jnp.ones((8, 3, 2, 2, 4)), jnp.ones((8, 3), int)), by_image)
    kernel, bias = jax.device_put((jnp.ones((4, 60)), jnp.zeros(60)), everywhere)
    grad = jax.grad(lambda f, k, b, c: (masks.class_conv_1x1(f, k, b, c) ** 2).sum(), (0, 1, 2))
    compiled = jax.jit(grad, out_shardings=(by_image, everywhere, everywhere)).lower(features, kernel, bias, classes)
    found = re.findall(
        r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)", compiled.compile().as_text()
    )
    assert set(found) == {"all-reduce"}, found


def test_class_conv_memory_does_not_grow_with_classes():
    def temporary_bytes(num_classes):
        shapes = [(32, 14, 14, 64), (64, num_classes), (num_classes,)]
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        grad = jax.grad(lambda f, k, b, c: (masks.class_conv_1x1(f, k, b, c) ** 2).sum(), (0, 1, 2))
        lowered = jax.jit(grad).lower(*arrays, jax.ShapeDtypeStruct((32,), jnp.int32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    kernel_bytes = 4 * 64 * 1203
    # All class maps would take 32 * 14 * 14 * 1203 * 4 bytes, a hundred kernels.
    assert temporary_bytes(1203) - temporary_bytes(10) <= 3 * kernel_bytes
