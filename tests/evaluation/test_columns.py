"""Results as columns, read piece by piece, and packed run lengths against pycocotools."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from eql_jax.data import json_file
from eql_jax.evaluation import columns
from eql_jax.evaluation.columns import NO_MASK, OTHER_MASK, RUN_LENGTHS, ResultTable
from eql_jax.evaluation.result_reader import read_results
from eql_jax.evaluation.results import ResultWriter
from eql_jax.evaluation.run_lengths import PackedMasks, crop_of, decode_text
from eql_jax.evaluation.selection import best_of_each

# -------------------------------------------------------------------------------------------------------- columns


def test_results_come_back_as_they_were(lvis_case):
    _, results = lvis_case
    table = ResultTable.from_results(results)
    assert table.size == len(results) and [table.result(row) for row in range(table.size)] == results
    assert table.image_ids.dtype == table.category_ids.dtype == np.int64 and table.boxes.shape == (len(results), 4)
    chosen = [results[0]["image_id"], 5, results[-1]["image_id"]]
    found = table.of_images(chosen)
    assert list(found) == chosen and found[5] == []
    assert found[chosen[0]] == [r for r in results if r["image_id"] == chosen[0]]


def test_with_and_without_boxes_and_masks():
    mask = {"size": [3, 3], "counts": "09"}
    result = {"image_id": 1.0, "category_id": 2, "score": 1}
    results = [
        {**result, "bbox": [1, 2, 3, 4], "other": "left"},
        {**result, "segmentation": {**mask, "counts": b"09"}},
        {**result, "bbox": None, "segmentation": [[0, 0, 1, 1, 2, 2]]},
        {**result, "segmentation": {"size": [3, 3], "counts": [0, 9]}},
    ]
    table = ResultTable.from_results(results)
    assert table.has_box.tolist() == [True, False, False, False]
    assert table.mask_kind.tolist() == [NO_MASK, RUN_LENGTHS, OTHER_MASK, OTHER_MASK]
    kept = {"image_id": 1, "category_id": 2, "score": 1.0}
    assert [table.result(row) for row in range(table.size)] == [
        {**kept, "bbox": [1, 2, 3, 4]},
        {**kept, "segmentation": mask},
        kept,
        kept,
    ]
    assert ResultTable.from_results([]).size == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_id": "7"}, "an integer of 64 bits as its 'image_id', found '7'"),
        ({"image_id": 1.5}, "an integer of 64 bits as its 'image_id', found 1.5"),
        ({"image_id": float("inf")}, "as its 'image_id', found inf"),
        ({"image_id": 2**63}, f"as its 'image_id', found {2**63}"),
        ({"image_id": 2**70}, f"as its 'image_id', found {2**70}"),
        ({"category_id": None}, "an integer of 64 bits as its 'category_id', found None"),
        ({"category_id": True}, "as its 'category_id', found True"),
        ({"score": "high"}, "a number as its 'score', found 'high'"),
        ({"score": float("nan")}, "a number as its 'score', found nan"),
        ({"score": True}, "a number as its 'score', found True"),
        ({"bbox": [1, 2, 3]}, r"four numbers as its 'bbox', found \[1, 2, 3\]"),
        ({"bbox": "box"}, "four numbers as its 'bbox', found 'box'"),
        ({"bbox": [1, None, 3, 4]}, r"as its 'bbox', found \[1, None, 3, 4\]"),
        ({"bbox": ["1", 2, 3, "4"]}, r"as its 'bbox', found \['1', 2, 3, '4'\]"),
        ({"bbox": [1, 2, False, 4]}, r"as its 'bbox', found \[1, 2, False, 4\]"),
        ({"segmentation": {"size": [1.5, 3], "counts": "00"}}, r"two integers of 32 bits.*'segmentation'.*\[1.5, 3\]"),
        ({"segmentation": {"size": [2**40, 3], "counts": "00"}}, "'segmentation'"),
        ({"segmentation": {"size": ["a", 3], "counts": "00"}}, "'segmentation'"),
    ],
)
def test_faults_are_named_by_number(tmp_path, change, message):
    good = {"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [1, 2, 3, 4]}
    results = [good] * 5000 + [{**good, **change}, good]
    with pytest.raises(ValueError, match=f"^result 5000: expected .*{message}"):
        ResultTable.from_results(results)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=f"^{path}: result 5000: expected"):
        ResultTable.from_file(path)
    with pytest.raises(ValueError, match="^result 1: expected a dict, found 3"):
        ResultTable.from_results([good, 3])


def test_long_ids_beside_floats():
    good = {"category_id": 2, "score": 0.5}
    ids = [2**60 + 1, 3.0, -(2**63), 2**63 - 1]
    assert ResultTable.from_results([{**good, "image_id": i} for i in ids]).image_ids.tolist() == ids


def test_the_best_of_each_group():
    groups, scores = np.array([1, 2, 1, 1, 2, 1]), np.array([0.5, 0.1, 0.9, 0.5, 0.2, 0.5])
    assert best_of_each(groups, scores, 2).tolist() == [0, 1, 2, 4], "of equal scores the first"
    assert best_of_each(groups, scores, 1).tolist() == [2, 4]
    assert best_of_each(groups, scores, 0).tolist() == []
    assert best_of_each(groups, scores, -1).tolist() == list(range(6))


# --------------------------------------------------------------------------------------------------------- reader


@pytest.mark.parametrize("window", [1, 7, 1000, 1 << 22])
@pytest.mark.parametrize("style", [{}, {"indent": 1}, {"separators": (",", ":")}, "lines"])
def test_any_json_through_any_window(tmp_path, monkeypatch, lvis_case, window, style):
    results = [{**r, "note": '}, {"é'} for r in lvis_case[1][: 5 if window == 1 else 100]]
    path = tmp_path / "results.json"
    if style == "lines":
        with ResultWriter(path) as writer:
            writer.write(results)
    else:
        path.write_text(json.dumps(results, ensure_ascii=False, **style), encoding="utf-8")
    monkeypatch.setattr(json_file, "_WINDOW", window)
    assert list(read_results(path)) == results


@pytest.mark.parametrize("text", ["[]", " [ ] \n", "\ufeff[]\n"])
def test_empty_lists(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    assert list(read_results(path)) == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("", " is empty .0 bytes.. Write the results again"),
        ("[", " is cut off: Expecting value at byte 1 of 1. Write the results again$"),
        ('[{"a":1},', " is cut off: Expecting value at byte 9 of 9.*at result 1"),
        ('[{"a":1}', " is cut off: Expecting ',' delimiter at byte 8 of 8.*at result 1"),
        ('[{"a":1}]x', " is not valid JSON: Extra data at byte 9 of 10.*at result 1"),
        ("[]x", " is not valid JSON: Extra data at byte 2 of 3"),
        ('[{"a":1} {"b":2}]', ": Expecting ',' delimiter at byte 9 of 17.*at result 1"),
        ('[{"a":1},]', ": Expecting value at byte 9 of 10"),
        ('[{"a":1},{"b":"tex', " is cut off: Unterminated string.*at byte 14 of 18.*at result 1"),
        ("[1]", ": expected result 0 to be a dict, found 1"),
        ('{"a":1}', " holds a JSON dict; the top level of a results file is a list"),
        (b'[{"a":"\xff"}]', " is not JSON: byte 7 of 11 is not UTF-8 text"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        list(read_results(path))


def test_a_fault_early_in_a_file_is_found_there(tmp_path, monkeypatch):
    """Not after all that follows has been read into memory, and named by its own place."""
    good = json.dumps({"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [1.5, 2.5, 3.5, 4.5]})
    rows = [good, good, good.replace('"score"', "score"), *[good] * 40_000]
    path = tmp_path / "results.json"
    path.write_text("[" + ", ".join(rows) + "]")
    monkeypatch.setattr(json_file, "_WINDOW", 1 << 16)
    place, size = path.read_text().index(" score") + 1, path.stat().st_size
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"is not valid JSON: .* at byte {place} of {size}.*The fault is at result 2$"):
        ResultTable.from_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 4


def test_compressed_file(tmp_path, lvis_case):
    path = tmp_path / "results.json.gz"
    path.write_bytes(gzip.compress(json.dumps(lvis_case[1]).encode()))
    assert list(read_results(path)) == lvis_case[1]


def test_memory_of_a_file(tmp_path, monkeypatch):
    """8,000 results are 1.5 MB as columns; as dicts they would be 8."""
    one = {"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [1.5, 2.5, 3.5, 4.5]}
    one["segmentation"] = {"size": [480, 640], "counts": "0" * 100}
    path = tmp_path / "results.json"
    text = json.dumps(one)
    path.write_text("[" + ", ".join([text] * 8_000) + "]")
    monkeypatch.setattr(json_file, "_WINDOW", 1 << 16)
    monkeypatch.setattr(columns, "_BLOCK", 256)
    tracemalloc.start()
    table = ResultTable.from_file(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert table.size == 8_000 and table.masks.rles(np.array([7_999]))[0]["counts"] == b"0" * 100
    assert held < 1.8e6, held
    assert peak - held < 1.5e6, "the window and a block of results, whatever the size of the file"


def test_copying_files(tmp_path, monkeypatch):
    """Files of any layout go into another as they are, byte by byte."""
    from eql_jax.evaluation import results as results_module

    parts = [[{"image_id": i, "text": "a" * i} for i in range(n)] for n in (3, 0, 1, 40)]
    layouts = [{}, {"indent": 2}, {"separators": (",", ":")}, {"indent": 0}]
    for copied in (1 << 22, 64):
        monkeypatch.setattr(results_module, "_COPIED_BYTES", copied)
        with ResultWriter(tmp_path / "all.json") as writer:
            for number, (part, layout) in enumerate(zip(parts, layouts, strict=True)):
                path = tmp_path / f"{number}.json"
                path.write_text("\n" + json.dumps(part, **layout) + " \n" * 700 * (number % 2))
                writer.copy_file(path, count=len(part))
            writer.write([{"image_id": 99}])
        assert json.loads((tmp_path / "all.json").read_text()) == sum(parts, []) + [{"image_id": 99}]
        assert writer.count == 45


# ---------------------------------------------------------------------------------------------------- run lengths


def some_masks():
    rng = np.random.default_rng(0)
    masks = [np.zeros((4, 5), np.uint8), np.ones((5, 4), np.uint8), np.ones((1, 1), np.uint8)]
    for _ in range(200):
        masks.append((rng.random(rng.integers(1, 40, 2)) < rng.choice([0.01, 0.5, 0.95])).astype(np.uint8))
    masks.append((rng.random((480, 640)) < 0.001).astype(np.uint8))
    return masks, [mask_utils.encode(np.asfortranarray(mask)) for mask in masks]


def test_measures_and_crops():
    masks, rles = some_masks()
    packed = PackedMasks.from_rles(rles)
    index = np.random.default_rng(1).permutation(len(masks))
    assert packed.rles(index) == [rles[i] for i in index]
    assert not packed.damaged(index).any()
    areas, boxes = packed.measure(index)
    for row, i in enumerate(index.tolist()):
        assert areas[row] == np.count_nonzero(masks[i])
        rows, columns = np.nonzero(masks[i])
        if areas[row]:
            x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert boxes[row].tolist() == [x1, y1, x2, y2]
            lengths = packed.decode(np.array([i])).lengths
            np.testing.assert_array_equal(crop_of(lengths, boxes[row], len(masks[i])), masks[i][y1:y2, x1:x2])
    assert packed.measure(np.zeros(0, np.int64)).areas.shape == packed.damaged(np.zeros(0, np.int64)).shape == (0,)


@pytest.mark.parametrize(
    "counts, bad",
    [("09", False), ("9", False), ("54", False), ("0000000009", False)]
    + [(c, True) for c in ("", "8", "19", "zz", "P", "\x14", "9~", "5N5", "pppppppp1", "PPPPPPPPPPPPPPPP0")],
)
def test_damaged_run_lengths(counts, bad):
    good = {"size": [3, 3], "counts": "36"}
    packed = PackedMasks.from_rles([good, {"size": [3, 3], "counts": counts}, good])
    assert packed.damaged(np.arange(3)).tolist() == [False, bad, False]


def test_decoding_equals_the_data_layers():
    from eql_jax.data.polygons import decompress_counts

    _, rles = some_masks()
    packed = PackedMasks.from_rles(rles)
    runs = decode_text(packed.text, packed.offsets)
    for i, rle in enumerate(rles):
        np.testing.assert_array_equal(
            runs.lengths[runs.offsets[i] : runs.offsets[i + 1]], decompress_counts(rle["counts"])
        )
