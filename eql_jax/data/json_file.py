"""Reading a large JSON piece by piece: little memory, and errors that say what is wrong with the file.

The lists of Python floats that `json.load` makes of the polygons of LVIS v1 (1.1 GB) take many gigabytes. Here the file
is read once, through a window of a few megabytes that slides over its text, and the elements of its lists are handed
out one by one, whatever the order of the lists.

`json.JSONDecoder.raw_decode` parses an element and says where it ends. It is the scanner of `json.load`, in C, so that
all it takes (NaN, numbers of any length) is taken here, too. The streaming parser ijson with its C backend was measured
beside it on 127 MB of annotations: 35 MB/s here, 25 MB/s for one list with ijson, which rejects NaN, does not say where
an error is, and has no fast way to take several lists in one pass (its events come at 15 MB/s and less).
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NoReturn

import numpy as np

from eql_jax.data.files import FilePath, as_path
from eql_jax.data.validation import AnnotationError

_WINDOW = 1 << 22  # bytes

_GZIP = b"\x1f\x8b"

# What the first bytes of a file that is no JSON tell.
_MAGIC = {
    b"PK": "it is a zip archive: unpack it first",
    b"<": "it looks like a web page: the download failed, download it again",
}

# A parser that fails so close to the end of the text, in characters, may have run out of it: no literal is longer.
_LONGEST_TOKEN = 16

_SPACE = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")

_DOWNLOAD = "Download it again and compare its size or checksum"  # what messages advise


def read_annotation_json(path: str | os.PathLike) -> dict:
    """Reads an LVIS or COCO JSON, plain or gzip-compressed, to a dict; polygons become float64 arrays on the way.

    "segmentation" is then a list of 1-D arrays. Anything that is not a list of lists of numbers is left as it is, for
    the validation to name.

    Raises:
      FileNotFoundError: there is no such file.
      AnnotationError: it is empty, cut off, not JSON, or its top level is not an object.
    """
    return stream_json(path, {}, prepare=pack_polygons)


def stream_json(
    path: str | os.PathLike,
    consumers: Mapping[str, Callable[[Any], None]],
    *,
    prepare: Callable[[Any], Any] | None = None,
) -> dict:
    """Reads a JSON whose top level is an object, plain or gzip-compressed, giving away its lists as they come.

    Args:
      path: of the file, local or remote.
      consumers: top-level key -> function that gets each element of the list under it, in the order of the file.
      prepare: called with each element of all other top-level lists; what it returns is kept.

    Returns:
      The top-level keys in the file's order with their values; [] in place of a list that was given away. A value that
      is no list is here whether its key has a consumer or not.

    Raises:
      FileNotFoundError: there is no such file.
      AnnotationError: it is empty, cut off, not JSON, its top level is not an object, or a key comes twice.
    """
    path = as_path(path)
    content: dict[str, Any] = {}
    with open_json(path) as stream:
        text = _Window(stream, path)
        text.expect_object()
        for key in text.keys():
            if key in content:
                raise AnnotationError(f"{path} has the key {key!r} twice at its top level")
            if text.peek() != "[":
                content[key] = text.value()
                continue
            kept = content[key] = []
            consume = consumers.get(key)
            if consume is None:
                consume = kept.append if prepare is None else lambda element, kept=kept: kept.append(prepare(element))
            for element in text.elements():
                consume(element)
    return content


def stream_list(path: str | os.PathLike, *, kind: str, advice: str) -> Iterator[Any]:
    """Yields the elements of a JSON whose top level is a list, plain or gzip-compressed, one by one.

    Args:
      path: of the file, local or remote.
      kind: what messages call the file.
      advice: how messages end: what to do about a file that is damaged.

    Raises:
      FileNotFoundError: there is no such file.
      AnnotationError: it is empty, cut off, not JSON, or its top level is not a list.
    """
    path = as_path(path)
    with open_json(path, kind, advice) as stream:
        text = _Window(stream, path, advice)
        text.expect_list(kind)
        yield from text.elements()
        text.expect_end()


def pack_polygons(record: Any) -> Any:
    """Turns the polygons of an annotation into float64 arrays, where they are lists of numbers."""
    parts = record.get("segmentation") if isinstance(record, dict) else None
    if isinstance(parts, list):
        with contextlib.suppress(TypeError, ValueError):  # left for the validation, which names the annotation
            record["segmentation"] = [np.asarray(part, np.float64) for part in parts]
    return record


@contextlib.contextmanager
def open_json(path: FilePath, kind: str = "annotation file", advice: str = _DOWNLOAD) -> Iterator[IO[bytes]]:
    """Opens a JSON for reading its bytes, unpacked where it is gzip-compressed; for messages see `stream_list`.

    Raises:
      FileNotFoundError: there is no such file.
      AnnotationError: it is empty or no JSON by its first bytes, or the gzip data are damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{kind} {path} does not exist")
    with path.open("rb") as stream:
        start = stream.read(8)
        for magic, hint in _MAGIC.items():
            if start.startswith(magic):
                raise AnnotationError(f"{path} is not JSON: {hint}")
        stream.seek(0)
        if not start.startswith(_GZIP):
            yield stream
            return
        try:
            with gzip.open(stream) as unpacked:
                yield unpacked
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise AnnotationError(f"{path} is a damaged gzip file: {error}. {advice}") from error


