"""Prepares a data set for training: its images and annotations in a few hundred files that any image is read from fast.

    python -m eql_jax.data.prepare --annotations lvis_v1_train.json --images COCO --out lvis_v1_train_prepared
    python -m eql_jax.data.prepare --verify lvis_v1_train_prepared

Every image file is decoded once; those that are damaged or not of the stated size are left out and named, and so are
faulty annotations. A run that was killed goes on where it was when the same command is given again. The same files
give the same bytes, whatever the number of workers and wherever they are. All paths may be remote (gs://bucket/folder).
`eql_jax.data.prepared` describes the folder.

Exit status: 0; 1 when --verify found damage; 2 when something has to be put right, which the message says.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eql_jax.data.annotations import JsonImages, find_files, read_content
from eql_jax.data.categories import ClassStatistics, class_statistics
from eql_jax.data.files import PARTIAL, FilePath, as_path, file_size, list_names, write_whole
from eql_jax.data.image_paths import ImageFinder
from eql_jax.data.parallel import available_cores
from eql_jax.data.prepared import (
    ANNOTATIONS,
    FORMAT,
    INDEX_JSON,
    INDEX_NPZ,
    JOURNAL,
    REMAKE,
    VERSION,
    DamagedIndex,
    info_sha256,
    load_prepared,
    parse_info,
    store_report,
)
from eql_jax.data.prepared_check import verify
from eql_jax.data.record_file import RecordPlaces, file_sha256
from eql_jax.data.records import Annotations
from eql_jax.data.shards import AnnotationsCopier, Job, JobRunner, Made, ShardMaker
from eql_jax.data.validation import AnnotationError, FaultReport

IMAGES_PER_SHARD = 512  # 196 shards of about 85 MB for LVIS v1

# Classes in a smaller share of images are listed in the index: lambdas of the equalization loss, and around.
_LAMBDAS = (1e-4, 4e-4, 5e-4, 1e-3, 1.1e-3, 1.76e-3, 5e-3, 1e-2)

_PLAN = "plan.json"
_LOCK = "lock"


class PrepareError(ValueError):
    """The data set cannot be prepared so; the message says what to do."""


def prepare(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    out: str | os.PathLike,
    *,
    workers: int | None = None,
    images_per_shard: int = IMAGES_PER_SHARD,
    shards: int | None = None,
    strict: bool = False,
    masks: bool = True,
    progress: bool = True,
) -> Annotations:
    """Prepares a data set, or goes on preparing it, and returns it as `load_prepared` does.

    Args:
      annotations, images: as of `load_annotations`.
      out: folder that is made.
      workers: threads; None: as many as there are cores.
      images_per_shard: images of the annotation file that a shard is for, whether they turn out usable or not.
      shards: number of shards, in place of that.
      strict: the first fault raises.
      masks: False: masks are neither asked for nor stored, see `load_annotations`.
      progress: show a progress bar.

    Raises:
      PrepareError: `out` holds something else, or was begun from other input.
      FileNotFoundError, AnnotationError: see `load_annotations`; also when no image can be used.
      OSError: `out` cannot be written.
    """
    annotations, images, out = _absolute(annotations), _absolute(images), _absolute(out)
    if not annotations.is_file():
        raise FileNotFoundError(f"annotation file {annotations} does not exist")
    ImageFinder(images)  # raises where there is no such folder, before minutes of reading
    out.mkdir(parents=True, exist_ok=True)
    source = {
        "annotations": {"file": annotations.name, "bytes": file_size(annotations), "sha256": file_sha256(annotations)},
        "images_per_shard": None if shards else images_per_shard,
        "shards": shards,
        "masks": masks,
    }
    # Where the images are is compared as long as it is not finished, and then forgotten.
    plan = {"version": VERSION, "images_dir": str(_resolved(images))} | source
    journal = out / JOURNAL
    if _is_finished(out, source):
        _remove_journal(journal)
        return load_prepared(out, strict=strict, masks=masks)
    journal.mkdir(parents=True, exist_ok=True)
    with _locked(journal):
        _check_plan(journal, plan)
        for left in list_names(out):  # of a run that was killed
            if left.endswith(PARTIAL):
                (out / left).unlink()
        try:
            _prepare(annotations, images, out, source, workers or available_cores(), strict=strict, progress=progress)
        except AnnotationError:
            # Nothing was made yet: what is put right may be an argument, such as --no-masks.
            if not list_names(journal) - {_PLAN, _LOCK}:
                (journal / _PLAN).unlink()
            raise
    _remove_journal(journal)
    return load_prepared(out, strict=strict, masks=masks)


def _prepare(
    annotations: FilePath, images: FilePath, out: FilePath, source: dict, workers: int, *, strict: bool, progress: bool
) -> None:
    if progress:
        print(f"reading {annotations} ({file_size(annotations) / 1e6:.0f} MB)", file=sys.stderr)
    report = FaultReport(strict=strict)
    content = read_content(annotations, report, masks=source["masks"])
    found = find_files(content, images, report)
    records = JsonImages(content.objects, found)

    name = annotations.name.removesuffix(".gz").removesuffix(".json")
    total = len(content.images)
    count, size = source["shards"], source["images_per_shard"]
    borders = np.arange(count) * total // count if count else np.arange(0, total, size)
    count = len(borders)
    # By place in the annotation file, so that an image that is missing moves no border.
    parts = np.split(np.arange(len(records)), np.searchsorted(found.positions, borders[1:]))
    make = ShardMaker(records, strict=strict)
    jobs = [Job(ANNOTATIONS, [], [], [], AnnotationsCopier(annotations))]
    for i, part in enumerate(parts):
        ids, names = found.ids[part].tolist(), [found.names[j] for j in part]
        jobs.append(Job(f"{name}-{i:05d}-of-{count:05d}.tfrecord", ids, names, part.tolist(), make))
    with _progress_bar(len(records), shown=progress) as advance:
        copy, *made = JobRunner(out, out / JOURNAL, advance).run(jobs, workers=workers)
    for shard in made:
        for kind, file, image_id, message in shard.faults:
            report.add(kind, file=file, record_id=image_id, message=message)
    position = {image_id: i for i, image_id in enumerate(found.ids.tolist())}
    kept = np.array([position[image_id] for shard in made for image_id in shard.kept], np.int64)
    if not kept.size:
        raise AnnotationError(f"none of the {len(records)} images of {annotations} can be used\n{report.summary()}")
    result = Annotations(
        categories=content.categories,
        class_ids=np.array([category.id for category in content.categories], np.int64),
        images=JsonImages(content.objects, found.select(kept)),
        report=report,
        raw=annotations,
    )
    _forget_places(report, annotations, images)
    _write_index(out, source, result, copy, made)


def _absolute(path: str | os.PathLike) -> FilePath:
    path = as_path(path)
    return path.absolute() if isinstance(path, Path) else path


def _resolved(path: FilePath) -> FilePath:
    """One spelling of a local folder, links followed."""
    return path.resolve() if isinstance(path, Path) else path


def _forget_places(report: FaultReport, annotations: FilePath, images: FilePath) -> None:
    """Takes the folders out of the examples (the names stay): the bytes are the same wherever the files are."""
    for kind, faults in report.examples.items():
        report.examples[kind] = [
            fault._replace(
                file=annotations.name if fault.file == str(annotations) else fault.file,
                message=fault.message.removesuffix(f" in {images}"),
            )
            for fault in faults
        ]


def _write_index(out: FilePath, source: dict, result: Annotations, copy: Made, made: list[Made]) -> None:
    """Writes index.npz and then index.json, whose being there says that all is done."""
    places = RecordPlaces(
        shard=np.repeat(np.arange(len(made), dtype=np.int32), [len(shard.kept) for shard in made]),
        offset=np.array([offset for shard in made for offset in shard.offsets], np.int64),
        length=np.array([length for shard in made for length in shard.lengths], np.int64),
    )
    arrays = io.BytesIO()
    np.savez(arrays, **result.index._asdict(), **places._asdict())  # its zip entries bear no time
    with write_whole(out / INDEX_NPZ) as stream:
        stream.write(arrays.getvalue())
    statistics = class_statistics(result, "train_annotations")
    info = {
        "format": FORMAT,
        "version": VERSION,
        "source": source,
        "images": len(result.images),
        "objects": int(result.index.classes.size),
        "annotations": {"file": copy.file, "bytes": copy.bytes, "sha256": copy.sha256},
        "index": {
            "file": INDEX_NPZ,
            "bytes": arrays.tell(),
            "sha256": hashlib.sha256(arrays.getvalue()).hexdigest(),
        },
        "shards": [
            {"file": shard.file, "bytes": shard.bytes, "sha256": shard.sha256, "records": len(shard.kept)}
            for shard in made
        ],
        "statistics": _describe(statistics),
        "categories": [category._asdict() for category in result.categories],
        "dropped": store_report(result.report),
    }
    info["sha256"] = info_sha256(info)
    with write_whole(out / INDEX_JSON) as stream:
        stream.write(json.dumps(info, indent=1, ensure_ascii=False).encode())


def _describe(statistics: ClassStatistics) -> dict[str, Any]:
    """What the usable objects say of the classes, for people and tools; training counts them itself.

    Sets of classes are lists of category ids.
    """
    letters, ids = np.array(statistics.frequencies), statistics.category_ids
    shares = statistics.image_counts / max(statistics.num_images, 1)
    return {
        "annotated_images": statistics.num_images,
        "classes_by_letter": {letter: ids[letters == letter].tolist() for letter in "rcf"},
        "classes_below_share_of_images": {f"{share:g}": ids[shares < share].tolist() for share in _LAMBDAS},
        "image_counts": statistics.image_counts.tolist(),
        "instance_counts": statistics.instance_counts.tolist(),
    }


def _is_finished(out: FilePath, source: dict) -> bool:
    """Whether the data set is there; raises PrepareError where it is one of another source."""
    path = out / INDEX_JSON
    if file_size(path) is None:
        return False
    info = parse_info(path.read_bytes(), path)
    _compare(info["source"], source, out)
    return True


def _check_plan(journal: FilePath, plan: dict) -> None:
    """Compares the plan with that of an earlier run, or keeps it for a later one."""
    path = journal / _PLAN
    if file_size(path) is not None:
        _compare(json.loads(path.read_bytes()), plan, journal.parent)
        return
    with write_whole(path) as stream:
        stream.write(json.dumps(plan).encode())


def _compare(earlier: dict, plan: dict, out: FilePath) -> None:
    earlier = {"masks": True} | earlier  # those of older versions do not say
    changed = [f"{key} was {earlier.get(key)}, now {value}" for key, value in plan.items() if earlier.get(key) != value]
    if changed:
        raise PrepareError(
            f"{out} was prepared from something else: {'; '.join(changed)}. Give another --out, delete this folder to "
            "prepare it anew, or give what it was begun with to go on"
        )


@contextlib.contextmanager
def _locked(journal: FilePath) -> Iterator[None]:
    """Keeps a second run away from the folder; the system lifts the lock when this process ends, however it does."""
    try:
        import fcntl
    except ImportError:  # Windows
        fcntl = None
    if fcntl is None or not isinstance(journal, Path):
        yield
        return
    with (journal / _LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PrepareError(f"another process is preparing {journal.parent}: wait for it or end it") from error
        except OSError:  # a file system without locks
            pass
        yield


def _remove_journal(journal: FilePath) -> None:
    for name in sorted(list_names(journal)):
        (journal / name).unlink()
    if list_names(journal.parent) & {JOURNAL}:
        journal.rmdir()


@contextlib.contextmanager
def _progress_bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    lock = threading.Lock()
    with tqdm(total=total, unit="image", disable=not shown, mininterval=1) as bar:

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance


def _explain(error: OSError) -> str:
    """What to do about an error of the file system."""
    hints = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again, it goes on where it was",
        errno.EDQUOT: "your quota is used up: free some space and run the same command again, it goes on where it was",
        errno.EACCES: "see to its permissions, or give --out a folder that you may write to",
        errno.EPERM: "see to its permissions, or give --out a folder that you may write to",
        errno.EROFS: "this disk cannot be written to: give another --out",
        errno.EEXIST: "there is a file of that name: give another --out",
        errno.ENOTDIR: "there is a file where a folder is needed: give another --out",
    }
    hint = hints.get(error.errno)
    return f"{error} ({hint})" if hint else str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m eql_jax.data.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", help="LVIS v0.5, LVIS v1 or COCO instance JSON, or .json.gz")
    parser.add_argument("--images", help="folder of the images, with or without train2017/ and val2017/ in it")
    parser.add_argument("--out", help="folder to make")
    parser.add_argument("--workers", type=int, default=0, help="threads (default: as many as there are cores)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shards", type=int, help="number of shards")
    size.add_argument("--shard-size", type=int, default=IMAGES_PER_SHARD, help="images of a shard (%(default)s)")
    parser.add_argument("--no-masks", action="store_true", help="boxes only, for models without masks")
    parser.add_argument("--strict", action="store_true", help="stop at the first faulty record or image")
    parser.add_argument("--verify", metavar="DIR", help="check all checksums of a prepared data set instead")
    options = parser.parse_args(arguments)
    needed = ("annotations", "images", "out")
    if options.verify is None:
        missing = [f"--{name}" for name in needed if not getattr(options, name)]
        if missing:
            parser.error(f"{', '.join(missing)} missing")
    elif any(getattr(options, name) for name in needed):
        parser.error("--verify goes without --annotations, --images and --out")
    for name in ("workers", "shards", "shard_size"):
        value = getattr(options, name)
        if value is not None and value < (name != "workers"):
            parser.error(f"--{name.replace('_', '-')} is {value}, expected at least 1")
    try:
        return _verify(options) if options.verify else _run(options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {_explain(error)}", file=sys.stderr)
        return 2
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    made = prepare(
        options.annotations,
        options.images,
        options.out,
        workers=options.workers or None,
        images_per_shard=options.shard_size,
        shards=options.shards,
        strict=options.strict,
        masks=not options.no_masks,
    )
    objects = made.index.classes.size
    print(f"{options.out}: {len(made.images)} images, {objects} objects, {made.num_classes} classes")
    if summary := made.report.summary():
        print(f"left out or changed:\n{summary}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    folder = as_path(options.verify)
    try:
        faults, records = verify(folder, workers=options.workers or available_cores(), progress=_progress_bar)
    except DamagedIndex as error:  # its message says what to do
        print(error)
        return 1
    for fault in faults:
        print(fault)
    if faults:
        print(f"{folder} is damaged. Training leaves such records out; to mend it, {REMAKE}", file=sys.stderr)
        return 1
    print(f"{folder}: {records} records are whole")
    return 0


if __name__ == "__main__":
    sys.exit(main())
