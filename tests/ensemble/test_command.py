"""The command: from files to a file, its report, and what it says about files that cannot be used."""

import errno
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from eql_jax.ensemble.__main__ import main
from tests.ensemble import reference
from tests.ensemble.cases import annotations, make_files, write


def test_two_files(tmp_path, capsys):
    files = make_files(0)
    a, b = write(tmp_path, a=files[0], b=files[1])
    out = tmp_path / "deep" / "out.json"
    assert main(["--results", a, b, "--weights", "2", "1", "--fuse", "wbf", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    expected = reference.ensemble(files, lambda f, c: [2.0, 1.0][f], method="wbf", iou_threshold=0.55)
    assert len(found) == sum(map(len, expected.values()))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{a}: 48 detections, 48 of them in the ensemble"
    assert lines[2] == f"{out}: {len(found)} detections in 4 images"
    first = out.read_bytes()
    main(["--results", a, b, "--weights", "2", "1", "--fuse", "wbf", "--out", str(out)])
    assert out.read_bytes() == first and list(out.parent.iterdir()) == [out]


def test_experts_by_letter_and_evaluation(tmp_path, capsys):
    files = make_files(1)
    content = annotations(4)  # class 1 is rare
    for result in files[1]:  # the second file is the truth
        if result["category_id"] == 1:
            box = result["bbox"]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": result["image_id"],
                    "category_id": 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "segmentation": result["segmentation"],
                }
            )
    for image in content["images"]:
        image |= {"neg_category_ids": [1, 2, 3], "not_exhaustive_category_ids": []}
    a, b, val = write(tmp_path, a=files[0], b=files[1], val=content)
    out = str(tmp_path / "out.json")
    arguments = ["--results", a, b, "--out", out, "--iou", "1", "--annotations", val]
    assert (
        main([*arguments, "--experts", f"{b}=r", "--expert_mode", "only", "--expert_elsewhere", "0", "--evaluate"]) == 0
    )
    expected = [r for r in files[0] if r["category_id"] != 1] + [r for r in files[1] if r["category_id"] == 1]
    assert sorted(map(json.dumps, json.loads(open(out).read()))) == sorted(map(json.dumps, expected))
    lines = capsys.readouterr().out.splitlines()
    values = {line.split()[0]: line.split()[1:] for line in lines[-3:]}
    assert lines[-4].split()[:5] == ["masks", "AP", "AP50", "AP75", "APr"]
    assert values[b][0] == values[out][0] == values[out][3] == "100.0" and values[out][4] == "-"
    assert float(values[a][0]) < 50


def result(**changes):
    made = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 1, 4, 4]}
    made["segmentation"] = reference.encoded(np.ones((40, 56)))
    return {key: value for key, value in (made | changes).items() if value is not None}


