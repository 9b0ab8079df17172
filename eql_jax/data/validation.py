"""Faults in annotation files and images: their kinds, and the report that counts them.

A fault is something wrong with one record (an image, an annotation, a category). It is counted, the record is skipped
or repaired as its kind says, and the run goes on; in strict mode the first fault raises. What is wrong with a whole
file (cut in half, not JSON, no images) raises in either mode.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

# kind -> what it means and what is done about it, as the summary prints it.
FAULT_KINDS = {
    "missing image": "image file not found; the image is left out",
    "unreadable image": "image file cannot be decoded (truncated, empty or no image); left out, in training another "
    "image takes its place",
    "size mismatch": "width and height of the file differ from the JSON; left out, in training another image takes its "
    "place",
    "bad image record": "image without usable id (0 or more), width or height; left out with its annotations",
    "duplicate image id": "the first is kept",
    "duplicate category id": "the first is kept",
    "duplicate annotation id": "the first is kept",
    "bad category": "category without usable id or name; left out with its annotations",
    "unknown category": "category id that the file does not define; the annotation (or the list's entry) is left out",
    "unknown image": "annotation of an image id that the file does not list; left out",
    "degenerate box": "box without four finite numbers or without positive width and height; the object is left out",
    "box outside": "box entirely outside its image; the object is left out",
    "box partly outside": "box clipped to its image",
    "bad polygon": "polygon with fewer than three points, an odd or non-finite number; the polygon is left out",
    "empty segmentation": "no polygon or mask (left); the object is left out",
    "bad mask": "run-length mask that is malformed or of another size than its image; the object is left out",
    "bad annotation record": "annotation without usable id; left out",
    "bad line": "line of a CSV that lacks columns, or with something else where a number is expected; left out",
    "unknown label": "box of a label that the list of classes does not have; left out",
    "duplicate box": "box with the label, the corners and the flags of an earlier one; left out",
    "image without size": "image that no file and no table gives a width and height for; left out with its boxes",
}


class AnnotationError(ValueError):
    """An annotation file or one of its records cannot be used. The message names file, id and what to do."""


class NoMasks(AnnotationError):
    """Masks are asked for, and the data set has boxes only."""


class Fault(NamedTuple):
    """One fault: the file it is in, the id of the record and what was found."""

    file: str
    record_id: object
    message: str


class FaultReport:
    """Counts faults by kind and keeps the first few of each as examples. Safe to use from several threads.

    Attributes:
      counts: dict kind -> number of faults.
      examples: dict kind -> list of the first `max_examples` `Fault`s.
      notes: dict text -> count, of things that are no faults but should be seen (for instance objects beyond the
        padding).
    """

    def __init__(self, *, strict: bool = False, max_examples: int = 5):
        self.strict = strict
        self.max_examples = max_examples
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[Fault]] = {}
        self.notes: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, *, file: object, record_id: object, message: str) -> None:
        """Counts one fault of a kind of `FAULT_KINDS`.

        Raises:
          AnnotationError: in strict mode.
        """
        if kind not in FAULT_KINDS:
            raise KeyError(f"{kind!r} is no kind of fault; known: {sorted(FAULT_KINDS)}")
        fault = Fault(str(file), record_id, message)
        if self.strict:
            raise AnnotationError(
                f"{kind}: {fault.file}, id {record_id}: {message}. "
                "(data.strict is on: with data.strict=False such records are counted and skipped.)"
            )
        with self._lock:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            examples = self.examples.setdefault(kind, [])
            if len(examples) < self.max_examples:
                examples.append(fault)

    def note(self, text: str, count: int = 1) -> None:
        """Counts something worth knowing that is no fault."""
        with self._lock:
            self.notes[text] = self.notes.get(text, 0) + count

    def include(self, other: FaultReport) -> None:
        """Takes over what another report has counted."""
        with self._lock:
            for kind, count in other.counts.items():
                self.counts[kind] = self.counts.get(kind, 0) + count
                examples = self.examples.setdefault(kind, [])
                examples.extend(other.examples[kind][: self.max_examples - len(examples)])
            for text, count in other.notes.items():
                self.notes[text] = self.notes.get(text, 0) + count

    @property
    def total(self) -> int:
        """Number of faults of all kinds."""
        return sum(self.counts.values())

    def summary(self) -> str:
        """Returns the text to print: one line per kind with its first examples. Empty when there is nothing to say."""
        lines = []
        for kind, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            lines.append(f"{count:6d} x {kind}: {FAULT_KINDS[kind]}")
            lines.extend(f"           {f.file}, id {f.record_id}: {f.message}" for f in self.examples[kind])
            if count > len(self.examples[kind]):
                lines.append(f"           ... and {count - len(self.examples[kind])} more")
        lines.extend(f"{count:6d} x {text}" for text, count in sorted(self.notes.items()))
        return "\n".join(lines)
