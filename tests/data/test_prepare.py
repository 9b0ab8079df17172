"""Preparing: equal records, equal bytes whatever the workers and kills, damage found, faults told."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eql_jax.data import prepare as prepare_module
from eql_jax.data import prepared_check, shards
from eql_jax.data.annotations import load_annotations
from eql_jax.data.json_file import read_annotation_json
from eql_jax.data.prepare import PrepareError, main, prepare
from eql_jax.data.prepared import load_prepared
from eql_jax.data.validation import AnnotationError
from tests.data.conftest import make_content
from tests.data.prepared_files import assert_equal_to_json, coco, contents, lvis_v05, lvis_v1, spoil_images, with_faults


@pytest.mark.parametrize(
    ("make", "folder"), [(lvis_v1, "train2017"), (lvis_v05, "val2017"), (coco, "."), (with_faults, ".")]
)
def test_records_equal_the_json(write_dataset, tmp_path, make, folder):
    content = make(make_content([(80, 60), (60, 80), (31, 17)] * 5, objects_per_image=3))
    paths = write_dataset(make_content([(80, 60), (60, 80), (31, 17)] * 5, objects_per_image=3), folder=folder)
    paths.json.write_text(json.dumps(content))
    loaded = load_annotations(paths.json, paths.images)
    made = prepare(paths.json, paths.images, tmp_path / "out", workers=2, images_per_shard=4, progress=False)
    assert_equal_to_json(made, loaded, paths)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    prepared = load_prepared(tmp_path / "moved")
    assert_equal_to_json(prepared, loaded, paths)
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == [
        "annotations-00000-of-00004.tfrecord",
        "annotations-00001-of-00004.tfrecord",
        "annotations-00002-of-00004.tfrecord",
        "annotations-00003-of-00004.tfrecord",
        "annotations.json.gz",
        "index.json",
        "index.npz",
    ]
    assert prepared.raw == tmp_path / "moved" / "annotations.json.gz"
    copied, original = read_annotation_json(prepared.raw), read_annotation_json(paths.json)
    assert json.dumps(copied, default=lambda a: a.tolist()) == json.dumps(original, default=lambda a: a.tolist())
    if loaded.report.total:
        with pytest.raises(AnnotationError, match="left out when it was prepared"):
            load_prepared(tmp_path / "moved", strict=True)
    else:
        load_prepared(tmp_path / "moved", strict=True)


def test_index_of_the_classes(write_dataset, tmp_path):
    """Counted by hand: crowds do not count, an image counts once a class."""
    content = make_content([(80, 60)] * 4, objects_per_image=0)
    box = {"bbox": [1, 1, 9, 9], "area": 50, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    of = [(101, 10, 0), (101, 10, 0), (102, 10, 0), (102, 20, 1), (103, 20, 0)]
    content["annotations"] = [
        {"id": i + 1, "image_id": image, "category_id": category, "iscrowd": crowd, **box}
        for i, (image, category, crowd) in enumerate(of)
    ]
    paths = write_dataset(content)
    prepare(paths.json, paths.images, tmp_path / "out", progress=False)
    info = json.loads((tmp_path / "out" / "index.json").read_text())
    assert info["statistics"]["image_counts"] == [2, 1, 0]
    assert info["statistics"]["instance_counts"] == [3, 1, 0]
    assert info["statistics"]["annotated_images"] == 3
    assert info["statistics"]["classes_below_share_of_images"]["0.0011"] == [30]
    assert info["statistics"]["classes_by_letter"] == {"r": [30], "c": [10], "f": [20]}
    assert [shard["records"] for shard in info["shards"]] == [4]
    assert (info["images"], info["objects"]) == (4, 5)


def test_drops_are_told_and_move_no_border(write_dataset, tmp_path, capsys):
    paths = write_dataset(make_content([(80, 60)] * 12))
    arguments = ["--annotations", str(paths.json), "--images", str(paths.images), "--shard-size", "4"]
    assert main([*arguments, "--out", str(tmp_path / "all")]) == 0
    spoil_images(paths)
    capsys.readouterr()
    assert main([*arguments, "--out", str(tmp_path / "some"), "--workers", "3"]) == 0
    output = capsys.readouterr().out
    assert "8 images, 16 objects, 3 classes" in output
    assert "2 x unreadable image" in output
    assert "1 x size mismatch" in output
    assert "1 x missing image" in output
    for image_id, reason in ((103, "truncated"), (105, "the file is 40 x 30"), (106, "looked for"), (110, "cannot id")):
        line = next(line for line in output.splitlines() if f"id {image_id}:" in line)
        assert reason in line
    prepared = load_prepared(tmp_path / "some")
    assert prepared.index.ids.tolist() == [101, 102, 104, 107, 108, 109, 111, 112]
    assert prepared.images._places.shard.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert prepared.report.counts == {"unreadable image": 2, "size mismatch": 1, "missing image": 1}
    assert main([*arguments, "--out", str(tmp_path / "strict"), "--strict", "--workers", "1"]) == 2
    assert "106" in capsys.readouterr().err
    shutil.copy(paths.images / "train2017" / "000000000101.jpg", paths.images / "train2017" / "000000000106.jpg")
    assert main([*arguments, "--out", str(tmp_path / "strict"), "--strict", "--workers", "1"]) == 2
    assert "id 103" in capsys.readouterr().err


def test_flipped_bits(write_dataset, tmp_path, config, capsys):
    """Found and named by --verify and when the record is read; training goes on with other images."""
    from eql_jax.data.images import ImageError
    from eql_jax.data.pipeline import make_train_iterator

    paths = write_dataset(make_content([(80, 60)] * 9))
    out = tmp_path / "out"
    prepared = prepare(paths.json, paths.images, out, images_per_shard=3, progress=False)
    assert main(["--verify", str(out)]) == 0
    assert "9 records are whole" in capsys.readouterr().out
    pristine = contents(out)
    shard = out / "annotations-00001-of-00003.tfrecord"
    raw = bytearray(shard.read_bytes())
    span = prepared.images._places.span(4)
    for place in (
        span.offset + 3,
        span.offset + 9,
        span.offset + 12 + span.length // 2,
        span.offset + 13 + span.length,
    ):
        flipped = bytearray(raw)
        flipped[place] ^= 4
        shard.write_bytes(flipped)
        assert main(["--verify", str(out)]) == 1
        output = capsys.readouterr()
        assert output.out.startswith("annotations-00001-of-00003.tfrecord: record 1 (image 105): its ")
        assert len(output.out.splitlines()) == 1
        with pytest.raises(ImageError, match="record 1 of this shard") as error:
            prepared.images[4]
        assert error.value.file == shard
        assert [prepared.images[i].id for i in (3, 5)] == [104, 106]
    iterator = make_train_iterator(prepared, config)
    ids = {i for _ in range(5) for i in next(iterator)["image_id"].tolist()}
    iterator.close()
    assert ids == {101, 102, 103, 104, 106, 107, 108, 109}
    fault = iterator.report.examples["unreadable image"][0]
    assert (fault.file, fault.record_id) == (str(shard), 105)
    assert "record 1" in fault.message

    shard.write_bytes(raw[:-5])
    assert main(["--verify", str(out)]) == 1
    assert "record 2 (image 106): the file ends 5 bytes before" in capsys.readouterr().out
    shard.write_bytes(raw + b"more")
    assert main(["--verify", str(out)]) == 1
    shard.unlink()
    assert main(["--verify", str(out)]) == 1
    assert "annotations-00001-of-00003.tfrecord: missing" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="annotations-00001-of-00003"):  # no fault of an image: the run stops
        prepared.images[4]
    shard.write_bytes(raw)
    text = pristine["index.json"]
    places = {
        "annotations.json.gz": [200],
        "index.npz": [2, 200, len(pristine["index.npz"]) // 2, len(pristine["index.npz"]) - 9],
        # A category id 20, a class's name, its letter, and the SHA-256 itself.
        "index.json": [text.index(b'"id": 20') + 6, text.index(b"shape3") + 1, text.index(b'frequency": "') + 13]
        + [text.index(b'"sha256": "', text.index(b'"dropped"')) + 14],
    }
    for name, where in places.items():
        for place in where:
            flipped = bytearray(pristine[name])
            flipped[place] ^= 1
            (out / name).write_bytes(flipped)
            assert main(["--verify", str(out)]) == 1
            assert name in capsys.readouterr().out
            if name != "annotations.json.gz":
                with pytest.raises(AnnotationError, match=f"{name} (is|cannot)"):
                    load_prepared(out)
        (out / name).write_bytes(pristine[name])
    (out / "index.npz").unlink()
    assert main(["--verify", str(out)]) == 1
    assert "index.npz is missing" in capsys.readouterr().out
    (out / "index.npz").write_bytes(pristine["index.npz"])
    assert main(["--verify", str(out)]) == 0
    (out / "index.json").write_text(json.dumps({"format": "eql_jax prepared data set", "version": 99}))
    assert main(["--verify", str(out)]) == 2
    assert "version 99" in capsys.readouterr().err


def test_one_unreadable_shard_does_not_hide_the_others(write_dataset, tmp_path, monkeypatch, capsys):
    paths = write_dataset(make_content([(80, 60)] * 9))
    out = tmp_path / "out"
    prepare(paths.json, paths.images, out, images_per_shard=3, progress=False)
    last = out / "annotations-00002-of-00003.tfrecord"
    last.write_bytes(last.read_bytes()[:-1] + b"?")
    open_as_before = Path.open

    def fail(path, *arguments, **options):
        if path.name.startswith("annotations-00001"):
            raise OSError(errno.EIO, "Input/output error")
        return open_as_before(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail)
    monkeypatch.setattr(prepared_check, "file_sha256", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "I/O")))
    assert main(["--verify", str(out)]) == 1
    assert [line.split(":")[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["annotations.json.gz", " cannot be read"],
        ["annotations-00001-of-00003.tfrecord", " cannot be read"],
        ["annotations-00002-of-00003.tfrecord", " record 2 (image 109)"],
    ]


def test_disk_full_and_not_writable(larger, tmp_path, monkeypatch, capsys):
    arguments = ["--annotations", str(larger.json), "--images", str(larger.images), "--shard-size", "10"]
    out = tmp_path / "out"
    written = []

    def fill(self, data):
        written.append(data)
        if len(written) > 25:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    write = shards.RecordWriter.write
    monkeypatch.setattr(shards.RecordWriter, "write", fill)
    assert main([*arguments, "--out", str(out), "--workers", "1"]) == 2
    assert "free some space and run the same command again" in capsys.readouterr().err
    assert not list(out.glob("*.partial"))
    assert (out / "annotations-00001-of-00006.tfrecord").exists()
    monkeypatch.undo()
    assert main([*arguments, "--out", str(out)]) == 0
    prepare(larger.json, larger.images, tmp_path / "whole", images_per_shard=10, progress=False)
    assert contents(out) == contents(tmp_path / "whole")

    (tmp_path / "file").write_text("")
    assert main([*arguments, "--out", str(tmp_path / "file")]) == 2
    assert "give another --out" in capsys.readouterr().err

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "out")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main([*arguments, "--out", str(tmp_path / "other")]) == 2
    assert "that you may write to" in capsys.readouterr().err


def test_two_at_a_time(larger, tmp_path):
    pytest.importorskip("fcntl")
    journal = tmp_path / "out" / "journal"
    journal.mkdir(parents=True)
    with prepare_module._locked(journal), pytest.raises(PrepareError, match="another process is preparing"):
        prepare(larger.json, larger.images, tmp_path / "out", progress=False)
    prepare(larger.json, larger.images, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--annotations, --images, --out missing"),
        (["--verify", "x", "--out", "y"], "--verify goes without"),
        (["--annotations", "a", "--images", "b", "--out", "c", "--shards", "0"], "--shards is 0"),
        (["--annotations", "a", "--images", "b", "--out", "c", "--workers", "-1"], "--workers is -1"),
    ],
)
def test_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_input(tmp_path, capsys):
    assert (
        main(["--annotations", str(tmp_path / "a.json"), "--images", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    )
    assert "a.json does not exist" in capsys.readouterr().err
    (tmp_path / "a.json").write_text("{}")
    nowhere = str(tmp_path / "nowhere")
    assert main(["--annotations", str(tmp_path / "a.json"), "--images", nowhere, "--out", str(tmp_path / "o")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert main(["--verify", str(tmp_path)]) == 2
    assert "holds no prepared data set" in capsys.readouterr().err


def test_imports_little():
    """The command starts fast, and its workers need no TensorFlow."""
    heavy = ("jax", "tensorflow", "etils", "cv2", "pycocotools")
    code = f"import sys, eql_jax.data.prepare; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
