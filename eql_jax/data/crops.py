"""The masks of an image's objects on their grids, all at once: what goes into a training batch.

N objects, M side of a grid. Boxes are XYXY in absolute pixels of the image file.
"""

from __future__ import annotations

import numpy as np

from eql_jax.data.polygons import MIN_SIDE, crop_mask
from eql_jax.data.rasterize import fill_polygons
from eql_jax.data.segmentations import Segmentations


def crop_masks(
    segmentations: Segmentations, indices: np.ndarray, boxes: np.ndarray, *, mask_size: int, mirror: bool = False
) -> np.ndarray:
    """`polygons.crop_mask` of many masks of an image.

    Args:
      segmentations: of the image.
      indices: int [N], which of them.
      boxes: float [N, 4], what each is cropped to.
      mask_size: M.
      mirror: the crops are mirrored left to right.

    Returns:
      uint8 0/1 [N, M, M].
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    points, sizes, masks = segmentations.polygons_of(indices)
    scale = mask_size / np.maximum(boxes[:, 2:] - boxes[:, :2], MIN_SIDE)
    of_point = np.repeat(masks, sizes)
    crops = fill_polygons(
        (points - boxes[of_point, :2]) * scale[of_point],
        sizes,
        masks,
        num_grids=len(indices),
        height=mask_size,
        width=mask_size,
        mirror=mirror,
    )
    for row in np.flatnonzero(segmentations.packed.polygons[indices] == 0):  # those in run lengths
        crop = crop_mask(segmentations[int(indices[row])], boxes[row], mask_size=mask_size)
        crops[row] = crop[:, ::-1] if mirror else crop
    return crops
