"""Checks every byte of a prepared data set against its checksums, and names what is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from eql_jax.data.files import FilePath, file_size
from eql_jax.data.prepared import Index, read_index
from eql_jax.data.record_file import OVERHEAD, RecordError, file_sha256, unframe
from eql_jax.data.record_format import decode_record


class Verified(NamedTuple):
    """What was found: one line for each damage, and the number of whole records."""

    faults: list[str]
    records: int


def verify(
    folder: FilePath, *, workers: int, progress: Callable[..., AbstractContextManager[Callable[[int], None]]]
) -> Verified:
    """Reads all files of a prepared data set.

    Args:
      folder: of the data set.
      workers: shards read at the same time.
      progress: given the number of records and `shown`, a context manager of a function that is called with the number
        of records read.

    Raises:
      FileNotFoundError, AnnotationError: the index itself cannot be read or is damaged; see `prepared.load_prepared`.
    """
    index = read_index(folder)
    entry = index.info["annotations"]  # `read_index` has checked the others
    faults = [f"{entry['file']}: {what}" for what in _check_file(folder / entry["file"], entry)]
    with progress(index.images.ids.size, shown=True) as advance, ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda i: _check_shard(folder, index, i, advance), range(len(index.info["shards"]))))
    faults += [fault for of_shard in found for fault in of_shard.faults]
    return Verified(faults, sum(of_shard.records for of_shard in found))


def _check_file(path: FilePath, entry: dict) -> list[str]:
    try:
        size = file_size(path)
        if size != entry["bytes"]:
            return ["missing" if size is None else f"{size} bytes, expected {entry['bytes']}"]
        return [] if file_sha256(path) == entry["sha256"] else ["its SHA-256 differs from that in index.json"]
    except Exception as error:  # OSError, and what remote file systems have
        return [_unread(error)]


def _check_shard(folder: FilePath, index: Index, number: int, advance: Callable[[int], None]) -> Verified:
    """Checks one shard. What keeps it from being read is a fault of its own: the others are still checked."""
    entry = index.info["shards"][number]
    faults, whole = [], 0
    try:
        for fault in _faults_of_shard(folder, index, number, advance):
            if fault:
                faults.append(f"{entry['file']}: {fault}")
            else:
                whole += 1
    except Exception as error:  # OSError, and what remote file systems have
        faults.append(f"{entry['file']}: {_unread(error)}")
    return Verified(faults, whole)


def _faults_of_shard(folder: FilePath, index: Index, number: int, advance: Callable[[int], None]) -> Iterator[str]:
    """Yields what is damaged, and an empty text for each whole record."""
    entry = index.info["shards"][number]
    path = folder / entry["file"]
    size = file_size(path)
    if size is None:
        yield "missing"
        return
    sound = size == entry["bytes"]
    if not sound:
        yield f"{size} bytes, expected {entry['bytes']}"
    digest = hashlib.sha256()
    first, last = np.searchsorted(index.places.shard, [number, number + 1])
    with path.open("rb") as stream:
        for i in range(first, last):
            span = index.places.span(i)
            framed = stream.read(span.length + OVERHEAD)
            digest.update(framed)
            image_id = int(index.images.ids[i])
            try:
                record = decode_record(unframe(framed, span), folder)
                if record.id != image_id:
                    raise RecordError(f"it holds image {record.id}")
                yield ""
            except RecordError as error:
                sound = False
                yield f"record {i - first} (image {image_id}): {error}"
            advance(1)
        digest.update(stream.read())
    if sound and digest.hexdigest() != entry["sha256"]:
        yield "its SHA-256 differs from that in index.json, all records are whole"


def _unread(error: Exception) -> str:
    return f"cannot be read: {type(error).__name__}: {error}"
