"""Preparing with several workers, after a kill, and after something has changed: the same bytes, or an error."""

import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eql_jax.data import files, shards
from eql_jax.data import prepare as prepare_module
from eql_jax.data.prepare import PrepareError, main, prepare
from eql_jax.data.prepared import load_prepared
from eql_jax.data.validation import AnnotationError
from tests.data.prepared_files import below, contents, with_faults
from tests.data.test_object_columns import assert_same_images


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