class _Window:
    """A window that slides over the text of a JSON file; `at` is where the parser is in it."""

    def __init__(self, stream: IO[bytes], path: FilePath, advice: str = _DOWNLOAD):
        self._stream = stream
        self._path = path
        self._advice = advice
        self._decode_text = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode_json = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._ended = False
        self._before = 0  # bytes of the file before the window
        self._read = 0  # bytes of the file read so far

    def expect_object(self) -> None:
        """Goes to the top-level object, past its '{'."""
        found = self.peek()
        if found == "{":
            self._at += 1
            return
        if not found:
            self._fail_empty()
        kind = "list" if found == "[" else type(self.value()).__name__
        hint = "; a list of detections (a results file) is no annotation file" if kind == "list" else ""
        expected = "expected an object with images, annotations and categories"
        raise AnnotationError(f"{self._path} holds a JSON {kind}, {expected}{hint}")

    def expect_list(self, kind: str) -> None:
        """Goes to the top-level list."""
        found = self.peek()
        if not found:
            self._fail_empty()
        if found != "[":
            top = "dict" if found == "{" else type(self.value()).__name__
            raise AnnotationError(f"{self._path} holds a JSON {top}; the top level of a {kind} is a list")

    def expect_end(self) -> None:
        """Makes sure that nothing but white space follows."""
        if self.peek():
            self._fail("Extra data", self._at)

    def keys(self) -> Iterator[str]:
        """Yields the keys of the object; the caller takes the value of each before the next. Nothing may follow."""
        if self.peek() != "}":
            while True:
                if self.peek() != '"':
                    self._fail("Expecting property name enclosed in double quotes", self._at)
                key = self.value()
                if self.peek() != ":":
                    self._fail("Expecting ':' delimiter", self._at)
                self._at += 1
                yield key
                if self._delimiter("}"):
                    break
        else:
            self._at += 1
        self.expect_end()

    def elements(self) -> Iterator[Any]:
        """Yields the elements of the list that begins here."""
        self._at += 1
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            self.peek()
            yield self.value()
            comma = _COMMA.match(self._text, self._at)
            while comma is not None and comma.end() < len(self._text):  # most often the next follows in the window
                self._at = comma.end()
                yield self.value()
                comma = _COMMA.match(self._text, self._at)
            if self._delimiter("]"):
                return

    def _delimiter(self, closing: str) -> bool:
        """Steps over a comma, or over `closing`; says whether it was that."""
        found = self.peek()
        if found != "," and found != closing:
            self._fail("Expecting ',' delimiter", self._at)
        self._at += 1
        return found == closing

    def peek(self) -> str:
        """The next character that is no white space, or '' at the end of the file."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def value(self) -> Any:
        """Parses the value that begins here."""
        while True:
            try:
                value, end = self._decode_json(self._text, self._at)
            except json.JSONDecodeError as error:
                in_reach = error.pos >= len(self._text) - _LONGEST_TOKEN or error.msg.startswith("Unterminated string")
                if self._ended or not in_reach:
                    self._fail(error.msg, error.pos, error)
            except (ValueError, RecursionError) as error:  # an integer of 5000 digits, lists a thousand deep
                self._fail(str(error), self._at, error)
            else:
                # A number at the end may go on: 1 may be the beginning of 1.5, and so may 1. be, 1e and 1e+.
                if end + 2 < len(self._text) or self._ended:
                    self._at = end
                    return value
            self._more()

    def _more(self) -> None:
        """Lets go of what is parsed and reads on; the more the longer the value is that did not fit."""
        passed = self._text[: self._at]
        self._before += len(passed) if passed.isascii() else len(passed.encode())
        self._text = self._text[self._at :]
        self._at = 0
        chunk = self._stream.read(max(_WINDOW, len(self._text)))
        pending = len(self._decode_text.getstate()[0])
        try:
            self._text += self._decode_text.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            place = self._read - pending + error.start
            self._read += len(chunk)
            raise AnnotationError(
                f"{self._path} is not JSON: byte {place} of {self._size()} is not UTF-8 text. {self._advice}"
            ) from error
        self._read += len(chunk)
        self._ended = not chunk

    def _size(self) -> int:
        """Bytes of the whole file, unpacked."""
        while chunk := self._stream.read(_WINDOW):
            self._read += len(chunk)
        return self._read

    def _fail_empty(self) -> NoReturn:
        raise AnnotationError(f"{self._path} is empty ({self._read} bytes). {self._advice}")

    def _fail(self, reason: str, place: int, cause: Exception | None = None) -> NoReturn:
        position, size = self._before + len(self._text[:place].encode()), self._size()
        # A parser that stops in the last bytes, or in a string that nothing closes, ran out of file.
        near_end = position >= size - _LONGEST_TOKEN and reason != "Extra data"
        cut = near_end or reason.startswith("Unterminated string")
        raise AnnotationError(
            f"{self._path} {'is cut off' if cut else 'is not valid JSON'}: {reason} at byte {position} of {size}. "
            f"{self._advice}"
        ) from cause