BAD = [
    ({"bbox": None}, r"b.json: result 1 \(image 1\): expected a 'bbox' of x, y, width and height, found none"),
    ({"bbox": [1, 1, -4, 4]}, r"b.json: result 1 \(image 1\): expected a 'bbox' of finite numbers"),
    ({"bbox": [1, 1, 4]}, r"b.json: result 1: expected four numbers as its 'bbox'"),
    ({"score": -0.5}, r"b.json: result 1 .*expected a finite 'score' of at least 0. It is .*'score': -0.5"),
    ({"score": float("inf")}, r"b.json: result 1 .*expected a finite 'score'"),
    ({"score": None}, r"b.json: result 1: expected image_id, category_id and score"),
    (
        {"segmentation": None},
        r"b.json: result 1 .*expected a 'segmentation', as with the results before it, found none",
    ),
    ({"segmentation": [[1, 1, 2, 2, 3, 1]]}, r"b.json: result 1 .*expected run lengths with 'size' and 'counts'"),
    ({"segmentation": {"size": [0, 0], "counts": "0"}}, r"b.json: result 1 .*'segmentation' of at least one pixel"),
    ({"segmentation": {"size": [40, 56], "counts": "12"}}, r"b.json: result 1 .*run lengths are damaged.*40 x 56"),
    (
        {"segmentation": reference.encoded(np.ones((40, 57)))},
        r"b.json: result 1 .*expected a mask of 40 x 56 pixels, as that of .*a.json: result 0, found 40 x 57",
    ),
    ({"score": 0.9, "bbox": [9, 9, 4, 4]}, r"b.json: result 1 \(image 1\) has the class, score and box of result 0"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_results(tmp_path, capsys, changes, message):
    good = result(score=0.9, bbox=[9, 9, 4, 4])
    a, b = write(tmp_path, a=[good], b=[good, result(**changes)])
    out = tmp_path / "out.json"
    assert main(["--results", a, b, "--out", str(out)]) == 2
    assert_error(capsys, message)
    assert not out.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


def assert_error(capsys, message):
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 9}, r"b.json: result 0 \(image 9\): expected one of the 4 images of .*val.json"),
        ({"category_id": 9}, r"b.json: result 0 \(image 1\): expected one of the 3 categories of .*val.json"),
        (
            {"segmentation": reference.encoded(np.ones((40, 57)))},
            r"b.json: result 0 .*expected a mask of the image's height and width in .*val.json",
        ),
    ],
)
def test_results_against_annotations(tmp_path, capsys, changes, message):
    a, b, val = write(tmp_path, a=[result()], b=[result(**changes)], val=annotations(4))
    assert main(["--results", a, b, "--annotations", val, "--out", str(tmp_path / "out.json")]) == 2
    assert_error(capsys, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "1"], r"--weights: expected one for each of the 2 results files, found 1"),
        (["--iou", "1.5"], r"iou: expected a share from 0 to 1, found 1.5"),
        (["--fuse", "wbf", "--average_masks", "0.5"], r"average_iou is for the method 'nms'"),
        (["--max_detections", "0"], r"max_detections: expected at least 1"),
        (["--experts", "c.json=1"], r"--experts c.json=1: expected FILE=VALUE with one of the --results"),
        (["--experts", "{b}=r"], r"b.json=r: 'r' is no category id; names and frequency letters need --annotations"),
        (["--experts", "{b}=1", "{b}=2"], r"--experts: .*b.json is there twice"),
        (["--experts", "{b}=@none.txt"], r"No such file or directory: 'none.txt'"),
        (["--evaluate"], r"--evaluate needs --annotations"),
        (["--out", "{b}"], r"--out .*b.json is one of the --results"),
        (["--out", "{b}.gz"], r"--out .*b.json.gz: results are written plain"),
        (["--annotations", "{b}"], r"b.json holds a JSON list"),
    ],
)
def test_bad_options(tmp_path, capsys, arguments, message):
    a, b = write(tmp_path, a=[result()], b=[result()])
    filled = [argument.format(b=b) for argument in arguments]
    assert main(["--results", a, b, "--out", str(tmp_path / "out.json"), *filled]) == 2
    assert_error(capsys, message)


def test_files_that_do_not_go_together(tmp_path, capsys):
    a, b, c = write(tmp_path, a=[result()], b=[result(segmentation=None)], c=[result(image_id=2)])
    out = ["--out", str(tmp_path / "out.json")]
    assert main(["--results", a, b, *out]) == 2
    assert_error(capsys, r"b.json has boxes alone, .*a.json has masks")
    assert main(["--results", a, c, *out]) == 2
    assert_error(capsys, r"a.json: no results for 1 of 2 images, such as image 2, which .*c.json has \(result 0\)")
    assert main(["--results", a, str(tmp_path / "none.json"), *out]) == 2
    assert_error(capsys, r"^error: results file .*none.json does not exist$")
    (tmp_path / "cut.json").write_text('[{"image_id": 1,')
    assert main(["--results", a, str(tmp_path / "cut.json"), *out]) == 2
    assert_error(capsys, r"cut.json is cut off")


def test_a_full_disk(tmp_path, capsys, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (a,) = write(tmp_path, a=[result()])
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    assert main(["--results", a, "--out", str(tmp_path / "out.json")]) == 2
    assert_error(
        capsys, r"No space left on device \(temporary files, as large as .*a.json unpacked\): '.*test_a_full_disk"
    )


def test_needs_no_jax():
    code = "import sys, eql_jax.ensemble.__main__; assert not {'jax', 'tensorflow', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
