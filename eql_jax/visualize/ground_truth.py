"""Annotation records as the objects that `draw_objects` takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from eql_jax.data.polygons import RunLengths
from eql_jax.data.records import ImageRecord


def record_objects(record: ImageRecord, class_ids: np.ndarray) -> list[dict[str, Any]]:
    """The objects of an image in LVIS form (category_id, bbox xywh, segmentation, None where there are no
    masks), without crowd and ignore regions.

    Args:
      record: an image of `Annotations.images`.
      class_ids: int [K] category id of each class (`Annotations.class_ids`).
    """
    objects = []
    for thing in record.objects.records():
        if thing.ignore:
            continue
        x1, y1, x2, y2 = thing.box.tolist()
        shape = thing.segmentation
        if isinstance(shape, RunLengths):
            segmentation: Any = {"size": [shape.height, shape.width], "counts": shape.counts.tolist()}
        elif shape is None:
            segmentation = None
        else:
            segmentation = [polygon.ravel().tolist() for polygon in shape]
        category_id = int(class_ids[thing.class_index])
        objects.append({"category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": segmentation})
    return objects
