"""The checks of one annotation: its box and its masks against its image."""

from __future__ import annotations

import math

import numpy as np

from eql_jax.data.files import FilePath
from eql_jax.data.polygons import parse_run_lengths
from eql_jax.data.records import ObjectRecord
from eql_jax.data.segmentations import Segmentation
from eql_jax.data.validation import FaultReport

# Boxes of LVIS are rounded to hundredths: those that leave the image by up to this many pixels are clipped silently.
BORDER_TOLERANCE = 1.0


def is_id(value: object) -> bool:
    """Whether a value of a JSON is an integer of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def read_object(
    record: dict,
    class_index: int,
    width: int,
    height: int,
    path: FilePath,
    report: FaultReport,
    *,
    masks: bool = True,
) -> ObjectRecord | None:
    """Checks an annotation whose id, image and class are known.

    Args:
      record: of the JSON, its polygons packed (`json_file.pack_polygons`).
      class_index: 0..K-1.
      width, height: of its image.
      path: of the file, for the report.
      report: gets the faults found.
      masks: False: its mask is neither asked for nor read.

    Returns:
      The object, its box clipped to the image, or None when it cannot be used.
    """
    identity = record["id"]
    box = _read_box(record, width, height, path, report)
    if box is None:
        return None
    segmentation = None
    if masks:
        segmentation = _read_segmentation(record, width, height, path, report)
        if segmentation is None:
            return None
    area = read_area(record)
    if math.isnan(area):
        area = (box[2] - box[0]) * (box[3] - box[1])
    ignore = bool(record.get("iscrowd")) or bool(record.get("ignore"))
    return ObjectRecord(identity, box, class_index, ignore, float(area), segmentation)


def read_area(record: dict) -> float:
    """The area an annotation states, NaN where it states none that is a finite number."""
    value = record.get("area")
    try:
        area = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan
    return area if math.isfinite(area) else math.nan


def _read_box(record: dict, width: int, height: int, path: FilePath, report: FaultReport) -> np.ndarray | None:
    """Returns the box clipped to the image, float32 XYXY, or None."""
    identity, found = record["id"], record.get("bbox")
    try:
        x, y, w, h = (float(number) for number in found)
    except (TypeError, ValueError, OverflowError):
        x = y = w = h = float("nan")
    if not (np.isfinite([x, y, w, h]).all() and w > 0 and h > 0):
        message = f"found bbox {found!r}, expected [x, y, width, height] with positive width and height"
        report.add("degenerate box", file=path, record_id=identity, message=message)
        return None
    excess = max(-x, -y, x + w - width, y + h - height)
    # In float32 from here on: a box must keep a positive side after rounding, too.
    box = np.array([max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)], np.float32)
    if not (box[2] > box[0] and box[3] > box[1]):
        message = f"bbox {found} does not touch its image of {width} x {height} (width x height)"
        report.add("box outside", file=path, record_id=identity, message=message)
        return None
    if excess > BORDER_TOLERANCE:
        message = f"bbox {found} leaves its image of {width} x {height} by {excess:.2f} pixels"
        report.add("box partly outside", file=path, record_id=identity, message=message)
    return box


def _read_segmentation(
    record: dict, width: int, height: int, path: FilePath, report: FaultReport
) -> Segmentation | None:
    """Returns polygons or run lengths, or None."""
    identity, found = record["id"], record.get("segmentation")
    if isinstance(found, dict):
        try:
            rle = parse_run_lengths(found)
            if (rle.height, rle.width) != (height, width):
                raise ValueError(f"mask of {rle.width} x {rle.height}, image of {width} x {height} (width x height)")
        except (ValueError, OverflowError) as error:
            report.add("bad mask", file=path, record_id=identity, message=str(error))
            return None
        return rle
    polygons = []
    for part in found if isinstance(found, list) else []:
        usable = isinstance(part, np.ndarray) and part.ndim == 1 and part.size >= 6 and part.size % 2 == 0
        if usable and np.isfinite(part).all():
            polygons.append(part.reshape(-1, 2))
        else:
            what = (
                f"{part.size} numbers, as {part.ravel()[:6].tolist()}"
                if isinstance(part, np.ndarray)
                else repr(part)[:60]
            )
            message = f"found {what}, expected finite x, y of at least three points"
            report.add("bad polygon", file=path, record_id=identity, message=message)
    if not polygons:
        message = f"found {'no' if found is None else type(found).__name__} segmentation without a usable polygon"
        report.add("empty segmentation", file=path, record_id=identity, message=message)
        return None
    return tuple(polygons)
