"""Reading the tables of Open Images: boxes, classes, image-level labels, hierarchy and sizes of images.

K classes, those of the class file in its order; T box lines. Tables are read in blocks, so that a line costs little
time, and packed, so that it costs little memory: 14.6 million boxes take 0.4 GB. A faulty line is reported with file
and line number, and the rest goes on.

Columns are found by the names in the first line, so that the files of the challenges and of V4 to V7 are all taken.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import zlib
from array import array
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

import numpy as np

from eql_jax.data.files import FilePath
from eql_jax.data.validation import AnnotationError, FaultReport

_BLOCK = 1 << 16  # lines

BOX_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")
SIZE_COLUMNS = ("ImageID", "Width", "Height")

_ONE = float(1 << 30)  # what a corner of 1 is stored as

# Corners beyond the image by less than this share of its side are clipped silently.
_BORDER_TOLERANCE = 1e-3


class Classes(NamedTuple):
    """The classes, by position. labels: '/m/011k07' ..; names: what people read."""

    labels: tuple[str, ...]
    names: tuple[str, ...]


class Meaning(NamedTuple):
    """What a label says of the classes: those that a thing with the label is, its own first, and those that its absence
    excludes.

    Without a hierarchy that is the class of the label, in both. With one a thing belongs to all classes above as well,
    and without it nothing of the classes below is there, as the rules of the challenge have it.
    """

    present: Mapping[str, tuple[int, ...]]
    absent: Mapping[str, tuple[int, ...]]


class Boxes(NamedTuple):
    """The usable box lines.

    Attributes:
      image_ids: the ImageIDs that occur, in order.
      images: int32 [T] positions in image_ids.
      labels: int32 [T] positions in label_names.
      label_names: the labels that occur.
      corners: int32 [T, 4] XYXY, shares of the image's sides in 2^-30, within 0..1: a millionth of a pixel is kept.
      groups: bool [T] IsGroupOf.
      lines: int32 [T] line numbers.
    """

    image_ids: list[str]
    images: np.ndarray
    labels: np.ndarray
    label_names: list[str]
    corners: np.ndarray
    groups: np.ndarray
    lines: np.ndarray

    def shares(self, rows: np.ndarray) -> np.ndarray:
        """Corners of some lines, float64 [n, 4] XYXY, shares of the image's sides."""
        return self.corners[rows] / _ONE


class Labels(NamedTuple):
    """Verified image-level labels as pairs, each int64 position of the image * K + class, sorted, each once."""

    present: np.ndarray
    absent: np.ndarray


def read_classes(path: FilePath) -> Classes:
    """Reads LabelName,DisplayName lines; a first line with these words is no class.

    Raises:
      FileNotFoundError: there is no such file.
      AnnotationError: a line has no label and name, a label comes twice, or there is no class.
    """
    found: dict[str, str] = {}
    with _open_text(path) as stream:
        for number, row in enumerate(csv.reader(stream), 1):
            if not row or (number == 1 and row[0] == "LabelName"):
                continue
            if len(row) < 2 or not row[0] or not row[1]:
                raise AnnotationError(
                    f"{path}:{number}: found {row!r}, expected a label and a name, such as /m/0dzct,Face"
                )
            if row[0] in found:
                raise AnnotationError(f"{path}:{number}: label {row[0]} comes twice")
            found[row[0]] = row[1]
    if not found:
        raise AnnotationError(f"{path} has no class; expected lines such as /m/0dzct,Human face")
    return Classes(tuple(found), tuple(found.values()))


def read_meaning(classes: Classes, hierarchy: FilePath | None) -> Meaning:
    """The meaning of the labels. Labels that are no class count for those classes that are above (below) them.

    Args:
      classes: the K classes.
      hierarchy: JSON of nested {'LabelName': .., 'Subcategory': [..]}, such as challenge-2019-label500-hierarchy.json;
        'Part' is no subcategory. The root stands for everything and is no class. None: no hierarchy.

    Raises:
      FileNotFoundError: there is no such file.
      AnnotationError: it is no such JSON.
    """
    place = {label: k for k, label in enumerate(classes.labels)}
    above: dict[str, set[str]] = {label: set() for label in classes.labels}
    if hierarchy is not None:
        try:
            with _open_text(hierarchy) as stream:
                root = json.load(stream)
            _add_subcategories({"Subcategory": root["Subcategory"]}, (), above)  # a root has some
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AnnotationError(
                f"{hierarchy} is no hierarchy of labels ({type(error).__name__}: {error}); expected nested objects "
                "with LabelName and Subcategory"
            ) from error
    below: dict[str, set[str]] = {label: set() for label in above}
    for label, parents in above.items():
        for parent in parents:
            below[parent].add(label)

    def classes_of(label: str, others: set[str]) -> tuple[int, ...]:
        return tuple(place[one] for one in (label, *sorted(others - {label})) if one in place)

    return Meaning(
        {label: found for label, others in above.items() if (found := classes_of(label, others))},
        {label: found for label, others in below.items() if (found := classes_of(label, others))},
    )


