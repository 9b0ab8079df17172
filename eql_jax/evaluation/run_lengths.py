"""Many masks as one: compressed COCO run lengths packed into a byte column, decoded many at a time.

N masks, n of them that are asked for, C runs. Boxes are int64 [x1, y1, x2, y2] in pixels, ends exclusive.

A Python dict and a string for each mask of a results file take more memory than the mask itself. Here the strings lie
end to end, and a mask becomes pycocotools' dict for the moment in which it is needed. What pycocotools does not say,
whether a mask is damaged and where its runs are, comes from NumPy, which decodes many masks in one pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from eql_jax.data.segmentations import ranges

_BLOCK_BYTES = 1 << 15  # characters decoded at a time: their arrays stay in the cache
_BLOCK_MASKS = 128  # measured at a time; `pycocotools.mask.area` of 2.0.11 cannot take more than 255
_FIRST, _LAST = 48, 111  # characters of the code
_MORE = np.uint8(0x20)  # of a character: the number goes on
_MAX_CHARACTERS = 7  # of a number: 35 bits, more than any image has pixels


class Runs(NamedTuple):
    """Decoded run lengths: int64 [C], those of mask i at offsets[i]:offsets[i + 1]; bad bool [n]: not decodable."""

    lengths: np.ndarray
    offsets: np.ndarray
    bad: np.ndarray


class Measures(NamedTuple):
    """areas int64 [n]; boxes int64 [n, 4], zeros where a mask is empty."""

    areas: np.ndarray
    boxes: np.ndarray


class PackedMasks(NamedTuple):
    """Compressed run lengths of N masks.

    Attributes:
      text: uint8 [bytes], the strings end to end.
      offsets: int64 [N + 1], string i is text[offsets[i]:offsets[i + 1]].
      sizes: int32 [N, 2], height and width.
    """

    text: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    @classmethod
    def from_rles(cls, rles: Iterable[Mapping[str, Any]]) -> PackedMasks:
        """Packs compressed run lengths, {'size', 'counts': str or bytes}."""
        rles = list(rles)
        texts = [r["counts"].encode() if isinstance(r["counts"], str) else r["counts"] for r in rles]
        return cls(
            np.frombuffer(b"".join(texts), np.uint8),
            np.concatenate([[0], np.cumsum([len(text) for text in texts], dtype=np.int64)]).astype(np.int64),
            np.array([r["size"] for r in rles], np.int32).reshape(-1, 2),
        )

    def rles(self, index: np.ndarray) -> list[dict[str, Any]]:
        """The masks int [n] as pycocotools takes them."""
        view = self.text.data
        starts, ends = self.offsets[index].tolist(), self.offsets[index + 1].tolist()
        return [
            {"size": size, "counts": bytes(view[start:end])}
            for size, start, end in zip(self.sizes[index].tolist(), starts, ends, strict=True)
        ]

    def decode(self, index: np.ndarray) -> Runs:
        """The runs of the masks int [n]."""
        starts, sizes = self.offsets[index], self.offsets[index + 1] - self.offsets[index]
        return decode_text(self.text[ranges(starts, sizes)], np.concatenate([[0], np.cumsum(sizes)]))

    def measure(self, index: np.ndarray) -> Measures:
        """Areas and boxes of the masks int [n]; what they are of one that does not fill its image means nothing.

        Raises:
          ValueError: a string is unreadable; the message names the mask by its number, that of its result.
        """
        from pycocotools import mask as mask_api

        unreadable = index[self.unreadable(index)]
        if len(unreadable):
            raise self.fault(unreadable, len(index))
        areas, boxes = np.zeros(len(index), np.int64), np.zeros((len(index), 4), np.int64)
        for start in range(0, len(index), _BLOCK_MASKS):
            part = slice(start, start + _BLOCK_MASKS)
            rles = self.rles(index[part])
            areas[part], boxes[part] = mask_api.area(rles), mask_api.toBbox(rles)
        boxes[:, 2:] += boxes[:, :2]
        return Measures(areas, boxes)

    def unreadable(self, index: np.ndarray) -> np.ndarray:
        """Which of the masks int [n] pycocotools must not see, bool [n].

        It reads and writes past the end of its memory where a string ends in the middle of a number, or at a character
        outside of the code (a zero byte ends the string early). This says so at a small part of what `damaged` costs.
        """
        index = np.asarray(index, np.int64)
        starts, ends = self.offsets[index], self.offsets[index + 1]
        filled = np.flatnonzero(ends > starts)
        found = np.zeros(len(index), bool)
        found[filled] = (self.text[ends[filled] - 1] - np.uint8(_FIRST)) & _MORE != 0
        strange = []
        for start in range(0, len(self.text), _BLOCK_BYTES):
            block = self.text[start : start + _BLOCK_BYTES]
            if block.min() < _FIRST or block.max() > _LAST:
                strange.append(start + np.flatnonzero((block < _FIRST) | (block > _LAST)))
        if strange:
            owners = np.searchsorted(self.offsets, np.concatenate(strange), side="right") - 1
            found |= np.isin(index, owners)
        return found

    def fault(self, damaged: np.ndarray, looked_at: int) -> ValueError:
        """What to raise for the masks int [m], m > 0, of those looked at: names the first, which is a result's."""
        height, width = self.sizes[damaged[0]].tolist()
        return ValueError(
            f"result {damaged[0]}: its run lengths are damaged, they do not fill {height} x {width} pixels. So are "
            f"those of {len(damaged)} of the {looked_at} results that were looked at; write the results again"
        )

    def damaged(self, index: np.ndarray) -> np.ndarray:
        """Which of the masks int [n] cannot be decoded or do not fill their images, bool [n].

        pycocotools takes them all the same, and goes round for ever when it compares one with a mask that is whole.
        """
        index = np.asarray(index, np.int64)
        found = np.zeros(len(index), bool)
        block = np.cumsum(self.offsets[index + 1] - self.offsets[index]) // _BLOCK_BYTES
        cuts = np.flatnonzero(np.diff(block, prepend=-1)).tolist()
        for start, end in zip(cuts, [*cuts, len(index)][1:], strict=True):
            runs = self.decode(index[start:end])
            totals = np.diff(np.concatenate([[0], np.cumsum(runs.lengths)])[runs.offsets])
            found[start:end] = runs.bad | (totals != self.sizes[index[start:end]].astype(np.int64).prod(axis=1))
        return found


