"""Whole ensembles against plain loops over detections and full canvases, and what must hold of any."""

import contextlib
import gzip
import json
import time
import tracemalloc

import numpy as np
import pytest

from eql_jax.ensemble.errors import EnsembleError
from eql_jax.ensemble.fuse import FuseOptions, fuse_files
from eql_jax.ensemble.spooled import spool
from eql_jax.ensemble.weights import class_weights
from tests.ensemble import reference
from tests.ensemble.cases import make_files, write


def fuse(folder, files, options, weights=None, **kwargs):
    """(results of the ensemble, summary)."""
    paths = write(folder, **{f"file{i}": results for i, results in enumerate(files)})
    with contextlib.ExitStack() as stack:
        spooled = [stack.enter_context(spool(path, folder)) for path in paths]
        table = class_weights([1.0] * len(files)) if weights is None else weights
        summary = fuse_files(spooled, table, options, folder / "out.json", **kwargs)
    return json.loads((folder / "out.json").read_text()), summary


def check(found, expected):
    """Compares results with the reference's, by image."""
    by_image = {}
    for result in found:
        by_image.setdefault(result["image_id"], []).append(result)
    assert list(by_image) == sorted(by_image) == sorted(expected)
    for image_id, results in by_image.items():
        assert len(results) == len(expected[image_id])
        for a, b in zip(results, expected[image_id], strict=True):
            assert a["category_id"] == b["category_id"]
            np.testing.assert_allclose(a["score"], b["score"], rtol=6e-9)
            np.testing.assert_allclose(a["bbox"], b["bbox"], atol=6e-4)
            assert a.get("segmentation") == b.get("segmentation")


METHODS = [
    FuseOptions("nms"),
    FuseOptions("nms", iou=0.3, average_iou=0.5),
    FuseOptions("nms", iou=0.2, average_iou=0.2, max_detections=7),
    FuseOptions("wbf"),
    FuseOptions("wbf", iou=0.3, max_detections=7),
    FuseOptions("wbf", iou=0.0),
]