def _add_subcategories(node: dict, parents: tuple[str, ...], above: dict[str, set[str]]) -> None:
    for child in node.get("Subcategory", ()):
        label = child["LabelName"]
        above.setdefault(label, set()).update(parents)
        _add_subcategories(child, (*parents, label), above)


def read_boxes(path: FilePath, known: Mapping[str, tuple[int, ...]], report: FaultReport) -> Boxes:
    """Reads a table of boxes.

    Args:
      path: CSV, plain or gzip, with the columns ImageID, LabelName, XMin, XMax, YMin, YMax, and, if there is one,
        IsGroupOf (1: a group of five and more that is boxed as one; 0 and -1, unknown: an object).
      known: the labels that count (`Meaning.present`).
      report: gets the faults.

    Raises:
      FileNotFoundError: there is no such file.
      AnnotationError: it lacks a column, or is no text or a damaged gzip file.
    """
    image_of: dict[str, int] = {}
    label_of: dict[str, int] = {}
    images, labels, lines, groups, corners = array("i"), array("i"), array("i"), array("b"), array("i")
    for first, columns in _read_table(path, BOX_COLUMNS, ("IsGroupOf",), report):
        ids, names, *texts, group = columns
        numbers, usable = _to_numbers(texts)
        for i in np.flatnonzero(~usable).tolist():
            found = [column[i] for column in texts]
            message = f"found XMin, XMax, YMin, YMax {found}, expected four numbers"
            report.add("bad line", file=f"{path}:{first + i}", record_id=ids[i], message=message)
        usable &= _check_labels(names, known, ids, path, first, usable, report)
        x1, x2, y1, y2 = numbers
        usable &= _check_corners(x1, x2, y1, y2, ids, path, first, usable, report)
        rows = np.flatnonzero(usable)
        kept = rows.tolist()
        images.extend([image_of.setdefault(ids[i], len(image_of)) for i in kept])
        labels.extend([label_of.setdefault(names[i], len(label_of)) for i in kept])
        shares = np.clip(np.stack([x1, y1, x2, y2], axis=1)[rows], 0, 1)
        corners.frombytes(np.rint(shares * _ONE).astype(np.int32).tobytes())
        lines.frombytes((first + rows).astype(np.int32).tobytes())
        groups.extend([group[i] == "1" for i in kept] if group else [False] * len(kept))
    return Boxes(
        list(image_of),
        np.frombuffer(images, np.int32),
        np.frombuffer(labels, np.int32),
        list(label_of),
        np.frombuffer(corners, np.int32).reshape(-1, 4),
        np.frombuffer(groups, np.int8).astype(bool),
        np.frombuffer(lines, np.int32),
    )


def _check_labels(names, known, ids, path, first, usable, report) -> np.ndarray:
    """Which lines have a label that is known; the others are reported, if nothing else was wrong with them."""
    found = np.fromiter((name in known for name in names), bool, len(names))
    for i in np.flatnonzero(~found & usable).tolist():
        message = f"label {names[i]!r} is not in the list of classes"
        report.add("unknown label", file=f"{path}:{first + i}", record_id=ids[i], message=message)
    return found


def _check_corners(x1, x2, y1, y2, ids, path, first, usable, report) -> np.ndarray:
    """Which boxes have a size and touch their image; the others, and those that leave it, are reported."""
    sized = (x1 < x2) & (y1 < y2)
    inside = (x1 < 1) & (x2 > 0) & (y1 < 1) & (y2 > 0)
    excess = np.maximum.reduce([-x1, x2 - 1, -y1, y2 - 1])
    faults = (
        ("degenerate box", ~sized),
        ("box outside", sized & ~inside),
        ("box partly outside", sized & inside & (excess > _BORDER_TOLERANCE)),
    )
    for kind, rows in faults:
        for i in np.flatnonzero(rows & usable).tolist():
            message = f"XMin {x1[i]:g}, XMax {x2[i]:g}, YMin {y1[i]:g}, YMax {y2[i]:g}"
            report.add(kind, file=f"{path}:{first + i}", record_id=ids[i], message=message)
    return sized & inside


