"""Reading files: what passes is waited for, what does not stops the run, and no image is lost to either."""

import os
import re

import numpy as np
import pytest

from eql_jax.data import files
from eql_jax.data.annotations import load_annotations
from eql_jax.data.files import ReadError, list_names, patiently, read_file
from eql_jax.data.images import ImageError, read_image
from eql_jax.data.pipeline import make_train_iterator
from tests.data.conftest import make_content


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(files, "RETRY_PAUSES", (0, 0, 0))


class Failing:
    """A function that fails `times` times, then gives its value."""

    def __init__(self, times, error, value=b"bytes"):
        self.times, self.error, self.value, self.calls = times, error, value, 0

    def __call__(self, *args):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.value


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), OSError(5, "I/O"), RuntimeError("503")])
def test_what_passes_is_waited_for(error):
    read = Failing(3, error)
    assert patiently(read, "some/file") == b"bytes" and read.calls == 4
    with pytest.raises(ReadError, match=r"some/file cannot be read: .* \(tried 4 times\)"):
        patiently(Failing(4, error), "some/file")


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError])
def test_what_does_not_pass_is_not_waited_for(error):
    read = Failing(1, error())
    with pytest.raises(error):
        patiently(read, "some/file")
    assert read.calls == 1


def test_not_found_of_a_bucket():
    class NotFoundError(Exception):
        """TensorFlow's has this name."""

    with pytest.raises(FileNotFoundError, match="gs://b/x"):
        patiently(Failing(9, NotFoundError()), "gs://b/x")


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert list_names(tmp_path) == {"file"}
    for nowhere in ("none", "file", "n" * 300, "null\0byte"):
        assert list_names(tmp_path / nowhere) == frozenset()
    monkeypatch.setattr(os, "listdir", Failing(4, OSError(5, "Input/output error")))
    with pytest.raises(ReadError, match=re.escape(f"{tmp_path} cannot be read")):
        list_names(tmp_path)
    monkeypatch.setattr(os, "listdir", Failing(1, PermissionError(13, "Permission denied", str(tmp_path))))
    with pytest.raises(PermissionError, match=re.escape(str(tmp_path))):
        list_names(tmp_path)


def test_missing_and_forbidden_images_are_faults_of_the_image(tmp_path):
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "none.jpg")
    assert caught.value.kind == "missing image"
    with pytest.raises(ImageError, match="IsADirectory") as caught:
        read_image(tmp_path)
    assert caught.value.kind == "unreadable image"


@pytest.fixture
def flaky(write_dataset, monkeypatch):
    """A data set, and a function that makes reads of one of its images fail so many times."""
    paths = write_dataset(make_content([(96, 64)] * 8))
    left = {}

    def read_bytes(path):
        if left.get(path.name, 0):
            left[path.name] -= 1
            raise OSError(5, "Input/output error")
        return read_file_as_before(path)

    read_file_as_before = type(paths.images).read_bytes
    monkeypatch.setattr(type(paths.images), "read_bytes", read_bytes)
    return load_annotations(paths.json, paths.images), lambda name, times: left.update({name: times})


def test_a_passing_error_changes_no_batch(flaky, config):
    annotations, fail = flaky
    iterator = make_train_iterator(annotations, config)
    expected = [next(iterator) for _ in range(4)]
    iterator.close()
    for name in ("000000000101.jpg", "000000000104.jpg"):
        fail(name, 2)
    iterator = make_train_iterator(annotations, config)
    for batch in expected:
        for key, values in next(iterator).items():
            np.testing.assert_array_equal(values, batch[key])
    assert not iterator.report.total
    iterator.close()


@pytest.mark.parametrize("fast", [False, True])
def test_a_lasting_error_stops_and_bans_nothing(flaky, config, fast):
    annotations, fail = flaky
    config.data.fast_pixels = fast
    fail("000000000103.jpg", 10**6)
    iterator = make_train_iterator(annotations, config)
    with pytest.raises(ReadError, match=r"000000000103\.jpg cannot be read: OSError: .*Input/output error"):
        for _ in range(4):
            next(iterator)
    assert not iterator.report.total
    iterator.close()
    assert read_file(annotations.images[0].path)
