"""eql_jax.ops.roi_align against detectron2's recorded output and a plain NumPy implementation."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from configs import base
from eql_jax.models import build_model
from eql_jax.ops import roi_align

TESTDATA = pathlib.Path(__file__).parent.parent / "testdata"
STRIDES = (4, 8, 16, 32)
pool = jax.jit(
    roi_align.multilevel_roi_align, static_argnames=("strides", "output_size", "sampling_ratio", "max_samples")
)


def numpy_roi_align(feature, box, stride, size, ratio, most=64):
    """RoIAlign of one box from one map [H, W, C], sample by sample, in float64; ratio 0: at most `most` an axis."""
    height, width, channels = feature.shape
    x1, y1, x2, y2 = np.asarray(box, np.float64) / stride - 0.5
    bin_w, bin_h = (x2 - x1) / size, (y2 - y1) / size
    rows, columns = (ratio, ratio) if ratio else (min(int(np.ceil(side)), most) for side in (bin_h, bin_w))
    out = np.zeros((size, size, channels))
    for i, j in np.ndindex(size, size):
        for r, c in np.ndindex(rows, columns):
            y, x = y1 + (i + (r + 0.5) / rows) * bin_h, x1 + (j + (c + 0.5) / columns) * bin_w
            if not (-1 <= y <= height and -1 <= x <= width):
                continue
            y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            fy, fx = y - top, x - left
            out[i, j] += (1 - fy) * ((1 - fx) * feature[top, left] + fx * feature[top, right])
            out[i, j] += fy * ((1 - fx) * feature[bottom, left] + fx * feature[bottom, right])
        out[i, j] /= max(rows * columns, 1)
    return out


def numpy_level(box):
    side = np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    return int(np.clip(np.floor(4 + np.log2(side / 224 + 1e-8)), 2, 5)) - 2


def pyramid(rng, batch, height, width, channels):
    return [rng.standard_normal((batch, height // s, width // s, channels), np.float32) for s in STRIDES]


# 128 x 96 image. Every level; off the image on each side; the whole image and more; without width, without area.
BOXES = np.array(
    [
        [[10, 20, 50, 60], [0, 0, 100, 128], [-100, -60, 200, 200], [-420, -330, 200, 230], [3.3, 4.7, 5.1, 9.9]],
        [[-30, 5, 10, 40], [90, 100, 130, 160], [-100, -100, -50, -50], [40, 40, 40, 80], [20, 30, 20, 30]],
    ],
    np.float32,
)


@pytest.fixture(scope="module")
def golden():
    with np.load(TESTDATA / "ops_roi_align.npz") as data:
        data = dict(data)
    n0, n1 = len(data["boxes0"]), len(data["boxes1"])
    boxes = np.zeros((2, max(n0, n1), 4), np.float32)  # images have different numbers of boxes: zeros pad
    boxes[0, :n0], boxes[1, :n1] = data["boxes0"], data["boxes1"]
    data.update(features=[data[f"p{i}"] for i in (2, 3, 4, 5)], boxes=boxes, image=np.repeat([0, 1], [n0, n1]))
    data["row"] = np.concatenate([np.arange(n0), np.arange(n1)])
    return data


def test_levels_equal_detectron2(golden):
    levels = np.asarray(roi_align.assign_levels(golden["boxes"], strides=STRIDES))
    np.testing.assert_array_equal(levels[golden["image"], golden["row"]], golden["levels"])
    assert set(golden["levels"]) == {0, 1, 2, 3}
    # What else the recorded boxes hold, and those of the mask pooler: boxes over every border of the 256 x 320 image.
    boxes = np.concatenate([golden["boxes0"], golden["boxes1"]])
    for rows in (slice(None), golden["mask_rows"]):
        assert set(golden["levels"][rows]) == {0, 1, 2, 3}
        over = np.concatenate([boxes[rows, :2] < 0, boxes[rows, 2:] > [320, 256]], axis=1)
        assert over.any(axis=0).all()
        assert (boxes[rows, :2] > [320, 256]).any() or (boxes[rows, 2:] < 0).any()  # and one wholly outside
    assert ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) == 0).any()


def test_levels_by_hand():
    sides = np.array([0, 1, 111, 112, 223, 224, 447, 448, 5000], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], -1)
    np.testing.assert_array_equal(roi_align.assign_levels(boxes, strides=STRIDES), [0, 0, 0, 1, 1, 2, 2, 3, 3])
    # A model for small images: half the canonical size, stride 4 and 8 only.
    small = roi_align.assign_levels(boxes, strides=(4, 8), canonical_size=224, canonical_level=4)
    np.testing.assert_array_equal(small, [0, 0, 0, 1, 1, 1, 1, 1, 1])
    small = roi_align.assign_levels(boxes, strides=STRIDES, canonical_size=56, canonical_level=2)
    np.testing.assert_array_equal(small, [0, 0, 0, 1, 1, 2, 2, 3, 3])


def test_adaptive_sampling_equals_detectron2(golden):
    pick = golden["image"], golden["row"]
    box = pool(golden["features"], golden["boxes"], strides=STRIDES, output_size=7, sampling_ratio=0)
    np.testing.assert_allclose(np.asarray(box)[pick], golden["box_out"], atol=5e-5)
    mask = pool(golden["features"], golden["boxes"], strides=STRIDES, output_size=14, sampling_ratio=0)
    np.testing.assert_allclose(np.asarray(mask)[pick][golden["mask_rows"]], golden["mask_out"], atol=5e-5)


@pytest.mark.parametrize(("ratio", "size"), [(2, 3), (1, 3), (0, 3)])
def test_equals_numpy(ratio, size):
    features = pyramid(np.random.default_rng(0), 2, 128, 96, 3)
    out = pool(features, BOXES, strides=STRIDES, output_size=size, sampling_ratio=ratio)
    assert out.shape == (2, 5, size, size, 3) and out.dtype == jnp.float32
    levels = set()
    for b, r in np.ndindex(BOXES.shape[:2]):
        level = numpy_level(BOXES[b, r])
        expected = numpy_roi_align(features[level][b], BOXES[b, r], STRIDES[level], size, ratio)
        np.testing.assert_allclose(out[b, r], expected, atol=2e-5, err_msg=f"image {b}, box {r}")
        if np.any(expected):
            levels.add(level)
    assert levels == {0, 1, 2, 3}
    if ratio == 0:  # no side, no samples
        assert not np.asarray(out[1, 3:]).any()


def test_linear_ramp_by_hand():
    # Feature pixel (h, w) of a stride-4 map is centred at image pixel (4h + 2, 4w + 2). With the value of the centre
    # stored there, a bin returns its own centre: no half-pixel shift is left anywhere.
    y, x = np.meshgrid(4.0 * np.arange(16) + 2, 4.0 * np.arange(16) + 2, indexing="ij")
    ramp = np.stack([y, x], -1)[None].astype(np.float32)
    boxes = np.array([[[8.0, 12, 36, 40], [9.5, 10.25, 30.5, 24.25]]], np.float32)
    out = np.asarray(pool([ramp], boxes, strides=(4,), output_size=7))
    np.testing.assert_allclose(out[0, 0, :, 0, 0], 12 + 4 * (np.arange(7) + 0.5), rtol=1e-6)
    np.testing.assert_allclose(out[0, 0, 0, :, 1], 8 + 4 * (np.arange(7) + 0.5), rtol=1e-6)
    np.testing.assert_allclose(out[0, 1, :, 3, 0], 10.25 + 2 * (np.arange(7) + 0.5), rtol=1e-6)
    np.testing.assert_allclose(out[0, 1, 3, :, 1], 9.5 + 3 * (np.arange(7) + 0.5), rtol=1e-6)


def test_border_by_hand():
    ones = np.ones((1, 4, 4, 1), np.float32)
    # Bins of one feature pixel, one sample each. The box starts 3 pixels outside: centres at -3, -2, -1, 0, ... in
    # feature coordinates; -1 still counts (clamped to the border), and so does 4 = W at the other end.
    boxes = np.array([[[-10, 0, 18, 28]]], np.float32)
    out = pool([ones], boxes, strides=(4,), output_size=7, sampling_ratio=1)
    np.testing.assert_array_equal(out[0, 0, 0, :, 0], [0, 0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(out[0, 0, :, 6, 0], [1, 1, 1, 1, 1, 0, 0])


# 64 x 48 pixels at stride 4: wholly off each side, over each side, and one pixel of the image's corner.
OFF = {
    "left": ([-60, 8, -20, 40], False),
    "above": ([8, -60, 40, -20], False),
    "right": ([80, 8, 120, 40], False),
    "below": ([8, 90, 40, 130], False),
    "over the left": ([-20, 8, 20, 40], True),
    "over the top": ([8, -20, 40, 20], True),
    "over the right": ([40, 8, 80, 40], True),
    "over the bottom": ([8, 30, 40, 70], True),
    "corner": ([63, 47, 90, 80], True),
}


@pytest.mark.parametrize("ratio", [2, 0])
def test_boxes_off_the_image(ratio):
    rng = np.random.default_rng(6)
    feature = rng.standard_normal((1, 12, 16, 3), np.float32)
    boxes = np.array([[box for box, _ in OFF.values()]], np.float32)

    @jax.jit
    def run(feature):
        out, back = jax.vjp(lambda f: pool([f], boxes, strides=(4,), output_size=3, sampling_ratio=ratio), feature)
        alone = jax.vmap(lambda i: back(jnp.zeros_like(out).at[0, i].set(1.0))[0])(jnp.arange(len(OFF)))
        return out, alone  # the gradient of each box's sum

    out, gradients = map(np.asarray, run(feature))
    for i, (name, (box, touches)) in enumerate(OFF.items()):
        expected = numpy_roi_align(feature[0], box, 4, 3, ratio)
        np.testing.assert_allclose(out[0, i], expected, atol=1e-5, err_msg=name)
        assert np.isfinite(gradients[i]).all()
        assert out[0, i].any() == touches and gradients[i].any() == touches, name


def test_boxes_without_area_by_hand():
    """A box without width or height has no bins to fill: nothing when adaptive, with fixed samples what lies there."""
    feature = np.arange(8 * 8, dtype=np.float32).reshape(1, 8, 8, 1)  # 8 y + x
    # No width, no height, neither; the last at (8, 14) pixels is feature position (1.5, 3).
    boxes = np.array([[[8, 4, 8, 24], [4, 14, 20, 14], [8, 14, 8, 14]]], np.float32)

    @functools.partial(jax.jit, static_argnums=1)
    def run(feature, ratio):
        out, back = jax.vjp(lambda f: pool([f], boxes, strides=(4,), output_size=2, sampling_ratio=ratio), feature)
        return out[0, ..., 0], back(jnp.ones_like(out))[0]

    out, gradient = map(np.asarray, run(feature, 0))
    assert not out.any() and not gradient.any()
    out, gradient = map(np.asarray, run(feature, 2))
    # Rows 0.5 .. 5.5 in two bins, centres 1.75 and 4.25; columns 0.5 .. 4.5, centres 1.5 and 3.5.
    np.testing.assert_allclose(out[0], [[8 * 1.75 + 1.5] * 2, [8 * 4.25 + 1.5] * 2])
    np.testing.assert_allclose(out[1], [[8 * 3 + 1.5, 8 * 3 + 3.5]] * 2)
    np.testing.assert_allclose(out[2], 8 * 3 + 1.5)
    np.testing.assert_allclose(gradient.sum(), 3 * 4)


def test_max_samples_bounds_the_adaptive_grid():
    rng = np.random.default_rng(1)
    feature = rng.standard_normal((1, 8, 40, 2), np.float32)
    boxes = np.array([[[0, 0, 160, 8], [0, 0, 16, 16]]], np.float32)  # 20 x 1 and 2 x 2 samples
    kwargs = dict(strides=(4,), output_size=2, sampling_ratio=0)
    full = pool([feature], boxes, **kwargs)
    cut = pool([feature], boxes, **kwargs, max_samples=2)
    np.testing.assert_allclose(full[0, 0], numpy_roi_align(feature[0], boxes[0, 0], 4, 2, 0), atol=1e-5)
    np.testing.assert_allclose(cut[0, 0], numpy_roi_align(feature[0], boxes[0, 0], 4, 2, 0, most=2), atol=1e-5)
    np.testing.assert_array_equal(full[0, 1], cut[0, 1])
    assert np.abs(full[0, 0] - cut[0, 0]).max() > 1e-3


def test_samples_beyond_the_bound_by_hand():
    """One bin over 40 feature pixels, one of them a row: 40 samples, and for a bound of 2 those at 1/4 and 3/4."""
    feature = (np.arange(40, dtype=np.float32) ** 2).reshape(1, 1, 40, 1)
    boxes = np.array([[[0, 0, 160, 4]]], np.float32)

    def mean(bound):
        kwargs = dict(strides=(4,), output_size=1, sampling_ratio=0, max_samples=bound)
        return float(pool([feature], boxes, **kwargs)[0, 0, 0, 0, 0])

    assert mean(64) == mean(40) == np.mean(np.arange(40) ** 2)
    # At 9.5 and 29.5 feature pixels, each between two: the whole bin is seen, by fewer points.
    assert mean(2) == np.mean([9**2, 10**2, 29**2, 30**2])
    assert mean(1) == (19**2 + 20**2) / 2


def test_the_model_takes_the_bound_of_its_config():
    rng = np.random.default_rng(7)
    features = [*pyramid(rng, 1, 128, 128, 2), np.zeros((1, 2, 2, 2), np.float32)]  # p2 .. p6
    boxes = np.array([[[0, 0, 128, 10], [3, 4, 90, 80]]], np.float32)
    pooled = []
    for bound in (64, 1):
        config = base.get_config()
        config.model.roi.update(sampling_ratio=0, max_samples=bound)
        model = build_model(config, 3)
        pooled.append(jax.jit(lambda f, model=model: model.apply({}, f, boxes, 2, method="pool"))(features))
        expected = pool(features[:4], boxes, strides=STRIDES, output_size=2, sampling_ratio=0, max_samples=bound)
        np.testing.assert_allclose(pooled[-1], expected[0], atol=1e-6)
    assert np.abs(pooled[0] - pooled[1]).max() > 0.01


@pytest.mark.parametrize(("ratio", "bound"), [(2, 64), (0, 64), (0, 2)])
def test_gradient(ratio, bound):
    """Every level, boxes over and off each border, without width and area; with the bound reached by eight of ten."""
    rng = np.random.default_rng(2)
    features = pyramid(rng, 2, 128, 96, 2)
    grad = rng.standard_normal((2, 5, 3, 3, 2), np.float32)

    @jax.jit
    def run(features, boxes, grad):
        def pool_both(features, boxes):
            kwargs = dict(strides=STRIDES, output_size=3, sampling_ratio=ratio, max_samples=bound)
            return pool(features, boxes, **kwargs)

        return jax.vjp(pool_both, features, boxes)[1](grad)

    grad_features, grad_boxes = run(features, BOXES, grad)
    assert not np.asarray(grad_boxes).any()
    # Pooling is linear: its transpose is found exactly by pooling unit impulses with the
    # NumPy implementation.
    for level, (feature, got) in enumerate(zip(features, grad_features, strict=True)):
        assert got.dtype == feature.dtype and np.isfinite(got).all()
        _, height, width, channels = feature.shape
        expected = np.zeros_like(feature)
        impulses = np.eye(height * width).reshape(height, width, height * width)
        for b, r in np.ndindex(BOXES.shape[:2]):
            if numpy_level(BOXES[b, r]) == level:
                response = numpy_roi_align(impulses, BOXES[b, r], STRIDES[level], 3, ratio, bound)
                expected[b] += np.einsum("ijp,ijc->pc", response, grad[b, r]).reshape(height, width, channels)
        assert expected.any()
        np.testing.assert_allclose(got, expected, atol=2e-5, err_msg=f"level {level}")


def test_bfloat16_sums_in_float32():
    rng = np.random.default_rng(3)
    features = [jnp.asarray(f, jnp.bfloat16) for f in pyramid(rng, 1, 128, 96, 2)]
    # 300 boxes on one spot: a bfloat16 sum of the gradient would stop growing at 256.
    boxes = np.tile(np.array([[[16, 16, 32, 32]]], np.float32), (1, 300, 1))

    def total(features):
        return pool(features, boxes, strides=STRIDES, output_size=2).astype(jnp.float32).sum()

    grads = jax.jit(jax.grad(total))(features)
    assert grads[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(grads[0], np.float32).sum(), 300 * 4 * 2, rtol=0.01)


def test_no_boxes_and_non_finite_boxes():
    features = pyramid(np.random.default_rng(4), 1, 64, 64, 2)
    for ratio in (2, 0):
        none = pool(features, np.zeros((1, 0, 4), np.float32), strides=STRIDES, output_size=2, sampling_ratio=ratio)
        assert none.shape == (1, 0, 2, 2, 2)
    # A diverged model fails by its loss, not by reading out of bounds.
    bad = np.array([[[np.nan] * 4, [-np.inf, 0, np.inf, 5], [0, 0, 1e30, 1e30]]], np.float32)
    assert np.isfinite(pool(features, bad, strides=STRIDES, output_size=2)).all()


@pytest.mark.parametrize(("ratio", "all_reduces"), [(2, 0), (0, 1)])
def test_images_on_several_devices_need_no_all_gather(ratio, all_reduces):
    mesh = jax.make_mesh((4, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    by_image = NamedSharding(mesh, PartitionSpec("data"))
    rng = np.random.default_rng(5)
    features = pyramid(rng, 8, 64, 64, 4)
    boxes = np.sort(rng.uniform(0, 64, (8, 6, 2, 2)).astype(np.float32), axis=2).reshape(8, 6, 4)

    def run(features, boxes):
        out, vjp = jax.vjp(
            lambda f: pool(f, boxes, strides=STRIDES, output_size=3, sampling_ratio=ratio),
            features,
        )
        return out, vjp(out)[0]

    single = jax.jit(run)(features, boxes)
    compiled = jax.jit(run).lower(*jax.device_put((features, boxes), by_image)).compile()
    found = re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)", compiled.as_text())
    # With adaptive sampling the number of samples, one integer, is agreed on.
    assert set(found) <= {"all-reduce"} and (len(found) > 0) == (all_reduces > 0), found
    several = compiled(*jax.device_put((features, boxes), by_image))
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(several), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (4, 8)}, "4 feature maps and strides"),
        ({"strides": (4, 8, 16, 64)}, "each twice the one before"),
        ({"strides": (3, 6, 12, 24)}, "powers of two"),
        ({"boxes": np.zeros((3, 5, 4), np.float32)}, r"expected \[2, R, 4\]"),
        ({"boxes": np.zeros((10, 4), np.float32)}, r"expected \[2, R, 4\]"),
        ({"output_size": 0}, "output_size 0"),
        ({"sampling_ratio": -1}, "sampling_ratio -1"),
        ({"max_samples": 0}, "max_samples 0"),
    ],
)
def test_refuses(change, message):
    features = [np.zeros((2, 64 // s, 64 // s, 2), np.float32) for s in STRIDES]
    kwargs = dict(boxes=BOXES, strides=STRIDES, output_size=2) | change
    with pytest.raises(ValueError, match=message):
        roi_align.multilevel_roi_align(features, kwargs.pop("boxes"), **kwargs)
    with pytest.raises(ValueError, match="one B and one C"):
        roi_align.multilevel_roi_align([*features[:3], features[3][..., :1]], BOXES, strides=STRIDES, output_size=2)
