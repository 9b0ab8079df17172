"""The views of test-time augmentation: every image at several sizes, in fixed padded sizes.

H W size of an image file. A batch holds images of one group; a group has one padded size for each view, so that the
number of compiled programmes is that of padded sizes, whatever sizes the files have.

The groups come from data.buckets: a view of shorter side s has each of them times s / data.eval_shorter_side, sides
rounded up to multiples of 32. An image goes to the group of least area that holds all its views as they are. One that
fits none, because eval.tta.longest_side lets a view be longer than the buckets are, goes to a spare group: views of
shorter side s are padded to s on one axis and to s times 2**.5, 2, 2**1.5 ... on the other, up to the longest side.
No view is ever scaled down to fit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from eql_jax.data.buckets import parse_buckets
from eql_jax.data.examples import Row
from eql_jax.data.images import read_record_image
from eql_jax.data.records import ImageIndex, ImageRecord
from eql_jax.data.render import draw_decoded
from eql_jax.data.transforms import Size, output_size
from eql_jax.data.validation import FaultReport
from eql_jax.data.views import resized_view

_MULTIPLE = 32  # of padded sides, as data.buckets asks for

Group = tuple[Size, ...]  # the padded size of each view


class ViewSize(NamedTuple):
    """How a view is resized, see `transforms.output_size`."""

    shorter_side: int
    longest_side: int


class ViewsLayout:
    """A layout of `EvalBatches` whose rows have several views of an image.

    Keys of a batch: image_id [B], original_size [B, 2], image_size [B, 2] (the same: detections come in pixels of the
    file) and, for view i, 'view{i}/image' uint8 [B, H_i, W_i, 3] and 'view{i}/image_size' int32 [B, 2]. Views are not
    mirrored here: the device does that.

    Attributes:
      views: a `ViewSize` for each of eval.tta.shorter_sides, and, where masks come from the plain image (eval.tta.masks
        False, model.with_mask True), that of data.eval_shorter_side and data.longest_side at the end.
      groups: all that there may be; `assign` says which are in use.
    """

    def __init__(self, config: ConfigDict):
        """Reads eval.tta, model.with_mask and data.{buckets, eval_shorter_side, longest_side}."""
        self.views = view_sizes(config)
        self.groups = _groups(self.views, parse_buckets(config.data.buckets), config.data.eval_shorter_side)

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    def assign(self, index: ImageIndex, report: FaultReport) -> np.ndarray:
        """The group of each image, int64. `report` gets nothing: every image fits somewhere."""
        choices: dict[tuple[int, int], int] = {}  # a large data set has few sizes
        assigned = np.zeros(len(index.ids), np.int64)
        for i, size in enumerate(zip(index.heights.tolist(), index.widths.tolist(), strict=True)):
            if size not in choices:
                choices[size] = self.choose(*size)
            assigned[i] = choices[size]
        return assigned

    def choose(self, height: int, width: int) -> int:
        """The group of an image of that size."""
        sizes = [output_size(height, width, **view._asdict()) for view in self.views]
        return next(i for i, group in enumerate(self.groups) if all(map(_fits, sizes, group)))

    def new_batch(self, rows: int, group: int) -> Row:
        batch = {
            "image_size": np.zeros((rows, 2), np.int32),
            "original_size": np.zeros((rows, 2), np.int32),
            "image_id": np.zeros(rows, np.int64),
        }
        for i, size in enumerate(self.groups[group]):
            batch[f"view{i}/image"] = np.zeros((rows, *size, 3), np.uint8)
            batch[f"view{i}/image_size"] = np.zeros((rows, 2), np.int32)
        return batch

    def fill_row(self, row: Row, record: ImageRecord) -> None:
        """Reads an image once and resizes it to all views. Raises ImageError before anything is written."""
        image = read_record_image(record)
        source = Size(record.height, record.width)
        for i, size in enumerate(self.views):
            canvas = row[f"view{i}/image"]
            view = resized_view(source, canvas=Size(*canvas.shape[:2]), flip=False, **size._asdict())
            draw_decoded(canvas, image, view)
            row[f"view{i}/image_size"][:] = view.scaled
        row["image_size"][:] = row["original_size"][:] = source
        row["image_id"][...] = record.id

    def fill_padding_row(self, row: Row) -> None:
        """A row without an image: image_id -1, sizes those of the padding (so never 0)."""
        for i in range(len(self.views)):
            row[f"view{i}/image_size"][:] = row[f"view{i}/image"].shape[:2]
        row["image_size"][:] = row["original_size"][:] = row["view0/image"].shape[:2]
        row["image_id"][...] = -1

    def describe(self, assigned: np.ndarray) -> str:
        """A line for the log: the views, and the padded sizes that images assigned to these groups bring with them."""
        used = [self.groups[i] for i in np.unique(assigned)]
        sizes = sorted({size for group in used for size in group})
        return (
            f"test-time augmentation: shorter sides {', '.join(str(view.shorter_side) for view in self.views)}; "
            f"{len(used)} groups of images by shape, {len(sizes)} padded sizes, each compiled at most once for boxes "
            f"and once for masks: {', '.join(f'{size.height}x{size.width}' for size in sizes)}"
        )


def view_sizes(config: ConfigDict) -> tuple[ViewSize, ...]:
    """See `ViewsLayout.views`."""
    tta = config.eval.tta
    views = [ViewSize(side, tta.longest_side) for side in tta.shorter_sides]
    if config.model.with_mask and not tta.masks:
        views.append(ViewSize(config.data.eval_shorter_side, config.data.longest_side))
    return tuple(views)


def _groups(views: tuple[ViewSize, ...], buckets: tuple[Size, ...], plain_side: int) -> tuple[Group, ...]:
    """All groups: first those of the buckets by rising area, then the spare ones by rising length."""

    def padded(view: ViewSize, height: float, width: float) -> Size:
        limit = _round_up(view.longest_side)
        return Size(min(_round_up(height), limit), min(_round_up(width), limit))

    def scaled(bucket: Size, view: ViewSize) -> Size:
        # Whole numbers first: 1344 * 600 / 800 is 1008 and not a little more.
        return padded(view, *(side * view.shorter_side / plain_side for side in bucket))

    def area(group: Group) -> int:
        return sum(size.height * size.width for size in group)

    groups = sorted((tuple(scaled(bucket, view) for view in views) for bucket in buckets), key=area)
    longest = max(view.longest_side / view.shorter_side for view in views)
    ratio, step = 1.0, 0
    while ratio < longest:
        step += 1
        ratio = 2 ** (step / 2)  # every other one a whole number
        lying = tuple(padded(view, view.shorter_side, view.shorter_side * ratio) for view in views)
        groups += [lying, tuple(Size(size.width, size.height) for size in lying)]
    if longest <= 1:
        groups.append(tuple(padded(view, view.longest_side, view.longest_side) for view in views))
    return tuple(dict.fromkeys(groups))


def _round_up(side: float) -> int:
    return int(-(-side // _MULTIPLE)) * _MULTIPLE


def _fits(size: Size, canvas: Size) -> bool:
    return size.height <= canvas.height and size.width <= canvas.width