def decode_text(text: np.ndarray, offsets: np.ndarray) -> Runs:
    """Decodes strings of compressed run lengths that lie end to end.

    Five bits a character (minus 48), the lowest first; 0x20 says that more follow, 0x10 of the last is the sign. From
    the fourth run on, the difference to the run two before is stored. `eql_jax.data.polygons.decompress_counts` does
    it for one string: it raises where this marks, and takes longer numbers.

    Args:
      text: uint8 [bytes].
      offsets: int64 [n + 1], string i is text[offsets[i]:offsets[i + 1]].
    """
    sizes = np.diff(offsets)
    bad = sizes == 0
    strange = np.flatnonzero((text < _FIRST) | (text > _LAST))
    bad[np.searchsorted(offsets, strange, side="right") - 1] = True
    codes = text - np.uint8(_FIRST)
    last = (codes & _MORE) == 0
    final = offsets[1:][sizes > 0] - 1
    bad[np.flatnonzero(sizes)[~last[final]]] = True  # ends in the middle of a number
    last[final] = True
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    characters = ends - starts + 1
    run_offsets = np.concatenate([[0], np.cumsum(last)])[offsets]
    number = np.diff(run_offsets)
    long = np.flatnonzero(characters > _MAX_CHARACTERS)
    bad[np.searchsorted(run_offsets, long, side="right") - 1] = True
    values = (codes[starts] & 0x1F).astype(np.int64)
    more = np.flatnonzero(characters > 1)
    for k in range(1, _MAX_CHARACTERS):
        values[more] |= (codes[starts[more] + k].astype(np.int64) & 0x1F) << (5 * k)
        more = more[characters[more] > k + 1]
    negative = np.flatnonzero(codes[ends] & 0x10)
    values[negative] -= np.int64(1) << (5 * np.minimum(characters[negative], _MAX_CHARACTERS))
    place = np.arange(len(values)) - np.repeat(run_offsets[:-1], number)
    odd = np.flatnonzero(place & 1)
    even = np.flatnonzero((place & 1 == 0) & (place >= 2))
    values[odd] = _running_sums(values[odd], number // 2)
    values[even] = _running_sums(values[even], np.maximum(number - 1, 0) // 2)
    bad[np.searchsorted(run_offsets, np.flatnonzero(values < 0), side="right") - 1] = True
    return Runs(values, run_offsets, bad)


def _running_sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Cumulative sums that begin anew after `sizes` values each."""
    sums = np.concatenate([[0], np.cumsum(values)])
    return sums[1:] - np.repeat(sums[np.cumsum(sizes) - sizes], sizes)


def crop_of(lengths: np.ndarray, box: np.ndarray, height: int) -> np.ndarray:
    """The pixels of a mask in its box, uint8 0/1 [y2 - y1, x2 - x1].

    Args:
      lengths: int64 [runs] of the whole mask.
      box: int64 [4]; the mask is zero outside of it.
      height: of the whole mask.
    """
    x1, y1, x2, y2 = box.tolist()
    # Runs may end in front of the box and behind it, where those of the object are empty. An empty one at the very end
    # makes pycocotools' box a column wider than the image.
    ends = np.clip(np.cumsum(lengths) - x1 * height, 0, (x2 - x1) * height)
    columns = np.repeat((np.arange(len(lengths)) & 1).astype(np.uint8), np.diff(ends, prepend=0))
    pixels = np.zeros((x2 - x1) * height, np.uint8)
    pixels[: len(columns)] = columns
    return pixels.reshape(x2 - x1, height).T[y1:y2]
