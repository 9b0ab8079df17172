"""One image of a batch: decoded, augmented, padded, with its ground truth.

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
from eql_jax.data.render import canvas_pixels
from eql_jax.data.transforms import Size
from eql_jax.data.views import View, resized_view

# Types of the arrays, in the order of the batch.
EVAL_DTYPES = {"image": "uint8", "image_size": "int32", "original_size": "int32", "image_id": "int64"}
TRAIN_DTYPES = EVAL_DTYPES | {
    "gt_boxes": "float32",
    "gt_classes": "int32",
    "gt_ignore": "bool",
    "gt_masks": "uint8",
    "verified_classes": "bool",
}


class ExampleShape(NamedTuple):
    """The padded sizes of ground truth: G objects, M x M masks, K classes."""

    max_objects: int
    mask_size: int
    num_classes: int


def eval_example(record: ImageRecord, *, bucket: Size, shorter_side: int, longest_side: int) -> dict[str, np.ndarray]:
    """Reads and resizes an image for evaluation or prediction.

    Returns:
      image uint8 [H, W, 3], image_size int32 [2], original_size int32 [2] (both height, width), image_id int64 [].

    Raises:
      ImageError: the file cannot be used.
    """
    source = Size(record.height, record.width)
    view = resized_view(source, canvas=bucket, shorter_side=shorter_side, longest_side=longest_side, flip=False)
    return _image(record, view, canvas_pixels(record, view, fast=False))


def train_example(
    record: ImageRecord,
    *,
    view: View,
    shape: ExampleShape,
    fast: bool = False,
    pastes: Sequence[Paste] = (),
    on_paste_error: Callable[[Paste, ImageError], None] | None = None,
    colours: ColourChanges = (),
) -> dict[str, np.ndarray]:
    """Makes a training example: the image in a view, what is pasted into it, and the ground truth of both.

    Objects that the canvas cuts off are dropped, see `placement.place_objects`; those that others cover, see
    `copy_paste`. Of more than G objects those with the largest boxes are kept. They are in the file's order, then come
    the pasted ones in the order of pasting.

    Args:
      record: the image.
      view: how it lies on the canvas.
      shape: padded sizes.
      fast: how pixels are decoded and resized, see `render`.
      pastes: see `copy_paste.paste_objects`.
      on_paste_error: told of a paste whose file cannot be used, and is left out; None: the error is raised.
      colours: see `photometric.change_colours`; done last.

    Returns:
      As `eval_example`, and gt_boxes float32 [G, 4], gt_classes int32 [G] (-1 padding), gt_ignore bool [G], gt_masks
      uint8 [G, M, M] and verified_classes bool [K] (annotated, pasted or verified absent in this image).

    Raises:
      ImageError: the file cannot be used.
    """
    canvas = canvas_pixels(record, view, fast=fast)
    layers = [place_objects(record.objects, view)]
    owners = None
    if pastes:
        pasted = paste_objects(canvas, layers[0], pastes, fast=fast, on_error=on_paste_error or _raise)
        layers, owners = pasted
    if colours:
        top, left, height, width = view.window
        change_colours(canvas[top : top + height, left : left + width], colours)

    verified = np.zeros(shape.num_classes, bool)
    verified[record.objects.classes] = True
    verified[record.neg_classes] = True
    for layer in layers[1:]:
        verified[layer.objects.classes[layer.indices]] = True
    example = _image(record, view, canvas) | _ground_truth(layers, owners, shape)
    return example | {"verified_classes": verified}


def padding_example(*, bucket: Size) -> dict[str, np.ndarray]:
    """A row of an evaluation batch without an image: zeros, image_id -1, sizes those of the bucket (so never 0)."""
    return {
        "image": np.zeros((*bucket, 3), np.uint8),
        "image_size": np.array(bucket, np.int32),
        "original_size": np.array(bucket, np.int32),
        "image_id": np.array(-1, np.int64),
    }


def largest_objects(boxes: np.ndarray, max_objects: int) -> np.ndarray:
    """Returns the indices of at most max_objects boxes, those of largest area, rising. Ties keep the earlier."""
    if len(boxes) <= max_objects:
        return np.arange(len(boxes))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.sort(np.argsort(-areas, kind="stable")[:max_objects])


def _ground_truth(layers: Sequence[Placed], owners: np.ndarray | None, shape: ExampleShape) -> dict[str, np.ndarray]:
    """The padded arrays of the objects of all layers."""
    boxes = np.zeros((shape.max_objects, 4), np.float32)
    classes = np.full(shape.max_objects, -1, np.int32)
    ignore = np.zeros(shape.max_objects, bool)
    masks = np.zeros((shape.max_objects, shape.mask_size, shape.mask_size), np.uint8)
    chosen = largest_objects(np.concatenate([layer.boxes for layer in layers]), shape.max_objects)
    first, row = 0, 0
    for number, layer in enumerate(layers):
        mine = layer.select(chosen[(chosen >= first) & (chosen < first + len(layer.boxes))] - first)
        rows = slice(row, row + len(mine.boxes))
        boxes[rows] = mine.boxes
        classes[rows] = layer.objects.classes[mine.indices]
        ignore[rows] = layer.objects.ignore[mine.indices]
        # Box and mask scale together, so the crops are taken in the pixels of the file.
        masks[rows] = crop_masks(
            layer.objects.segmentations,
            mine.indices,
            mine.file_boxes(),
            mask_size=shape.mask_size,
            mirror=layer.view.flip,
        )
        if owners is not None:
            hide_covered(masks[rows], mine.boxes, owners, number)
        first, row = first + len(layer.boxes), rows.stop
    return {"gt_boxes": boxes, "gt_classes": classes, "gt_ignore": ignore, "gt_masks": masks}


def _image(record: ImageRecord, view: View, canvas: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "image": canvas,
        "image_size": np.array([view.window.height, view.window.width], np.int32),
        "original_size": np.array(view.source, np.int32),
        "image_id": np.array(record.id, np.int64),
    }


def _raise(paste: Paste, error: ImageError) -> None:
    raise error
