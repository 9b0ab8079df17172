"""Masks as packed bits, the output of a served detector, to COCO's run-length encoding. NumPy alone; may be copied out.

D detections, H W size of the canvas. Bits are uint8 [D, W, ceil(H / 8)]: byte (x, i) holds pixels 8 i .. 8 i + 7 of
column x, the first in the highest bit. COCO's run lengths go down the columns, too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def bits_to_masks(bits: np.ndarray, *, size: tuple[int, int]) -> np.ndarray:
    """The pixels of masks [D, W, ceil(H / 8)] of an image of `size` (height, width), bool [D, height, width]."""
    height, width = _checked(bits, size)
    columns = np.unpackbits(bits[:, :width], axis=-1)[:, :, :height]
    return columns.swapaxes(1, 2).astype(bool)


def bits_to_rles(bits: np.ndarray, *, size: tuple[int, int]) -> list[dict[str, Any]]:
    """COCO's compressed run lengths of masks [D, W, ceil(H / 8)] of an image of `size` (height, width).

    Returns:
      {'size': [height, width], 'counts': str} of each mask, equal to `pycocotools.mask.encode`.

    Raises:
      ValueError: the bits are no such array, or the image is larger than their canvas.
    """
    height, width = _checked(bits, size)
    return [{"size": [height, width], "counts": compress_counts(run_lengths(mask, height))} for mask in bits[:, :width]]


def run_lengths(bits: np.ndarray, height: int) -> np.ndarray:
    """Run lengths int64 [runs] of one mask [width, bytes], the first of zeros (it may be 0)."""
    width = len(bits)
    columns = np.flatnonzero(bits.any(axis=1))
    if not len(columns):
        return np.array([height * width], np.int64)
    left, right = columns[0], columns[-1] + 1
    filled = np.flatnonzero(bits[left:right].any(axis=0))
    top, bottom = 8 * filled[0], min(8 * (filled[-1] + 1), height)
    crop = np.unpackbits(bits[left:right, filled[0] : filled[-1] + 1], axis=-1)[:, : bottom - top]
    # A zero after each column of the crop ends every run inside its column; one ahead makes a first pixel an edge.
    stride = bottom - top + 1
    pixels = np.zeros(1 + len(crop) * stride, np.uint8)
    pixels[1:].reshape(-1, stride)[:, :-1] = crop
    column, row = np.divmod(np.flatnonzero(pixels[1:] != pixels[:-1]), stride)
    edges = (column + left) * height + row + top  # start, end, start, end, ...
    # A run that reaches the image's last row goes on in the first row of the next column.
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    counts = np.diff(edges, prepend=0, append=height * width)
    return counts[:-1] if counts[-1] == 0 else counts  # pycocotools writes no trailing run of length 0


def compress_counts(counts: Sequence[int] | np.ndarray) -> str:
    """COCO's string of run lengths: five bits a character, the lowest first, 0x20 where more follow, plus 48.

    From the fourth run on, the difference to the run two before is written.
    """
    values = np.array(counts, np.int64)
    values[3:] -= np.asarray(counts, np.int64)[1:-2]
    characters, written = [], []
    going_on = np.ones(len(values), bool)
    while going_on.any():
        low = values & 0x1F
        values >>= 5
        more = np.where(low & 0x10, values != -1, values != 0)
        characters.append(low + 0x20 * more + 48)
        written.append(going_on)
        going_on = going_on & more
    order = np.stack(characters, axis=1)[np.stack(written, axis=1)]
    return order.astype(np.uint8).tobytes().decode("ascii")


def _checked(bits: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    height, width = (int(side) for side in size)
    if bits.dtype != np.uint8 or bits.ndim != 3:
        raise ValueError(f"bits are {bits.dtype} {list(bits.shape)}, expected uint8 [D, W, ceil(H / 8)]")
    if not (1 <= height <= 8 * bits.shape[2] and 1 <= width <= bits.shape[1]):
        raise ValueError(
            f"the image is {height} x {width} (height x width), the masks are on a canvas of at most "
            f"{8 * bits.shape[2]} x {bits.shape[1]}; expected the size that the image was given with"
        )
    return height, width
