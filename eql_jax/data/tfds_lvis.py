"""LVIS v1 as TensorFlow Datasets stores it (`lvis`, version 1.4.0), read at any image.

    annotations = load_tfds("tfds:lvis/train", "tensorflow_datasets")

The data set must have been generated (with Apache Beam; see TFDS). For training from scratch, preparing the JSON
(`eql_jax.data.prepare`) is exact and takes a fraction of the disk and of the time. What TFDS loses:

* masks: polygon corners are cut down to whole pixels before they are filled, border pixels included, so that small
  objects get another shape (IoU .76 with LVIS's own mask at a radius of 4 pixels);
* areas: cut down to whole pixels;
* 17 annotations (13 of train, 4 of val) with boxes that leave their image are not there;
* class frequencies and synsets are not there: they are taken from LVIS's training counts in this package;
* evaluation is against these masks and areas, and its numbers are not the official ones.

Boxes are stored as shares of the image's sides in float32; rounding to hundredths of a pixel gives those of LVIS back.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from eql_jax.data.categories import packaged_categories
from eql_jax.data.files import FilePath, ReadError, as_path, file_size, write_whole
from eql_jax.data.images import ImageError
from eql_jax.data.parallel import available_cores
from eql_jax.data.polygons import RunLengths
from eql_jax.data.record_file import RecordError, RecordPlaces, read_record, scan
from eql_jax.data.records import (
    Annotations,
    Category,
    ImageIndex,
    ImageRecord,
    LazyImages,
    ObjectRecord,
    frequency_letter,
    pack_objects,
)
from eql_jax.data.to_lvis import to_lvis
from eql_jax.data.validation import AnnotationError, FaultReport

LOG = logging.getLogger(__name__)

PREFIX = "tfds:"

_VERSION = 2  # of the stored index


def load_tfds(
    where: str, data_dir: str | os.PathLike | None = None, *, strict: bool = False, masks: bool = True
) -> Annotations:
    """Opens a split of TFDS `lvis`. The first time, all of it is read once, for an index that is kept beside it.

    Args:
      where: 'tfds:lvis/train', or another split, or 'tfds:lvis:1.4.0/train'.
      data_dir: TFDS's folder, None for its default (~/tensorflow_datasets or TFDS_DATA_DIR).
      strict: an image that is stored twice raises, else the first is kept and the others are counted in `report`.
      masks: False: masks are not read.

    Returns:
      `Annotations`. Classes 0..1202 are categories 1..1203. Masks are `RunLengths`.

    Raises:
      ImportError: tensorflow-datasets is not installed.
      FileNotFoundError: the split has not been generated, or a file of it is missing.
      AnnotationError: `where` is no such name, the data set is of another form, or a shard is damaged; in strict
        mode, an image is stored twice.
    """
    builder, split = _open(where, data_dir)
    paths = [as_path(path) for path in builder.info.splits[split].filepaths]
    folder = as_path(os.fspath(builder.data_dir))
    names = builder.info.features["objects"]["label"].names
    index, places = _read_index(folder / f"eql_jax-{split}.npz", paths, where)
    report = FaultReport(strict=strict)
    index, places = _leave_out_twice(index, places, paths, report)
    images = TfdsImages(paths, index, places, masks=masks)
    categories = _categories(names, index)
    return Annotations(
        categories=categories,
        class_ids=np.arange(1, len(names) + 1, dtype=np.int64),
        images=images,
        report=report,
        raw=folder / split,
        make_dataset=functools.partial(to_lvis, categories, images),
    )


class TfdsImages(LazyImages):
    """The records of a split, each read and its masks decoded when it is asked for. Safe from any thread."""

    def __init__(self, paths: Sequence[FilePath], index: ImageIndex, places: RecordPlaces, *, masks: bool = True):
        self._paths = paths
        self._places = places
        self._masks = masks
        self.image_index = index

    def read(self, i: int) -> ImageRecord:
        path = self._paths[self._places.shard[i]]
        size = int(self.image_index.widths[i]), int(self.image_index.heights[i])
        try:
            data = read_record(path, self._places.span(i))
            return _to_record(_parse(data), path, *size, masks=self._masks)
        except (RecordError, KeyError, ValueError) as error:
            message = f"the record at byte {self._places.offset[i]} of this file cannot be read: {error}"
            raise ImageError("unreadable image", message, file=path) from error


def _open(where: str, data_dir: str | os.PathLike | None) -> tuple[Any, str]:
    """The builder and the split's name."""
    name, slash, split = where.removeprefix(PREFIX).partition("/")
    if not where.startswith(PREFIX) or name.split(":")[0] != "lvis" or not slash or not split.isidentifier():
        raise AnnotationError(f"{where!r} is no data set of TFDS that can be read: expected 'tfds:lvis/SPLIT'")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(f"{where} needs tensorflow-datasets: pip install 'eql_jax[train]'") from error
    try:
        builder = tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise AnnotationError(f"{where}: {error}") from error
    if split not in builder.info.splits:
        there = sorted(builder.info.splits)
        raise FileNotFoundError(
            f"{where} is not in {builder.data_dir}: there {f'are only the splits {there}' if there else 'is nothing'}. "
            "Generate it (tfds build lvis, needs Apache Beam), give its folder, or use LVIS's JSON"
        )
    expected = {"image", "image/id", "neg_category_ids", "not_exhaustive_category_ids", "objects"}
    if not expected <= set(builder.info.features) or builder.info.file_format.value != "tfrecord":
        raise AnnotationError(
            f"{where} in {builder.data_dir} is {builder.info.file_format.value} with {sorted(builder.info.features)}; "
            f"expected tfrecord with {sorted(expected)}, which is version 1.4.0"
        )
    return builder, split


