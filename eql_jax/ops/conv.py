"""Convolution, pooling and transposed convolution, with the formulation that suits the platform.

This module alone knows on which platform it runs. GPU and TPU get plain `lax.conv_general_dilated`. XLA's CPU
convolution is good forwards and for the gradient of the input, and slow in cases that a ResNet is made of: 1x1
kernels, which are matmuls; the weight gradient with many channels, which is a handful of matmuls of shifted maps;
groups of channels, whose gradients take a hundred times as long; and the gradient of max pooling. They are written out
here. ResNet-50 at 640x640, forward and backward on two cores: 2.6 s against 5.5 s with plain XLA; the same at width 16
on eight images of 128x128: 49 ms against 100 ms. Values agree up to rounding.

Shapes: B images, H W size of the input, H' W' of the output, Cin and Cout channels. Everything is NHWC.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# From this many input channels on, matmuls of shifted maps beat XLA's own weight gradient on a CPU: measured 26 ms
# against 60 ms for 80x80x128 and 0.48 s against 1.19 s for 160x160x256; below, XLA is as fast or faster.
_SHIFTED_MATMUL_CHANNELS = 128

# Channels of the convolutions that a grouped one is made of. One layer of ResNeXt 32x8d, forward and backward at
# 100x152x256: 34 s of processor time as XLA's grouped convolution, .32 s as eight of 32 channels, .77 s as four of 64.
_BLOCK_CHANNELS = 32

_implementation = contextvars.ContextVar("eql_jax_conv_implementation", default="auto")


@contextlib.contextmanager
def conv_implementation(name: str) -> Iterator[None]:
    """Fixes the formulation for what is traced inside the `with` block.

    Needed by tests, and to lower a program for another platform than the one it is traced on (ahead-of-time
    compilation for TPU on a CPU machine). A function that `jax.jit` has traced before keeps what it was traced with.

    Args:
      name: 'xla' (plain `lax.conv_general_dilated`), 'cpu' (matmuls) or 'auto' ('cpu' when JAX's default backend is
        the CPU, else 'xla').

    Raises:
      ValueError: for any other name.
    """
    if name not in ("auto", "cpu", "xla"):
        raise ValueError(f"conv_implementation: got {name!r}, expected 'auto', 'cpu' or 'xla'.")
    token = _implementation.set(name)
    try:
        yield
    finally:
        _implementation.reset(token)


def conv2d(x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: int = 0, groups: int = 1) -> jax.Array:
    """2-D convolution (cross-correlation) with the same zero padding on every side, as torch.nn.Conv2d.

    Differentiable in reverse mode. Forward mode (`jax.jvp`) is not defined for the CPU formulation.

    Args:
      x: [B, H, W, Cin], floating.
      kernel: [kh, kw, Cin / groups, Cout], the dtype of x.
      strides: step in both directions.
      padding: zeros added at the top, bottom, left and right each.
      groups: output channels [g Cout / groups, (g + 1) Cout / groups) see the g-th group of input channels only.

    Returns:
      [B, H', W', Cout] in the dtype of x, with H' = (H + 2 padding - kh) // strides + 1.

    Raises:
      ValueError: if shapes, dtypes or options do not fit together.
    """
    _check_conv(x, kernel, strides, padding, groups)
    if _use_cpu():
        if groups > 1:
            return _conv_by_blocks(x, kernel, strides, padding, groups)
        if kernel.shape[:2] == (1, 1) and padding == 0:
            return _conv_1x1(x, kernel, strides)
        if x.shape[-1] >= _SHIFTED_MATMUL_CHANNELS:
            return _conv_with_matmul_gradient(x, kernel, strides, padding)
    return _xla_conv(x, kernel, strides, padding, groups)


def conv_transpose_2x2(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution with a 2x2 kernel and stride 2: doubles the resolution, windows do not overlap.

    Output pixel (2h + i, 2w + j) is x[h, w] @ kernel[i, j]. torch.nn.ConvTranspose2d(kernel_size=2, stride=2) stores
    its weight as (Cin, Cout, i, j): transpose it by (2, 3, 0, 1), without flipping.

    Args:
      x: [B, H, W, Cin].
      kernel: [2, 2, Cin, Cout], the dtype of x.

    Returns:
      [B, 2H, 2W, Cout] in the dtype of x.

    Raises:
      ValueError: if the kernel does not fit.
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[:3] != (2, 2, x.shape[-1]):
        raise ValueError(
            f"conv_transpose_2x2: x {x.shape} and kernel {kernel.shape}, expected [B, H, W, Cin] and [2, 2, Cin, Cout]."
        )
    if not _use_cpu():
        return _xla_conv_transpose(x, kernel)
    batch, height, width, cin = x.shape
    cout = kernel.shape[-1]
    # One matmul for the four taps; the taps become pixels by moving i next to h.
    taps = x.reshape(-1, cin) @ kernel.transpose(2, 0, 1, 3).reshape(cin, 4 * cout)
    taps = taps.reshape(batch, height, width, 2, 2, cout).transpose(0, 1, 3, 2, 4, 5)
    return taps.reshape(batch, 2 * height, 2 * width, cout)


@jax.custom_jvp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., C] + bias [C] in the type of x, whose gradient to the bias is summed in float32 and has the bias's type.

    The gradient of a plain sum is added up in the type of x. On a CPU a bfloat16 bias that 65,536 positions share then
    gets an eighth of what it should.
    """
    return x + bias.astype(x.dtype)


