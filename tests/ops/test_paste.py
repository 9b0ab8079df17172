"""Pasting on the device against the pasting on the host, which detectron2's masks stand behind, and by hand."""

import functools

import jax
import numpy as np
import pytest

from eql_jax.evaluation import paste as host
from eql_jax.ops.paste import paste_mask_bits, scale_boxes

CANVAS = (53, 66)
ODD_BOXES = np.array(
    [
        [0, 0, 60, 50],  # the whole image
        [-30, -20, 90, 80],  # leaves it on all sides
        [50, 40, 70, 90],  # over the lower right corner
        [70, 10, 80, 20],  # outside
        [-9, -9, -1, -1],
        [10, 10, 10, 30],  # no width
        [10, 30, 40, 30],  # no height
        [20, 20, 10, 40],  # inverted
        [30.2, 20.2, 30.4, 20.4],  # between pixel centres
        [30.4, 20.4, 30.6, 20.6],  # around one
        [59.9, 0, 60, 50],  # a sliver at the border
        [0, 0, 0, 0],  # padding
        [np.nan, 1, 5, 5],
        [1, 1, np.inf, 5],
    ],
    np.float32,
)


def random_boxes(count, seed):
    rng = np.random.default_rng(seed)
    centres, sides = rng.uniform(-10, 70, (count, 2)), rng.exponential(25, (count, 2))
    return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)


def random_masks(count, side=28, seed=0):
    return np.random.default_rng(seed).random((count, side, side), np.float32)


@functools.partial(jax.jit, static_argnames=("canvas_size", "threshold", "chunk"))
def paste(masks, boxes, from_size, to_size, *, canvas_size=CANVAS, threshold=0.5, chunk=16):
    scaled = scale_boxes(boxes, from_size=from_size, to_size=to_size)
    sizes = jax.numpy.tile(to_size, (len(boxes), 1))
    return scaled, paste_mask_bits(
        masks, scaled.boxes, sizes, canvas_size=canvas_size, threshold=threshold, chunk=chunk
    )


def unpacked(bits, height):
    return np.unpackbits(np.asarray(bits), axis=-1, count=height).swapaxes(1, 2).astype(bool)


def near_threshold(mask, box, size, threshold):
    """Pixels bool [h, w] whose probability, sampled point by point in float64, is within 1e-5 of the threshold."""
    m = np.pad(mask.astype(np.float64), 1)
    x1, y1, x2, y2 = box.astype(np.float64)
    x = np.clip((np.arange(size[1]) + 0.5 - x1) / (x2 - x1) * len(mask) + 0.5, 0, len(mask) + 1)
    y = np.clip((np.arange(size[0]) + 0.5 - y1) / (y2 - y1) * len(mask) + 0.5, 0, len(mask) + 1)
    x0, y0 = np.minimum(x.astype(int), len(mask)), np.minimum(y.astype(int), len(mask))
    fx, fy = x - x0, (y - y0)[:, None]
    rows = m[y0] * (1 - fy) + m[y0 + 1] * fy
    values = rows[:, x0] * (1 - fx) + rows[:, x0 + 1] * fx
    return np.abs(values - threshold) < 1e-5


@pytest.mark.parametrize("threshold", [0.5, 0.3])
@pytest.mark.parametrize("size", [(50, 60), (53, 66), (7, 9)])
def test_equals_the_host(size, threshold):
    boxes = np.concatenate([ODD_BOXES, random_boxes(26, seed=size[0])])
    masks = random_masks(len(boxes))
    from_size = np.array([50, 60], np.int32)
    scaled, bits = paste(masks, boxes, from_size, np.array(size, np.int32), threshold=threshold)
    expected = host.scale_boxes(boxes, from_size=(50, 60), to_size=size)
    np.testing.assert_array_equal(np.flatnonzero(scaled.valid), expected.index)
    assert 0 < len(expected.index) < len(boxes)
    np.testing.assert_allclose(np.asarray(scaled.boxes)[expected.index], expected.boxes, rtol=1e-6)
    assert not np.asarray(scaled.boxes)[~np.asarray(scaled.valid)].any()

    pixels = unpacked(bits, CANVAS[0])
    assert not pixels[:, size[0] :].any() and not pixels[:, :, size[1] :].any()
    assert not pixels[~np.asarray(scaled.valid)].any()
    reference = host.paste_masks(masks[expected.index], expected.boxes, size=size, threshold=threshold)
    different = pixels[expected.index, : size[0], : size[1]] != reference
    for row, index in enumerate(expected.index):
        assert not (different[row] & ~near_threshold(masks[index], expected.boxes[row], size, threshold)).any(), index


