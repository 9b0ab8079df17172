"""The rows of a batch, each an image: decoded, augmented, padded, with its ground truth.

H W bucket size, G padded objects, K classes, M side of the cropped masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from eql_jax.data.copy_paste import Paste, hide_covered, paste_objects
from eql_jax.data.crops import crop_masks
from eql_jax.data.images import ImageError
from eql_jax.data.photometric import ColourChanges, change_colours
from eql_jax.data.placement import Placed, place_objects
from eql_jax.data.records import ImageRecord
from eql_jax.data.render import draw_on_canvas
from eql_jax.data.transforms import Size
from eql_jax.data.views import View, resized_view

Row = dict[str, np.ndarray]


class ExampleShape(NamedTuple):
    """The padded sizes of ground truth: G objects, M x M masks (0: no masks), K classes; `mixed`: of several sets."""

    max_objects: int
    mask_size: int
    num_classes: int
    mixed: bool = False


def empty_batch(rows: int, *, bucket: Size, shape: ExampleShape | None = None) -> Row:
    """The arrays of a batch before anything is in them: see `pipeline`. Memory that nothing is written to is not used.

    Args:
      rows: B.
      bucket: size of the padded images.
      shape: of the ground truth; None: a batch for evaluation, without.
    """
    batch = {
        "image": np.zeros((rows, *bucket, 3), np.uint8),
        "image_size": np.zeros((rows, 2), np.int32),
        "original_size": np.zeros((rows, 2), np.int32),
        "image_id": np.zeros(rows, np.int64),
    }
    if shape is not None:
        batch |= {
            "gt_boxes": np.zeros((rows, shape.max_objects, 4), np.float32),
            "gt_classes": np.full((rows, shape.max_objects), -1, np.int32),
            "gt_ignore": np.zeros((rows, shape.max_objects), bool),
            "gt_masks": np.zeros((rows, shape.max_objects, shape.mask_size, shape.mask_size), np.uint8),
            "verified_classes": np.zeros((rows, shape.num_classes), bool),
        }
        if shape.mixed:
            batch["annotated_classes"] = np.zeros((rows, shape.num_classes), bool)
            if shape.mask_size:
                batch["gt_has_mask"] = np.zeros((rows, shape.max_objects), bool)
    return batch


def row_of(batch: Row, i: int) -> Row:
    """Row i of a batch, as views that can be written to."""
    return {key: values[i, ...] for key, values in batch.items()}


def fill_eval_row(row: Row, record: ImageRecord, *, shorter_side: int, longest_side: int) -> None:
    """Reads and resizes an image for evaluation or prediction, into a row of an empty batch.

    Raises:
      ImageError: the file cannot be used; nothing was written.
    """
    source, bucket = Size(record.height, record.width), Size(*row["image"].shape[:2])
    view = resized_view(source, canvas=bucket, shorter_side=shorter_side, longest_side=longest_side, flip=False)
    draw_on_canvas(row["image"], record, view, fast=False)
    _fill_sizes(row, record, view)


def fill_padding_row(row: Row) -> None:
    """A row of an evaluation batch without an image: image_id -1, sizes those of the bucket (so never 0)."""
    row["image_size"][:] = row["original_size"][:] = row["image"].shape[:2]
    row["image_id"][...] = -1


def fill_train_row(
    row: Row,
    record: ImageRecord,
    *,
    view: View,
    fast: bool = False,
    pastes: Sequence[Paste] = (),
    on_paste_error: Callable[[Paste, ImageError], None] | None = None,
    colours: ColourChanges = (),
) -> None:
    """Makes a training example in a row of an empty batch: the image in a view, what is pasted into it, and the ground
    truth of both.

    Objects that the canvas cuts off are dropped, see `placement.place_objects`; those that others cover, see
    `copy_paste`. Of more than G objects those with the largest boxes are kept. They are in the file's order, then come
    the pasted ones in the order of pasting.

    Args:
      row: of an empty batch whose bucket is the view's canvas.
      record: the image.
      view: how it lies on the canvas.
      fast: how pixels are decoded and resized, see `render`.
      pastes: see `copy_paste.paste_objects`.
      on_paste_error: told of a paste whose file cannot be used, and is left out; None: the error is raised.
      colours: see `photometric.change_colours`; done last.

    Raises:
      ImageError: the file cannot be used; nothing was written.
    """
    canvas = row["image"]
    draw_on_canvas(canvas, record, view, fast=fast)
    _fill_sizes(row, record, view)
    layers = [place_objects(record.objects, view)]
    owners = None
    if pastes:
        layers, owners = paste_objects(canvas, layers[0], pastes, fast=fast, on_error=on_paste_error or _raise)
    if colours:
        top, left, height, width = view.window
        change_colours(canvas[top : top + height, left : left + width], colours)
    row["verified_classes"][record.objects.classes] = True
    row["verified_classes"][record.neg_classes] = True
    for layer in layers[1:]:
        row["verified_classes"][layer.objects.classes[layer.indices]] = True
    if "annotated_classes" in row:
        # Pasted objects are positives of their class; what else is in the image is for its own set to say.
        row["annotated_classes"][:] = True if record.annotated_classes is None else record.annotated_classes
    _fill_ground_truth(row, layers, owners)


def eval_example(record: ImageRecord, *, bucket: Size, shorter_side: int, longest_side: int) -> Row:
    """A row filled by `fill_eval_row`."""
    row = row_of(empty_batch(1, bucket=bucket), 0)
    fill_eval_row(row, record, shorter_side=shorter_side, longest_side=longest_side)
    return row


def train_example(record: ImageRecord, *, view: View, shape: ExampleShape, **kwargs) -> Row:
    """A row filled by `fill_train_row`, whose other arguments it takes."""
    row = row_of(empty_batch(1, bucket=view.canvas, shape=shape), 0)
    fill_train_row(row, record, view=view, **kwargs)
    return row


def largest_objects(boxes: np.ndarray, max_objects: int) -> np.ndarray:
    """Returns the indices of at most max_objects boxes, those of largest area, rising. Ties keep the earlier."""
    if len(boxes) <= max_objects:
        return np.arange(len(boxes))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.sort(np.argsort(-areas, kind="stable")[:max_objects])


def _fill_ground_truth(row: Row, layers: Sequence[Placed], owners: np.ndarray | None) -> None:
    """The padded arrays of the objects of all layers."""
    max_objects, mask_size = row["gt_masks"].shape[:2]
    chosen = largest_objects(np.concatenate([layer.boxes for layer in layers]), max_objects)
    first, start = 0, 0
    for number, layer in enumerate(layers):
        mine = layer.select(chosen[(chosen >= first) & (chosen < first + len(layer.boxes))] - first)
        to = slice(start, start + len(mine.boxes))
        row["gt_boxes"][to] = mine.boxes
        row["gt_classes"][to] = layer.objects.classes[mine.indices]
        row["gt_ignore"][to] = layer.objects.ignore[mine.indices]
        if mask_size and layer.objects.segmentations is not None:
            if "gt_has_mask" in row:
                row["gt_has_mask"][to] = True
            # Box and mask scale together, so the crops are taken in the pixels of the file.
            row["gt_masks"][to] = crop_masks(
                layer.objects.segmentations,
                mine.indices,
                mine.file_boxes(),
                mask_size=mask_size,
                mirror=layer.view.flip,
            )
        if owners is not None:
            for i in np.flatnonzero(mine.altered):
                hide_covered(row["gt_masks"][start + i], mine.boxes[i], owners, number)
        first, start = first + len(layer.boxes), to.stop


def _fill_sizes(row: Row, record: ImageRecord, view: View) -> None:
    row["image_size"][:] = view.window.height, view.window.width
    row["original_size"][:] = view.source
    row["image_id"][...] = record.id


def _raise(paste: Paste, error: ImageError) -> None:
    raise error