@add_bias.defjvp
def _add_bias_jvp(primals, tangents):
    # Only its transpose is computed in training: the gradient of x as it is, that of the bias summed in float32.
    x, bias = (t.astype(jnp.float32) for t in tangents)
    return add_bias(*primals), (x + bias).astype(primals[0].dtype)


def max_pool(x: jax.Array, *, window: int = 3, strides: int = 2, padding: int | tuple[int, int] = 1) -> jax.Array:
    """Max pooling, padded with minus infinity on every side, as torch.nn.MaxPool2d.

    Args:
      x: [B, H, W, C], floating.
      window: side of the square window.
      strides: step in both directions.
      padding: border in pixels, at most window // 2 so that no window lies in the border alone; or (top and left,
        bottom and right).

    Returns:
      [B, H', W', C] with H' = (H + padding of both sides - window) // strides + 1.

    Raises:
      ValueError: if the padding is too large.
    """
    before, after = (padding, padding) if isinstance(padding, int) else padding
    if not (0 <= before <= window // 2 and 0 <= after <= window // 2):
        raise ValueError(f"max_pool: padding {padding} with window {window}, expected 0 <= padding <= window // 2.")
    pads = ((0, 0), (before, after), (before, after), (0, 0))
    if not _use_cpu():
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, strides, strides, 1), pads)
    height, width = ((n + before + after - window) // strides + 1 for n in x.shape[1:3])
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    largest = None
    for i in range(window):
        for j in range(window):
            tap = _strided_shift(x, i, j, height, width, strides)
            # The first maximum gets the whole gradient, as in XLA and torch (jnp.maximum would share it); NaNs stay.
            largest = tap if largest is None else jnp.where((tap > largest) | (tap != tap), tap, largest)
    return largest


def _use_cpu() -> bool:
    name = _implementation.get()
    return name == "cpu" or (name == "auto" and jax.default_backend() == "cpu")


def _check_conv(x: jax.Array, kernel: jax.Array, strides: int, padding: int, groups: int) -> None:
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            f"conv2d: x {x.shape} and kernel {kernel.shape}, expected [B, H, W, Cin] and [kh, kw, Cin / groups, Cout]."
        )
    if strides < 1 or padding < 0 or groups < 1:
        raise ValueError(
            f"conv2d: strides {strides}, padding {padding}, groups {groups}; expected strides and groups >= 1, "
            "padding >= 0."
        )
    if kernel.shape[2] * groups != x.shape[-1] or kernel.shape[3] % groups:
        raise ValueError(
            f"conv2d: kernel {kernel.shape} does not fit {x.shape[-1]} input channels in {groups} group(s): expected "
            "[kh, kw, Cin / groups, Cout] with Cout a multiple of groups."
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"conv2d: x is {x.dtype} and the kernel {kernel.dtype}; cast one of them.")