def _categories(names: Sequence[str], index: ImageIndex) -> list[Category]:
    """Letters and counts of LVIS v1's training set where the names are its, else of the split."""
    known = packaged_categories("lvis_v1")
    if [category.name for category in known] == list(names):
        return known
    image_of = np.repeat(np.arange(index.ids.size), index.object_counts())
    pairs = np.unique(image_of * len(names) + index.classes)
    image_counts = np.bincount(pairs % len(names), minlength=len(names)).tolist()
    counts = np.bincount(index.classes, minlength=len(names)).tolist()
    return [
        Category(i + 1, name, "", frequency_letter(image_counts[i]), image_counts[i], counts[i])
        for i, name in enumerate(names)
    ]


def _read_index(stored: FilePath, paths: Sequence[FilePath], where: str) -> tuple[ImageIndex, RecordPlaces]:
    """Reads the index, or makes it and keeps it where the folder can be written to."""
    sizes = {path.name: file_size(path) for path in paths}
    missing = [name for name, size in sizes.items() if size is None]
    if missing:
        raise FileNotFoundError(
            f"{where}: {paths[0].parent} lacks {missing[:3]} ({len(missing)} of {len(sizes)} files)"
        )
    key = hashlib.sha256(json.dumps([_VERSION, sizes]).encode()).hexdigest()
    keys = (*ImageIndex._fields, *RecordPlaces._fields)
    if file_size(stored) is not None:
        try:
            with np.load(io.BytesIO(stored.read_bytes())) as arrays:
                if str(arrays["key"]) == key:
                    found = {name: arrays[name] for name in keys}
                    return _split(found)
        except Exception as error:
            LOG.warning("%s is damaged and is made again: %s", stored, error)
    LOG.info("%s: reading %d files once, for an index", where, len(paths))
    found = _make_index(paths)
    buffer = io.BytesIO()
    np.savez(buffer, key=key, **found)
    try:
        with write_whole(stored) as stream:
            stream.write(buffer.getvalue())
    except Exception as error:  # of any file system
        LOG.warning("the index cannot be kept, so that the next start reads everything again: %s", error)
    return _split(found)


def _leave_out_twice(
    index: ImageIndex, places: RecordPlaces, paths: Sequence[FilePath], report: FaultReport
) -> tuple[ImageIndex, RecordPlaces]:
    """Keeps the first record of each image."""
    first = np.sort(np.unique(index.ids, return_index=True)[1])
    if first.size == index.ids.size:
        return index, places
    for i in np.setdiff1d(np.arange(index.ids.size), first):
        message = f"its record at byte {places.offset[i]} is not the first of this id"
        file = paths[places.shard[i]]
        report.add("duplicate image id", file=file, record_id=int(index.ids[i]), message=message)
    return index.select(first), RecordPlaces(*(values[first] for values in places))


