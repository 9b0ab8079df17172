"""Makes an annotation file of the tables of Open Images: LVIS's form, boxes only, which everything else here reads.

    python -m eql_jax.data.open_images --boxes challenge-2019-train-detection-bbox.csv \\
        --classes challenge-2019-classes-description-500.csv \\
        --labels challenge-2019-train-detection-human-imagelabels.csv \\
        --hierarchy challenge-2019-label500-hierarchy.json --images OpenImages/train --out oid_train.json

What becomes what:

* the classes of --classes, in their order: categories 1 .. K, with the label ('/m/011k07') as synset;
* ImageID: the number that its last 13 hexadecimal digits are, 52 bits, which every reader of JSON keeps. An image has
  the same number in every file. Of a name that is not hexadecimal, the first 13 digits of its SHA-256;
* corners, shares of the image's sides: pixels rounded to hundredths; the area is the box's;
* IsGroupOf: iscrowd. No positive in training, and what lies in it is neither right nor wrong;
* labels verified absent: neg_category_ids;
* labels verified present of which the image has no box: not_exhaustive_category_ids;
* IsOccluded, IsTruncated, IsDepiction, IsInside: not kept; such boxes count like all others.

--hierarchy expands boxes and labels as the challenge's evaluation asks: a box counts for all classes above its own as
well, and where a class is verified absent, so are those below it. A box that this makes twice is there once.

Widths and heights are those of the files below --images (in the folder itself or in folders in it, such as train_0 ..
train_f), read from their heads, or of --sizes, a CSV with ImageID,Width,Height; then the files need not be there.
Images with a box or with a verified label are listed, those without a file or a size are left out. A faulty line is
named by file and number and left out. The counts of the categories are those of this file, groups aside.

Exit status: 0; 2 when something has to be put right, which the message says.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from eql_jax.data.files import FilePath, as_path, list_names
from eql_jax.data.images import ImageError, read_size
from eql_jax.data.open_images_csv import Labels, read_boxes, read_classes, read_labels, read_meaning
from eql_jax.data.open_images_csv import read_sizes as read_size_table
from eql_jax.data.open_images_file import Images, write_annotations
from eql_jax.data.parallel import available_cores
from eql_jax.data.validation import AnnotationError, FaultReport

_SUFFIXES = (".jpg", ".jpeg", ".png")
_HEXADECIMAL = re.compile(r"[0-9a-f]{13,}")
_BLOCK = 1 << 16  # sizes read together


class Converted(NamedTuple):
    """What was written. boxes: with those of --hierarchy; groups: how many of them are iscrowd; report: the faults."""

    images: int
    boxes: int
    groups: int
    report: FaultReport


def convert(
    boxes: str | os.PathLike,
    classes: str | os.PathLike,
    out: str | os.PathLike,
    *,
    labels: str | os.PathLike | None = None,
    hierarchy: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    sizes: str | os.PathLike | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Converted:
    """Writes an annotation file, see the module's head. Its memory is that of columns: docs/open_images.md.

    Args:
      boxes, classes, labels, hierarchy: Open Images' own files, CSV plain or gzip, and JSON.
      out: the file to write; gzip-compressed where its name ends in .gz.
      images: folder of the image files.
      sizes: CSV of widths and heights. One of images and sizes is needed.
      workers: threads that read sizes; 0: as many as there are cores.
      progress: show progress bars.

    Raises:
      FileNotFoundError: one of the files, or the folder, does not exist.
      AnnotationError: a file is not what it should be, or no image with a box is left.
      OSError: `out` cannot be written.
    """
    if images is None and sizes is None:
        raise AnnotationError(
            "Open Images' boxes are shares of the image: give the folder of the images, or their sizes"
        )
    report = FaultReport()
    table = read_classes(as_path(classes))
    meaning = read_meaning(table, None if hierarchy is None else as_path(hierarchy))
    stated = {} if sizes is None else read_size_table(as_path(sizes), report)
    files = None if images is None else find_images(as_path(images))
    found = read_boxes(as_path(boxes), meaning.present, report)
    image_of = {name: i for i, name in enumerate(found.image_ids)}
    none = np.zeros(0, np.int64)
    verified = Labels(none, none)
    if labels is not None:
        available = stated if files is None else files
        verified = read_labels(as_path(labels), meaning, image_of, available, len(table.labels), report)
    listed = _measure(list(image_of), files, stated, as_path(boxes), images, report, workers, progress)
    del image_of, stated, files
    written = write_annotations(
        as_path(out),
        table,
        listed,
        found,
        meaning.present,
        verified,
        source=as_path(boxes),
        report=report,
        progress=progress,
    )
    return Converted(*written, report)


def image_number(image_id: str) -> int:
    """The integer that stands for an ImageID, 0 .. 2^52 - 1, see the module's head."""
    digits = image_id if _HEXADECIMAL.fullmatch(image_id) else hashlib.sha256(image_id.encode()).hexdigest()[:13]
    return int(digits[-13:], 16)


