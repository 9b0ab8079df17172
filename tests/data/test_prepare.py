"""Preparing: equal records, equal bytes whatever the workers and kills, damage found, faults told."""

import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eql_jax.data import files, prepared_check, shards
from eql_jax.data import prepare as prepare_module
from eql_jax.data.annotations import load_annotations
from eql_jax.data.json_file import read_annotation_json
from eql_jax.data.prepare import PrepareError, main, prepare
from eql_jax.data.prepared import load_prepared
from eql_jax.data.validation import AnnotationError
from tests.data.conftest import make_content
from tests.data.test_object_columns import SPOILS, assert_same_images


def contents(folder):
    """name -> bytes of all files of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


def below(images, folder):
    """The images with their paths below a folder."""
    return [image._replace(path=image.path.relative_to(folder)) for image in images]


def assert_equal_to_json(prepared, loaded, paths):
    assert prepared.categories == loaded.categories
    np.testing.assert_array_equal(prepared.class_ids, loaded.class_ids)
    assert prepared.report.counts == loaded.report.counts
    summary = loaded.report.summary().replace(f"{paths.json}, id", f"{paths.json.name}, id")
    assert prepared.report.summary() == summary.replace(f" in {paths.images}", "")
    assert_same_images(below(prepared.images, prepared.raw.parent), below(loaded.images, paths.images))
    for record, original in zip(prepared.images, loaded.images, strict=True):
        assert record.encoded == original.path.read_bytes()
    for mine, theirs in zip(prepared.index, loaded.index, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def lvis_v1(content):
    """Annotations first, as in the files of LVIS v1, whose validation images are in train2017 for the most part."""
    return {key: content[key] for key in ("annotations", "images", "categories")}


def lvis_v05(content):
    for image in content["images"]:
        image["file_name"] = f"COCO_val2014_{image['id']:012d}.jpg"
        image["coco_url"] = image["coco_url"].replace("train2017", "val2017")
        image["not_exhaustive_category_ids"] = [20]
    return content


def coco(content):
    """No letters, a crowd in run lengths, category ids with gaps (10, 20, 30, as always here)."""
    for category in content["categories"]:
        del category["synset"], category["frequency"]
    for image in content["images"]:
        del image["coco_url"], image["neg_category_ids"], image["not_exhaustive_category_ids"]
        image["file_name"] = f"{image['id']:012d}.jpg"
    for annotation in content["annotations"][::3]:
        width, height = next((i["width"], i["height"]) for i in content["images"] if i["id"] == annotation["image_id"])
        counts = [3 * height, 40, width * height - 3 * height - 40]
        annotation.update(iscrowd=1, segmentation={"size": [height, width], "counts": counts})
    return content


def with_faults(content):
    rng = np.random.default_rng(3)
    for annotation, spoil in zip(content["annotations"], SPOILS, strict=False):
        spoil(annotation, rng)
    content["images"].insert(2, {"id": 900, "width": 5, "height": 5})
    content["images"].append({"id": 901, "width": 0, "height": 5})
    content["images"][1]["neg_category_ids"] = [10, 77]
    return content


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


def spoil_images(paths):
    """103 cut off, 105 of another size, 106 gone, 108 turned by EXIF (and stated turned), 110 no image."""
    folder = paths.images / "train2017"
    whole = (folder / "000000000103.jpg").read_bytes()
    (folder / "000000000103.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (40, 30)).save(folder / "000000000105.jpg")
    (folder / "000000000106.jpg").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 80)).save(folder / "000000000108.jpg", exif=exif)
    (folder / "000000000110.jpg").write_text("no image")


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


@pytest.fixture
def larger(write_dataset):
    """Sixty images, three of them unusable: enough work to be killed in."""
    paths = write_dataset(make_content([(320, 240)] * 60, objects_per_image=3))
    spoil_images(paths)
    return paths


def test_workers_do_not_matter(larger, tmp_path):
    for workers in (1, 2, 3):
        prepare(
            larger.json, larger.images, tmp_path / str(workers), workers=workers, images_per_shard=7, progress=False
        )
    one = contents(tmp_path / "1")
    assert len(one) == 9 + 3
    assert contents(tmp_path / "2") == one
    assert contents(tmp_path / "3") == one
    prepare(larger.json, larger.images, tmp_path / "five", shards=5, progress=False)
    assert [name for name in contents(tmp_path / "five") if name.endswith("tfrecord")] == [
        f"annotations-{i:05d}-of-00005.tfrecord" for i in range(5)
    ]
    five, one = tmp_path / "five", tmp_path / "1"
    assert_same_images(below(load_prepared(five).images, five), below(load_prepared(one).images, one))


# Runs the command with every step slowed down, so that kills fall everywhere.
SLOW = """
import sys, time
from eql_jax.data import files, prepare, shards
read, replace = shards._read_checked, files.os.replace
def slowly(record):
    time.sleep(.003)
    return read(record)
