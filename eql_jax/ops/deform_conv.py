"""Deformable convolution (Dai et al. 2017), with modulation (Zhu et al. 2019), as detectron2 and torchvision have it.

How it is computed: one tap of the kernel after the other. A tap reads a bilinear sample for every output pixel, which
is four gathers of rows from the padded map, and adds one matmul to the output; the samples of all taps, nine times the
map for a 3x3, never exist together. The gradient is the same loop, which samples again, and scatters into the map.

Shapes: B images, H W size of the input, H' W' of the output, Cin and Cout channels, D deform groups, T = kh kw taps.
Everything is NHWC.
"""

import functools
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
    """Where one tap reads: the top left of the four pixels around each position, and the way from it."""

    index: jax.Array  # int32 [B, D, N], row of the flat padded map
    y: jax.Array  # float32 [B, D, N], 0 to 1
    x: jax.Array
    factor: jax.Array  # modulation, 0 where the position is outside
    inside: jax.Array  # bool: less than a pixel outside the map


def _taps(offsets, modulation, shape, kernel_shape, options) -> tuple[jax.Array, ...]:
    """Positions and modulation of all taps, [T, B, D, N] float32 each, N = H' W'; modulation may be None."""
    kh, kw = kernel_shape[:2]
    batch, height, width, _ = offsets.shape
    d = options.deform_groups
    offsets = offsets.astype(jnp.float32).reshape(batch, height * width, d, kh * kw, 2).transpose(3, 0, 2, 1, 4)
    first = [jnp.arange(n, dtype=jnp.float32) * options.strides - options.padding for n in (height, width)]
    step = [jnp.arange(n, dtype=jnp.float32) * options.dilation for n in (kh, kw)]
    y = (step[0][:, None, None, None] + first[0][:, None]) + jnp.zeros((kh, kw, height, width))
    x = (step[1][None, :, None, None] + first[1][None, :]) + jnp.zeros((kh, kw, height, width))
    y, x = (p.reshape(kh * kw, 1, 1, height * width) for p in (y, x))
    if modulation is not None:
        modulation = modulation.astype(jnp.float32).reshape(batch, height * width, d, kh * kw).transpose(3, 0, 2, 1)
    return y + offsets[..., 0], x + offsets[..., 1], modulation


def _tap(y, x, modulation, height, width) -> _Tap:
    """One tap of an H x W map that is padded by one pixel on every side."""
    floor_y, floor_x = jnp.floor(y), jnp.floor(x)
    inside = (floor_y >= -1) & (floor_y < height) & (floor_x >= -1) & (floor_x < width)
    row = jnp.where(inside, floor_y + 1, 0).astype(jnp.int32)
    column = jnp.where(inside, floor_x + 1, 0).astype(jnp.int32)
    return _Tap(row * (width + 2) + column, y - floor_y, x - floor_x, modulation, inside)


