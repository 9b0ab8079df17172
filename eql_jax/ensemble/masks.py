"""The weighted average of masks, thresholded at one half: from run lengths to run lengths, no canvas in between.

N masks of one image of H x W pixels in C groups, R runs of all of them. Along the pixels of an image, down its columns,
the average of some masks changes only where a run of one of them ends. So the ends of all runs are sorted, the weights
that begin and end there are summed up, and the pixels between two ends are in the average's mask where the sum is at
least half the weight of all. Time and memory follow the runs, not the pixels, and all groups of an image are done at
once. The sums are of integers, so that the result does not depend on the order of the masks, and a half made up of
rounded parts (.6 against .4 and .2) is a half.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eql_jax.data.segmentations import ranges
from eql_jax.evaluation.run_lengths import Runs

_WEIGHT_STEPS = 1 << 40  # of the largest weight in a group


class Encoded(NamedTuple):
    """Strings of compressed run lengths: text uint8 [bytes], string i is text[offsets[i]:offsets[i + 1]]."""

    text: np.ndarray
    offsets: np.ndarray

    def strings(self) -> list[str]:
        text = self.text.tobytes().decode("ascii")
        ends = self.offsets.tolist()
        return [text[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]


def average_masks(runs: Runs, weights: np.ndarray, sizes: np.ndarray, pixels: int) -> Runs:
    """Averages groups of masks of one image.

    Args:
      runs: of N masks, none of them bad, each of `pixels` pixels; group after group.
      weights: float64 [N], at least 0; where all in a group are 0, they count alike.
      sizes: int64 [C], above 0: the masks in each group; sums to N.
      pixels: H * W.

    Returns:
      Runs of C masks: the pixels where the masks that have them hold at least half of their group's weight, to within
      N / 2**39. A group in which no pixel has that gets its first mask.
    """
    group = np.repeat(np.arange(len(sizes)), sizes)
    whole = _whole_weights(weights, sizes)
    # The end of a run of zeros adds the mask's weight, that of a run of ones takes it away.
    counts = np.diff(runs.offsets)
    mask = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(mask)) - runs.offsets[mask]
    ends = np.cumsum(runs.lengths)
    ends -= mask * pixels
    change = np.where(place & 1 == 0, whole[mask], -whole[mask])
    inside = np.flatnonzero(ends < pixels)  # at the last pixel every group begins anew
    keys = group[mask[inside]] * pixels + ends[inside]
    order = np.argsort(keys, kind="stable")
    keys, sums = keys[order], np.cumsum(change[inside][order])
    last = np.flatnonzero(np.diff(keys, append=-1))  # of the changes at one pixel
    keys, sums = keys[last], sums[last]
    owner, position = np.divmod(keys, pixels)
    starts = np.searchsorted(owner, np.arange(len(sizes)))
    before = np.concatenate([[0], sums])[starts]  # what the groups before have left open
    total = np.add.reduceat(whole, np.cumsum(sizes) - sizes)
    # Each weight is rounded by at most a half: what may be a tie is one.
    on = 2 * (sums - before[owner]) + 2 * sizes[owner] >= total[owner]
    first = np.zeros(len(on), bool)
    first[starts[starts < len(on)]] = (
        True  # an owner without changes marks the next one's start, which is marked anyway
    )
    was_on = np.concatenate([[False], on[:-1]]) & ~first if len(on) else on
    turns = np.flatnonzero(on != was_on)
    averaged = _runs_of_ends(owner[turns], position[turns], len(sizes), pixels)
    empty = np.bincount(owner[turns], minlength=len(sizes)) == 0
    return _replace(averaged, runs, empty, np.cumsum(sizes) - sizes) if empty.any() else averaged


def _whole_weights(weights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Integer weights int64 [N]."""
    starts = np.cumsum(sizes) - sizes
    largest = np.repeat(np.maximum.reduceat(weights, starts), sizes)
    shares = np.divide(weights, largest, out=np.ones_like(largest), where=largest > 0)
    return np.rint(shares * _WEIGHT_STEPS).astype(np.int64)


def _runs_of_ends(owner: np.ndarray, position: np.ndarray, groups: int, pixels: int) -> Runs:
    """Runs of masks that turn on and off at rising positions, of rising owners."""
    counts = np.bincount(owner, minlength=groups) + 1
    offsets = np.concatenate([[0], np.cumsum(counts)])
    ends = np.full(offsets[-1], pixels, np.int64)
    ends[np.arange(len(position)) + owner] = position  # a last end after those of each owner before
    lengths = np.diff(ends, prepend=0)
    lengths[offsets[:-1]] = ends[offsets[:-1]]
    return Runs(lengths, offsets, np.zeros(groups, bool))


def _replace(averaged: Runs, runs: Runs, chosen: np.ndarray, first: np.ndarray) -> Runs:
    """The averages, with the first mask of the group in place of those that are chosen."""
    joined = np.concatenate([averaged.lengths, runs.lengths])
    starts = np.where(chosen, runs.offsets[first] + len(averaged.lengths), averaged.offsets[:-1])
    counts = np.where(chosen, np.diff(runs.offsets)[first], np.diff(averaged.offsets))
    return Runs(joined[ranges(starts, counts)], np.concatenate([[0], np.cumsum(counts)]), averaged.bad)


def encode_runs(runs: Runs) -> Encoded:
    """Compressed run lengths as pycocotools writes them; the inverse of `decode_text`.

    From the fourth run of a mask on, the difference to the run two before is stored; five bits a character, the lowest
    first, 0x20 where more follow, and as few characters as hold the number with its sign.
    """
    values = runs.lengths.copy()
    place = np.arange(len(values)) - np.repeat(runs.offsets[:-1], np.diff(runs.offsets))
    later = np.flatnonzero(place > 2)
    values[later] -= runs.lengths[later - 2]
    magnitude = np.where(values < 0, ~values, values)
    characters = np.ones(len(values), np.int64)
    bits = 4
    while (longer := magnitude >> bits > 0).any():
        characters += longer
        bits += 5
    starts = np.cumsum(characters) - characters
    text = np.zeros(int(characters.sum()), np.uint8)
    more = np.arange(len(values))
    for k in range(int(characters.max(initial=0))):
        more = more[characters[more] > k]
        follows = np.where(characters[more] > k + 1, 0x20, 0)
        text[starts[more] + k] = ((values[more] >> (5 * k)) & 0x1F) + follows + 48
    return Encoded(text, np.append(starts, len(text))[runs.offsets])
