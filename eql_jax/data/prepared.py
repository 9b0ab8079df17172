"""Reads what `python -m eql_jax.data.prepare` made: sharded records of images with their objects, at any position.

    annotations = load_prepared("lvis_v1_train_prepared")
    annotations.images[17]  # one read of a shard, checked against its checksum

The folder, local or in a bucket, holds

| file | what |
| --- | --- |
| NAME-00000-of-00196.tfrecord .. | records (`record_format`), in the order of the annotation file |
| index.json | source (with or without masks), files with checksums, classes and their statistics, what was dropped |
| index.npz | ids, sizes, classes of all images, and where each record is |
| annotations.json.gz | the annotation file itself, for the official evaluation |
"""

from __future__ import annotations

import hashlib
import json
import os
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from eql_jax.data.annotations import BOXES_ONLY
from eql_jax.data.files import FilePath, as_path, read_file
from eql_jax.data.images import ImageError
from eql_jax.data.record_file import RecordError, RecordPlaces, read_record
from eql_jax.data.record_format import decode_record
from eql_jax.data.records import Annotations, Category, ImageIndex, ImageRecord, LazyImages
from eql_jax.data.validation import AnnotationError, Fault, FaultReport, NoMasks

FORMAT = "eql_jax prepared data set"
VERSION = 2
INDEX_JSON = "index.json"
INDEX_NPZ = "index.npz"
ANNOTATIONS = "annotations.json.gz"
JOURNAL = "journal"  # folder, there while a data set is being prepared

REMAKE = "prepare it anew, into an empty folder"


class DamagedIndex(AnnotationError):
    """The index of a prepared data set is not what was written."""


class Index(NamedTuple):
    """The index of a prepared data set: the contents of index.json, and the arrays of index.npz."""

    info: dict[str, Any]
    images: ImageIndex
    places: RecordPlaces


