"""The annotation file that `open_images` writes: boxes in pixels, each once for every class it counts for, and lists.

T box lines, N boxes, M images, K classes. Boxes are in columns of 29 bytes a line, and become pixels, classes and text
block by block: 14.6 million as Python objects would take ten gigabytes.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

import numpy as np
from tqdm import tqdm

from eql_jax.data.files import FilePath, write_whole
from eql_jax.data.open_images_csv import Boxes, Classes, Labels
from eql_jax.data.segmentations import ranges
from eql_jax.data.validation import AnnotationError, FaultReport

_BLOCK = 1 << 16  # box lines, or records, worked on together


class Images(NamedTuple):
    """The images of the file to be.

    Attributes:
      ids: int64 [M].
      names: M paths of the files below the image folder.
      sizes: int32 [M, 2] (width, height), 0 for those that are left out.
    """

    ids: np.ndarray
    names: list[str]
    sizes: np.ndarray


class Objects(NamedTuple):
    """Boxes of the file to be, all of some images.

    Attributes:
      images: int32 [n] positions of the images, rising.
      classes: int32 [n].
      corners: float64 [n, 4] XYXY pixels, hundredths.
      groups: bool [n].
    """

    images: np.ndarray
    classes: np.ndarray
    corners: np.ndarray
    groups: np.ndarray


class Written(NamedTuple):
    """Numbers of images and of boxes in the file, and of the boxes that are groups."""

    images: int
    boxes: int
    groups: int


class _Totals:
    """What the lists after the annotations need to know of them."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.boxes = self.groups = 0
        self.instances = np.zeros(num_classes, np.int64)
        self.images = np.zeros(num_classes, np.int64)
        self._pairs: list[np.ndarray] = []  # int64 position of the image * K + class, rising

    def add(self, objects: Objects) -> None:
        self.boxes += len(objects.classes)
        self.groups += int(objects.groups.sum())
        pairs = objects.images.astype(np.int64) * self.num_classes + objects.classes
        self._pairs.append(np.unique(pairs))
        single = ~objects.groups
        self.instances += np.bincount(objects.classes[single], minlength=self.num_classes)
        self.images += np.bincount(np.unique(pairs[single]) % self.num_classes, minlength=self.num_classes)

    def pairs(self) -> np.ndarray:
        """The pairs of an image and a class that it has a box of."""
        return np.concatenate([np.zeros(0, np.int64), *self._pairs])


def write_annotations(
    out: FilePath,
    classes: Classes,
    images: Images,
    found: Boxes,
    present: Mapping[str, tuple[int, ...]],
    verified: Labels,
    *,
    source: FilePath,
    report: FaultReport,
    progress: bool,
) -> Written:
    """Writes the annotation file: annotations first, as LVIS v1 has them, then images and categories.

    Args:
      out: the file; gzip-compressed where its name ends in .gz.
      classes: the K classes.
      images: the M images.
      found: the box lines.
      present: classes that a box of a label counts for (`Meaning.present`).
      verified: image-level labels.
      source: of the boxes, for the report.
      report: gets the faults.
      progress: show a progress bar.

    Raises:
      AnnotationError: not one box is left; nothing was written.
      OSError: it cannot be written.
    """
    totals = _Totals(len(classes.labels))
    with write_whole(out) as stream:
        if out.name.endswith(".gz"):
            # No name and no time in it: the same boxes give the same bytes.
            with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=stream, mtime=0) as packed:
                _write_json(packed, classes, images, found, present, verified, source, report, totals, progress)
        else:
            _write_json(stream, classes, images, found, present, verified, source, report, totals, progress)
    return Written(int((images.sizes[:, 0] > 0).sum()), totals.boxes, totals.groups)


def _write_json(stream, classes, images, found, present, verified, source, report, totals, progress) -> None:
    text = io.TextIOWrapper(stream, "utf-8", write_through=True)
    text.write('{"info":{"description":"Open Images, boxes (eql_jax.data.open_images)"},\n"annotations":[')
    with tqdm(total=len(found.images), unit="box", desc="write", disable=not progress, mininterval=1) as bar:
        _write_list(text, _annotations(place_boxes(found, present, images, source, report, bar), images, totals))
    if not totals.boxes:
        raise AnnotationError(f"no box of {source} can be used\n{report.summary()}")
    text.write('],\n"images":[')
    _write_list(text, _image_records(images, totals, verified, report))
    text.write('],\n"categories":')
    text.write(json.dumps(list(_categories(classes, totals)), separators=(",", ":")))
    text.write("}\n")
    text.detach()


def _write_list(text: IO[str], blocks: Iterator[list[str]]) -> None:
    comma = ""
    for block in blocks:
        if block:
            text.write(comma + "\n" + ",\n".join(block))
            comma = ","


# ---------------------------------------------------------------------------------------------------- boxes
def place_boxes(
    found: Boxes,
    present: Mapping[str, tuple[int, ...]],
    images: Images,
    source: FilePath,
    report: FaultReport,
    bar: tqdm | None = None,
) -> Iterator[Objects]:
    """Yields the boxes in pixels, by image and then line, each once for every class that its label stands for.

    Arguments as of `write_annotations`; bar: told of the lines that are done.
    """
    of_image, order = found.images, None
    if (np.diff(of_image) < 0).any():  # those of Open Images are sorted
        order = np.argsort(of_image, kind="stable").astype(np.int32)
        of_image = of_image[order]
    targets = _Targets(present, found.label_names)
    start, total = 0, len(of_image)
    while start < total:
        last = of_image[min(start + _BLOCK, total) - 1]
        end = int(np.searchsorted(of_image, last, side="right"))  # no image is split: repeated boxes are of one image
        rows = np.arange(start, end) if order is None else order[start:end]
        yield _place_block(found, rows, targets, images, source, report)
        if bar is not None:
            bar.update(end - start)
        start = end


