"""Detections become LVIS results, and the files of several hosts one."""

import errno
import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from eql_jax.evaluation.results import ResultWriter, detections_to_results, host_file, load_results, merge_results


def batch(image_ids, size=(20, 30), original=(40, 90)):
    return {
        "image_id": np.array(image_ids, np.int64),
        "image_size": np.tile(np.array(size, np.int32), (len(image_ids), 1)),
        "original_size": np.tile(np.array(original, np.int32), (len(image_ids), 1)),
    }


def detections(rows=2, count=3):
    """Boxes of 10 x 10 at (5, 5), scores .9, .8, ..., classes 0, 1, 2, masks of ones."""
    return {
        "boxes": np.tile(np.array([5, 5, 15, 15], np.float32), (rows, count, 1)),
        "scores": np.tile(np.linspace(0.9, 0.9 - 0.1 * (count - 1), count, dtype=np.float32), (rows, 1)),
        "classes": np.tile(np.arange(count, dtype=np.int32), (rows, 1)),
        "masks": np.ones((rows, count, 28, 28), np.float32),
    }


def test_by_hand():
    found = detections_to_results(detections(), batch([7, -1]), [3, 50, 1203])
    assert [(r["image_id"], r["category_id"], r["score"]) for r in found] == [(7, 3, 0.9), (7, 50, 0.8), (7, 1203, 0.7)]
    # The file is twice as high and three times as wide as the resized image.
    assert found[0]["bbox"] == [15, 10, 30, 20]
    mask = mask_utils.decode([{**found[0]["segmentation"], "counts": found[0]["segmentation"]["counts"].encode()}])
    expected = np.zeros((40, 90), np.uint8)
    expected[10:30, 15:45] = 1
    np.testing.assert_array_equal(mask[:, :, 0], expected)
    json.dumps(found)  # plain Python numbers and strings only


def test_padding_empty_boxes_and_the_limit():
    d = detections(rows=1, count=6)
    d["scores"][0, 5], d["classes"][0, 5] = 0, -1  # padding
    d["boxes"][0, 1] = [40, 5, 50, 15]  # outside of the valid part
    found = detections_to_results(d, batch([1]), range(6))
    assert [r["category_id"] for r in found] == [0, 2, 3, 4]
    assert [r["category_id"] for r in detections_to_results(d, batch([1]), range(6), max_detections=3)] == [0, 2]
    d["scores"] = d["scores"][:, ::-1].copy()
    d["classes"][0] = [0, 1, 2, 3, 4, 5]
    rising = detections_to_results(d, batch([1]), range(6))
    assert [r["category_id"] for r in rising] == [5, 4, 3, 2], "by falling score, whatever the order"


def test_without_masks_and_without_detections():
    d = detections()
    d["masks"] = None
    assert "segmentation" not in detections_to_results(d, batch([1, 2]), [1, 2, 3])[0]
    d = detections()
    d["classes"][:], d["scores"][:] = -1, 0
    assert detections_to_results(d, batch([1, 2]), [1, 2, 3]) == []
    empty = {key: value[:, :0] for key, value in detections().items()}
    assert detections_to_results(empty, batch([1, 2]), [1, 2, 3]) == []


def test_more_than_300_detections():
    d = detections(rows=1, count=320)
    d["scores"] = np.linspace(1, 0.5, 320, dtype=np.float32)[None]
    found = detections_to_results(d, batch([1]), range(320))
    assert len(found) == 300 and found[-1]["category_id"] == 299
    scores = np.array([r["score"] for r in found], np.float32)
    np.testing.assert_array_equal(scores, d["scores"][0, :300])  # decimals that read back as the same float32


def test_class_that_the_list_lacks():
    with pytest.raises(ValueError, match=r"class 2, but there are 2 category ids \(0 to 1\)"):
        detections_to_results(detections(), batch([1, 2]), [1, 2])


def test_writer_and_merge(tmp_path):
    found = detections_to_results(detections(), batch([1, 2]), [3, 4, 5])
    for host, part in enumerate((found[:3], [], found[3:])):
        with ResultWriter(host_file(tmp_path, host)) as writer:
            assert not host_file(tmp_path, host).exists(), "a file under its name is whole"
            for result in part:
                writer.write([result])
        assert load_results(host_file(tmp_path, host)) == part and writer.count == len(part)
    merged = merge_results(tmp_path, num_hosts=3)
    assert [merged.result(row) for row in range(merged.size)] == found
    assert load_results(tmp_path / "results.json") == found
    with pytest.raises(FileNotFoundError, match="host 3 of 4"):
        merge_results(tmp_path, num_hosts=4)
    with ResultWriter(host_file(tmp_path, 1)) as writer:
        writer.write(found[:1])
    with pytest.raises(ValueError, match="results for image 1, which host 0"):
        merge_results(tmp_path, num_hosts=3)


def test_writer_that_is_interrupted_leaves_nothing(tmp_path):
    path = tmp_path / "new" / "results.json"
    with ResultWriter(path) as writer:
        writer.write([{"image_id": 1}])
    with pytest.raises(KeyboardInterrupt), ResultWriter(path) as writer:
        writer.write([{"image_id": 2}])
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == [], "neither a half file nor the one of an earlier evaluation"


class FullDisk:
    """A file that takes nothing, not even when it is closed."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_names_the_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "results.json"
    for results in ([{"image_id": 1}], []):  # while writing, and while closing
        with pytest.raises(OSError, match=f"No space left on device: '{path}'"), ResultWriter(path) as writer:
            writer._file.close()
            writer._file = FullDisk()
            writer.write(results)
        assert list(tmp_path.iterdir()) == []


def test_damaged_files(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('[{"image_id": 1},')
    with pytest.raises(ValueError, match=r"results.json is cut off: Expecting value at byte 17 of 17.*at result 1"):
        load_results(path)
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match="holds a JSON dict; the top level of a results file is a list"):
        load_results(path)