def _xla_conv(x, kernel, strides, padding, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        ((padding, padding), (padding, padding)),
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


def _strided_conv_2x2(y, kernel):
    """The map whose transpose `conv_transpose_2x2` is: y [B, 2H, 2W, Cout] -> [B, H, W, Cin]."""
    return lax.conv_general_dilated(y, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWOI", "NHWC"))


@jax.custom_vjp
def _xla_conv_transpose(x, kernel):
    """Compiled for a TPU v4 a third of the cost of the matmul with its transposes (modelled, see docs/performance.md).

    Both gradients are those of the strided convolution, which XLA knows well; its own gradient of the kernel reverses
    the whole map.
    """
    batch, height, width, _ = x.shape
    output = jax.ShapeDtypeStruct((batch, 2 * height, 2 * width, kernel.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda y: _strided_conv_2x2(y, kernel), output)(x)[0]


def _conv_transpose_forward(x, kernel):
    return _xla_conv_transpose(x, kernel), (x, kernel)


def _conv_transpose_backward(residuals, grad):
    x, kernel = residuals
    (grad_kernel,) = jax.linear_transpose(lambda kernel: _strided_conv_2x2(grad, kernel), kernel)(x)
    return _strided_conv_2x2(grad, kernel), grad_kernel


_xla_conv_transpose.defvjp(_conv_transpose_forward, _conv_transpose_backward)


def _conv_by_blocks(x, kernel, strides, padding, groups):
    """A grouped convolution as dense ones over blocks of groups, with zeros between the groups of a block.

    Written out, not looped: inside a loop XLA's CPU convolution loses its fast path (seventeen times the time).
    """
    kh, kw, cin, cout = kernel.shape
    merged = next(n for n in range(1, groups + 1) if groups % n == 0 and (n * cin >= _BLOCK_CHANNELS or n == groups))
    blocks = groups // merged
    own = jnp.eye(merged, dtype=bool)[:, None, None, :, None]  # [group in, Cin, block, group out, Cout]
    kernel = jnp.where(own, kernel.reshape(kh, kw, 1, cin, blocks, merged, cout // groups), 0)
    kernel = kernel.reshape(kh, kw, merged * cin, cout)
    pairs = zip(jnp.split(x, blocks, axis=-1), jnp.split(kernel, blocks, axis=-1), strict=True)
    return jnp.concatenate([conv2d(x, k, strides=strides, padding=padding) for x, k in pairs], axis=-1)


def _conv_1x1(x, kernel, strides):
    x = x[:, ::strides, ::strides]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_with_matmul_gradient(x, kernel, strides, padding):
    """`_xla_conv` whose weight gradient is a sum of matmuls of shifted maps."""
    return _xla_conv(x, kernel, strides, padding, 1)


def _conv_forward(x, kernel, strides, padding):
    return _xla_conv(x, kernel, strides, padding, 1), (x, kernel)


def _conv_backward(strides, padding, residuals, grad):
    x, kernel = residuals
    (grad_x,) = jax.linear_transpose(lambda x: _xla_conv(x, kernel, strides, padding, 1), x)(grad)
    weight_gradient = _weight_gradient_stride_1 if strides == 1 else _weight_gradient_strided
    grad_kernel = weight_gradient(x, grad, kernel.shape, strides, padding)
    return grad_x, grad_kernel.astype(kernel.dtype)


_conv_with_matmul_gradient.defvjp(_conv_forward, _conv_backward)


def _weight_gradient_stride_1(x, grad, kernel_shape, strides, padding):
    """dK[i, j] = sum over pixels of x[h + i, w + j]^T grad[h, w], as kh matmuls of contiguous slices.

    Both maps of an image are laid out as one long row of pixels of equal pitch, so that a shift by (i, j) is an offset
    of i * pitch + j; the zeros between the rows of `grad` hide what wraps around. The kw horizontal shifts are
    concatenated as channels of the gradient: one matmul kw times as wide is faster than kw matmuls. The axis of images
    is kept until the matmul, so that images spread over devices stay where they are.
    """
    del strides
    kh, kw, cin, cout = kernel_shape
    batch, height, width, _ = x.shape
    # One spare row, because the last offset runs kw - 1 pixels over the end of the image.
    rows, pitch = height + 2 * padding + 1, width + 2 * padding
    x = jnp.pad(x, ((0, 0), (padding, padding + 1), (padding, padding), (0, 0))).reshape(batch, -1, cin)
    grad = jnp.pad(grad, ((0, 0), (0, rows - grad.shape[1]), (0, pitch - grad.shape[2]), (0, 0)))
    grad = grad.reshape(batch, -1, cout)
    # The pixels cut off at the end are zeros of the padding.
    span = (rows - kh + 1) * pitch
    shifted = [jnp.pad(grad[:, : span - (kw - 1)], ((0, 0), (j, kw - 1 - j), (0, 0))) for j in range(kw)]
    shifted = jnp.concatenate(shifted, axis=-1).reshape(-1, kw * cout)
    taps = []
    for i in range(kh):
        x_rows = lax.slice_in_dim(x, i * pitch, i * pitch + span, axis=1).reshape(-1, cin)
        taps.append(_matmul_over_pixels(x_rows, shifted).reshape(cin, kw, cout))
    return jnp.stack(taps).transpose(0, 2, 1, 3)


def _weight_gradient_strided(x, grad, kernel_shape, strides, padding):
    """The same for strides above 1: one matmul per tap, because a strided shift is no contiguous slice."""
    kh, kw, cin, cout = kernel_shape
    height, width = grad.shape[1:3]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    grad = grad.reshape(-1, cout)
    taps = []
    for i in range(kh):
        for j in range(kw):
            tap = _strided_shift(x, i, j, height, width, strides)
            taps.append(_matmul_over_pixels(tap.reshape(-1, cin), grad))
    return jnp.stack(taps).reshape(kernel_shape)


def _strided_shift(x, i, j, height, width, strides):
    """x[:, i::strides, j::strides], of which the first height x width pixels."""
    stop = (x.shape[0], i + (height - 1) * strides + 1, j + (width - 1) * strides + 1, x.shape[3])
    return lax.slice(x, (0, i, j, 0), stop, (1, strides, strides, 1))


def _matmul_over_pixels(x, grad):
    """[n, Cin], [n, Cout] -> x^T grad, accumulated in float32."""
    return lax.dot_general(x, grad, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
