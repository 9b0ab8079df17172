"""What detectron2's DatasetMapper computes for an image, computed with this package; for tests and check_golden.py.

Keys and meanings are those of tests/testdata/data_mapper.npz (see tests/testdata/README.md).
"""

from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from eql_jax.data.examples import ExampleShape, train_example
from eql_jax.data.polygons import crop_mask, to_rle
from eql_jax.data.records import ImageRecord
from eql_jax.data.transforms import Size
from eql_jax.data.views import resized_view

MASK_SIZE = 112  # of the pipeline's cropped masks, as configs/base.py has it


class Setting(NamedTuple):
    """Limits of the resize, pixels, and whether the image is mirrored."""

    shorter_side: int
    longest_side: int
    flip: bool


SETTINGS = {
    "s800_plain": Setting(800, 1333, False),
    "s800_flip": Setting(800, 1333, True),
    "s256_plain": Setting(256, 400, False),
    "s256_flip": Setting(256, 400, True),
}


def example_of(record: ImageRecord, setting: Setting, *, num_classes: int) -> dict[str, np.ndarray]:
    """The pipeline's training example of the image, without padding rows of objects."""
    longest = setting.longest_side
    return train_example(
        record,
        view=resized_view(
            Size(record.height, record.width),
            canvas=Size(longest, longest),  # holds every size, so nothing is scaled twice
            shorter_side=setting.shorter_side,
            longest_side=longest,
            flip=setting.flip,
        ),
        shape=ExampleShape(record.objects.size, MASK_SIZE, num_classes),
    )


def resized_polygons(record: ImageRecord, index: int, new: Size, *, flip: bool) -> list[np.ndarray]:
    """The polygons of object `index` as the package read them, in the resized image, float64 [P, 2] each."""
    scale = (new.width / record.width, new.height / record.height)
    parts = [np.asarray(part, np.float64) * scale for part in record.objects.segmentations[index]]
    return [part * (-1, 1) + (new.width, 0) if flip else part for part in parts]


def shoelace(part: np.ndarray) -> float:
    """Area of a polygon [P, 2]."""
    x, y = part.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def full_mask(record: ImageRecord, index: int, new: Size, *, flip: bool) -> np.ndarray:
    """Mask of object `index` in the resized image, uint8 [H, W], rasterised as the evaluation does."""
    polygons = [part.ravel().tolist() for part in resized_polygons(record, index, new, flip=flip)]
    return mask_api.decode(to_rle(polygons, height=new.height, width=new.width))


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Box around a mask [H, W], float32 [4], ends exclusive; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def geometry(record: ImageRecord, setting: Setting, example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Everything of data_mapper.npz for one image and setting, but for the targets."""
    new = Size(*example["image_size"].tolist())
    areas, corners, pixels, boxes, first = [], [], [], [], []
    for i in range(record.objects.size):
        parts = resized_polygons(record, i, new, flip=setting.flip)
        areas.append(sum(map(shoelace, parts)))
        points = np.concatenate(parts)
        corners.append([*points.min(axis=0), *points.max(axis=0)])
        mask = full_mask(record, i, new, flip=setting.flip)
        pixels.append(mask.sum(dtype=np.int64))
        boxes.append(mask_box(mask))
        if i < 5:
            first.append(np.packbits(mask, axis=-1))
    return {
        "size_hw": example["image_size"],
        "boxes": example["gt_boxes"],
        "classes": example["gt_classes"],
        "polygon_area": np.array(areas),
        "polygon_bounding_boxes": np.array(corners, np.float32),
        "mask_pixel_area": np.array(pixels),
        "mask_bounding_boxes": np.stack(boxes),
        "masks_first5_packed": np.stack(first),
    }


def targets(record: ImageRecord, size_hw: np.ndarray, boxes: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Mask targets of RoIs `boxes` [F, 4] in the resized image, of objects `instances` [F]: uint8 [F, 28, 28]."""
    new = Size(*size_hw.tolist())
    return np.stack(
        [
            crop_mask(tuple(resized_polygons(record, int(i), new, flip=False)), box, mask_size=28)
            for box, i in zip(boxes, instances, strict=True)
        ]
    )


def pasted(mask: np.ndarray, box: np.ndarray, size: Size) -> np.ndarray:
    """A cropped mask [M, M] of the pipeline back in its image, bool [H, W]: the cell under each pixel's centre."""
    x1, y1, x2, y2 = box.astype(np.float64)
    column = np.floor((np.arange(size.width) + 0.5 - x1) / (x2 - x1) * mask.shape[1]).astype(int)
    row = np.floor((np.arange(size.height) + 0.5 - y1) / (y2 - y1) * mask.shape[0]).astype(int)
    inside = ((row >= 0) & (row < len(mask)))[:, None] & ((column >= 0) & (column < len(mask)))
    return inside & (mask[np.ix_(row.clip(0, len(mask) - 1), column.clip(0, len(mask) - 1))] > 0)
