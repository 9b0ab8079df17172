"""From the M x M masks of detections to the pixels of their images, on the device, as packed bits.

Shapes: N detections, M side of a predicted mask (28), H W size of the canvas that every image fits on. Boxes are
float32 XYXY in pixels.

The rule is detectron2's, and that of `eql_jax.evaluation.paste`, which works on the host: a pixel belongs to the object
when the mask, sampled bilinearly at the pixel's centre (zeros outside), is at least the threshold. Bilinear sampling on
a box is separable, so a mask is two matrix products, mask by row weights and column weights by that.

Bits: uint8 [N, W, ceil(H / 8)]. Byte (x, i) holds pixels 8 i .. 8 i + 7 of column x, the first in the highest bit, so
that `np.unpackbits(bits, axis=-1, count=H)` is the mask [N, W, H] column by column, the order that COCO's run lengths
go in. Eight pixels a byte is an eighth of what a bool array would take to the host: 300 masks of 800 x 1344 are 40 MB.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from eql_jax.ops.boxes import exact_product

_HIGHEST_BIT_FIRST = np.array([128, 64, 32, 16, 8, 4, 2, 1], np.int32)


class ScaledBoxes(NamedTuple):
    """boxes: float32 [..., 4] in pixels of the image file, zeros where not valid; valid: bool [...]."""

    boxes: Array
    valid: Array


def scale_boxes(boxes: Array, *, from_size: Array, to_size: Array) -> ScaledBoxes:
    """Carries boxes from the resized image to the image file and clips them to it.

    Boxes that are empty then, or have a NaN, are not valid; padding of zeros is empty.

    Args:
      boxes: float32 [..., N, 4] in pixels of the resized image.
      from_size: integers [..., 2], (height, width) of the resized image without padding.
      to_size: integers [..., 2], (height, width) of the image file.
    """
    to_size = to_size.astype(jnp.float32)
    scale = to_size / from_size.astype(jnp.float32)
    scaled = boxes * jnp.tile(scale[..., ::-1], 2)[..., None, :]
    known = ~jnp.any(jnp.isnan(scaled), axis=-1)
    scaled = jnp.clip(scaled, 0.0, jnp.tile(to_size[..., ::-1], 2)[..., None, :])
    valid = known & (scaled[..., 2] > scaled[..., 0]) & (scaled[..., 3] > scaled[..., 1])
    return ScaledBoxes(jnp.where(valid[..., None], scaled, 0.0), valid)


def paste_mask_bits(
    masks: Array,
    boxes: Array,
    sizes: Array,
    *,
    canvas_size: tuple[int, int],
    threshold: float = 0.5,
    chunk: int = 16,
) -> Array:
    """Pastes masks on full canvases and packs their pixels to bits.

    Compared with `eql_jax.evaluation.paste.paste_masks`, only pixels whose sampled probability is within 1e-5 of the
    threshold may differ: the sums are the same, but not what hardware makes of their last bit.

    Args:
      masks: float [N, M, M] probabilities; N may be 0.
      boxes: float32 [N, 4] in pixels of the canvas, see `scale_boxes`. A box without area has no pixels.
      sizes: integers [N, 2], (height, width) of the image of each mask, which lies at the top left of the canvas.
        Pixels outside of it are 0.
      canvas_size: (H, W).
      threshold: a pixel is set where the sampled probability is at least this. Above 0.
      chunk: masks that are pasted at a time, which bounds the memory: about 4 chunk H W bytes beside the result. A
        chunk without a single box that has area takes no time. The result does not depend on it but for rounding.

    Returns:
      uint8 [N, W, ceil(H / 8)], laid out as the module's head says.

    Raises:
      ValueError: if shapes or options do not fit together.
    """
    count = masks.shape[0]
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or boxes.shape != (count, 4) or sizes.shape != (count, 2):
        raise ValueError(
            f"paste_mask_bits: masks {masks.shape}, boxes {boxes.shape} and sizes {sizes.shape}, expected [N, M, M], "
            "[N, 4] and [N, 2]."
        )
    if min(canvas_size) < 1 or chunk < 1 or not 0 < threshold <= 1:
        raise ValueError(
            f"paste_mask_bits: canvas_size {tuple(canvas_size)}, chunk {chunk}, threshold {threshold}; expected "
            "positive sides, chunk >= 1 and 0 < threshold <= 1 (at 0, every pixel of the canvas would be set)."
        )
    height, width = canvas_size
    height_bytes = -(-height // 8)
    if not count or not masks.shape[1]:
        return jnp.zeros((count, width, height_bytes), jnp.uint8)
    chunk = min(chunk, count)
    valid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes = jnp.where(valid[:, None], boxes, 0.0)

    def in_chunks(x):
        x = jnp.pad(x, ((0, -count % chunk), *[(0, 0)] * (x.ndim - 1)))
        return x.reshape(-1, chunk, *x.shape[1:])

    def paste(arguments):
        masks, boxes, sizes, valid = arguments
        return lax.cond(
            jnp.any(valid),
            lambda: _paste_chunk(masks, boxes, sizes, valid, width, height_bytes, threshold),
            lambda: jnp.zeros((chunk, width, height_bytes), jnp.uint8),
        )

    bits = lax.map(paste, tuple(in_chunks(x) for x in (masks.astype(jnp.float32), boxes, sizes, valid)))
    return bits.reshape(-1, width, height_bytes)[:count]


def _paste_chunk(masks, boxes, sizes, valid, width, height_bytes, threshold):
    cells = masks.shape[-1]
    x = jnp.arange(width)
    # Row 8 i + k of the canvas is at (k, i): the pixels of a byte lie along an axis that is not the last one, so that
    # packing adds whole vectors.
    y = jnp.arange(8)[:, None] + 8 * jnp.arange(height_bytes)
    columns = _interpolation(boxes[:, 0], boxes[:, 2], x, cells)
    rows = _interpolation(boxes[:, 1], boxes[:, 3], y, cells)
    # Columns and rows outside of the image, and masks without a box, get no weight: their pixels stay below the
    # threshold.
    columns = jnp.where((valid[:, None] & (x < sizes[:, 1:]))[..., None], columns, 0.0)
    rows = jnp.where((y < sizes[:, :1, None])[..., None], rows, 0.0)
    # Full precision: TF32 or bfloat16 products would move values across the threshold. The same order as on the host.
    precision = lax.Precision.HIGHEST
    values = jnp.einsum("nxj,nij->nxi", columns, masks, precision=precision)
    values = jnp.einsum("nxi,nkyi->nxky", values, rows, precision=precision)
    bits = jnp.where(values >= np.float32(threshold), _HIGHEST_BIT_FIRST[:, None], 0)
    return jnp.sum(bits, axis=2).astype(jnp.uint8)


def _interpolation(start: Array, end: Array, pixels: Array, cells: int) -> Array:
    """Bilinear weights float32 [N, *pixels.shape, cells] of pixels on masks that span [start, end], each [N]."""
    start, end = (v.reshape(-1, *[1] * pixels.ndim) for v in (start, end))
    centres = pixels.astype(jnp.float32) + 0.5
    # In two steps, as torch's grid_sample does it, so that ties at 0.5 fall the same way.
    normalised = (centres - start) / jnp.maximum(end - start, np.float32(1e-30)) * 2 - 1
    position = (exact_product(normalised + 1, jnp.float32(cells)) - 1) / 2
    position = jnp.clip(position, -2.0, cells + 1.0)  # far outside all weights are 0; infinite ones would be NaN
    low = jnp.floor(position)
    high_weight = (position - low)[..., None]
    cell = jnp.arange(cells, dtype=jnp.float32)
    low = low[..., None]
    return jnp.where(cell == low, 1 - high_weight, jnp.where(cell == low + 1, high_weight, 0.0))
