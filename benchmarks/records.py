"""Containers for prepared images: TFRecord with offsets of one's own against ArrayRecord.

    python benchmarks/records.py --records 4000 --kib 160

Writes the same records of JPEG size (random bytes: JPEGs do not compress either) with each, reads them in random order
with 1 and more threads, and prints one row of JSON per container: MB/s written, bytes per record beyond the data,
random reads per second, whether two runs wrote the same bytes. The page cache holds the files, so this is the cost of
the container, not of the disk; `--cold` drops each file's pages before it is read.
"""

import argparse
import hashlib
import os
import pathlib
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


class TfRecord:
    """eql_jax.data.record_file: one open, one read and one checksum a record."""

    name = "tfrecord"

    def write(self, path: pathlib.Path, records: list[bytes]) -> list:
        from eql_jax.data.record_file import RecordWriter

        with path.open("wb") as stream:
            writer = RecordWriter(stream)
            return [writer.write(record) for record in records]

    def reader(self, path: pathlib.Path, spans: list):
        from eql_jax.data.record_file import read_record

        return lambda i: read_record(path, spans[i])


class ArrayRecord:
    """array_record with groups of one record, the setting for random access."""

    def __init__(self, compression: str):
        self.compression = compression
        self.name = f"array_record ({compression})"

    def write(self, path: pathlib.Path, records: list[bytes]) -> list:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), f"group_size:1,{self.compression}")
        for record in records:
            writer.write(record)
        writer.close()
        return []

    def reader(self, path: pathlib.Path, spans: list):
        from array_record.python.array_record_module import ArrayRecordReader

        # No read-ahead: with the default one, each random read fetches megabytes.
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
        return lambda i: reader.read([i])[0]


def drop_pages(path: pathlib.Path) -> None:
    """Asks the kernel to forget the file."""
    os.sync()
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    from eql_jax.data.record_file import file_sha256

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--kib", type=int, default=160, help="size of a record; (%(default)s) is that of a COCO image")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--cold", action="store_true", help="drop the file's pages before each round of reads")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    records = [rng.bytes(int(args.kib * 1024 * rng.uniform(0.5, 1.5))) for _ in range(args.records)]
    total = sum(map(len, records))
    order = rng.permutation(args.records).tolist()
    digests = [hashlib.sha256(record).digest() for record in records]
    for container in (TfRecord(), ArrayRecord("uncompressed"), ArrayRecord("zstd")):
        with tempfile.TemporaryDirectory() as folder:
            path, again = pathlib.Path(folder) / "a", pathlib.Path(folder) / "b"
            start = time.perf_counter()
            spans = container.write(path, records)
            seconds = time.perf_counter() - start
            container.write(again, records)
            row = {
                "container": container.name,
                "write_mb_per_s": total / seconds / 1e6,
                "extra_bytes_per_record": (path.stat().st_size - total) / args.records,
                "same_bytes_twice": file_sha256(path) == file_sha256(again),
            }
            read = container.reader(path, spans)
            assert all(hashlib.sha256(read(i)).digest() == digests[i] for i in order)
            for threads in sorted(set(args.threads)):
                if args.cold:
                    drop_pages(path)
                start = time.perf_counter()
                with ThreadPoolExecutor(threads) as pool:
                    for _ in pool.map(read, order, chunksize=16):
                        pass
                row[f"reads_per_s_{threads}_threads"] = args.records / (time.perf_counter() - start)
        report(row)


def report(row: dict[str, object]) -> None:
    """As benchmarks.common.report, which imports jax."""
    import json

    print(json.dumps({k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
