"""From records back to the contents of an LVIS annotation JSON, for sources that have none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eql_jax.data.polygons import RunLengths
from eql_jax.data.records import Category, ImageRecord
from eql_jax.data.segmentations import Segmentation


def to_lvis(categories: Sequence[Category], images: Sequence[ImageRecord]) -> dict:
    """The contents of an annotation JSON that says what the records say.

    Boxes are rounded to hundredths of a pixel, as LVIS has them: that takes back what float32 has added to them.
    """
    from pycocotools import mask as mask_api  # slow to import; not needed by training

    ids = np.array([category.id for category in categories])
    image_records, annotations = [], []
    for image in images:
        image_records.append(
            {
                "id": image.id,
                "width": image.width,
                "height": image.height,
                "file_name": image.path.name,
                "neg_category_ids": ids[image.neg_classes].tolist(),
                "not_exhaustive_category_ids": ids[image.not_exhaustive_classes].tolist(),
            }
        )
        for thing in image.objects.records():
            x1, y1, x2, y2 = thing.box.tolist()
            annotations.append(
                {
                    "id": thing.id,
                    "image_id": image.id,
                    "category_id": int(ids[thing.class_index]),
                    "bbox": [round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)],
                    "area": thing.area,
                    "iscrowd": int(thing.ignore),
                }
            )
            if thing.segmentation is not None:
                annotations[-1]["segmentation"] = _to_json(thing.segmentation, mask_api)
    return {"images": image_records, "annotations": annotations, "categories": [c._asdict() for c in categories]}


def _to_json(segmentation: Segmentation, mask_api) -> list | dict:
    if not isinstance(segmentation, RunLengths):
        return [polygon.ravel() for polygon in segmentation]
    size = [segmentation.height, segmentation.width]
    # Compressed: a mask of a thousand runs is 2 KB then, and 30 KB as a list of integers.
    packed = mask_api.frPyObjects({"size": size, "counts": segmentation.counts.tolist()}, *size)
    return {"size": size, "counts": packed["counts"].decode()}
