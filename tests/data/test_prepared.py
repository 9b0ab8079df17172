"""Prepared records from many threads, and every source and the command over a remote file system."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from eql_jax.data.annotations import load_annotations
from eql_jax.data.files import as_path, file_size, is_remote, list_names, write_whole
from eql_jax.data.image_paths import ImageFinder
from eql_jax.data.images import ImageError, read_record_image
from eql_jax.data.prepare import main, prepare
from eql_jax.data.prepared import load_prepared
from eql_jax.data.record_file import OVERHEAD, RecordError, RecordWriter, Span, read_record, scan
from eql_jax.data.record_format import decode_record, encode_record
from eql_jax.data.records import ImageRecord, empty_objects
from eql_jax.data.sources import needs_images, open_annotations
from eql_jax.data.validation import AnnotationError
from tests.data.conftest import make_content
from tests.data.prepared_files import below
from tests.data.test_object_columns import assert_same_images


def test_records_are_tfrecords(tmp_path):
    """TensorFlow reads what is written here, and the other way round."""
    tf = pytest.importorskip("tensorflow")
    records = [b"", b"a", bytes(range(256)) * 700, b"last"]
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    with mine.open("wb") as stream:
        writer = RecordWriter(stream)
        spans = [writer.write(record) for record in records]
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(mine))] == records
    with tf.io.TFRecordWriter(str(theirs)) as other:
        for record in records:
            other.write(record)
    assert theirs.read_bytes() == mine.read_bytes()
    assert list(scan(theirs)) == spans
    assert writer.size == mine.stat().st_size == sum(map(len, records)) + OVERHEAD * len(records)
    assert [read_record(theirs, span) for span in reversed(spans)] == records[::-1]
    for size in (mine.stat().st_size - 1, spans[3].offset + 5):
        mine.write_bytes(theirs.read_bytes()[:size])
        with pytest.raises(RecordError, match="damaged at byte"):
            list(scan(mine))
        with pytest.raises(RecordError, match="ends"):
            read_record(mine, spans[3])
    with pytest.raises(RecordError, match="length"):
        read_record(theirs, Span(3, 10))


def test_record_of_an_image(tmp_path):
    none = np.zeros(0, np.int32)
    record = ImageRecord(
        2**40, tmp_path / "a" / "ü.jpg", 7, 5, np.array([3], np.int32), none, empty_objects(), b"\xff\xd8"
    )
    data = encode_record(record, "a/ü.jpg")
    found = decode_record(data, tmp_path)
    assert_same_images([found], [record])
    assert found.encoded == b"\xff\xd8"
    for damaged in (b"", b"\x01", data[:-1], data[:20], b"\x80"):
        with pytest.raises(RecordError, match="no image of this format"):
            decode_record(damaged, tmp_path)


def test_many_threads(write_dataset, tmp_path):
    paths = write_dataset(make_content([(80, 60)] * 20))
    prepared = prepare(paths.json, paths.images, tmp_path / "out", images_per_shard=6, progress=False)
    order = np.random.default_rng(0).integers(0, 20, 800).tolist()
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(prepared.images.__getitem__, order))
    assert [record.id for record in records] == [101 + i for i in order]
    loaded = load_annotations(paths.json, paths.images)
    assert_same_images(below(records, tmp_path / "out"), below([loaded.images[i] for i in order], paths.images))
    assert prepared.images[-1].id == 120
    assert [record.id for record in prepared.images[18:]] == [119, 120]
    with pytest.raises(IndexError):
        prepared.images[20]


def test_a_bad_answer_is_asked_for_again(write_dataset, tmp_path, monkeypatch):
    from eql_jax.data import prepared as module

    paths = write_dataset(make_content([(80, 60)] * 2))
    prepared = prepare(paths.json, paths.images, tmp_path / "out", progress=False)
    asked = []

    def fail_once(path, span):
        asked.append(span)
        if len(asked) == 1:
            raise RecordError("its bytes have another checksum")
        return read_record(path, span)

    monkeypatch.setattr(module, "read_record", fail_once)
    assert prepared.images[1].id == 102
    assert len(asked) == 2


def test_sources(write_dataset, tmp_path):
    paths = write_dataset(make_content([(80, 60)] * 2))
    prepare(paths.json, paths.images, tmp_path / "out", progress=False)
    assert len(open_annotations(paths.json, paths.images).images) == 2
    assert open_annotations(tmp_path / "out").images[0].encoded
    assert open_annotations(str(tmp_path / "out"), "").images[0].encoded
    with pytest.raises(AnnotationError, match="images is not given"):
        open_annotations(paths.json)
    with pytest.raises(AnnotationError, match="eql_jax.data.prepare"):
        open_annotations(paths.images)
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        open_annotations(tmp_path / "nothing.json", paths.images)
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_annotations(tmp_path / "nothing", paths.images)
    assert [needs_images(w) for w in ("a.json", "gs://b/a.json.gz", "tfds:lvis/train", "folder")] == [1, 1, 0, 0]


@pytest.fixture
def bucket(monkeypatch):
    """gs:// of etils goes to fsspec's file system in memory; gives a function that copies a local folder there."""
    epath = pytest.importorskip("etils.epath")
    fsspec = pytest.importorskip("fsspec")
    from etils.epath import backend, gpath

    class Memory(type(backend.fsspec_backend)):
        def fs(self, path):
            return fsspec.filesystem("memory")

    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", Memory())
    files = fsspec.filesystem("memory")
    strip = type(files)._strip_protocol
    monkeypatch.setattr(
        type(files), "_strip_protocol", classmethod(lambda cls, path: strip(str(path).replace("gs://", "memory://")))
    )

    def upload(local, remote):
        for path in Path(local).rglob("*"):
            if path.is_file():
                with files.open(f"{remote}/{path.relative_to(local)}", "wb") as stream:
                    stream.write(path.read_bytes())
        return epath.Path(remote)

    yield upload
    files.rm("/", recursive=True)
    files.store.clear()


