"""TFRecord files, written and read at any record without TensorFlow.

A file is a row of records, each

    uint64 length | uint32 masked CRC-32C of these 8 bytes | data | uint32 masked CRC-32C of the data

in little-endian order. The format has no index: whoever writes keeps each record's offset and length, or `scan` finds
them by hopping from length to length. A record is then one read of a byte range, here or in a bucket. docs/data.md has
the figures that speak for this format.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import google_crc32c
import numpy as np

from eql_jax.data.files import FilePath, patiently

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
OVERHEAD = _HEADER.size + _FOOTER.size  # bytes of a record beside its data

_BLOCK = 1 << 20


class RecordError(ValueError):
    """A record is damaged: its checksum is not that of its bytes, or the file ends too early."""


class Span(NamedTuple):
    """Where a record is: its first byte (of the length) and the bytes of its data."""

    offset: int
    length: int


class RecordPlaces(NamedTuple):
    """Where the records of N images are.

    Attributes:
      shard: int32 [N], number of the file.
      offset, length: int64 [N], see `Span`.
    """

    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    def span(self, i: int) -> Span:
        """That of image i, in its file."""
        return Span(int(self.offset[i]), int(self.length[i]))


class RecordWriter:
    """Writes records to a binary stream, and knows the size and SHA-256 of what it wrote."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> Span:
        """Appends a record and says where it is."""
        length = struct.pack("<Q", len(data))
        span = Span(self.size, len(data))
        for part in (length + _FOOTER.pack(masked_crc(length)), data, _FOOTER.pack(masked_crc(data))):
            self._stream.write(part)
            self._digest.update(part)
            self.size += len(part)
        return span

    @property
    def sha256(self) -> str:
        """Of all bytes so far, hexadecimal."""
        return self._digest.hexdigest()


def masked_crc(data: bytes) -> int:
    """CRC-32C, turned by 15 bits and shifted by a constant, as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_record(path: FilePath, span: Span) -> bytes:
    """Reads one record and checks its length and both checksums. Opens the file anew, so any thread may.

    Raises:
      RecordError: the record is damaged.
      OSError: the file cannot be read, locally or remotely.
    """
    return unframe(read_range(path, span.offset, span.length + OVERHEAD), span)


def unframe(framed: bytes, span: Span) -> bytes:
    """The data of a record of which all bytes were read. Raises RecordError where it is damaged."""
    if len(framed) < span.length + OVERHEAD:
        raise RecordError(f"the file ends {span.length + OVERHEAD - len(framed)} bytes before the record does")
    length, crc = _HEADER.unpack_from(framed)
    if crc != masked_crc(framed[:8]) or length != span.length:
        raise RecordError(f"its length reads {length} bytes, expected {span.length} with a right checksum")
    data = framed[_HEADER.size : _HEADER.size + length]
    (expected,) = _FOOTER.unpack_from(framed, _HEADER.size + length)
    if (found := masked_crc(data)) != expected:
        raise RecordError(f"its bytes have the checksum {found:#010x}, stored is {expected:#010x}")
    return data


def read_range(path: FilePath, offset: int, length: int) -> bytes:
    """Reads bytes of a file, fewer where it ends before. Raises as `files.patiently`."""

    def read() -> bytes:
        if not isinstance(path, Path):
            with path.open("rb") as stream:
                stream.seek(offset)
                return stream.read(length)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return _read_fully(descriptor, offset, length)
        finally:
            os.close(descriptor)

    return patiently(read, path)


def _read_fully(descriptor: int, offset: int, length: int) -> bytes:
    found = os.pread(descriptor, length, offset)
    if len(found) == length:
        return found
    parts = [found]  # the end of the file, or a system that gives less than asked for
    while parts[-1] and (missing := length - sum(map(len, parts))):
        parts.append(os.pread(descriptor, missing, offset + length - missing))
    return b"".join(parts)


def scan(path: FilePath) -> Iterator[Span]:
    """Yields where each record of a file is, reading the lengths only.

    Raises:
      RecordError: a length is damaged, or the file ends within a record.
    """
    size = path.stat().st_size if isinstance(path, Path) else path.stat().length
    with path.open("rb") as stream:
        offset = 0
        while offset < size:
            header = stream.read(_HEADER.size)
            if len(header) == _HEADER.size:
                length, crc = _HEADER.unpack(header)
            if len(header) < _HEADER.size or crc != masked_crc(header[:8]) or offset + length + OVERHEAD > size:
                raise RecordError(f"{path}: damaged at byte {offset} of {size}")
            yield Span(offset, length)
            offset += length + OVERHEAD
            stream.seek(offset)


def file_sha256(path: FilePath) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