def _split(arrays: dict[str, np.ndarray]) -> tuple[ImageIndex, RecordPlaces]:
    return (
        ImageIndex(**{key: arrays[key] for key in ImageIndex._fields}),
        RecordPlaces(**{key: arrays[key] for key in RecordPlaces._fields}),
    )


def _make_index(paths: Sequence[FilePath]) -> dict[str, np.ndarray]:
    def of_shard(number: int) -> list[tuple]:
        path = paths[number]
        rows = []
        try:
            for span in scan(path):
                values = _parse(read_record(path, span))
                with Image.open(io.BytesIO(values("image", "bytes_list")[0])) as image:
                    size = image.size
                classes = np.array(values("objects/label", "int64_list"), np.int32)
                rows.append((values("image/id", "int64_list")[0], *size, classes, number, *span))
        except ReadError:  # it says that it is the disk or the network
            raise
        except (RecordError, KeyError, IndexError, OSError) as error:
            raise AnnotationError(f"{path}: record {len(rows)} cannot be read: {error}") from error
        return rows

    with ThreadPoolExecutor(min(32, available_cores())) as pool:
        rows = [row for of_one in pool.map(of_shard, range(len(paths))) for row in of_one]
    if not rows:
        raise AnnotationError(f"{paths[0]} and {len(paths) - 1} more files hold no image")
    ids, widths, heights, classes, shard, offset, length = zip(*rows, strict=True)
    every_class = np.concatenate(classes).astype(np.int32)
    return {
        "ids": np.array(ids, np.int64),
        "heights": np.array(heights, np.int32),
        "widths": np.array(widths, np.int32),
        "offsets": np.concatenate([[0], np.cumsum([c.size for c in classes])]).astype(np.int64),
        "classes": every_class,
        "ignore": np.zeros(every_class.size, bool),
        "shard": np.array(shard, np.int32),
        "offset": np.array(offset, np.int64),
        "length": np.array(length, np.int64),
    }


def _parse(data: bytes) -> Callable[[str, str], Any]:
    """Parses a tf.train.Example without TensorFlow; returns feature name, kind of list -> values.

    TFDS's own `deserialize_example_np` would decode the image and every mask, or import TensorFlow for not doing so.
    """
    from tensorflow_datasets.proto import tf_example_generated_pb2

    try:
        features = tf_example_generated_pb2.Example.FromString(data).features.feature
    except Exception as error:  # google.protobuf.message.DecodeError
        raise RecordError(f"no tf.train.Example: {error}") from error
    return lambda name, kind: getattr(features[name], kind).value if name in features else ()


def _to_record(
    values: Callable[[str, str], Any], path: FilePath, width: int, height: int, *, masks: bool
) -> ImageRecord:
    identity = values("image/id", "int64_list")[0]
    ids, labels, areas = (values(f"objects/{key}", "int64_list") for key in ("id", "label", "area"))
    shares = np.array(values("objects/bbox", "float_list"), np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
    sides = np.array([width, height, width, height], np.float64)
    boxes = np.clip(np.round(shares * sides, 2), 0, sides).astype(np.float32)
    pictures = values("objects/segmentation", "bytes_list") if masks else ()
    segmentations = [_run_lengths(png) for png in pictures] if masks else [None] * len(ids)
    objects = [
        ObjectRecord(ids[i], boxes[i], labels[i], False, float(areas[i]), segmentations[i]) for i in range(len(ids))
    ]
    lists = (
        np.array(values(key, "int64_list"), np.int32) for key in ("neg_category_ids", "not_exhaustive_category_ids")
    )
    return ImageRecord(
        id=identity,
        path=path / f"{identity:012d}.jpg",  # there is no such file: for messages and names
        width=width,
        height=height,
        neg_classes=next(lists),
        not_exhaustive_classes=next(lists),
        objects=pack_objects(objects),
        encoded=values("image", "bytes_list")[0],
    )


def _run_lengths(png: bytes) -> RunLengths:
    """A mask file as runs down the columns."""
    with Image.open(io.BytesIO(png)) as image:
        mask = np.asarray(image) > 0
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]]))
    if flat[0]:  # the first run is of zeros
        counts = np.concatenate([[0], counts])
    return RunLengths(mask.shape[0], mask.shape[1], counts.astype(np.int64))