def test_remote(write_dataset, tmp_path, bucket, config, capsys):
    """The JSON, its images, and the prepared folder in a bucket: the same records, bytes and messages."""
    from eql_jax.data.pipeline import make_train_iterator

    paths = write_dataset(make_content([(80, 60)] * 7))
    (paths.images / "train2017" / "000000000103.jpg").write_text("no image")
    remote = bucket(tmp_path, "gs://bucket/data")
    assert is_remote("gs://bucket/data")
    assert (remote / "annotations.json").exists()
    local = load_annotations(paths.json, paths.images)
    there = open_annotations("gs://bucket/data/annotations.json", "gs://bucket/data/images")
    assert_same_images([i._replace(path="") for i in there.images], [i._replace(path="") for i in local.images])
    assert str(there.images[0].path) == "gs://bucket/data/images/train2017/000000000101.jpg"
    assert read_record_image(there.images[0]).size == (80, 60)
    with pytest.raises(ImageError):
        read_record_image(there.images[2])

    arguments = ["--annotations", "gs://bucket/data/annotations.json", "--images", "gs://bucket/data/images"]
    arguments += ["--shard-size", "3"]
    assert main([*arguments, "--out", "gs://bucket/out", "--workers", "2"]) == 0
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert main([*arguments, "--out", "gs://bucket/out"]) == 0  # nothing to do
    out = as_path("gs://bucket/out")
    names = list_names(out)
    assert names == list_names(tmp_path / "out")
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    prepared = open_annotations("gs://bucket/out")
    assert prepared.index.ids.tolist() == [101, 102, 104, 105, 106, 107]
    assert_same_images(below(prepared.images, out), below(load_prepared(tmp_path / "out").images, tmp_path / "out"))
    assert len(prepared.dataset()["annotations"]) == 14
    assert main(["--verify", "gs://bucket/out"]) == 0
    iterator = make_train_iterator(prepared, config)
    assert next(iterator)["image"].any()
    iterator.close()

    shard = out / "annotations-00001-of-00003.tfrecord"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:300] + b"????" + raw[304:])
    capsys.readouterr()
    assert main(["--verify", "gs://bucket/out"]) == 1
    assert "annotations-00001-of-00003.tfrecord: record 0 (image 104)" in capsys.readouterr().out
    with pytest.raises(ImageError, match="record 0 of this shard"):
        prepared.images[2]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="annotations-00001"):  # 512 images are no faults of theirs
        prepared.images[2]


def test_remote_mistakes(bucket, tmp_path):
    with pytest.raises(FileNotFoundError, match="gs://bucket/nothing.json"):
        open_annotations("gs://bucket/nothing.json", "gs://bucket/images")
    (tmp_path / "a.json").write_text(json.dumps(make_content([(80, 60)])))
    with pytest.raises(FileNotFoundError, match="image folder gs://bucket/images"):
        ImageFinder("gs://bucket/images")
    with pytest.raises(FileNotFoundError):
        load_prepared("gs://bucket/out")
    target = as_path("gs://bucket/file")
    with pytest.raises(RuntimeError), write_whole(target) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert file_size(target) is None