def read_labels(
    path: FilePath,
    meaning: Meaning,
    image_of: dict[str, int],
    available: Container[str],
    count: int,
    report: FaultReport,
) -> Labels:
    """Reads a table of image-level labels; those that people have verified count: Confidence 1 present, 0 absent.

    Args:
      path: CSV, plain or gzip, with ImageID, LabelName, Confidence, and Source, if there is one.
      meaning: of the labels.
      image_of: position by ImageID; images that are available and not yet in it are added.
      available: ImageIDs of which there is a file or a size.
      count: K.
      report: gets the faults, and notes of what does not count.

    Raises: as `read_boxes`.
    """
    present, absent = array("q"), array("q")
    others = {"label of a machine, which does not count": 0, "label of a class that is not listed": 0}
    machine, unlisted = others
    elsewhere = "label of an image of which there is neither a box nor a file or size"
    others[elsewhere] = 0
    for first, (ids, names, confidences, sources) in _read_table(path, LABEL_COLUMNS, ("Source",), report):
        for i, (image, name, confidence) in enumerate(zip(ids, names, confidences, strict=True)):
            try:
                value = float(confidence)
            except ValueError:
                message = f"found Confidence {confidence!r}, expected 1 (present) or 0 (absent)"
                report.add("bad line", file=f"{path}:{first + i}", record_id=image, message=message)
                continue
            if value not in (0, 1) or (sources and sources[i] == "machine"):
                others[machine] += 1
                continue
            found = (meaning.present if value else meaning.absent).get(name)
            if found is None:
                others[unlisted] += 1
                continue
            if image not in image_of:
                if image not in available:
                    others[elsewhere] += 1
                    continue
                image_of[image] = len(image_of)
            position = image_of[image] * count
            (present if value else absent).extend([position + k for k in found])
    for text, number in others.items():
        if number:
            report.note(text, number)
    return Labels(*(np.unique(np.frombuffer(pairs, np.int64)) for pairs in (present, absent)))


def read_sizes(path: FilePath, report: FaultReport) -> dict[str, tuple[int, int]]:
    """Reads (width, height) by ImageID from a CSV with ImageID, Width, Height. Raises as `read_boxes`."""
    sizes: dict[str, tuple[int, int]] = {}
    for first, (ids, widths, heights) in _read_table(path, SIZE_COLUMNS, (), report):
        for i, (image, *sides) in enumerate(zip(ids, widths, heights, strict=True)):
            if not all(side.isascii() and side.isdigit() and 0 < int(side) < 2**31 for side in sides):
                message = f"found Width, Height {sides}, expected two numbers of pixels"
                report.add("bad line", file=f"{path}:{first + i}", record_id=image, message=message)
                continue
            sizes[image] = int(sides[0]), int(sides[1])
    return sizes


# ---------------------------------------------------------------------------------------------------- tables
@contextlib.contextmanager
def _open_text(path: FilePath) -> Iterator[IO[str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        try:
            # A byte that is no UTF-8 makes its line faulty, not the file.
            yield io.TextIOWrapper(gzip.open(stream) if packed else stream, "utf-8-sig", "backslashreplace", newline="")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise AnnotationError(f"{path} is a damaged gzip file: {error}. Download it again") from error
        except csv.Error as error:
            raise AnnotationError(f"{path} is no CSV ({error}); expected the table that --help names") from error


def _read_table(
    path: FilePath, needed: Sequence[str], optional: Sequence[str], report: FaultReport
) -> Iterator[tuple[int, list[Sequence[str]]]]:
    """Yields runs of lines that have as many columns as the head: the number of the first of them, and the columns that
    were asked for; () for an optional one that is not there.
    """
    with _open_text(path) as stream:
        # Without quotes: one in a line would else swallow those that follow.
        rows = csv.reader(stream, quoting=csv.QUOTE_NONE)
        head = [name.strip() for name in next(_readable(rows), None) or ()]
        missing = [name for name in needed if name not in head]
        if missing:
            raise AnnotationError(
                f"{path} has no column {', '.join(missing)}: its first line is {','.join(head)[:200]!r}, expected one "
                f"with {','.join(needed)}"
            )
        places = [head.index(name) if name in head else None for name in (*needed, *optional)]
        first = 2
        readable = _readable(rows)
        while block := list(itertools.islice(readable, _BLOCK)):
            wrong = (
                [] if set(map(len, block)) == {len(head)} else [i for i, r in enumerate(block) if len(r) != len(head)]
            )
            for i in wrong:
                if block[i]:  # an empty line is nothing wrong
                    message = f"found {len(block[i])} columns, expected {len(head)}: {','.join(block[i])[:100]!r}"
                    report.add("bad line", file=f"{path}:{first + i}", record_id=block[i][0][:40], message=message)
            yield from _without(block, wrong, places, first)
            first += len(block)


def _without(
    block: list[list[str]], wrong: list[int], places: list[int | None], first: int
) -> Iterator[tuple[int, list[Sequence[str]]]]:
    """The columns of the runs of lines between those that are wrong."""
    for start, end in zip([0, *(i + 1 for i in wrong)], [*wrong, len(block)], strict=True):
        if start < end:
            columns = list(zip(*block[start:end], strict=True))
            yield first + start, [() if place is None else columns[place] for place in places]


def _readable(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """The lines; in place of one that the parser gives up on (longer than 128 KB), one of no columns but its reason."""
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield [f"({error})"]


def _to_numbers(columns: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """float64 [columns, lines], NaN for what is no number, and bool [lines], whether all of a line are finite."""
    try:
        numbers = np.array([list(map(float, column)) for column in columns])
    except ValueError:
        numbers = np.array([[_to_number(text) for text in column] for column in columns])
    return numbers, np.isfinite(numbers).all(axis=0)


def _to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
