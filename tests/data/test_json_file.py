"""The streaming reader: the same content as json.load whatever the window, and where a file is wrong."""

import gzip
import json

import numpy as np
import pytest

from eql_jax.data import json_file
from eql_jax.data.json_file import read_annotation_json, stream_json
from eql_jax.data.validation import AnnotationError

CONTENT = {
    "info": {"a": [1, {"b": '}]\\" [{'}], "é": "日本\U0001f600"},
    "annotations": [{"id": i, "x": [i / 3, -1e300, 12345678901234567890], "s": "tab\t\\ ü" * i} for i in range(40)],
    "numbers": [1, 2.5, -3, None, True, float("inf")],
    "empty": [],
    "nothing": {},
    "scalar": 17,
    "lists": [[1, [2]], [], ["]"]],
}


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("window", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("form", [{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_any_window_gives_the_content(tmp_path, monkeypatch, window, form):
    """Windows end in every place: inside numbers, escapes, literals and characters of several bytes."""
    monkeypatch.setattr(json_file, "_WINDOW", window)
    path = write(tmp_path / "a.json", json.dumps(CONTENT, **form))
    given = []
    rest = stream_json(path, {"annotations": given.append, "scalar": given.append, "absent": given.append})
    assert given == CONTENT["annotations"]
    assert rest == {**CONTENT, "annotations": []}
    assert list(rest) == list(CONTENT)


@pytest.mark.parametrize("window", range(1, 40))
def test_number_that_a_window_splits(tmp_path, monkeypatch, window):
    monkeypatch.setattr(json_file, "_WINDOW", window)
    content = {"version": 1.25, "numbers": [1.5, 2.5e-30, -3.25, 1e21, 12], "last": -0.5}
    assert read_annotation_json(write(tmp_path / "a.json", json.dumps(content))) == content


@pytest.mark.parametrize(("value", "reason"), [("[" * 100_000, "recursion"), ("1" * 5000, "digits")])
def test_values_that_no_parser_takes(tmp_path, value, reason):
    path = write(tmp_path / "a.json", f'{{"images": [{value}]}}')
    with pytest.raises(AnnotationError, match=f"is not valid JSON: .*{reason}"):
        read_annotation_json(path)


@pytest.mark.parametrize("window", [1, 5, 4096])
def test_every_cut_is_found(tmp_path, monkeypatch, window):
    monkeypatch.setattr(json_file, "_WINDOW", window)
    text = json.dumps({"a": [{"id": 12, "n": "x\\n"}, 3.5], "b": {"c": [True, None]}})
    for size in range(1, len(text)):
        path = write(tmp_path / "a.json", text[:size])
        with pytest.raises(AnnotationError, match=f"cut off: .* at byte \\d+ of {size}\\."):
            read_annotation_json(path)


@pytest.mark.parametrize(
    ("text", "reason", "position"),
    [
        ('{"ü": [{"id": 1}, {"id": nul}], "b": "%s"}', "Expecting value", 26),
        ('{"a": [1, 2 3], "b": "%s"}', "Expecting ',' delimiter", 12),
        ('{"a": [1, 2,], "b": "%s"}', "Expecting value", 12),
        ('{"a" [1, 2], "b": "%s"}', "Expecting ':' delimiter", 5),
        ('{"a": 1, b: "%s"}', "Expecting property name", 9),
        ('{"a": 1} {"b": "%s"}', "Extra data", 9),
    ],
)
def test_place_of_an_error(tmp_path, monkeypatch, text, reason, position):
    """Counted in bytes, and found without reading on through the rest of the file."""
    monkeypatch.setattr(json_file, "_WINDOW", 40)
    text %= "x" * 3000
    path = write(tmp_path / "a.json", text)
    with pytest.raises(AnnotationError, match="is not valid JSON") as error:
        read_annotation_json(path)
    assert reason in str(error.value)
    assert f"at byte {position} of {len(text.encode())}." in str(error.value)


def test_not_utf8_after_many_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(json_file, "_WINDOW", 16)
    raw = json.dumps({"a": ["é" * 100], "b": "plain"}, ensure_ascii=False).encode()
    path = tmp_path / "a.json"
    path.write_bytes(raw.replace(b"plain", b"pl\xffin"))
    with pytest.raises(AnnotationError, match=f"byte {raw.index(b'plain') + 2} of {len(raw)} is not UTF-8"):
        read_annotation_json(path)


def test_key_twice(tmp_path):
    path = write(tmp_path / "a.json", '{"images": [1], "images": [2]}')
    with pytest.raises(AnnotationError, match="'images' twice"):
        read_annotation_json(path)


def test_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_annotation_json(path) == {"a": 1}


def test_gzip(tmp_path):
    path = tmp_path / "a.json.gz"
    packed = gzip.compress(json.dumps(CONTENT).encode())
    path.write_bytes(packed)
    assert read_annotation_json(path) == CONTENT
    for damaged in (packed[:-20], packed[:40] + b"\xff\xff" + packed[42:]):
        path.write_bytes(damaged)
        with pytest.raises(AnnotationError, match="damaged gzip file"):
            read_annotation_json(path)


def test_polygons_become_arrays(tmp_path):
    records = [{"segmentation": [[1, 2.5, 3], [4]]}, {"segmentation": [["x"]]}, {"segmentation": {"counts": "a"}}, 3]
    path = write(tmp_path / "a.json", json.dumps({"annotations": records}))
    first, *others = read_annotation_json(path)["annotations"]
    assert [part.dtype for part in first["segmentation"]] == [np.float64] * 2
    assert [part.tolist() for part in first["segmentation"]] == [[1, 2.5, 3], [4]]
    assert others == records[1:]