class _Targets:
    """The classes that the labels stand for, one after the other: counts[i] of them from starts[i] on are label i's."""

    def __init__(self, present: Mapping[str, tuple[int, ...]], labels: list[str]):
        of_labels = [present[name] for name in labels]
        self.counts = np.array([len(classes) for classes in of_labels], np.int64)
        self.starts = np.cumsum(self.counts) - self.counts
        self.classes = np.array([k for classes in of_labels for k in classes], np.int32)


def _place_block(
    found: Boxes, rows: np.ndarray, targets: _Targets, images: Images, source: FilePath, report: FaultReport
) -> Objects:
    rows = rows[images.sizes[found.images[rows], 0] > 0]
    sides = images.sizes[found.images[rows]]
    corners = found.shares(rows)
    for axis in range(2):
        corners[:, axis::2] = np.round(corners[:, axis::2] * sides[:, axis, None], 2)
    sized = (corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])

    def place_of(row: int) -> dict[str, str]:
        return {"file": f"{source}:{found.lines[row]}", "record_id": found.image_ids[found.images[row]]}

    for i in np.flatnonzero(~sized).tolist():
        message = f"in pixels rounded to hundredths it is {corners[i].tolist()} (x1, y1, x2, y2)"
        report.add("degenerate box", **place_of(rows[i]), message=message)
    rows, corners = rows[sized], corners[sized]
    counts, starts = targets.counts[found.labels[rows]], targets.starts[found.labels[rows]]
    line = np.repeat(np.arange(len(rows)), counts)
    objects = Objects(
        found.images[rows][line], targets.classes[ranges(starts, counts)], corners[line], found.groups[rows][line]
    )
    again = _repeated(objects)
    # A box that is there twice because of the classes above it is no fault of the file.
    own = np.zeros(len(line), bool)
    own[np.cumsum(counts) - counts] = True
    for i in np.flatnonzero(again & own).tolist():
        row = rows[line[i]]
        label = found.label_names[found.labels[row]]
        message = f"label {label}, in pixels {objects.corners[i].tolist()} (x1, y1, x2, y2)"
        report.add("duplicate box", **place_of(row), message=message)
    if expanded := int((again & ~own).sum()):
        report.note("box that the hierarchy made of another one and that was there already, left out", expanded)
    return Objects(*(values[~again] for values in objects))


def _repeated(objects: Objects) -> np.ndarray:
    """bool [n], whether an earlier box has the same image, class, flag and corners."""
    keys = (*objects.corners.T, objects.groups, objects.classes, objects.images)
    order = np.lexsort(keys)  # stable: of equal ones the first comes first
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    repeated = np.zeros(len(order), bool)
    repeated[order[1:][same]] = True
    return repeated


# ---------------------------------------------------------------------------------------------------- records
def _annotations(blocks: Iterator[Objects], images: Images, totals: _Totals) -> Iterator[list[str]]:
    form = '{"id":%d,"image_id":%d,"category_id":%d,"bbox":[%r,%r,%r,%r],"area":%r,"iscrowd":%d}'
    for objects in blocks:
        first = totals.boxes + 1
        totals.add(objects)
        x, y = objects.corners[:, :2].T
        width, height = np.round(objects.corners[:, 2:] - objects.corners[:, :2], 2).T
        columns = [
            np.arange(first, first + len(x)),
            images.ids[objects.images],
            objects.classes + 1,
            *(x, y, width, height, np.round(width * height, 2)),
            objects.groups,
        ]
        yield [form % values for values in zip(*(column.tolist() for column in columns), strict=True)]


def _image_records(images: Images, totals: _Totals, verified: Labels, report: FaultReport) -> Iterator[list[str]]:
    count, boxed = totals.num_classes, totals.pairs()
    contradicted = np.isin(verified.absent, boxed, assume_unique=True)
    if contradicted.any():
        text = "class that is verified absent in an image with a box of it: the box counts"
        report.note(text, int(contradicted.sum()))
    lists = (verified.absent[~contradicted], np.setdiff1d(verified.present, boxed, assume_unique=True))
    borders = np.arange(len(images.ids) + 1, dtype=np.int64) * count
    ends = [np.searchsorted(pairs, borders) for pairs in lists]
    kept = np.flatnonzero(images.sizes[:, 0] > 0)
    for first in range(0, len(kept), _BLOCK):
        block = []
        for i in kept[first : first + _BLOCK].tolist():
            absent, unboxed = (
                (pairs[end[i] : end[i + 1]] % count + 1).tolist() for pairs, end in zip(lists, ends, strict=True)
            )
            width, height = images.sizes[i].tolist()
            record = {"id": int(images.ids[i]), "width": width, "height": height, "file_name": images.names[i]}
            record |= {"neg_category_ids": absent, "not_exhaustive_category_ids": unboxed}
            block.append(json.dumps(record, separators=(",", ":")))
        yield block


def _categories(classes: Classes, totals: _Totals) -> Iterator[dict]:
    counts = zip(totals.images.tolist(), totals.instances.tolist(), strict=True)
    for k, (label, name, (images, instances)) in enumerate(zip(*classes, counts, strict=True), 1):
        yield {"id": k, "name": name, "synset": label, "image_count": images, "instance_count": instances}
