"""eql_jax.ops.deform_conv against torchvision's recorded output and gradients, a NumPy loop, and by hand."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from eql_jax.ops.conv import conv2d
from eql_jax.ops.deform_conv import deform_conv2d

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "testdata" / "ops_deform_conv.npz")
CASES = sorted({key.partition("/")[0] for key in GOLDEN.files})


@functools.partial(jax.jit, static_argnames=("strides", "padding", "dilation", "groups", "deform_groups"))
def values_and_gradients(x, offsets, kernel, modulation, grad, **options):
    """Output and the gradients of x, offsets, kernel and modulation (None without)."""

    def run(x, offsets, kernel, modulation):
        return deform_conv2d(x, offsets, kernel, modulation=modulation, **options)

    out, vjp = jax.vjp(run, x, offsets, kernel, modulation)
    return out, *vjp(grad)


def numpy_deform_conv(x, offsets, kernel, modulation, *, strides=1, padding=0, dilation=1, groups=1, deform_groups=1):
    """The definition in float64, sample by sample."""
    batch, height, width, channels = x.shape
    kh, kw, cin, cout = kernel.shape
    out = np.zeros((*offsets.shape[:3], cout))
    per_deform, per_out = channels // deform_groups, cout // groups
    for b, h, w, i, j in np.ndindex(*offsets.shape[:3], kh, kw):
        sample = np.zeros(channels)
        for d in range(deform_groups):
            tap = d * kh * kw + i * kw + j
            y = h * strides - padding + i * dilation + float(offsets[b, h, w, 2 * tap])
            z = w * strides - padding + j * dilation + float(offsets[b, h, w, 2 * tap + 1])
            part = slice(d * per_deform, (d + 1) * per_deform)
            near_y, near_z = (np.maximum(0, 1 - abs(p - np.arange(n))) for p, n in ((y, height), (z, width)))
            sample[part] = np.einsum("h,w,hwc->c", near_y, near_z, x[b, ..., part])
            if modulation is not None:
                sample[part] *= modulation[b, h, w, tap]
        for g in range(groups):
            outs = slice(g * per_out, (g + 1) * per_out)
            out[b, h, w, outs] += sample[g * cin : (g + 1) * cin] @ kernel[i, j, :, outs]
    return out


def random_inputs(rng, shape, cout, out_size, *, kernel=3, groups=1, deform_groups=1, spread=1.5):
    taps = kernel**2 * deform_groups
    return (
        rng.standard_normal(shape, np.float32),
        rng.normal(0, spread, (shape[0], *out_size, 2 * taps)).astype(np.float32),
        rng.standard_normal((kernel, kernel, shape[3] // groups, cout), np.float32),
        rng.random((shape[0], *out_size, taps), np.float32),
    )


@pytest.mark.parametrize("case", CASES)
def test_recorded_output_and_gradients(case):
    def nhwc(key):
        return GOLDEN[f"{case}/{key}"].transpose(0, 2, 3, 1) if f"{case}/{key}" in GOLDEN.files else None

    def hwio(key):
        return GOLDEN[f"{case}/{key}"].transpose(2, 3, 1, 0)

    names = ("strides", "padding", "dilation", "groups", "deform_groups")
    options = dict(zip(names, GOLDEN[f"{case}/options"].tolist(), strict=True))
    arrays = nhwc("input"), nhwc("offset"), hwio("weight"), nhwc("mask"), nhwc("grad_output")
    got = values_and_gradients(*arrays, **options)
    expected = nhwc("output"), nhwc("d_input"), nhwc("d_offset"), hwio("d_weight"), nhwc("d_mask")
    for name, ours, theirs in zip(("output", "x", "offsets", "kernel", "modulation"), got, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max(), err_msg=name)


@pytest.mark.parametrize(
    "options",
    [
        dict(padding=1),
        dict(strides=2, padding=1, groups=2, deform_groups=3),
        dict(padding=2, dilation=2, deform_groups=2),
    ],
    ids=str,
)
def test_against_numpy_loop(options):
    rng = np.random.default_rng(0)
    out_size = [(n + 2 * options.get("padding", 0) - 2 * options.get("dilation", 1) - 1) for n in (6, 5)]
    out_size = [n // options.get("strides", 1) + 1 for n in out_size]
    groups, deform_groups = options.get("groups", 1), options.get("deform_groups", 1)
    x, offsets, kernel, modulation = random_inputs(
        rng, (2, 6, 5, 6), 4, out_size, groups=groups, deform_groups=deform_groups, spread=2.5
    )
    # Whole numbers, halves, and positions one pixel outside and a little less.
    offsets = np.where(rng.random(offsets.shape) < 0.3, np.round(offsets * 2) / 2, offsets).astype(np.float32)
    offsets[0, 0, 0, :6] = -1, -1, -0.999, -0.999, 1e30, -1e30
    expected = numpy_deform_conv(x, offsets, kernel, modulation, **options)
    grad = rng.standard_normal(expected.shape, np.float32)
    out, grad_x, _, grad_kernel, grad_modulation = values_and_gradients(x, offsets, kernel, modulation, grad, **options)
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
    plain = values_and_gradients(x, offsets, kernel, None, grad, **options)[0]
    expected = numpy_deform_conv(x, offsets, kernel, None, **options)
    np.testing.assert_allclose(plain, expected, atol=1e-5 * np.abs(expected).max())
    # Linear in x, in the kernel and in the modulation: <grad, f(dx)> = <grad_x, dx>, and so for the others.
    for i, got in ((0, grad_x), (2, grad_kernel), (3, grad_modulation)):
        arrays = [x, offsets, kernel, modulation]
        arrays[i] = rng.standard_normal(arrays[i].shape, np.float32)
        products = grad * numpy_deform_conv(*arrays, **options)
        dot = (np.asarray(got) * arrays[i]).sum(dtype=float)
        np.testing.assert_allclose(dot, products.sum(), atol=1e-6 * np.abs(products).sum(), err_msg=str(i))


def test_gradient_of_offsets_by_finite_differences():
    rng = np.random.default_rng(1)
    x, offsets, kernel, modulation = random_inputs(rng, (1, 4, 4, 2), 2, (4, 4), spread=2)
    # Away from whole numbers, where the slope jumps.
    offsets = (np.floor(offsets) + rng.uniform(0.1, 0.9, offsets.shape)).astype(np.float32)
    grad = rng.standard_normal((1, 4, 4, 2), np.float32)
    got = np.asarray(values_and_gradients(x, offsets, kernel, modulation, grad, padding=1)[2])
    for index in rng.choice(offsets.size, 40, replace=False):
        step = np.zeros(offsets.size)
        step[index] = 0.05  # bilinear between whole numbers: differences are exact
        up, down = (
            numpy_deform_conv(x, offsets + sign * step.reshape(offsets.shape), kernel, modulation, padding=1)
            for sign in (1, -1)
        )
        np.testing.assert_allclose(got.flat[index], (grad * (up - down)).sum() / 0.1, atol=1e-4)


@pytest.mark.parametrize(("strides", "groups"), [(1, 1), (2, 2)])
def test_zero_offsets_are_a_plain_convolution(strides, groups):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 8, 6, 4), np.float32)
    kernel = rng.standard_normal((3, 3, 4 // groups, 6), np.float32)
    options = dict(strides=strides, padding=1, groups=groups)
    expected, vjp = jax.vjp(lambda x, k: conv2d(x, k, **options), x, kernel)
    offsets = np.zeros((*expected.shape[:3], 18), np.float32)
    out, grad_x, _, grad_kernel, _ = values_and_gradients(x, offsets, kernel, None, expected, **options)
    for ours, plain in zip((out, grad_x, grad_kernel), (expected, *vjp(expected)), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5 * np.abs(plain).max())
    half = np.full((*expected.shape[:3], 9), 0.5, np.float32)
    np.testing.assert_allclose(
        values_and_gradients(x, offsets, kernel, half, expected, **options)[0], expected / 2, atol=1e-5
    )


def test_whole_offsets_shift_the_input():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 6, 7, 3), np.float32)
    kernel = rng.standard_normal((3, 3, 3, 2), np.float32)
    offsets = np.tile(np.array([2, -1], np.float32), (1, 6, 7, 9))
    # Down by two, left by one: what comes from outside is zero.
    shifted = np.pad(x, ((0, 0), (0, 3), (2, 0), (0, 0)))[:, 1:]
    expected = conv2d(jnp.asarray(shifted), jnp.asarray(kernel))
    np.testing.assert_allclose(deform_conv2d(x, offsets, kernel, padding=1), expected, atol=1e-5)


def test_positions_outside_by_hand():
    """A 1x1 kernel on a 2x2 map of 1 2 / 3 4: the sample itself comes out."""
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    kernel = jnp.ones((1, 1, 1, 1))

    run = jax.jit(jax.value_and_grad(lambda offsets: deform_conv2d(x, offsets, kernel)[0, 0, 0, 0]))

    def sample(y, column):  # read by the pixel (0, 0)
        offsets = np.zeros((1, 2, 2, 2), np.float32)
        offsets[0, 0, 0] = y, column
        out, slopes = run(offsets)
        return [float(out), *np.asarray(slopes)[0, 0, 0].tolist()]

    # value, slope along y, slope along x
    assert sample(0.5, 0.5) == [2.5, 2, 1]
    assert sample(0, 0) == [1, 2, 1]
    assert sample(-0.5, 0) == [0.5, 1, 0.5]
    assert sample(-1, 0) == [0, 1, 0]  # floor's side: just below -1 there is no slope
    assert sample(1, 1) == [4, -4, -4]
    assert sample(1.75, 1) == [1, -4, -1]
    assert sample(2, 0) == [0, 0, 0]
    assert sample(0, 2) == [0, 0, 0]
    assert sample(-1.25, 0) == [0, 0, 0]
    assert sample(1e20, -1e20) == [0, 0, 0]
    assert np.isnan(sample(np.nan, 0)[0])


def test_far_outside_is_zero():
    rng = np.random.default_rng(4)
    x, offsets, kernel, modulation = random_inputs(rng, (1, 5, 5, 2), 3, (5, 5))
    offsets = np.where(offsets > 0, 9, -9).astype(np.float32)
    for array in values_and_gradients(x, offsets, kernel, modulation, np.ones((1, 5, 5, 3), np.float32), padding=1):
        assert not np.asarray(array).any()


def test_bfloat16_accumulates_in_float32():
    rng = np.random.default_rng(5)
    x, offsets, kernel, modulation = random_inputs(rng, (1, 6, 6, 64), 8, (6, 6))
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in (x, kernel))
    grad = jnp.ones((1, 6, 6, 8), jnp.bfloat16)
    low = values_and_gradients(x, offsets, kernel, modulation, grad, padding=1)
    full = values_and_gradients(*(a.astype(jnp.float32) for a in (x, offsets, kernel, modulation, grad)), padding=1)
    dtypes = (jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.bfloat16, jnp.float32)
    for got, expected, dtype in zip(low, full, dtypes, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got.astype(np.float32), expected, atol=0.01 * np.abs(expected).max())


def test_images_on_several_devices_need_no_all_gather():
    mesh = jax.make_mesh((4, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    by_image, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    arrays = random_inputs(np.random.default_rng(6), (8, 6, 6, 4), 4, (6, 6))
    grad = np.ones((8, 6, 6, 4), np.float32)
    expected = values_and_gradients(*arrays, grad, padding=1)
    x, offsets, kernel, modulation, grad = (
        jax.device_put(a, everywhere if i == 2 else by_image) for i, a in enumerate((*arrays, grad))
    )
    placed = (x, offsets, kernel, modulation, grad)
    compiled = values_and_gradients.lower(*placed, padding=1).compile()
    found = re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)", compiled.as_text())
    assert set(found) == {"all-reduce"}, found
    for got, alone in zip(values_and_gradients(*placed, padding=1), expected, strict=True):
        np.testing.assert_allclose(got, alone, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(offsets=(1, 5, 5, 17)), r"offsets .* expected \(1, 5, 5, 18\)"),
        (dict(offsets=(1, 4, 5, 18)), "offsets"),
        (dict(modulation=(1, 5, 5, 8)), "modulation"),
        (dict(kernel=(3, 3, 3, 4)), "kernel"),
        (dict(groups=2), "2 group"),
        (dict(deform_groups=3), "3 deform groups"),
        (dict(strides=0), "strides 0"),
        (dict(padding=-1), "padding -1"),
    ],
)
def test_refuses(change, message):
    shapes = dict(x=(1, 5, 5, 4), offsets=(1, 5, 5, 18), kernel=(3, 3, 4, 4), modulation=(1, 5, 5, 9))
    arrays = {name: jnp.ones(change.get(name, shape)) for name, shape in shapes.items()}
    options = dict(padding=1) | {k: v for k, v in change.items() if k not in shapes}
    with pytest.raises(ValueError, match=message):
        deform_conv2d(arrays["x"], arrays["offsets"], arrays["kernel"], modulation=arrays["modulation"], **options)


def test_refuses_mixed_dtypes():
    with pytest.raises(ValueError, match="bfloat16"):
        deform_conv2d(jnp.ones((1, 5, 5, 4)), jnp.ones((1, 5, 5, 18)), jnp.ones((3, 3, 4, 4), jnp.bfloat16), padding=1)
