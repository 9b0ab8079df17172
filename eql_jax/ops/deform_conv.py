"""Deformable convolution (Dai et al. 2017), with modulation (Zhu et al. 2019), as detectron2 and torchvision have it.

How it is computed: one tap of the kernel after the other. A tap reads a bilinear sample for every output pixel, which
is four gathers of rows from the padded map, and adds one matmul to the output; the samples of all taps, nine times the
map for a 3x3, never exist together. The gradient is the same loop: it samples again and scatters into the map.

Shapes: B images, H W size of the input, H' W' of the output, N = H' W', Cin and Cout channels, D deform groups,
T = kh kw taps. Everything is NHWC.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class _Options(NamedTuple):
    strides: int
    padding: int
    dilation: int
    groups: int
    deform_groups: int


def deform_conv2d(
    x: jax.Array,
    offsets: jax.Array,
    kernel: jax.Array,
    *,
    modulation: jax.Array | None = None,
    strides: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> jax.Array:
    """2-D convolution whose taps read x at their place plus an offset of their own in every output pixel.

    Tap (i, j) of output pixel (h, w) reads x at y = h strides - padding + i dilation + dy and x alike, bilinearly; what
    lies outside the map counts as zero, so a sample is 0 from one pixel outside on. Differentiable in reverse mode with
    respect to x, offsets, modulation and kernel. At a whole-numbered position the slope in the offset is that towards
    larger positions (floor's side), as in torchvision.

    Args:
      x: [B, H, W, Cin], floating.
      offsets: [B, H', W', 2 T D], floating; pixels of x. Channel 2 (d T + t) is dy of tap t = i kw + j of deform group
        d, the next one its dx: detectron2's order.
      kernel: [kh, kw, Cin / groups, Cout], the dtype of x.
      modulation: [B, H', W', T D], factors on the samples, channel d T + t; None: all 1.
      strides, padding, dilation: of both axes, as in `conv2d`.
      groups: output channels [g Cout / groups, (g + 1) Cout / groups) see the g-th group of input channels only.
      deform_groups: D; the d-th group of Cin / D input channels has offsets and modulation of its own.

    Returns:
      [B, H', W', Cout] in the dtype of x, with H' = (H + 2 padding - dilation (kh - 1) - 1) // strides + 1. Positions
      and sums are float32.

    Raises:
      ValueError: if shapes, dtypes or options do not fit together.
    """
    options = _Options(strides, padding, dilation, groups, deform_groups)
    _check(x, offsets, kernel, modulation, options)
    return _deform_conv(x, offsets, kernel, modulation, options)


class _Tap(NamedTuple):
    """Where a tap reads, [B, D, N] each; all taps: [T, B, D, N]."""

    y: jax.Array  # float32, position in pixels of x
    x: jax.Array
    factor: jax.Array | None  # float32, modulation


class _Corners(NamedTuple):
    """The four pixels around each position, in the order top left, top right, bottom left, bottom right."""

    shift: jax.Array  # int32 [4], from the top left one to each, rows of the flat padded map
    weight: jax.Array  # float32 [4, B, D, N], bilinear, 0 for positions outside
    slope_y: jax.Array  # float32 [4, B, D, N], of the weight along y
    slope_x: jax.Array


def _all_taps(offsets, modulation, kernel_shape, options) -> _Tap:
    kh, kw = kernel_shape[:2]
    batch, height, width, _ = offsets.shape
    rows, columns = (jnp.arange(n, dtype=jnp.float32) * options.strides - options.padding for n in (height, width))
    down, right = (jnp.arange(n, dtype=jnp.float32) * options.dilation for n in (kh, kw))
    grid = (kh, kw, height, width)
    y = jnp.broadcast_to(down[:, None, None, None] + rows[:, None], grid).reshape(kh * kw, 1, 1, height * width)
    x = jnp.broadcast_to(right[:, None, None] + columns, grid).reshape(kh * kw, 1, 1, height * width)
    offsets = offsets.astype(jnp.float32).reshape(batch, height * width, options.deform_groups, kh * kw, 2)
    offsets = offsets.transpose(4, 3, 0, 2, 1)
    if modulation is not None:
        modulation = modulation.astype(jnp.float32).reshape(batch, height * width, options.deform_groups, kh * kw)
        modulation = modulation.transpose(3, 0, 2, 1)
    return _Tap(y + offsets[0], x + offsets[1], modulation)


def _corners(tap, height, width) -> tuple[jax.Array, _Corners]:
    """int32 [B, D, N], the top left pixel's row of the flat padded map, and the corners."""
    top, left = jnp.floor(tap.y), jnp.floor(tap.x)
    inside = (top >= -1) & (top < height) & (left >= -1) & (left < width)
    outside = (top < -1) | (top >= height) | (left < -1) | (left >= width)  # both False for NaN, which is to show
    first = jnp.where(inside, (top + 1) * (width + 2) + left + 1, 0).astype(jnp.int32)
    down, right = tap.y - top, tap.x - left
    up, back = 1 - down, 1 - right

    def stack(*values):
        return jnp.where(outside, 0.0, jnp.stack(values))

    return first, _Corners(
        shift=jnp.asarray((0, 1, width + 2, width + 3), jnp.int32),
        weight=stack(up * back, up * right, down * back, down * right),
        slope_y=stack(-back, -right, back, right),
        slope_x=stack(-up, up, -down, down),
    )


def _pad(x, deform_groups):
    """[B, H, W, Cin] -> [B, D, (H + 2) (W + 2), Cin / D]; the border of zeros serves the corners outside."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    batch, height, width, channels = x.shape
    return x.reshape(batch, height * width, deform_groups, channels // deform_groups).transpose(0, 2, 1, 3)


def _unpad(x, shape):
    batch, height, width, channels = shape
    return x.transpose(0, 2, 1, 3).reshape(batch, height + 2, width + 2, channels)[:, 1:-1, 1:-1]


# Batched over B (not one index over B D M rows), so that images spread over devices stay where they are.
@jax.vmap
@jax.vmap
def _gather(x, index):
    """x [B, D, M, C], index [B, D, N] -> [B, D, N, C]."""
    return x.at[index].get(mode="promise_in_bounds")


@jax.vmap
@jax.vmap
def _scatter(total, index, rows):
    return total.at[index].add(rows, mode="promise_in_bounds")


def _sample(padded, tap, first, corners):
    """Samples times modulation, float32 [B, D, N, C]."""
    total = 0.0
    for shift, weight in zip(corners.shift, corners.weight, strict=True):
        total = total + _gather(padded, first + shift).astype(jnp.float32) * weight[..., None]
    return total if tap.factor is None else total * tap.factor[..., None]


def _merge_groups(samples, dtype):
    """[B, D, N, C] -> [B, N, D C] in `dtype`."""
    batch, _, n, _ = samples.shape
    return samples.transpose(0, 2, 1, 3).reshape(batch, n, -1).astype(dtype)


def _split_groups(columns, deform_groups):
    batch, n, _ = columns.shape
    return columns.reshape(batch, n, deform_groups, -1).transpose(0, 2, 1, 3)


def _matmul(columns, kernel, groups):
    """[B, N, Cin] and [Cin / groups, Cout] -> float32 [B, N, Cout]."""
    if groups == 1:
        return _product("bni,io->bno", columns, kernel)
    split = columns.reshape(*columns.shape[:2], groups, -1)
    out = _product("bngi,igo->bngo", split, kernel.reshape(kernel.shape[0], groups, -1))
    return out.reshape(*columns.shape[:2], -1)


def _matmul_gradients(columns, kernel, grad, groups):
    """Gradients of `_matmul` in float32: [B, N, Cin] and [Cin / groups, Cout]."""
    if groups == 1:
        return _product("bno,io->bni", grad, kernel), _product("bni,bno->io", columns, grad)
    split, split_grad = (v.reshape(*v.shape[:2], groups, -1) for v in (columns, grad))
    to_columns = _product("bngo,igo->bngi", split_grad, kernel.reshape(kernel.shape[0], groups, -1))
    return to_columns.reshape(columns.shape), _product("bngi,bngo->igo", split, split_grad).reshape(kernel.shape)


def _product(formula, a, b):
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _deform_conv(x, offsets, kernel, modulation, options):
    batch, height, width, _ = x.shape
    padded = _pad(x, options.deform_groups)

    def add_tap(total, each):
        tap, weights = each
        samples = _sample(padded, tap, *_corners(tap, height, width))
        return total + _matmul(_merge_groups(samples, x.dtype), weights, options.groups), None

    each = _all_taps(offsets, modulation, kernel.shape, options), kernel.reshape(-1, *kernel.shape[2:])
    total = jnp.zeros((batch, math.prod(offsets.shape[1:3]), kernel.shape[-1]), jnp.float32)
    total, _ = lax.scan(add_tap, total, each)
    return total.reshape(*offsets.shape[:3], -1).astype(x.dtype)


def _forward(x, offsets, kernel, modulation, options):
    return _deform_conv(x, offsets, kernel, modulation, options), (x, offsets, kernel, modulation)


def _backward(options, residuals, grad):
    x, offsets, kernel, modulation = residuals
    batch, height, width, _ = x.shape
    padded = _pad(x, options.deform_groups)
    ones = jnp.ones(padded.shape[-1], jnp.float32)
    grad = grad.reshape(batch, -1, grad.shape[-1])

    def back_tap(total, each):
        tap, weights = each
        first, corners = _corners(tap, height, width)
        columns = _merge_groups(_sample(padded, tap, first, corners), x.dtype)
        to_columns, to_weights = _matmul_gradients(columns, weights, grad, options.groups)
        to_samples = _split_groups(to_columns, options.deform_groups)

        def back_corner(total, corner):
            # A sum over channels as a product with ones takes a third of the time of `sum` on a CPU.
            rows = _gather(padded, first + corner.shift).astype(jnp.float32)
            product = jnp.matmul(rows * to_samples, ones, precision="highest")
            weight = corner.weight if tap.factor is None else corner.weight * tap.factor
            total = _scatter(total, first + corner.shift, to_samples * weight[..., None])
            return total, _Tap(product * corner.slope_y, product * corner.slope_x, product * corner.weight)

        # A loop, because unrolled gathers and scatters keep all their operands alive: three times the memory.
        total, to_corners = lax.scan(back_corner, total, corners)
        to_y, to_x, to_factor = (jnp.sum(v, axis=0) for v in to_corners)
        if tap.factor is None:
            return total, (_Tap(to_y, to_x, None), to_weights)
        return total, (_Tap(to_y * tap.factor, to_x * tap.factor, to_factor), to_weights)

    each = _all_taps(offsets, modulation, kernel.shape, options), kernel.reshape(-1, *kernel.shape[2:])
    total, (to_taps, to_kernel) = lax.scan(back_tap, jnp.zeros(padded.shape, jnp.float32), each)
    to_offsets = jnp.stack([to_taps.y, to_taps.x]).transpose(2, 4, 3, 1, 0)  # [2, T, B, D, N] -> [B, N, D, T, 2]
    to_modulation = None
    if modulation is not None:
        to_modulation = to_taps.factor.transpose(1, 3, 2, 0).reshape(modulation.shape).astype(modulation.dtype)
    return (
        _unpad(total, x.shape).astype(x.dtype),
        to_offsets.reshape(offsets.shape).astype(offsets.dtype),
        to_kernel.reshape(kernel.shape).astype(kernel.dtype),
        to_modulation,
    )


_deform_conv.defvjp(_forward, _backward)


def _check(x, offsets, kernel, modulation, options) -> None:
    strides, padding, dilation, groups, d = options
    if min(strides, dilation, groups, d) < 1 or padding < 0:
        raise ValueError(
            f"deform_conv2d: strides {strides}, padding {padding}, dilation {dilation}, groups {groups}, deform_groups "
            f"{d}; expected all at least 1, padding at least 0."
        )
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2] * groups != x.shape[-1] or kernel.shape[3] % groups:
        raise ValueError(
            f"deform_conv2d: x {x.shape} and kernel {kernel.shape} with {groups} group(s), expected [B, H, W, Cin] and "
            "[kh, kw, Cin / groups, Cout] with Cout a multiple of groups."
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"deform_conv2d: x is {x.dtype} and the kernel {kernel.dtype}; cast one of them.")
    if x.shape[-1] % d:
        raise ValueError(f"deform_conv2d: {x.shape[-1]} input channels in {d} deform groups; expected a multiple.")
    sides = zip(x.shape[1:3], kernel.shape[:2], strict=True)
    size = [(n + 2 * padding - dilation * (k - 1) - 1) // strides + 1 for n, k in sides]
    taps = kernel.shape[0] * kernel.shape[1] * d
    for name, array, channels in (("offsets", offsets, 2 * taps), ("modulation", modulation, taps)):
        expected = (x.shape[0], *size, channels)
        if array is not None and array.shape != expected:
            raise ValueError(f"deform_conv2d: {name} {array.shape}, expected {expected} for x {x.shape}.")