def is_prepared(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a prepared data set, or one that is being prepared."""
    folder = as_path(folder)
    return (folder / INDEX_JSON).exists() or (folder / JOURNAL).exists()


def load_prepared(folder: str | os.PathLike, *, strict: bool = False, masks: bool = True) -> Annotations:
    """Opens a prepared data set; only its index is read now. Its records equal those of the JSON it was made from, but
    for their path: that is the name below the image folder, in the folder of the data set, where there is no such file.

    Of a damaged record, `annotations.images[i]` raises `ImageError` that names shard and record; training then takes
    another image and reports it.

    Args:
      folder: local or remote.
      strict: raise where faulty records were left out when it was prepared.
      masks: False: objects have no masks. Objects whose mask is faulty are there only if it was prepared without masks.

    Raises:
      FileNotFoundError: the folder or its index does not exist.
      AnnotationError: the folder is unfinished, or its index is damaged (`DamagedIndex`) or of another version; masks
        are asked for and it was prepared without (`NoMasks`); in strict mode, faults.
      OSError: the index is there and cannot be read.
    """
    folder = as_path(folder)
    index = read_index(folder)
    if masks and not index.info["source"].get("masks", True):
        raise NoMasks(f"{folder} holds boxes only: it was prepared with --no-masks. {BOXES_ONLY}")
    report = restore_report(index.info["dropped"])
    if strict and report.total:
        raise AnnotationError(
            f"{folder}: faulty records were left out when it was prepared:\n{report.summary()}\n"
            "(data.strict is on: with data.strict=False such a data set is used.)"
        )
    categories = [Category(**category) for category in index.info["categories"]]
    return Annotations(
        categories=categories,
        class_ids=np.array([category.id for category in categories], np.int64),
        images=PreparedImages(folder, index, masks=masks),
        report=report,
        raw=folder / ANNOTATIONS,
    )


class PreparedImages(LazyImages):
    """The records of a prepared data set, each read when it is asked for. Safe from any thread; no file stays open."""

    def __init__(self, folder: FilePath, index: Index, *, masks: bool = True):
        self._shards = [folder / shard["file"] for shard in index.info["shards"]]
        self._places = index.places
        self.image_index = index.images
        self._folder = folder
        self._masks = masks

    def read(self, i: int) -> ImageRecord:
        shard = self._shards[self._places.shard[i]]
        for attempt in (1, 2):  # again, because a network gives bad answers at times
            try:
                data = read_record(shard, self._places.span(i))
                record = decode_record(data, self._folder, masks=self._masks)
                if record.id != self.image_index.ids[i]:
                    raise RecordError(f"it holds image {record.id}, expected {self.image_index.ids[i]}")
                return record
            except RecordError as error:
                if attempt == 2:
                    number = i - int(np.searchsorted(self._places.shard, self._places.shard[i]))
                    raise ImageError(
                        "unreadable image",
                        f"record {number} of this shard cannot be read: {error}. "
                        f"For all damage: python -m eql_jax.data.prepare --verify {self._folder}",
                        file=shard,
                    ) from error


def read_index(folder: FilePath) -> Index:
    """Reads and checks the index of a prepared data set. Raises as `load_prepared`."""
    path = folder / INDEX_JSON
    try:
        raw = read_file(path)
    except FileNotFoundError as error:
        if (folder / JOURNAL).exists():
            raise AnnotationError(f"{folder} is not fully prepared: run the command that began it again") from error
        raise FileNotFoundError(f"{folder} holds no prepared data set: there is no {INDEX_JSON}") from error
    info = parse_info(raw, path)
    path = folder / INDEX_NPZ
    try:
        raw = read_file(path)
    except FileNotFoundError as error:
        raise DamagedIndex(f"{path} is missing: {REMAKE}") from error
    if (found := hashlib.sha256(raw).hexdigest()) != info["index"]["sha256"]:
        raise DamagedIndex(
            f"{path} is damaged: its SHA-256 is {found}, {INDEX_JSON} has {info['index']['sha256']}: {REMAKE}"
        )
    try:
        with np.load(BytesIO(raw)) as stored:
            arrays = {key: stored[key] for key in (*ImageIndex._fields, *RecordPlaces._fields)}
    except Exception as error:  # of zipfile, zlib, NumPy and its parser of headers
        raise DamagedIndex(f"{path} cannot be read: {type(error).__name__}: {error}: {REMAKE}") from error
    if arrays["ids"].size != info["images"]:
        raise DamagedIndex(f"{path} has {arrays['ids'].size} images, {INDEX_JSON} says {info['images']}: {REMAKE}")
    return Index(
        info,
        ImageIndex(**{key: arrays[key] for key in ImageIndex._fields}),
        RecordPlaces(**{key: arrays[key] for key in RecordPlaces._fields}),
    )


def info_sha256(info: dict[str, Any]) -> str:
    """SHA-256 of the contents of index.json but for the key 'sha256': of their JSON without spaces, keys sorted."""
    content = {key: value for key, value in info.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def parse_info(raw: bytes, path: FilePath) -> dict[str, Any]:
    """The contents of index.json. Raises DamagedIndex, and AnnotationError where they are of another version."""
    try:
        info = json.loads(raw)
        found = info["format"], info["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedIndex(f"{path} is no index of a prepared data set, or damaged: {error!r}: {REMAKE}") from error
    if found != (FORMAT, VERSION):
        raise AnnotationError(f"{path} is {found[0]!r} of version {found[1]}, expected version {VERSION}: {REMAKE}")
    if (own := info_sha256(info)) != info.get("sha256"):
        raise DamagedIndex(
            f"{path} is damaged: its contents have the SHA-256 {own}, it says {info.get('sha256')}: {REMAKE}"
        )
    return info


def store_report(report: FaultReport) -> dict[str, Any]:
    """A report as index.json has it."""
    examples = {kind: [fault._asdict() for fault in faults] for kind, faults in report.examples.items()}
    return {"counts": report.counts, "examples": examples, "notes": report.notes}


def restore_report(stored: dict[str, Any]) -> FaultReport:
    """The report of `store_report`."""
    report = FaultReport()
    report.counts.update(stored["counts"])
    report.examples.update({kind: [Fault(**fault) for fault in faults] for kind, faults in stored["examples"].items()})
    report.notes.update(stored["notes"])
    return report
