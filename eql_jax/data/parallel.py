"""Rows made in parallel and stacked to batches, in order: with tf.data, or with plain threads.

A row is a dict of arrays made by `load_row(position)`; the rows of a batch are consecutive positions and have equal
shapes. `load_row` is called from several threads.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

Row = dict[str, np.ndarray]
LoadRow = Callable[[int], Row]

_DTYPES = {
    "image": "uint8",
    "image_size": "int32",
    "original_size": "int32",
    "image_id": "int64",
    "gt_boxes": "float32",
    "gt_classes": "int32",
    "gt_ignore": "bool",
    "gt_masks": "uint8",
    "verified_classes": "bool",
}
