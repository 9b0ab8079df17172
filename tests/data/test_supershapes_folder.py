"""Making the supershapes data set on disk: arguments, what is kept, remade or refused, the command line."""

import json
import os
from pathlib import Path

import pytest

from eql_jax.data.shapes import catalogue
from eql_jax.data.shapes.make import Job, make_pictures
from eql_jax.data.supershapes import SupershapesPaths, ensure_supershapes, main

TINY = dict(num_classes=20, train_images=12, val_images=8, image_size=48)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_made_once_and_remade_when_files_are_missing(tmp_path):
    out = tmp_path / "deep" / "set"
    leftover = out.parent / f".set.partial-{os.uname().nodename}-999999999"
    leftover.mkdir(parents=True)
    paths = ensure_supershapes(out, progress=False, **TINY)
    assert paths == SupershapesPaths(out / "train.json", out / "val.json", out)
    assert [p.name for p in out.parent.iterdir()] == ["set"]  # nothing half-made is left
    before = _bytes(out)
    stamp = paths.train_annotations.stat().st_mtime_ns
    ensure_supershapes(out, progress=False, **TINY)
    assert paths.train_annotations.stat().st_mtime_ns == stamp
    (out / "notes.txt").write_text("mine")
    for lost in ("train/000000000003.jpg", "val.json", "train.json"):
        (out / lost).unlink()
        ensure_supershapes(out, progress=False, **TINY)
        assert _bytes(out) == before | {"notes.txt": b"mine"}


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr("eql_jax.data.supershapes.make_pictures", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure_supershapes(tmp_path / "set", progress=False, **TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    other = ensure_supershapes(tmp_path.parent / "other", progress=False, **(TINY | {"seed": 5}))
    with pytest.raises(ValueError, match="seed is 5, asked for is 0"):
        ensure_supershapes(other.images, **TINY)
    (tmp_path / "photo.jpg").write_text("dear to me")
    with pytest.raises(FileExistsError, match="no supershapes data set"):
        ensure_supershapes(tmp_path, **TINY)
    (tmp_path / "train.json").write_text('{"info": {"description": "COCO"}}')
    with pytest.raises(FileExistsError, match="no supershapes data set"):
        ensure_supershapes(tmp_path, **TINY)
    (tmp_path / "empty").mkdir()
    assert ensure_supershapes(tmp_path / "empty", progress=False, **TINY).val_annotations.is_file()


def test_sets_from_other_places_of_the_catalogue_have_no_shape_in_common(tmp_path):
    small = TINY | {"difficulty": "hard", "progress": False, "workers": 1}
    first = ensure_supershapes(tmp_path / "first", **small)
    other = ensure_supershapes(tmp_path / "other", first_class=20, **small)
    both = ensure_supershapes(tmp_path / "both", **(small | {"num_classes": 40}))
    documents = [json.loads(paths.train_annotations.read_text()) for paths in (first, other, both)]
    names = [[c["name"] for c in document["categories"]] for document in documents]
    assert names[0] + names[1] == names[2]
    assert "first_class" not in documents[0]["info"]["supershapes"]  # as sets of before have it
    assert documents[1]["info"]["supershapes"]["first_class"] == 20
    with pytest.raises(ValueError, match="first_class is 20, asked for is"):
        ensure_supershapes(tmp_path / "other", **small)
    with pytest.raises(ValueError, match="first_class=1184, expected a whole number from 0 to 1183"):
        ensure_supershapes(tmp_path / "none", first_class=1184, **small)
    with pytest.raises(ValueError, match="num_classes=21 from first_class=1183 on, but there are 1203"):
        ensure_supershapes(tmp_path / "none", first_class=1183, **(small | {"num_classes": 21}))


def test_validation_images_list_as_many_absent_classes_as_asked_for(tmp_path):
    few = ensure_supershapes(tmp_path, val_negatives=3, progress=False, workers=1, **TINY)
    for path, most in ((few.val_annotations, 3), (few.train_annotations, 10)):
        document = json.loads(path.read_text())
        assert {len(image["neg_category_ids"]) for image in document["images"]} == {most}
        assert document["info"]["supershapes"]["val_negatives"] == 3
    with pytest.raises(ValueError, match="val_negatives is 3, asked for is 0"):
        ensure_supershapes(tmp_path, progress=False, **TINY)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (dict(num_classes=19), "num_classes=19, expected a whole number from 20 to 1203"),
        (dict(num_classes=1204), "num_classes=1204"),
        (dict(train_images=0), "train_images=0"),
        (dict(train_images=2.5), "train_images=2.5"),
        (dict(image_size=True), "image_size=True"),
        (dict(seed=-1), "seed=-1"),
        (dict(difficulty="easy"), r"difficulty='easy', expected one of \['hard', 'normal'\]"),
        (dict(classes=40), "unknown argument classes; there are difficulty, first_class, image_size, num_classes"),
        (dict(workers=-1), "workers=-1"),
        (dict(num_classes=100, val_images=10, train_images=100), "val_images=10 images cannot hold 100 classes"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        ensure_supershapes(tmp_path / "set", progress=False, **arguments)
    assert not (tmp_path / "set").exists()


def test_command_line(tmp_path, capsys):
    out = str(tmp_path / "set")
    flags = [f"--{key}={value}" for key, value in (TINY | {"difficulty": "hard", "workers": 1}).items()]
    main(["--out", out, *flags])
    assert "12 training, 8 validation images; 20 rare, 0 common, 0 frequent classes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--out", out, *flags, "--seed=7"])
    assert stopped.value.code == 2
    assert "seed is 0, asked for is 7" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "file" / "set"), *flags])
    assert stopped.value.code == 2
    assert "File exists" in capsys.readouterr().err


def test_a_failing_helper_process_is_reported(tmp_path):
    job = Job(
        folder=tmp_path / "absent", split="train", seed=0, size=48, difficulty="normal",
        contours=[c.contour for c in catalogue.shape_classes(20)], classes=[[0]] * 64, negatives=1, first_id=1,
        indices=range(64),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="ended with status 1 after 0 of 32 pictures(.|\n)*FileNotFoundError"):
        list(make_pictures(job, workers=2))