@pytest.mark.parametrize("options", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_against_plain_loops(tmp_path, options, seed):
    files = make_files(seed, files=2 + seed % 2, ties=seed == 2)
    found, summary = fuse(tmp_path, files, options)
    iou = {"nms": 0.5, "wbf": 0.55}[options.method] if options.iou is None else options.iou
    expected = reference.ensemble(
        files,
        lambda f, c: 1.0,
        method=options.method,
        iou_threshold=iou,
        average_iou=options.average_iou,
        limit=options.max_detections,
    )
    check(found, expected)
    assert summary.written == len(found) and summary.images == 4
    assert summary.read == [48] * len(files) and summary.lacking == [0] * len(files)


@pytest.mark.parametrize("method", ["nms", "wbf"])
@pytest.mark.parametrize("mode", ["raise", "only"])
@pytest.mark.parametrize("elsewhere", [0.0, 0.5])
def test_experts_and_factors_against_plain_loops(tmp_path, method, mode, elsewhere):
    files = make_files(5, files=3)
    experts, factors = {1: [2], 2: [2, 3]}, {1: {2: 0.7}, 0: {1: 1.3, 3: 0.0}}
    base = [1.0, 0.6, 2.0]

    def weight_of(file, category):
        named = category in experts.get(file, [])
        if mode == "only" and not named and any(category in classes for classes in experts.values()):
            return 0.0
        if file not in experts:
            return base[file]
        return base[file] * ((3.0 if mode == "raise" else 1.0) if named else elsewhere)

    table = class_weights(base, experts=experts, mode=mode, expert_weight=3, elsewhere=elsewhere, factors=factors)
    found, _ = fuse(tmp_path, files, FuseOptions(method, iou=0.4), table)
    expected = reference.ensemble(
        files,
        weight_of,
        method=method,
        iou_threshold=0.4,
        factor_of=lambda f, c: factors.get(f, {}).get(c, 1.0),
    )
    check(found, expected)


def key(result):
    return json.dumps(result, sort_keys=True)


def test_one_file_and_an_iou_of_one_change_nothing(tmp_path):
    (results,) = make_files(1, files=1)
    results[0]["score"], results[0]["bbox"][0] = 0.12345678901234567, 1.23456789012345
    found, summary = fuse(tmp_path, [results], FuseOptions("nms", iou=1))
    assert sorted(map(key, found)) == sorted(map(key, results))
    assert summary.used == summary.read


@pytest.mark.parametrize("options", [FuseOptions("wbf"), FuseOptions("nms", average_iou=0.5)])
def test_the_same_file_twice(tmp_path, options):
    # As a model leaves them: no two boxes of a class with an IoU above .5.
    (results,) = make_files(2, files=1, count=20)
    results, _ = fuse(tmp_path, [results], FuseOptions("nms"))
    found, summary = fuse(tmp_path, [results, results], options)
    assert sorted(map(key, found)) == sorted(map(key, results))
    assert summary.used == [len(results)] * 2


def test_boxes_alone(tmp_path):
    files = make_files(3, masks=False)
    for method in ("nms", "wbf"):
        found, _ = fuse(tmp_path, files, FuseOptions(method, iou=0.4))
        check(found, reference.ensemble(files, lambda f, c: 1.0, method=method, iou_threshold=0.4))
        assert all("segmentation" not in result for result in found)


def test_a_file_without_detections(tmp_path):
    files = make_files(4)
    found, summary = fuse(tmp_path, [files[0], []], FuseOptions("wbf"), same_images=False)
    check(found, reference.ensemble([files[0], []], lambda f, c: 1.0, method="wbf", iou_threshold=0.55))
    assert summary.read == [48, 0] and summary.lacking == [0, 4]
    found, summary = fuse(tmp_path, [[], []], FuseOptions("nms"))
    assert found == [] and summary.images == 0


def test_an_image_that_one_file_lacks(tmp_path):
    files = make_files(4)
    files[1] = [result for result in files[1] if result["image_id"] != 2]
    found, summary = fuse(tmp_path, files, FuseOptions("nms"), same_images=False)
    check(found, reference.ensemble(files, lambda f, c: 1.0, method="nms", iou_threshold=0.5))
    assert summary.lacking == [0, 1]
    (tmp_path / "out.json").unlink()
    with pytest.raises(
        EnsembleError, match=r"file1.json: no results for 1 of 4 images, such as image 2, which .*file0"
    ):
        fuse(tmp_path, files, FuseOptions("nms"))
    assert not (tmp_path / "out.json").exists()


def test_the_order_of_a_file_does_not_matter(tmp_path):
    files = make_files(6)
    found, _ = fuse(tmp_path, files, FuseOptions("wbf"))
    rng = np.random.default_rng(0)
    shuffled = [[results[i] for i in rng.permutation(len(results))] for results in files]
    assert fuse(tmp_path, shuffled, FuseOptions("wbf"))[0] == found, "no two scores are equal"


def test_more_than_300(tmp_path):
    files = make_files(7, images=1, count=400, classes=40, masks=False)
    found, summary = fuse(tmp_path, files, FuseOptions("nms", iou=1))
    scores = [result["score"] for result in found]
    assert len(found) == summary.written == 300 == sum(summary.used)
    assert scores == sorted((r["score"] for results in files for r in results), reverse=True)[:300]


def test_masks_at_the_border(tmp_path):
    whole = reference.encoded(np.ones((6, 8)))
    last = np.zeros((6, 8))
    last[-1], last[:, -1] = 1, 1
    files = [
        [{"image_id": 1, "category_id": 1, "score": s, "bbox": [0, 0, 8, 6], "segmentation": mask}]
        for s, mask in ((0.5, whole), (0.4, reference.encoded(last)), (0.3, reference.encoded(last)))
    ]
    (result,), _ = fuse(tmp_path, files, FuseOptions("wbf"))
    assert result["segmentation"] == reference.encoded(last) and result["bbox"] == [0, 0, 8, 6]
    assert result["score"] == 0.4


def test_gzip(tmp_path):
    files = make_files(8)
    found, _ = fuse(tmp_path, files, FuseOptions("wbf"))
    paths = []
    for i, results in enumerate(files):
        paths.append(tmp_path / f"packed{i}.json.gz")
        paths[-1].write_bytes(gzip.compress(json.dumps(results).encode()))
    with spool(paths[0]) as a, spool(paths[1]) as b:
        fuse_files([a, b], class_weights([1, 1]), FuseOptions("wbf"), tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == found


def test_detections_spread_over_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("eql_jax.ensemble.spooled._BLOCK", 5)
    (results,) = make_files(9, files=1)
    order = np.random.default_rng(0).permutation(len(results)).tolist()
    (path,) = write(tmp_path, spread=[results[i] for i in order])
    with spool(path) as spooled:
        assert spooled.size == len(results) and spooled.with_masks and spooled.image_ids.tolist() == [0, 1, 2, 3]
        for image_id in range(4):
            expected = [(n, results[i]) for n, i in enumerate(order) if results[i]["image_id"] == image_id]
            part = spooled.read(image_id)
            assert part.numbers.tolist() == [n for n, _ in expected]
            assert part.scores.tolist() == [r["score"] for _, r in expected]
            assert part.boxes.tolist() == [r["bbox"] for _, r in expected]
            rles = part.masks.rles(np.arange(len(expected)))
            assert [rle["counts"].decode() for rle in rles] == [r["segmentation"]["counts"] for _, r in expected]
            assert spooled.first_number(image_id) == expected[0][0]
        assert spooled.read(77).classes.size == 0


def many(folder, images):
    """Two files with 300 detections for each of so many images."""
    paths = []
    for number, results in enumerate(make_files(0, images=2, count=300, classes=60)):
        lines = [json.dumps({**r, "image_id": r["image_id"] + 2 * k}) for k in range(images // 2) for r in results]
        paths.append(folder / f"{number}.json")
        paths[-1].write_text("[" + ",\n".join(lines) + "]")
    return paths


def test_time(tmp_path):
    a, b = many(tmp_path, 200)
    started = time.process_time()
    with spool(a, tmp_path) as a, spool(b, tmp_path) as b:
        summary = fuse_files([a, b], class_weights([1, 1]), FuseOptions("wbf"), tmp_path / "out.json")
    assert summary.images == 200 and summary.read == [60_000] * 2
    assert time.process_time() - started < 60  # about 8 s


def test_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("eql_jax.ensemble.spooled._BLOCK", 1024)
    a, b = many(tmp_path, 16)
    tracemalloc.start()
    with spool(a, tmp_path) as a, spool(b, tmp_path) as b:
        held, _ = tracemalloc.get_traced_memory()
        fuse_files([a, b], class_weights([1, 1]), FuseOptions("wbf"), tmp_path / "out.json")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1 << 17, "what stays in memory of 9,600 detections"
    # The window on the JSON is 4 MB of text; the rest is a block of results and an image.
    assert peak < 24 << 20
