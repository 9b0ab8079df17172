"""RoIAlign over a feature pyramid, with detectron2's "aligned" sampling (ROIAlignV2 behind its ROIPooler).

How it is computed: all levels are laid end to end as one flat pyramid [B, T, C], every RoI knows the offset, size and
scale of its level, and each corner of each bilinear sample is one gather of rows, added to the output at once. With
sampling ratio 2 that is sixteen gathers of the size of the output; a tensor with a corner or sample axis (sixteen times
the output) never exists. The gradient is the same loop with scatter-adds into the flat pyramid.

Shapes: B images, R RoIs of an image, L pyramid levels, Hl Wl size of level l, T = sum of Hl Wl, C channels, S output
size. Boxes are float32 XYXY in pixels of the resized image.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def multilevel_roi_align(
    features: Sequence[jax.Array],
    boxes: jax.Array,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int = 2,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    max_samples: int = 64,
    aligned: bool = True,
) -> jax.Array:
    """Pools every box from the pyramid level that fits its size.

    A box is divided into S x S bins without any rounding; a bin is the mean of its samples, bilinear in the features,
    whose pixel centres are at (i + .5) * stride. A sample more than one feature pixel outside the map counts as 0, one
    less far outside takes the border's value. See `assign_levels` for the level.

    Differentiable in reverse mode with respect to the features. The gradient to the boxes is zero, as in detectron2.

    Args:
      features: L maps [B, Hl, Wl, C] of one dtype, finest first.
      boxes: float32 [B, R, 4]. Padding rows may hold any finite box: their output is of no interest.
      strides: L strides in pixels: powers of two, each twice the one before.
      output_size: S.
      sampling_ratio: samples per bin and axis. 0 is detectron2's default: ceil(side of the box in feature pixels / S),
        for each box and axis (a box without area then pools to 0). The time then grows with the most samples that any
        box of the batch needs; use it for converted models.
      canonical_size: side of the (square) box that is pooled from `canonical_level`, pixels.
      canonical_level: log2 of that level's stride.
      max_samples: with sampling_ratio 0, the most samples per bin and axis. A box that asks for more gets this many,
        spread evenly over the bin, so its bins stay means over the whole bin, of fewer points. The default is exact for
        boxes of up to 64 S strides[0] pixels (1792 for S = 7 at stride 4). All boxes take as many rounds as the one
        with most samples, at most max_samples squared: 48 is the most for a box inside an 800 x 1333 image at S = 7
        (1333 x 8 pixels), but 4096 for one a hundred times as large. Memory does not depend on it.

    Returns:
      [B, R, S, S, C] in the dtype of the features; sums are float32.

    Raises:
      ValueError: if shapes, strides or options do not fit together.
    """
    features = tuple(features)
    _check(features, boxes, strides, output_size, sampling_ratio, max_samples)
    levels = assign_levels(boxes, strides=strides, canonical_size=canonical_size, canonical_level=canonical_level)
    sizes = tuple(feature.shape[1:3] for feature in features)
    rois = _place(boxes, levels, sizes, strides, output_size, aligned)
    batch, channels = features[0].shape[0], features[0].shape[-1]
    pyramid = jnp.concatenate([feature.reshape(batch, -1, channels) for feature in features], axis=1)
    rois = jax.tree.map(lax.stop_gradient, rois)
    return _pool(pyramid, rois, output_size, sampling_ratio, max_samples)


def assign_levels(
    boxes: jax.Array, *, strides: Sequence[int], canonical_size: float = 224.0, canonical_level: int = 4
) -> jax.Array:
    """Index of the pyramid level that each box is pooled from (Lin et al., FPN, eq. 1, as in detectron2).

    Args:
      boxes: float32 [..., 4].
      strides: strides of the levels, powers of two, each twice the one before.
      canonical_size: side of the square box that belongs to `canonical_level`, pixels.
      canonical_level: log2 of that level's stride.

    Returns:
      int32 [...] in 0..L-1: floor(canonical_level + log2(sqrt(area) / canonical_size + 1e-8)), clipped to the levels.
    """
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    side = jnp.sqrt(jnp.maximum(width * height, 0.0))
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size + 1e-8))
    first = int(math.log2(strides[0]))
    return (jnp.clip(level, first, first + len(strides) - 1) - first).astype(jnp.int32)


class _PlacedRois(NamedTuple):
    """Boxes in the coordinates of their level, [B, R] each."""

    x1: jax.Array  # of the box, feature pixels, pixel centres at integers
    y1: jax.Array
    bin_width: jax.Array  # feature pixels
    bin_height: jax.Array
    width: jax.Array  # int32, size of the level
    height: jax.Array
    offset: jax.Array  # int32, first row of the level in the flat pyramid


def _place(boxes, levels, sizes, strides, output_size, aligned) -> _PlacedRois:
    areas = [height * width for height, width in sizes]
    offset = np.concatenate([[0], np.cumsum(areas)[:-1]]).astype(np.int32)
    height, width = np.asarray(sizes, np.int32).T
    scale = jnp.asarray(1.0 / np.asarray(strides), boxes.dtype)[levels]
    x1, y1, x2, y2 = (boxes[..., i] * scale - (0.5 if aligned else 0.0) for i in range(4))
    box_width, box_height = x2 - x1, y2 - y1
    if not aligned:
        box_width, box_height = jnp.maximum(box_width, 1.0), jnp.maximum(box_height, 1.0)
    return _PlacedRois(
        x1=x1,
        y1=y1,
        bin_width=box_width / output_size,
        bin_height=box_height / output_size,
        width=jnp.asarray(width)[levels],
        height=jnp.asarray(height)[levels],
        offset=jnp.asarray(offset)[levels],
    )


class _Grid(NamedTuple):
    """Samples per bin of each RoI, int32 [B, R]; sample number s is (row s // columns, column s % columns)."""

    rows: jax.Array
    columns: jax.Array
    most: int | jax.Array  # samples per bin of the RoI that has most


def _grid(rois, output_size, sampling_ratio, max_samples) -> _Grid:
    if sampling_ratio:
        count = jnp.full(rois.x1.shape, sampling_ratio, jnp.int32)
        return _Grid(count, count, sampling_ratio**2)
    rows, columns = (
        jnp.clip(jnp.ceil(side), 0, max_samples).astype(jnp.int32) for side in (rois.bin_height, rois.bin_width)
    )
    # Numbering samples per RoI keeps a tall and a wide box in one batch from costing tall x wide.
    return _Grid(rows, columns, jnp.max(rows * columns, initial=0))


class _Corners(NamedTuple):
    """The four feature pixels around one sample of every bin."""

    index: jax.Array  # int32 [4, B, R S S], row of the flat pyramid
    weight: jax.Array  # float32 [4, B, R S S]


def _corners(rois: _PlacedRois, grid: _Grid, sample, output_size: int) -> _Corners:
    """Corners of sample number `sample`; weight 0 for RoIs that have fewer samples."""
    columns = jnp.maximum(grid.columns, 1)
    row, column = sample // columns, sample % columns
    count = grid.rows * grid.columns
    share = jnp.where(sample < count, 1.0 / jnp.maximum(count, 1), 0.0)[..., None, None]
    y = _axis(rois.y1, rois.bin_height, row, jnp.maximum(grid.rows, 1), rois.height, output_size)
    x = _axis(rois.x1, rois.bin_width, column, columns, rois.width, output_size)
    offset, width = rois.offset[..., None, None], rois.width[..., None, None]
    index, weight = [], []
    for y_index, y_weight in y:
        for x_index, x_weight in x:
            index.append(offset + y_index[..., :, None] * width + x_index[..., None, :])
            weight.append(share * y_weight[..., :, None] * x_weight[..., None, :])
    shape = (4, rois.x1.shape[0], -1)
    return _Corners(jnp.stack(index).reshape(shape), jnp.stack(weight).reshape(shape))


def _axis(start, bin_size, sample, samples, size, output_size):
    """[B, R] each -> ((low index, weight), (high index, weight)) of one axis, [B, R, S] each."""
    start, bin_size, sample, samples, size = (v[..., None] for v in (start, bin_size, sample, samples, size))
    position = start + jnp.arange(output_size) * bin_size + (sample + 0.5) * bin_size / samples
    inside = (position >= -1.0) & (position <= size)
    position = jnp.clip(position, 0.0, size - 1)
    low = jnp.clip(position.astype(jnp.int32), 0, size - 1)
    high = jnp.minimum(low + 1, size - 1)
    fraction = position - low
    return (low, jnp.where(inside, 1.0 - fraction, 0.0)), (high, jnp.where(inside, fraction, 0.0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _pool(pyramid, rois, output_size, sampling_ratio, max_samples):
    """[B, T, C] and RoIs -> [B, R, S, S, C]."""
    grid = _grid(rois, output_size, sampling_ratio, max_samples)
    bins = (*rois.x1.shape, output_size, output_size)

    def add_half(total, corners):
        for index, weight in zip(*corners, strict=True):
            # Batched over B (not one index over B T rows), so that images spread over devices stay where they are.
            rows = jax.vmap(lambda image, index: image.at[index].get(mode="promise_in_bounds"))(pyramid, index)
            total = total + rows.astype(jnp.float32) * weight[..., None]
        return total, None

    # Two rounds of a loop instead of one expression: the compiler would fuse the gathers into every consumer and repeat
    # them there, in that consumer's layout (ten times the cost in a mask head on CPU). A loop's result is a buffer.
    def add(total, corners):
        halves = jax.tree.map(lambda x: x.reshape(2, x.shape[0] // 2, *x.shape[1:]), corners)
        return lax.scan(add_half, total, halves)[0]

    # One row a bin, [B, R S S, C], until the end: tiled layouts (TPU) pad S to a multiple of 8, and every round of the
    # loop would pay for that.
    total = jnp.zeros((bins[0], math.prod(bins[1:]), pyramid.shape[-1]), jnp.float32)
    total = _accumulate(rois, grid, output_size, add, total)
    return total.astype(pyramid.dtype).reshape(*bins, total.shape[-1])


def _pool_forward(pyramid, rois, output_size, sampling_ratio, max_samples):
    # The pyramid's values are not needed to go back, only its shape and dtype: an empty array carries the dtype.
    like = jax.ShapeDtypeStruct(pyramid.shape, pyramid.dtype)
    return _pool(pyramid, rois, output_size, sampling_ratio, max_samples), (_Like(like), rois)


@jax.tree_util.register_static
class _Like:
    """Shape and dtype of an array, as a static node of a pytree."""

    def __init__(self, like: jax.ShapeDtypeStruct):
        self.shape, self.dtype = like.shape, like.dtype

    def __eq__(self, other):
        return isinstance(other, _Like) and (self.shape, self.dtype) == (other.shape, other.dtype)

    def __hash__(self):
        return hash((self.shape, self.dtype))


def _pool_backward(output_size, sampling_ratio, max_samples, residuals, grad):
    like, rois = residuals
    grid = _grid(rois, output_size, sampling_ratio, max_samples)
    grad = grad.reshape(grad.shape[0], -1, grad.shape[-1]).astype(jnp.float32)  # one row a bin, as in _pool

    def add_one(total, corner):
        rows = grad * corner.weight[..., None]
        scatter = jax.vmap(lambda image, index, row: image.at[index].add(row, mode="promise_in_bounds"))
        return scatter(total, corner.index, rows), None

    # A loop, because unrolled scatters keep all their operands alive: on a CPU a fifth of the time and a tenth of the
    # memory.
    def add(total, corners):
        return lax.scan(add_one, total, corners)[0]

    total = _accumulate(rois, grid, output_size, add, jnp.zeros(like.shape, jnp.float32))
    return total.astype(like.dtype), None


_pool.defvjp(_pool_forward, _pool_backward)


def _accumulate(rois, grid, output_size, add, total):
    """total = add(total, corners) over all samples: all at once if their number is static, else one by one."""
    if isinstance(grid.most, int):
        samples = [_corners(rois, grid, sample, output_size) for sample in range(grid.most)]
        return add(total, jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *samples))
    return lax.fori_loop(0, grid.most, lambda i, total: add(total, _corners(rois, grid, i, output_size)), total)


def _check(features, boxes, strides, output_size, sampling_ratio, max_samples) -> None:
    shapes = [feature.shape for feature in features]
    if not features or len(features) != len(strides):
        raise ValueError(f"multilevel_roi_align: {len(features)} feature maps and strides {tuple(strides)}.")
    if any(len(s) != 4 or (s[0], s[3]) != (shapes[0][0], shapes[0][3]) for s in shapes):
        raise ValueError(f"multilevel_roi_align: features {shapes}, expected [B, Hl, Wl, C] with one B and one C.")
    if len({feature.dtype for feature in features}) > 1:
        raise ValueError(f"multilevel_roi_align: features of several dtypes, {[str(f.dtype) for f in features]}.")
    if boxes.ndim != 3 or boxes.shape[0] != shapes[0][0] or boxes.shape[-1] != 4:
        raise ValueError(f"multilevel_roi_align: boxes {boxes.shape}, expected [{shapes[0][0]}, R, 4].")
    if any(s < 1 or s & (s - 1) for s in strides) or any(
        b != 2 * a for a, b in zip(strides, strides[1:], strict=False)
    ):
        raise ValueError(
            f"multilevel_roi_align: strides {tuple(strides)}, expected powers of two, each twice the one before."
        )
    if output_size < 1 or sampling_ratio < 0 or max_samples < 1:
        raise ValueError(
            f"multilevel_roi_align: output_size {output_size}, sampling_ratio {sampling_ratio}, max_samples "
            f"{max_samples}; expected output_size and max_samples >= 1, sampling_ratio >= 0."
        )
