"""Writes the files of a prepared data set, one job each, in threads, so that a run that was killed can go on.

A job's file is written whole or not at all, and then a note about it into the journal: what it was made of, its size
and checksum, where its records are, and the images that could not be used. A later run keeps a file whose note is there
and fits and whose checksum is right. Nothing in a file or a note depends on which thread made it or when.

Threads and not processes: checking a JPEG is Pillow's work, which leaves the interpreter to others, and no orphaned
process writes on when a run is killed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from eql_jax.data.files import FilePath, ReadError, file_size, read_file, write_whole
from eql_jax.data.images import ImageError, read_image
from eql_jax.data.json_file import open_json
from eql_jax.data.record_file import RecordWriter, file_sha256
from eql_jax.data.record_format import encode_record
from eql_jax.data.records import ImageRecord
from eql_jax.data.transforms import Size
from eql_jax.data.validation import FaultReport

_BLOCK = 1 << 20
_IN_MEMORY = re.compile(r" ?<_io\.BytesIO object at 0x[0-9a-f]+>")


class Stopped(Exception):
    """Another job failed, or the user wants to stop."""


class Made(NamedTuple):
    """A file that was made.

    Attributes:
      file: its name.
      bytes, sha256: of the file.
      source: digest of what it was made of, see `Job.digest`.
      kept: ids of those that are in it, in the order of its records.
      offsets, lengths: of the records.
      faults: [kind, file, image id, message] of those that are not.
    """

    file: str
    bytes: int
    sha256: str
    source: str
    kept: list[int]
    offsets: list[int]
    lengths: list[int]
    faults: list[list[Any]]


class Job(NamedTuple):
    """A file to be made.

    Attributes:
      file: its name.
      images: ids of its images; none for a file without records.
      names: of their files, below the image folder.
      positions: where they are in the source.
      make: writes it, given the job, its path and a function to call with the number of images done since the
        last call, which raises where the run is to stop; says what it wrote.
    """

    file: str
    images: list[int]
    names: list[str]
    positions: list[int]
    make: Callable[[Job, FilePath, Callable[[int], None]], Made]

    def digest(self) -> str:
        """SHA-256 of ids and names: what a later run may find otherwise, with the same annotation file."""
        return hashlib.sha256(json.dumps([self.images, self.names]).encode()).hexdigest()


class JobRunner:
    """Runs jobs, leaving out those that an earlier run has done."""

    def __init__(self, out: FilePath, journal: FilePath, progress: Callable[[int], None]):
        """out: folder of the files. journal: folder of the notes. progress: called with a number of images done."""
        self._out = out
        self._journal = journal
        self._progress = progress
        self._stop = threading.Event()

    def run(self, jobs: Sequence[Job], *, workers: int) -> list[Made]:
        """Runs the jobs, `workers` at a time, and returns what they made, in their order.

        Raises:
          The first error of a job.
        """
        with ThreadPoolExecutor(workers, thread_name_prefix="prepare") as pool:
            futures = [pool.submit(self._run_one, job) for job in jobs]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # after an error, or Ctrl-C
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
        for future in futures:
            if not future.cancelled() and (error := future.exception()) and not isinstance(error, Stopped):
                raise error
        return [future.result() for future in futures]

    def _run_one(self, job: Job) -> Made:
        path, note = self._out / job.file, self._journal / f"{job.file}.json"
        made = self._earlier(job, path, note)
        if made is not None:
            self._progress(len(job.images))
            return made
        made = job.make(job, path, self._tick)
        with write_whole(note) as stream:
            stream.write(json.dumps(made._asdict()).encode())
        return made

    def _tick(self, images: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._progress(images)

    def _earlier(self, job: Job, path: FilePath, note: FilePath) -> Made | None:
        """What an earlier run made of the same images, where it is still as it was.

        Not where it left images out: they may have been put right.
        """
        if file_size(note) is None:
            return None
        try:
            made = Made(**json.loads(note.read_bytes()))
        except (ValueError, TypeError):  # a disk that lost what it had confirmed
            return None
        same = made.source == job.digest() and not made.faults
        return made if same and file_size(path) == made.bytes and file_sha256(path) == made.sha256 else None


class ShardMaker:
    """Makes shards: reads each image file, checks that it decodes to the stated size, and writes the record."""

    def __init__(self, source: Sequence[ImageRecord], *, strict: bool):
        """source: the images. strict: the first fault raises."""
        self._source = source
        self._strict = strict

    def __call__(self, job: Job, path: FilePath, tick: Callable[[int], None]) -> Made:
        kept, spans, faults = [], [], []
        with write_whole(path) as stream:
            writer = RecordWriter(stream)
            for position, name in zip(job.positions, job.names, strict=True):
                record = self._source[position]
                try:
                    record = record._replace(encoded=_read_checked(record))
                except ImageError as error:
                    if self._strict:
                        report = FaultReport(strict=True)
                        report.add(error.kind, file=record.path, record_id=record.id, message=str(error))
                    faults.append([error.kind, name, record.id, str(error)])
                else:
                    spans.append(writer.write(encode_record(record, name)))
                    kept.append(record.id)
                tick(1)
        return Made(
            file=job.file,
            bytes=writer.size,
            sha256=writer.sha256,
            source=job.digest(),
            kept=kept,
            offsets=[span.offset for span in spans],
            lengths=[span.length for span in spans],
            faults=faults,
        )


def _read_checked(record: ImageRecord) -> bytes:
    """The bytes of an image file.

    Raises:
      ImageError: there is no such file, or its bytes are no image of the stated size.
      ReadError: it is there and cannot be read. An image is not left out for that: the run ends, and can go on later.
    """
    try:
        encoded = read_file(record.path)
    except FileNotFoundError as error:
        raise ImageError("missing image", "no such file") from error
    except ReadError:
        raise
    except OSError as error:  # permissions, or a folder of that name
        raise ReadError(
            f"image file {record.path} cannot be read: {type(error).__name__}: {error}. Put that "
            "right and run the same command again, it goes on where it was"
        ) from error
    try:
        read_image(io.BytesIO(encoded), expected=Size(record.height, record.width))
    except ImageError as error:
        # Pillow says which object in memory it could not read: that is another one in each run.
        raise ImageError(error.kind, _IN_MEMORY.sub("", str(error))) from error
    return encoded


class AnnotationsCopier:
    """Makes the gzip-compressed copy of the annotation file, the same bytes whenever it is made."""

    def __init__(self, source: FilePath):
        self._source = source

    def __call__(self, job: Job, path: FilePath, tick: Callable[[int], None]) -> Made:
        with write_whole(path) as stream, open_json(self._source) as source:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=stream, mtime=0) as packed:
                while block := source.read(_BLOCK):
                    packed.write(block)
                    tick(0)
        return Made(job.file, file_size(path) or 0, file_sha256(path), job.digest(), [], [], [], [])
