"""eql_jax.ops.conv against a direct convolution in NumPy and against plain lax.conv, values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from eql_jax.ops import conv

# batch, height, width, Cin, Cout, kernel, strides, padding, groups. From 128 input channels on, the weight gradient is
# the one written out in the module. Groups are merged into blocks of at least 32 channels: 12 of 8 into 3, 5 of 16 into
# one, which 2 do not divide.
CASES = [
    (2, 7, 9, 128, 5, 3, 1, 1, 1),
    (2, 7, 9, 128, 5, 3, 2, 1, 1),
    (2, 8, 6, 128, 4, 3, 2, 1, 1),
    (1, 8, 6, 130, 4, 5, 1, 2, 1),
    (1, 8, 8, 128, 4, 3, 1, 0, 1),
    (3, 5, 5, 128, 3, 1, 1, 1, 1),
    (1, 5, 4, 128, 3, 2, 1, 3, 1),
    (1, 9, 9, 128, 3, 7, 3, 3, 1),
    (1, 3, 3, 128, 2, 3, 1, 0, 1),
    (2, 7, 9, 4, 5, 1, 2, 0, 1),
    (2, 7, 9, 4, 5, 1, 1, 0, 1),
    (1, 9, 7, 3, 6, 7, 2, 3, 1),
    (2, 6, 5, 8, 12, 3, 1, 1, 4),
    (2, 6, 5, 256, 4, 3, 2, 1, 2),
    (2, 6, 5, 96, 24, 3, 1, 1, 12),
    (1, 5, 6, 80, 40, 3, 2, 1, 5),
    (1, 5, 4, 6, 12, 1, 1, 0, 6),
]


def numpy_conv(x, kernel, strides, padding, groups):
    """Direct convolution in float64."""
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    kh, kw, cin, cout = kernel.shape
    out_h, out_w = (x.shape[1] - kh) // strides + 1, (x.shape[2] - kw) // strides + 1
    out = np.zeros((x.shape[0], out_h, out_w, cout))
    for g in range(groups):
        ins, outs = slice(g * cin, (g + 1) * cin), slice(g * cout // groups, (g + 1) * cout // groups)
        for h in range(out_h):
            for w in range(out_w):
                patch = x[:, h * strides : h * strides + kh, w * strides : w * strides + kw, ins]
                out[:, h, w, outs] = np.einsum("bijc,ijco->bo", patch, kernel[..., outs])
    return out


def values_and_gradients(implementation, x, kernel, grad, **options):
    """conv2d and its two gradients in one compilation."""

    def run(x, kernel, grad):
        out, vjp = jax.vjp(lambda x, kernel: conv.conv2d(x, kernel, **options), x, kernel)
        return out, *vjp(grad)

    with conv.conv_implementation(implementation):
        return [np.asarray(array) for array in jax.jit(run)(x, kernel, grad)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv2d_values_and_gradients(case):
    batch, height, width, cin, cout, k, strides, padding, groups = case
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, height, width, cin), np.float32)
    kernel = rng.standard_normal((k, k, cin // groups, cout), np.float32)
    expected = numpy_conv(x, kernel, strides, padding, groups)
    grad = rng.standard_normal(expected.shape, np.float32)
    options = dict(strides=strides, padding=padding, groups=groups)
    cpu = values_and_gradients("cpu", x, kernel, grad, **options)
    xla = values_and_gradients("xla", x, kernel, grad, **options)
    for name, ours, plain in zip(("value", "x", "kernel"), cpu, xla, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, plain, atol=1e-5 * np.abs(plain).max(), err_msg=name)
    out, grad_x, grad_kernel = cpu
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
    # The convolution is linear in both arguments: <grad, conv(dx, kernel)> = <grad_x, dx>, and so for the kernel.
    dx = rng.standard_normal(x.shape, np.float32)
    dk = rng.standard_normal(kernel.shape, np.float32)
    for name, got, products in (
        ("x", (grad_x * dx).sum(dtype=float), grad * numpy_conv(dx, kernel, **options)),
        ("kernel", (grad_kernel * dk).sum(dtype=float), grad * numpy_conv(x, dk, **options)),
    ):
        np.testing.assert_allclose(got, products.sum(), atol=1e-6 * np.abs(products).sum(), err_msg=name)


@pytest.mark.parametrize(("cin", "k"), [(128, 3), (8, 1)])
def test_conv2d_bfloat16(cin, k):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((1, 6, 6, cin)), jnp.bfloat16)
    kernel = jnp.asarray(rng.standard_normal((k, k, cin, 4)), jnp.bfloat16)
    grad = jnp.ones((1, 6, 6, 4), jnp.bfloat16)
    low = values_and_gradients("cpu", x, kernel, grad, padding=k // 2)
    full = values_and_gradients("cpu", *(a.astype(jnp.float32) for a in (x, kernel, grad)), padding=k // 2)
    for got, expected in zip(low, full, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(np.float32), expected, atol=0.02 * np.abs(expected).max())


def test_conv2d_under_vmap_and_jit():
    x = jnp.arange(2 * 3 * 4 * 4 * 128, dtype=jnp.float32).reshape(2, 3, 4, 4, 128) % 7
    kernel = jnp.arange(9 * 128 * 2, dtype=jnp.float32).reshape(3, 3, 128, 2) % 5
    grad = jax.jit(jax.vmap(jax.grad(lambda k, x: (conv.conv2d(x, k, padding=1) ** 2).sum()), (None, 0)))(kernel, x)
    assert grad.shape == (2, *kernel.shape)
    plain = jax.jit(jax.grad(lambda k, x: (jax.lax.conv(x, k, (1, 1), "SAME") ** 2).sum()))
    for image, got in zip(x, grad, strict=True):
        expected = plain(kernel.transpose(3, 2, 0, 1), image.transpose(0, 3, 1, 2))
        np.testing.assert_allclose(got, expected.transpose(2, 3, 1, 0), rtol=1e-4)


def test_conv2d_sizes_by_hand():
    ones = jnp.ones((1, 3, 3, 1))
    out = conv.conv2d(ones, jnp.ones((3, 3, 1, 1)), padding=1)[0, :, :, 0]
    np.testing.assert_array_equal(out, [[4, 6, 4], [6, 9, 6], [4, 6, 4]])


def test_images_on_several_devices_need_no_all_gather():
    mesh = jax.make_mesh((4, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    by_image, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    rng = np.random.default_rng(5)
    x = jax.device_put(rng.standard_normal((8, 6, 6, 128), np.float32), by_image)
    kernels = [rng.standard_normal((3, 3, 128, 128), np.float32), rng.standard_normal((1, 1, 128, 128), np.float32)]
    kernels = jax.device_put([*kernels, kernels[0] / 30], everywhere)

    def loss(kernels, x):
        x = conv.max_pool(conv.conv2d(x, kernels[0], padding=1), strides=1)
        x = conv.conv2d(x, kernels[1], strides=2)
        return (conv.conv2d(x, kernels[2], strides=2, padding=1) ** 2).sum()

    with conv.conv_implementation("cpu"):
        compiled = jax.jit(jax.grad(loss), out_shardings=everywhere).lower(kernels, x).compile()
    found = re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)", compiled.as_text())
    assert set(found) == {"all-reduce"}, found


@pytest.mark.parametrize(
    ("kernel_shape", "options", "message"),
    [
        ((3, 3, 3, 4), {}, "does not fit 4 input channels"),
        ((3, 3, 2, 3), {"groups": 2}, "does not fit 4 input channels in 2 group"),
        ((3, 3, 4), {}, r"expected \[B, H, W, Cin\]"),
        ((3, 3, 4, 4), {"strides": 0}, "strides 0"),
        ((3, 3, 4, 4), {"padding": -1}, "padding -1"),
    ],
)
def test_conv2d_refuses(kernel_shape, options, message):
    with pytest.raises(ValueError, match=message):
        conv.conv2d(jnp.ones((1, 5, 5, 4)), jnp.ones(kernel_shape), **options)


def test_conv2d_refuses_mixed_dtypes_and_unknown_implementation():
    with pytest.raises(ValueError, match="bfloat16"):
        conv.conv2d(jnp.ones((1, 5, 5, 4)), jnp.ones((1, 1, 4, 4), jnp.bfloat16))
    with pytest.raises(ValueError, match="'gpu'"), conv.conv_implementation("gpu"):
        pass


def pool_and_gradient(implementation, x, grad, **options):
    def run(x, grad):
        out, vjp = jax.vjp(lambda x: conv.max_pool(x, **options), x)
        return out, vjp(grad)[0]

    with conv.conv_implementation(implementation):
        return jax.jit(run)(x, grad)


@pytest.mark.parametrize(("window", "strides", "padding"), [(3, 2, 1), (1, 2, 0), (2, 2, 0), (3, 2, (0, 1))])
@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 9, 7, 2)])
def test_max_pool(window, strides, padding, shape):
    # Few distinct values, so that ties are common; all negative, so that zero padding would show.
    x = np.random.default_rng(3).integers(-4, 0, shape).astype(np.float32)
    before, after = (padding, padding) if isinstance(padding, int) else padding
    padded = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), constant_values=-np.inf)
    size = [(n - window) // strides + 1 for n in padded.shape[1:3]]
    expected = np.zeros((shape[0], *size, shape[3]), np.float32)
    expected_grad = np.zeros_like(padded)
    weight = np.arange(expected.size, dtype=np.float32).reshape(expected.shape)
    for b, h, w, c in np.ndindex(expected.shape):
        patch = padded[b, h * strides : h * strides + window, w * strides : w * strides + window, c]
        expected[b, h, w, c] = patch.max()
        i, j = np.unravel_index(patch.argmax(), patch.shape)  # the first maximum takes the gradient
        expected_grad[b, h * strides + i, w * strides + j, c] += weight[b, h, w, c]
    expected_grad = expected_grad[:, before : before + shape[1], before : before + shape[2]]
    for name in ("cpu", "xla"):
        out, grad = pool_and_gradient(name, x, weight, window=window, strides=strides, padding=padding)
        np.testing.assert_array_equal(out, expected, err_msg=name)
        np.testing.assert_array_equal(grad, expected_grad, err_msg=name)


def test_max_pool_keeps_nan_and_refuses_wide_padding():
    x = jnp.ones((1, 6, 6, 1)).at[0, 3, 3, 0].set(jnp.nan)
    out = np.asarray(jax.jit(conv.max_pool)(x)[0, :, :, 0])
    np.testing.assert_array_equal(np.isnan(out), [[False] * 3, [False, True, True], [False, True, True]])
    with pytest.raises(ValueError, match="padding 2 with window 3"):
        conv.max_pool(x, padding=2)


def test_conv_transpose_2x2():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    kernel = rng.standard_normal((2, 2, 5, 6), np.float32)
    expected = np.zeros((2, 6, 8, 6), np.float32)
    for h, w, i, j in np.ndindex(3, 4, 2, 2):
        expected[:, 2 * h + i, 2 * w + j] = x[:, h, w] @ kernel[i, j]
    grad = rng.standard_normal(expected.shape, np.float32)
    grad_x, grad_kernel = np.zeros_like(x), np.zeros_like(kernel)
    for h, w, i, j in np.ndindex(3, 4, 2, 2):
        grad_x[:, h, w] += grad[:, 2 * h + i, 2 * w + j] @ kernel[i, j].T
        grad_kernel[i, j] += x[:, h, w].T @ grad[:, 2 * h + i, 2 * w + j]
    for name in ("cpu", "xla"):
        with conv.conv_implementation(name):
            found, vjp = jax.vjp(conv.conv_transpose_2x2, x, kernel)
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
            for one, of_numpy in zip(vjp(grad), (grad_x, grad_kernel), strict=True):
                np.testing.assert_allclose(one, of_numpy, atol=2e-5, err_msg=name)
    # lax.conv_transpose without a flip (transpose_kernel=False correlates the dilated input) needs the flipped kernel.
    plain = jax.lax.conv_transpose(
        x, kernel[::-1, ::-1], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), transpose_kernel=False
    )
    np.testing.assert_allclose(conv.conv_transpose_2x2(x, kernel), plain, atol=1e-5)
    with pytest.raises(ValueError, match=r"\[2, 2, Cin, Cout\]"):
        conv.conv_transpose_2x2(x, jnp.ones((2, 2, 4, 6)))


@pytest.mark.parametrize("positions", [1, 300, 2**17])
def test_add_bias_sums_the_gradient_in_float32(positions):
    """In bfloat16 the sum of 2 ** 17 ones stands still long before its end."""
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.standard_normal((positions, 3)), jnp.bfloat16)
    bias = jnp.asarray([0.5, -1.0, 3.0])
    weight = rng.integers(0, 3, (positions, 3)).astype(np.float32)
    run = jax.jit(lambda x, bias, weight: jax.vjp(conv.add_bias, x, bias)[1](weight.astype(jnp.bfloat16)))
    grad_x, grad_bias = run(x, bias, weight)
    np.testing.assert_array_equal(np.asarray(grad_x, np.float32), weight)
    np.testing.assert_allclose(grad_bias, weight.sum(0), rtol=1e-6)
    assert grad_bias.dtype == jnp.float32
    np.testing.assert_array_equal(conv.add_bias(x, bias), x + bias.astype(jnp.bfloat16))
    _, tangent = jax.jvp(conv.add_bias, (x, bias), (x, bias))
    np.testing.assert_allclose(tangent, x + bias, rtol=1e-2, atol=1e-2)
