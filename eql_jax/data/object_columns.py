"""The annotations of a file, packed into columns while it is read.

K classes, N images, T annotations. An annotation of LVIS v1 takes 0.5 KB here and 4 KB as Python objects; without its
mask 65 bytes. Which images and classes there are may stand later in the file, so that nothing is checked against them
before the end: `resolve` does that, for all annotations at once where they are as they should be, and for each of the
others by `object_checks.read_object`, in the order of the file.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eql_jax.data.files import FilePath
from eql_jax.data.json_file import pack_polygons
from eql_jax.data.object_checks import BORDER_TOLERANCE, is_id, read_area, read_object
from eql_jax.data.polygons import RunLengths, parse_run_lengths
from eql_jax.data.records import ObjectRecord, Objects
from eql_jax.data.segmentations import Packed, Segmentations, pack_numbers
from eql_jax.data.validation import AnnotationError, FaultReport

_CHUNK = 8192  # annotations whose coordinates are packed together


class ObjectColumns:
    """Gathers annotations: `append` each, then `resolve`."""

    def __init__(self, path: FilePath, *, masks: bool = True):
        """path: of the file, for messages. masks: False: boxes alone, masks are neither asked for nor read."""
        self._path = path
        self._with_masks = masks
        self._any_mask = False  # whether any annotation so far states a mask, usable or not
        self._ids, self._image_ids, self._category_ids = array("q"), array("q"), array("q")
        self._boxes = array("d")  # x, y, width, height of each
        self._areas = array("d")  # NaN: not stated
        self._ignore = array("b")
        self._polygons, self._points = array("i"), array("i")  # polygons of each annotation; points of each polygon
        self._num_runs, self._heights, self._widths = array("i"), array("i"), array("i")
        self._runs = array("i")
        self._coordinates = array("d")  # of the chunk that is being filled
        self._chunks: list[np.ndarray] = []
        self._odd: dict[int, dict] = {}  # records that the columns cannot hold, by place

    def append(self, record: dict) -> None:
        """Takes the next annotation of the file, as the JSON parser gives it.

        Raises:
          AnnotationError: it is no JSON object.
        """
        if not isinstance(record, dict):
            raise AnnotationError(
                f"{self._path}: 'annotations' must be a list of objects, found {str(record)[:60]!r} in it"
            )
        self._any_mask = self._any_mask or bool(record.get("segmentation"))
        before = len(self._coordinates), len(self._points)
        try:
            self._append_regular(record)
        except (KeyError, TypeError, ValueError, OverflowError):
            del self._coordinates[before[0] :], self._points[before[1] :]
            self._append_odd(record)
        if len(self._ids) % _CHUNK == 0:
            self._pack_chunk()

    def _append_regular(self, record: dict) -> None:
        """Raises one of several errors, nothing but coordinates and points appended, where anything is unusual."""
        keys = record["id"], record["image_id"], record["category_id"]
        if not all(type(key) is int and abs(key) < 2**63 for key in keys):
            raise TypeError
        box = array("d", record["bbox"])
        if len(box) != 4 or not (box[2] > 0 and box[3] > 0 and math.isfinite(sum(box))):
            raise ValueError
        area = read_area(record)
        ignore = bool(record.get("iscrowd")) or bool(record.get("ignore"))
        if not self._with_masks:
            self._fill(*keys, box, area, ignore)
            return
        found = record["segmentation"]
        runs, size, count = None, (0, 0), 0
        if isinstance(found, dict):
            mask = parse_run_lengths(found)
            runs, size = array("i", mask.counts.tolist()), (mask.height, mask.width)
        elif isinstance(found, list) and found:
            for part in found:
                length = len(part)
                if type(part) is not list or length < 6 or length % 2 or not math.isfinite(sum(part)):
                    raise ValueError
                self._coordinates.extend(part)  # TypeError for anything but numbers
                self._points.append(length // 2)
            count = len(found)
        else:
            raise TypeError
        self._fill(*keys, box, area, ignore, count, runs, size)

    def _append_odd(self, record: dict) -> None:
        if self._with_masks:
            self._odd[len(self._ids)] = pack_polygons(record)
        else:
            self._odd[len(self._ids)] = {key: value for key, value in record.items() if key != "segmentation"}
        identity = record.get("id")
        self._fill(identity if is_id(identity) else 0, 0, 0, array("d", [0, 0, 1, 1]), math.nan, False)

    def _fill(self, identity, image_id, category_id, box, area, ignore, polygons=0, runs=None, size=(0, 0)) -> None:
        self._ids.append(identity)
        self._image_ids.append(image_id)
        self._category_ids.append(category_id)
        self._boxes.extend(box)
        self._areas.append(area)
        self._ignore.append(ignore)
        if not self._with_masks:
            return
        self._polygons.append(polygons)
        self._num_runs.append(len(runs) if runs else 0)
        self._heights.append(size[0])
        self._widths.append(size[1])
        if runs:
            self._runs.extend(runs)

    @property
    def lacks_masks(self) -> bool:
        """Whether there are annotations, and none of them states a mask."""
        return bool(self._ids) and not self._any_mask

    def _pack_chunk(self) -> None:
        self._chunks.append(pack_numbers(np.array(self._coordinates, np.float64)))
        self._coordinates = array("d")

    def resolve(
        self,
        image_ids: Sequence[int],
        widths: Sequence[int],
        heights: Sequence[int],
        class_of: Mapping[int, int],
        report: FaultReport,
    ) -> ObjectTable:
        """Checks the annotations against images and classes. Called once, after the last `append`.

        Args:
          image_ids, widths, heights: of the N usable images.
          class_of: category id -> class.
          report: gets the faults, in the order of the file.

        Raises:
          AnnotationError: in strict mode, at the first faulty annotation.
        """
        self._pack_chunk()
        count = len(self._ids)
        image_of = _positions(np.frombuffer(self._image_ids, np.int64), np.array(image_ids, np.int64))
        class_ids = np.array(list(class_of), np.int64)
        classes = _positions(np.frombuffer(self._category_ids, np.int64), class_ids)
        classes = np.append(np.array(list(class_of.values()), np.int32), np.int32(-1))[classes]
        # One more of each, for position -1.
        width, height = (np.append(np.array(sides, np.int64), 1)[image_of] for sides in (widths, heights))

        x, y, w, h = np.frombuffer(self._boxes, np.float64).reshape(-1, 4).T
        excess = np.maximum.reduce([-x, -y, x + w - width, y + h - height])
        corners = [np.maximum(x, 0), np.maximum(y, 0), np.minimum(x + w, width), np.minimum(y + h, height)]
        boxes = np.stack(corners, axis=1).astype(np.float32)
        areas = np.array(self._areas, np.float64)
        areas = np.where(np.isnan(areas), (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), areas)
        areas = areas.astype(np.float32)
        ignore = np.array(self._ignore, bool)
        ids = np.array(self._ids, np.int64)

        odd = np.zeros(count, bool)
        odd[list(self._odd)] = True
        nameless = [i for i, record in self._odd.items() if not is_id(record.get("id"))]
        first = _first_of_each(ids, nameless)
        kept = ~odd & first & (image_of >= 0) & (classes >= 0) & (excess <= BORDER_TOLERANCE)
        kept &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        if self._with_masks:
            of_other_size = (np.array(self._heights) != height) | (np.array(self._widths) != width)
            kept &= ~(of_other_size & (np.array(self._num_runs) > 0))

        masks = _Masks(self) if self._with_masks else None
        sides = dict(zip(image_ids, zip(widths, heights, strict=True), strict=True))
        position = {image_id: i for i, image_id in enumerate(image_ids)} if not kept.all() else {}
        for i in np.flatnonzero(~kept).tolist():
            record = self._odd.get(i) or self._record(i, masks)
            parsed = self._check(record, bool(first[i]), sides, class_of, report)
            if parsed is None:
                continue
            kept[i] = True
            image_of[i], classes[i] = position[record["image_id"]], parsed.class_index
            boxes[i], areas[i], ignore[i] = parsed.box, parsed.area, parsed.ignore
            if i in self._odd and masks is not None:
                masks.special[i] = parsed.segmentation
        rows = np.flatnonzero(kept)
        rows = rows[np.argsort(image_of[rows], kind="stable")]
        counts = np.bincount(image_of[rows], minlength=len(image_ids))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return ObjectTable(offsets, rows, ids[rows], boxes[rows], classes[rows], ignore[rows], areas[rows], masks)

    def _check(
        self, record: dict, first: bool, sides: dict, class_of: Mapping[int, int], report: FaultReport
    ) -> ObjectRecord | None:
        """Checks one annotation, all but its id's being the first against the others'."""
        identity = record.get("id")
        if not is_id(identity):
            message = f"found id {identity!r}, expected an integer"
            report.add("bad annotation record", file=self._path, record_id=identity, message=message)
            return None
        if not first:
            report.add("duplicate annotation id", file=self._path, record_id=identity, message="listed before")
            return None
        # A hostile or broken file may have a list here, which no dict can look up.
        image_id, category_id = (k if is_id(k) else None for k in (record.get("image_id"), record.get("category_id")))
        if image_id not in sides:
            message = f"image_id {record.get('image_id')!r} is not among the file's images"
            report.add("unknown image", file=self._path, record_id=identity, message=message)
            return None
        if category_id not in class_of:
            message = f"category_id {record.get('category_id')!r} is not among the file's {len(class_of)} categories"
            report.add("unknown category", file=self._path, record_id=identity, message=message)
            return None
        return read_object(record, class_of[category_id], *sides[image_id], self._path, report, masks=self._with_masks)

    def _record(self, i: int, masks: _Masks | None) -> dict:
        """Annotation i as the JSON has it, but for numbers that are written in another way."""
        segmentation = () if masks is None else masks[i]
        if isinstance(segmentation, RunLengths):
            size = [segmentation.height, segmentation.width]
            segmentation = {"size": size, "counts": segmentation.counts.tolist()}
        else:
            segmentation = [polygon.ravel() for polygon in segmentation]
        return {
            "id": self._ids[i],
            "image_id": self._image_ids[i],
            "category_id": self._category_ids[i],
            "bbox": [int(number) if number.is_integer() else number for number in self._boxes[4 * i : 4 * i + 4]],
            "area": self._areas[i],
            "ignore": self._ignore[i],
            "segmentation": segmentation,
        }


class ObjectTable(NamedTuple):
    """The usable objects of all images, sorted by image. `table.objects(i)` are those of image i.

    Attributes:
      offsets: int64 [N + 1]; the objects of image i are offsets[i] .. offsets[i + 1] of the others.
      rows: int64 [T] where the object is in the file, for `masks`.
      ids, boxes, classes, ignore, areas: as in `records.Objects`.
      masks: packed; None: they were not read.
    """

    offsets: np.ndarray
    rows: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray
    masks: _Masks | None

    def objects(self, i: int) -> Objects:
        """The objects of image i. Safe from any thread."""
        span = slice(self.offsets[i], self.offsets[i + 1])
        return Objects(
            ids=self.ids[span],
            boxes=self.boxes[span],
            classes=self.classes[span],
            ignore=self.ignore[span],
            areas=self.areas[span],
            segmentations=None if self.masks is None else self.masks.of_image(self.rows[span].tolist()),
        )


class _Masks:
    """The masks of all annotations: indexed by the place in the file."""

    def __init__(self, columns: ObjectColumns):
        self._chunks = columns._chunks
        self._points = np.array(columns._points, np.int32)
        self._runs = np.array(columns._runs, np.int32)
        self._polygons = np.array(columns._polygons, np.int32)
        self._num_runs = np.array(columns._num_runs, np.int32)
        self._sizes = columns._heights, columns._widths
        self._first_polygon = _starts(self._polygons)
        self._first_run = _starts(self._num_runs)
        self._first_number = 2 * _starts(self._points)[self._first_polygon]
        self.special: dict[int, tuple[np.ndarray, ...] | RunLengths] = {}

    def __getitem__(self, i: int) -> tuple[np.ndarray, ...] | RunLengths:
        return self.special[i] if i in self.special else self.of_image([i])[0]

    def of_image(self, rows: list[int]) -> Segmentations:
        """Those of some annotations, all of one image."""
        if not self.special.keys().isdisjoint(rows):
            return Segmentations.pack([self[i] for i in rows])
        polygons, runs, size = self._first_polygon, self._first_run, (0, 0)
        for i in rows:
            if self._num_runs[i]:
                size = self._sizes[0][i], self._sizes[1][i]
        coordinates = _join([self._coordinates(i) for i in rows], np.int32)
        if coordinates.dtype != np.int32:  # its neighbours in the file made it so
            coordinates = pack_numbers(coordinates)
        return Segmentations(
            Packed(
                coordinates=coordinates,
                points=_join([self._points[polygons[i] : polygons[i + 1]] for i in rows], np.int32),
                polygons=self._polygons[rows],
                runs=_join([self._runs[runs[i] : runs[i + 1]] for i in rows], np.int32),
                num_runs=self._num_runs[rows],
                height=size[0],
                width=size[1],
            )
        )

    def _coordinates(self, i: int) -> np.ndarray:
        chunk, start = divmod(i, _CHUNK)
        before = self._first_number[i - start]
        return self._chunks[chunk][self._first_number[i] - before : self._first_number[i + 1] - before]


def _join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    """Concatenates; integers that come with float64 hundredths-exact numbers become pixels."""
    if len({part.dtype for part in parts if part.size}) > 1:
        parts = [part if part.dtype == np.float64 else part / 100.0 for part in parts]
    parts = [part for part in parts if part.size]
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _positions(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Where each key is in `known`, int64; -1 where it is not. `known` has no key twice."""
    if not known.size:
        return np.full(keys.shape, -1, np.int64)
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known[order], keys), known.size - 1)]
    return np.where(known[place] == keys, place, -1)


def _first_of_each(ids: np.ndarray, left_out: list[int]) -> np.ndarray:
    """bool [T], whether no earlier annotation has the same id; those without an id do not count."""
    counted = np.ones(ids.size, bool)
    counted[left_out] = False
    places = np.flatnonzero(counted)
    first = np.zeros(ids.size, bool)
    first[places[np.unique(ids[places], return_index=True)[1]]] = True
    return first
