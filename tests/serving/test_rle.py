"""Run lengths of bits against pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from eql_jax.serving import bits_to_masks, bits_to_rles
from eql_jax.serving.rle import compress_counts, run_lengths


def pack(masks, canvas):
    full = np.zeros((len(masks), *canvas), bool)
    full[:, : masks.shape[1], : masks.shape[2]] = masks
    return np.packbits(full.swapaxes(1, 2), axis=-1)


def test_by_hand():
    """A mask of 3 x 5 whose second column is full and runs on into the third."""
    mask = np.zeros((1, 3, 5), bool)
    mask[0, :, 1], mask[0, 0, 2], mask[0, 2, 4] = True, True, True
    bits = pack(mask, (3, 5))
    assert bits[0, :, 0].tolist() == [0, 0b11100000, 0b10000000, 0, 0b00100000]
    assert run_lengths(bits[0], 3).tolist() == [3, 4, 7, 1]
    # 3, 4, 7 and 1 - 4 = -3, which is 11101 in five bits with its sign, and ends there: characters 51, 52, 55, 77.
    assert bits_to_rles(bits, size=(3, 5)) == [{"size": [3, 5], "counts": "347M"}]


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        size = tuple(rng.integers(1, 40, 2).tolist())
        canvas = tuple(side + int(rng.integers(0, 20)) for side in size)
        masks = rng.random((4, *size)) < np.array([0, 0.1, 0.9, 1])[:, None, None]
        masks[1:, : rng.integers(0, size[0])] = False
        masks[1:, :, : rng.integers(0, size[1])] = False
        bits = pack(masks, canvas)
        expected = mask_utils.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
        rles = bits_to_rles(bits, size=size)
        assert [rle["counts"] for rle in rles] == [rle["counts"].decode() for rle in expected]
        np.testing.assert_array_equal(bits_to_masks(bits, size=size), masks)


def test_long_runs():
    """Counts of several characters, up and down."""
    counts = [0, 15, 16, 511, 512, 1, 100_000, 2, 9_999_999]
    size = (1, sum(counts))
    expected = mask_utils.frPyObjects({"size": size, "counts": counts}, *size)["counts"].decode()
    assert compress_counts(counts) == expected


def test_no_masks_and_faults():
    assert bits_to_rles(np.zeros((0, 9, 2), np.uint8), size=(16, 9)) == []
    with pytest.raises(ValueError, match=r"17 x 9 .* 16 x 9"):
        bits_to_rles(np.zeros((1, 9, 2), np.uint8), size=(17, 9))
    with pytest.raises(ValueError, match=r"bool \[3, 4\]"):
        bits_to_rles(np.zeros((3, 4), bool), size=(3, 4))