def late(*paths):
    time.sleep(.004)
    replace(*paths)
    time.sleep(.004)
shards._read_checked, files.os.replace = slowly, late
sys.exit(prepare.main(sys.argv[1:]))
"""


def test_killed_ten_times(larger, tmp_path):
    """SIGKILL at ten random moments, at times with another number of workers: the bytes are those of a single run."""
    prepare(larger.json, larger.images, tmp_path / "whole", images_per_shard=4, progress=False)
    expected = contents(tmp_path / "whole")
    out = tmp_path / "out"
    random_moment = random.Random(5)
    states = set()
    killed = 0
    killed = finished = 0
    for attempt in range(40):
        command = [sys.executable, "-c", SLOW, "--annotations", larger.json, "--images", larger.images, "--out", out]
        command += ["--shard-size", "4", "--workers", str(1 + attempt % 3)]
        before = set(out.rglob("*"))
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while killed < 10 and process.poll() is None and set(out.rglob("*")) == before:  # until it begins to write
            time.sleep(0.005)
        if killed < 10:
            time.sleep(random_moment.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed += 1
            states.add(tuple(sorted(path.name for path in out.rglob("*"))))
            continue
        assert process.returncode == 0
        assert contents(out) == expected
        finished += 1
        if killed == 10:
            break
        shutil.rmtree(out)  # done before it was killed: once more from the beginning
    assert killed == 10
    assert finished >= 1
    assert len(states) >= 4  # not the same moment each time


def test_finished_and_changed(larger, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--annotations", str(larger.json), "--images", str(larger.images), "--out", str(out)]
    assert main([*arguments, "--shard-size", "30"]) == 0
    before = contents(out), (out / "index.json").stat().st_mtime_ns
    assert main([*arguments, "--shard-size", "30"]) == 0  # nothing to do
    assert before == (contents(out), (out / "index.json").stat().st_mtime_ns)
    capsys.readouterr()
    assert main([*arguments, "--shard-size", "20"]) == 2
    assert "images_per_shard was 30, now 20. Give another --out" in capsys.readouterr().err
    content = json.loads(larger.json.read_text())
    larger.json.write_text(json.dumps(content, indent=1))
    assert main([*arguments, "--shard-size", "30"]) == 2
    assert "annotations was" in capsys.readouterr().err
    assert before[0] == contents(out)


def test_the_same_bytes_wherever_the_files_are(larger, tmp_path, monkeypatch):
    """Faults of images and of annotations, with the folders given in different ways; no path is in the bytes."""
    content = json.loads(larger.json.read_text())
    larger.json.write_text(json.dumps(with_faults(content)))
    prepare(larger.json, larger.images, tmp_path / "out", images_per_shard=9, progress=False)
    expected = contents(tmp_path / "out")
    (tmp_path / "else").mkdir()
    shutil.copy(larger.json, tmp_path / "else")
    shutil.copytree(larger.images, tmp_path / "else" / "pictures")
    monkeypatch.chdir(tmp_path / "else")
    prepare("annotations.json", "pictures", "out", images_per_shard=9, progress=False)
    assert contents("out") == expected
    assert str(tmp_path).encode() not in expected["index.json"]
    examples = load_prepared("out").report.examples
    files_left_out = {fault.file for kind in ("unreadable image", "size mismatch") for fault in examples[kind]}
    assert files_left_out == {f"train2017/000000000{i}.jpg" for i in (103, 105, 108, 110)}


def stop_before_the_index(monkeypatch, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_write_index", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(*arguments, **options, progress=False)


def test_goes_on_whatever_the_spelling(larger, tmp_path, monkeypatch):
    stop_before_the_index(monkeypatch, larger.json, larger.images, tmp_path / "out")
    (tmp_path / "link").symlink_to(larger.images)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrepareError, match="images_dir was .*, now .*train2017"):
        prepare(larger.json, "images/train2017", "out", progress=False)
    plan = tmp_path / "out" / "journal" / "plan.json"
    stored = plan.read_text()
    plan.write_text(stored.replace('"version": ', '"version": 9'))
    with pytest.raises(PrepareError, match=r"version was 9\d+, now "):
        prepare("annotations.json", "images", "out", progress=False)
    plan.write_text(stored)
    prepare("annotations.json", "images/../link/", "out", progress=False)
    prepare("annotations.json", "link", "out", progress=False)


def test_a_repaired_or_moved_image_comes_back(larger, tmp_path, monkeypatch):
    """Of an image that was damaged in the first half, and one that lies elsewhere in the second."""
    stop_before_the_index(monkeypatch, larger.json, larger.images, tmp_path / "out", images_per_shard=20)
    folder = larger.images / "train2017"
    shutil.copy(folder / "000000000101.jpg", folder / "000000000103.jpg")
    (folder / "000000000150.jpg").rename(larger.images / "000000000150.jpg")
    made = []
    with monkeypatch.context() as patch:
        patch.setattr(shards, "encode_record", lambda record, name: made.append(record.id) or encode(record, name))
        prepared = prepare(larger.json, larger.images, tmp_path / "out", images_per_shard=20, progress=False)
    assert 103 in prepared.index.ids
    assert {101, 103, 141, 150, 160} <= set(made)
    assert not set(made) & set(range(121, 141))
    assert prepared.images[-11].path == tmp_path / "out" / "000000000150.jpg"
    prepare(larger.json, larger.images, tmp_path / "whole", images_per_shard=20, progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_no_image_is_dropped_for_a_read_that_fails(larger, tmp_path, monkeypatch, capsys, number):
    """What passes is waited for; what stays ends the run, which goes on when it is gone."""
    monkeypatch.setattr(files, "RETRY_PAUSES", (0, 0, 0))
    left = {"000000000120.jpg": 2 if number != errno.EACCES else 0, "000000000155.jpg": 10**9}
    read_bytes = Path.read_bytes

    def fail(path):
        if left.get(path.name):
            left[path.name] -= 1
            raise OSError(number, "it fails", str(path))
        return read_bytes(path)

    arguments = ["--annotations", str(larger.json), "--images", str(larger.images), "--shard-size", "10"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert main([*arguments, "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    message = capsys.readouterr().err
    assert "000000000155.jpg cannot be read" in message
    assert "--out" not in message
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    prepare(larger.json, larger.images, tmp_path / "whole", images_per_shard=10, progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert 120 in load_prepared(tmp_path / "out").index.ids


def test_changed_between_two_halves(larger, tmp_path, monkeypatch):
    """A run that ended early is not continued from another file; a damaged shard of it is made again, and one that
    left images out."""
    whole = tmp_path / "whole"
    prepare(larger.json, larger.images, whole, images_per_shard=10, progress=False)
    out = tmp_path / "out"
    monkeypatch.setattr(prepare_module, "_write_index", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(larger.json, larger.images, out, images_per_shard=10, progress=False)
    monkeypatch.undo()
    with pytest.raises(AnnotationError, match="not fully prepared"):
        load_prepared(out)
    with pytest.raises(PrepareError, match="prepared from something else"):
        prepare(larger.json, larger.images, out, images_per_shard=11, progress=False)
    made = []
    monkeypatch.setattr(shards, "encode_record", lambda record, name: made.append(record.id) or encode(record, name))
    damaged = out / "annotations-00002-of-00006.tfrecord"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (out / "journal" / "annotations-00004-of-00006.tfrecord.json").write_text("")
    prepare(larger.json, larger.images, out, images_per_shard=10, progress=False)
    assert set(made) == {101, 102, 104, 107, 109, *range(121, 131), *range(141, 151)}
    assert contents(out) == contents(whole)


encode = shards.encode_record


def test_other_images_are_missing_than_before(larger, tmp_path, monkeypatch):
    """Between the halves one image comes and another goes: as many in the shard, and not the same."""
    folder = larger.images / "train2017"
    (folder / "000000000111.jpg").rename(tmp_path / "away.jpg")
    monkeypatch.setattr(prepare_module, "_write_index", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(larger.json, larger.images, tmp_path / "out", images_per_shard=10, progress=False)
    monkeypatch.undo()
    (tmp_path / "away.jpg").rename(folder / "000000000111.jpg")
    (folder / "000000000112.jpg").unlink()
    made = []
    monkeypatch.setattr(shards, "encode_record", lambda record, name: made.append(record.id) or encode(record, name))
    prepared = prepare(larger.json, larger.images, tmp_path / "out", images_per_shard=10, progress=False)
    assert set(made) == {*range(101, 112), *range(113, 121)} - {103, 105, 106, 108, 110}
    monkeypatch.undo()
    prepare(larger.json, larger.images, tmp_path / "whole", images_per_shard=10, progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert [record.id for record in prepared.images] == prepared.index.ids.tolist()


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