def _pad(x, deform_groups):
    """[B, H, W, C] -> [B, D, (H + 2) (W + 2), C / D] with a border of zeros."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    batch, height, width, channels = x.shape
    return x.reshape(batch, height * width, deform_groups, channels // deform_groups).transpose(0, 2, 1, 3)


def _unpad(x, shape):
    batch, height, width, channels = shape
    x = x.transpose(0, 2, 1, 3).reshape(batch, height + 2, width + 2, channels)
    return x[:, 1:-1, 1:-1]


def _gather(x, index):
    """x [B, D, M, C], index [B, D, N] -> [B, D, N, C]. Batched over B, so that images stay on their devices."""
    return jax.vmap(jax.vmap(lambda x, index: x.at[index].get(mode="promise_in_bounds")))(x, index)


def _scatter(total, index, rows):
    add = jax.vmap(jax.vmap(lambda total, index, rows: total.at[index].add(rows, mode="promise_in_bounds")))
    return add(total, index, rows)


def _corner_offsets(width):
    return (0, 1, width + 2, width + 3)


def _weights(tap):
    """Bilinear weights of the corners, float32 [B, D, N] each."""
    y, x = tap.y, tap.x
    return [jnp.where(tap.inside, w, 0.0) for w in ((1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x)]


def _sample(x, tap, width):
    """Bilinear samples of one tap before modulation, float32 [B, D, N, C]."""
    total = None
    for offset, weight in zip(_corner_offsets(width), _weights(tap), strict=True):
        rows = _gather(x, tap.index + offset).astype(jnp.float32) * weight[..., None]
        total = rows if total is None else total + rows
    return total


def _columns(samples, dtype):
    """[B, D, N, C] -> [B, N, D C] in `dtype`."""
    batch, d, n, channels = samples.shape
    return samples.transpose(0, 2, 1, 3).reshape(batch, n, d * channels).astype(dtype)


def _matmul(columns, kernel, groups):
    """[B, N, Cin] and [Cin / groups, Cout] -> float32 [B, N, Cout]."""
    if groups == 1:
        return jnp.einsum("bni,io->bno", columns, kernel, preferred_element_type=jnp.float32)
    batch, n, _ = columns.shape
    columns = columns.reshape(batch, n, groups, -1)
    kernel = kernel.reshape(kernel.shape[0], groups, -1)
    out = jnp.einsum("bngi,igo->bngo", columns, kernel, preferred_element_type=jnp.float32)
    return out.reshape(batch, n, -1)


def _matmul_gradients(columns, kernel, grad, groups):
    """Gradients of `_matmul` in float32: [B, N, Cin] and [Cin / groups, Cout]."""
    batch, n, cin = columns.shape
    columns = columns.reshape(batch, n, groups, -1)
    split = kernel.reshape(kernel.shape[0], groups, -1)
    grad = grad.reshape(batch, n, groups, -1)
    in_float32 = dict(preferred_element_type=jnp.float32)
    to_columns = jnp.einsum("bngo,igo->bngi", grad, split, **in_float32).reshape(batch, n, cin)
    return to_columns, jnp.einsum("bngi,bngo->igo", columns, grad, **in_float32).reshape(kernel.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _deform_conv(x, offsets, kernel, modulation, options):
    _, height, width, _ = x.shape
    padded = _pad(x, options.deform_groups)

    def add_tap(total, tap):
        y, x_, factor, weights = tap
        samples = _sample(padded, _tap(y, x_, factor, height, width), width)
        if factor is not None:
            samples = samples * factor[..., None]
        return total + _matmul(_columns(samples, x.dtype), weights, options.groups), None

    taps = (*_taps(offsets, modulation, x.shape, kernel.shape, options), kernel.reshape(-1, *kernel.shape[2:]))
    batch, out_height, out_width, _ = offsets.shape
    total = jnp.zeros((batch, out_height * out_width, kernel.shape[-1]), jnp.float32)
    total, _ = lax.scan(add_tap, total, taps)
    return total.reshape(batch, out_height, out_width, -1).astype(x.dtype)


def _forward(x, offsets, kernel, modulation, options):
    return _deform_conv(x, offsets, kernel, modulation, options), (x, offsets, kernel, modulation)


def _backward(options, residuals, grad):
    x, offsets, kernel, modulation = residuals
    batch, height, width, cin = x.shape
    d = options.deform_groups
    padded = _pad(x, d)
    grad = grad.reshape(batch, -1, grad.shape[-1])

    def back_tap(total, tap):
        y, x_, factor, weights = tap
        tap = _tap(y, x_, factor, height, width)
        samples = _sample(padded, tap, width)
        modulated = samples if factor is None else samples * factor[..., None]
        to_columns, to_kernel = _matmul_gradients(_columns(modulated, x.dtype), weights, grad, options.groups)
        to_columns = to_columns.reshape(batch, -1, d, cin // d).transpose(0, 2, 1, 3)
        products = []
        for offset, weight in zip(_corner_offsets(width), _weights(tap), strict=True):
            rows = _gather(padded, tap.index + offset).astype(jnp.float32)
            products.append(jnp.sum(rows * to_columns, axis=-1))
            weight = weight if factor is None else weight * factor
            total = _scatter(total, tap.index + offset, to_columns * weight[..., None])
        a, b, c, e = products
        fy, fx = tap.y, tap.x
        to_y = jnp.where(tap.inside, (1 - fx) * (c - a) + fx * (e - b), 0.0)
        to_x = jnp.where(tap.inside, (1 - fy) * (b - a) + fy * (e - c), 0.0)
        to_factor = None
        if factor is not None:
            to_factor = sum(w * p for w, p in zip(_weights(tap), products, strict=True))
            to_y, to_x = to_y * factor, to_x * factor
        return total, (to_y, to_x, to_factor, to_kernel)

    taps = (*_taps(offsets, modulation, x.shape, kernel.shape, options), kernel.reshape(-1, *kernel.shape[2:]))
    total = jnp.zeros(padded.shape, jnp.float32)
    total, (to_y, to_x, to_factor, to_kernel) = lax.scan(back_tap, total, taps)
    to_offsets = jnp.stack([to_y, to_x], axis=-1)  # [T, B, D, N, 2]
    to_offsets = to_offsets.transpose(1, 3, 2, 0, 4).reshape(offsets.shape).astype(offsets.dtype)
    if modulation is not None:
        to_factor = to_factor.transpose(1, 3, 2, 0).reshape(modulation.shape).astype(modulation.dtype)
    to_x = _unpad(total, x.shape).astype(x.dtype)
    return to_x, to_offsets, to_kernel.reshape(kernel.shape).astype(kernel.dtype), to_factor


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
