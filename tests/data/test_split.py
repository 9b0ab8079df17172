"""Splitting an annotation file by image."""

import copy
import gzip
import json

import pytest

from eql_jax.data.annotations import load_annotations
from eql_jax.data.split import main, split_annotations
from eql_jax.data.validation import AnnotationError
from tests.data.conftest import make_content


@pytest.fixture
def content():
    return make_content([(96, 64)] * 200, objects_per_image=3)


def test_every_image_and_object_is_on_one_side(content):
    before = copy.deepcopy(content)
    train, val = split_annotations(content, val=0.25)
    assert content == before
    assert 30 <= len(val["images"]) <= 70  # 50 +- 3 sigma of sqrt(200 / 4 * 3 / 4) = 6.1
    for key in ("images", "annotations"):
        ids = [record["id"] for side in (train, val) for record in side[key]]
        assert sorted(ids) == [record["id"] for record in before[key]]
    for side in (train, val):
        assert {a["image_id"] for a in side["annotations"]} <= {image["id"] for image in side["images"]}
        assert [c["id"] for c in side["categories"]] == [10, 20, 30]
        assert not any("frequency" in c for c in side["categories"])


def test_later_images_move_nothing(content):
    whole = split_annotations(content, val=0.3)
    first = {**content, "images": content["images"][:120]}
    part = split_annotations(first, val=0.3)
    for a, b in zip(whole, part, strict=True):
        assert [i["id"] for i in a["images"] if i["id"] <= 220] == [i["id"] for i in b["images"]]
    other = split_annotations(content, val=0.3, seed=1)
    assert {i["id"] for i in other.val["images"]} != {i["id"] for i in whole.val["images"]}


def test_what_cannot_be_split(content):
    with pytest.raises(AnnotationError, match="'categories'"):
        split_annotations({"images": [], "annotations": []}, val=0.5)
    with pytest.raises(AnnotationError, match="none would be for"):
        split_annotations({**content, "images": content["images"][:1]}, val=0.5)
    with pytest.raises(AnnotationError, match="expected objects in the list 'annotations', found 7"):
        split_annotations({**content, "annotations": [7]}, val=0.5)
    with pytest.raises(AnnotationError, match="integer id"):
        split_annotations({**content, "images": [{"id": "a"}]}, val=0.5)


def test_command(write_dataset, tmp_path, capsys):
    paths = write_dataset(make_content([(96, 64)] * 12))
    main(["--annotations", str(paths.json), "--val", "0.4", "--out", str(tmp_path / "splits")])
    assert "val.json" in capsys.readouterr().out
    sides = [load_annotations(tmp_path / "splits" / name, paths.images) for name in ("train.json", "val.json")]
    assert sum(len(side.images) for side in sides) == 12 and not any(side.report.total for side in sides)

    packed = tmp_path / "all.json.gz"  # as load_annotations takes it, too
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + paths.json.read_bytes()))
    main(["--annotations", str(packed), "--val", "0.4", "--out", str(tmp_path / "again")])
    assert (tmp_path / "again" / "val.json").read_bytes() == (tmp_path / "splits" / "val.json").read_bytes()
    capsys.readouterr()

    with pytest.raises(SystemExit):  # twice in the same place
        main(
            [
                "--annotations",
                str(tmp_path / "splits" / "train.json"),
                "--val",
                "0.5",
                "--out",
                str(tmp_path / "splits"),
            ]
        )
    assert "would overwrite" in capsys.readouterr().err

    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(SystemExit):
        main(["--annotations", str(tmp_path / "list.json"), "--out", str(tmp_path / "x")])
    assert "list.json" in capsys.readouterr().err
    (tmp_path / "cut.json").write_text(json.dumps(make_content([(96, 64)]))[:50])
    with pytest.raises(SystemExit) as stopped:
        main(["--annotations", str(tmp_path / "cut.json"), "--out", str(tmp_path / "x")])
    assert stopped.value.code == 2 and "cut.json" in capsys.readouterr().err