def find_images(folder: FilePath) -> dict[str, str]:
    """Paths below a folder by ImageID, of the image files in it and in the folders in it.

    Raises:
      FileNotFoundError: it does not exist.
      AnnotationError: it holds no image file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist or is no folder")
    found: dict[str, str] = {}
    for name in sorted(list_names(folder)):
        stem, dot, suffix = name.rpartition(".")
        if dot + suffix.lower() in _SUFFIXES:
            found[stem] = name
        elif (folder / name).is_dir():
            for below in sorted(list_names(folder / name)):
                stem, dot, suffix = below.rpartition(".")
                if dot + suffix.lower() in _SUFFIXES:
                    found.setdefault(stem, f"{name}/{below}")
    if not found:
        raise AnnotationError(f"{folder} holds no {', '.join(_SUFFIXES)} file, nor do the folders in it")
    return found


def _measure(
    image_ids: Sequence[str],
    files: Mapping[str, str] | None,
    stated: Mapping[str, tuple[int, int]],
    source: FilePath,
    folder: str | os.PathLike | None,
    report: FaultReport,
    workers: int,
    progress: bool,
) -> Images:
    """Ids, paths and sizes of the images; those that cannot be used are reported and get the size 0."""
    sizes = np.zeros((len(image_ids), 2), np.int32)
    ids = np.array([image_number(name) for name in image_ids], np.int64)
    first = np.zeros(len(ids), bool)
    first[np.unique(ids, return_index=True)[1]] = True
    unknown = []
    for i, name in enumerate(image_ids):
        if not first[i]:
            message = f"its number {ids[i]} is that of an image before"
            report.add("duplicate image id", file=source, record_id=name, message=message)
        elif files is not None and name not in files:
            report.add("missing image", file=source, record_id=name, message=f"looked for {name}.jpg in {folder}")
        elif name in stated:
            sizes[i] = stated[name]
        elif files is None:
            message = "the table of sizes does not have it, and no folder of images is given"
            report.add("image without size", file=source, record_id=name, message=message)
        else:
            unknown.append(i)

    def size_of(i: int) -> tuple[int, int] | ImageError:
        try:
            height, width = read_size(as_path(folder) / files[image_ids[i]])
        except ImageError as error:
            return error
        return width, height

    with (
        ThreadPoolExecutor(workers or available_cores()) as pool,
        tqdm(total=len(unknown), unit="image", desc="sizes", disable=not progress, mininterval=1) as bar,
    ):
        for start in range(0, len(unknown), _BLOCK):
            some = unknown[start : start + _BLOCK]
            for i, found in zip(some, pool.map(size_of, some), strict=True):
                if isinstance(found, ImageError):
                    path = as_path(folder) / files[image_ids[i]]
                    report.add(found.kind, file=path, record_id=image_ids[i], message=str(found))
                else:
                    sizes[i] = found
            bar.update(len(some))
    names = [f"{name}.jpg" if files is None else files.get(name, "") for name in image_ids]
    return Images(ids, names, sizes)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m eql_jax.data.open_images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--boxes", required=True, help="CSV of boxes")
    parser.add_argument("--classes", required=True, help="CSV of labels and names; their order is that of the classes")
    parser.add_argument("--labels", help="CSV of verified image-level labels")
    parser.add_argument("--hierarchy", help="JSON of the hierarchy: boxes and labels are expanded")
    parser.add_argument("--images", help="folder of the image files")
    parser.add_argument("--sizes", help="CSV with ImageID,Width,Height")
    parser.add_argument("--out", required=True, help="annotation file to write, .json or .json.gz")
    parser.add_argument("--workers", type=int, default=0, help="threads (default: as many as there are cores)")
    options = parser.parse_args(arguments)
    if not options.images and not options.sizes:
        parser.error("one of --images and --sizes is needed: boxes are shares of the image")
    if options.workers < 0:
        parser.error(f"--workers is {options.workers}, expected at least 0 (as many as there are cores)")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse_arguments(arguments)
    try:
        made = convert(**vars(options), progress=sys.stderr.isatty())
    except (AnnotationError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {made.images} images, {made.boxes} boxes, {made.groups} of them groups")
    if summary := made.report.summary():
        print(f"left out or changed:\n{summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
