"""Static padded sizes: which bucket an image goes to.

An accelerator compiles one program per array shape, so images are padded to a few fixed (height, width) and a batch
holds images of one bucket only. The bucket depends on the aspect ratio alone, not on the scale drawn at a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eql_jax.data.records import ImageIndex
from eql_jax.data.transforms import Size, fit_size, output_size
from eql_jax.data.validation import FaultReport


class BucketChoice(NamedTuple):
    """Bucket of an image; `fits` is False when the image has to be scaled down further to fit into it."""

    index: int
    fits: bool


def parse_buckets(buckets: Sequence[Sequence[int]]) -> tuple[Size, ...]:
    """Reads config.data.buckets, a sequence of (height, width).

    Raises:
      ValueError: there is none, or one is not two positive integers.
    """
    try:
        sizes = tuple(Size(int(height), int(width)) for height, width in buckets)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data.buckets must be a sequence of (height, width), got {buckets!r}") from error
    if not sizes or any(size.height < 1 or size.width < 1 for size in sizes):
        raise ValueError(f"data.buckets needs at least one (height, width) with positive sides, got {buckets!r}")
    return sizes


def choose_bucket(
    height: int, width: int, *, buckets: Sequence[Size], shorter_side: int, longest_side: int
) -> BucketChoice:
    """Returns the bucket of least area that holds the image at (the largest) shorter_side.

    Among equal areas the first listed is taken. When none holds it, the bucket in which the image stays largest is
    returned with fits=False: the image is then scaled down to it.
    """
    size = output_size(height, width, shorter_side=shorter_side, longest_side=longest_side)
    fitting = [i for i, b in enumerate(buckets) if b.height >= size.height and b.width >= size.width]
    if fitting:
        return BucketChoice(min(fitting, key=lambda i: buckets[i].height * buckets[i].width), True)
    shrunk = [fit_size(size, bucket) for bucket in buckets]
    return BucketChoice(max(range(len(buckets)), key=lambda i: (shrunk[i].height * shrunk[i].width, -i)), False)


def assign_buckets(
    index: ImageIndex, buckets: tuple[Size, ...], shorter_side: int, longest_side: int, report: FaultReport
) -> list[int]:
    """Returns the bucket of each image; notes those that are scaled down to fit theirs."""
    choices: dict[tuple[int, int], BucketChoice] = {}  # a large data set has few sizes
    assigned = []
    shrunk = 0
    for size in zip(index.heights.tolist(), index.widths.tolist(), strict=True):
        if size not in choices:
            choices[size] = choose_bucket(*size, buckets=buckets, shorter_side=shorter_side, longest_side=longest_side)
        assigned.append(choices[size].index)
        shrunk += not choices[size].fits
    if shrunk:
        report.note("image too large for every bucket of data.buckets at its full size, scaled down to fit", shrunk)
    return assigned