def test_chunks_change_nothing():
    boxes = np.concatenate([np.zeros((5, 4), np.float32), random_boxes(9, seed=2), np.zeros((5, 4), np.float32)])
    masks, size = random_masks(len(boxes)), np.array([50, 60], np.int32)
    whole = np.asarray(paste(masks, boxes, size, size, chunk=19)[1])
    assert whole.any()
    for chunk in (1, 4, 100):  # at 1 and 4 some chunks hold no box
        np.testing.assert_array_equal(np.asarray(paste(masks, boxes, size, size, chunk=chunk)[1]), whole)


def test_packing_by_hand():
    """A mask of 3 x 3 over as many pixels from column 1 on: cells are pixels. A column of the canvas of 9 x 6 has two
    bytes; an image of 3 x 5 fills three bits of the first, one of 2 x 3 cuts the mask."""
    mask = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], np.float32)
    masks, boxes = np.stack([mask, mask]), np.tile(np.float32([1, 0, 4, 3]), (2, 1))
    bits = np.asarray(paste_mask_bits(masks, boxes, np.array([[3, 5], [2, 3]], np.int32), canvas_size=(9, 6)))
    assert bits.shape == (2, 6, 2) and bits.dtype == np.uint8
    assert bits[0, :, 0].tolist() == [0, 0b11000000, 0b01100000, 0b00100000, 0, 0]
    assert bits[1, :, 0].tolist() == [0, 0b11000000, 0b01000000, 0, 0, 0]
    assert not bits[..., 1].any()
    # The ninth row is the first bit of the second byte.
    bits = np.asarray(
        paste_mask_bits(masks, boxes + np.float32([0, 6, 0, 6]), np.array([[9, 6]] * 2), canvas_size=(9, 6))
    )
    assert bits[0].tolist() == [[0, 0], [0b00000011, 0], [0b00000001, 0b10000000], [0, 0b10000000], [0, 0], [0, 0]]


@pytest.mark.parametrize(("count", "side"), [(0, 28), (3, 0)])
def test_nothing_to_paste(count, side):
    bits = paste_mask_bits(
        random_masks(count, side), random_boxes(count, 0), np.ones((count, 2), np.int32), canvas_size=(9, 5)
    )
    assert bits.shape == (count, 5, 2) and not np.asarray(bits).any()


def test_memory_is_bounded_by_the_chunk():
    """Temporary memory, as compiled, follows the chunk and not the number of masks."""

    def temporary(count, chunk):
        shapes = [jax.ShapeDtypeStruct(s, d) for s, d in (((count, 28, 28), "f4"), ((count, 4), "f4"))]
        run = functools.partial(paste_mask_bits, canvas_size=(256, 256), chunk=chunk)
        compiled = jax.jit(run).lower(*shapes, jax.ShapeDtypeStruct((count, 2), "i4")).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    masks = 64 * 28 * 28 * 4
    assert temporary(64, 4) < temporary(8, 4) + 2 * masks < temporary(64, 64) / 2


def test_faults():
    masks, boxes, sizes = random_masks(2), random_boxes(2, 0), np.ones((2, 2), np.int32)
    with pytest.raises(ValueError, match=r"boxes \(3, 4\).*expected"):
        paste_mask_bits(masks, random_boxes(3, 0), sizes, canvas_size=(5, 5))
    with pytest.raises(ValueError, match="chunk 0"):
        paste_mask_bits(masks, boxes, sizes, canvas_size=(5, 5), chunk=0)
    with pytest.raises(ValueError, match="threshold 0"):
        paste_mask_bits(masks, boxes, sizes, canvas_size=(5, 5), threshold=0)
