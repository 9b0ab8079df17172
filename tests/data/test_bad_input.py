"""Everything that may be wrong with annotations and images: named, counted and survived, or fatal when strict."""

import json

import numpy as np
import pytest
from PIL import Image

from eql_jax.data.annotations import load_annotations
from eql_jax.data.eval_batches import make_eval_batches, make_prediction_batches
from eql_jax.data.images import ImageError, read_image
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.transforms import Size
from eql_jax.data.validation import FAULT_KINDS, AnnotationError, FaultReport
from tests.data.conftest import make_content


def annotation_change(**fields):
    """Changes fields of the first annotation (id 1, of image 101, 80 x 60)."""
    return lambda content: content["annotations"][0].update(fields)


def duplicate(key):
    """Lists the first record of a key twice."""
    return lambda content: content[key].append(dict(content[key][0]))


# (kind of fault, change that causes it, id it is reported under, objects left of 4, images left of 2)
FAULTS = [
    ("unknown category", annotation_change(category_id=99), 1, 3, 2),
    ("unknown category", annotation_change(category_id=[10]), 1, 3, 2),
    ("unknown image", annotation_change(image_id=999), 1, 3, 2),
    ("bad annotation record", annotation_change(id="one"), "one", 3, 2),
    ("degenerate box", annotation_change(bbox=[5, 5, 0, 10]), 1, 3, 2),
    ("degenerate box", annotation_change(bbox=[5, 5, 10, -3]), 1, 3, 2),
    ("degenerate box", annotation_change(bbox=[5, 5, 10]), 1, 3, 2),
    ("degenerate box", annotation_change(bbox=[5, 5, 10, float("nan")]), 1, 3, 2),
    ("degenerate box", annotation_change(bbox=None), 1, 3, 2),
    ("box outside", annotation_change(bbox=[80, 5, 10, 10]), 1, 3, 2),
    ("box outside", annotation_change(bbox=[5, -30, 10, 10]), 1, 3, 2),
    ("box partly outside", annotation_change(bbox=[70, 50, 30, 30]), 1, 4, 2),
    ("empty segmentation", annotation_change(segmentation=[]), 1, 3, 2),
    ("empty segmentation", annotation_change(segmentation=None), 1, 3, 2),
    ("bad polygon", annotation_change(segmentation=[[1, 1, 9, 9], [1, 1, 9, 1, 9, 9]]), 1, 4, 2),
    ("bad polygon", annotation_change(segmentation=[[1, 1, 9, 1, 9], [1, 1, 9, 1, 9, 9]]), 1, 4, 2),
    ("bad polygon", annotation_change(segmentation=[[1, 1, 9, 1, 9, float("inf")], [1, 1, 9, 1, 9, 9]]), 1, 4, 2),
    ("bad mask", annotation_change(segmentation={"size": [60, 80], "counts": [5, 5]}), 1, 3, 2),
    ("bad mask", annotation_change(segmentation={"size": [30, 40], "counts": [1200]}), 1, 3, 2),
    ("bad mask", annotation_change(segmentation={"size": [60, 80], "counts": "zz"}), 1, 3, 2),
    ("bad mask", annotation_change(segmentation={"counts": [4800]}), 1, 3, 2),
    ("duplicate annotation id", duplicate("annotations"), 1, 4, 2),
    ("duplicate image id", duplicate("images"), 101, 4, 2),
    ("duplicate category id", duplicate("categories"), 10, 4, 2),
    ("bad category", lambda c: c["categories"].append({"id": None, "name": "x"}), None, 4, 2),
    ("bad image record", lambda c: c["images"].append({"id": 7, "width": 0, "height": 5}), 7, 4, 2),
    ("bad image record", lambda c: c["images"].append({"id": 7, "width": 2**31, "height": 5}), 7, 4, 2),
    ("missing image", lambda c: c["images"].append({"id": 7, "width": 5, "height": 5}), 7, 4, 2),
]


@pytest.mark.parametrize(("kind", "change", "record_id", "objects", "images"), FAULTS)
def test_fault_of_a_record(write_dataset, kind, change, record_id, objects, images):
    content = make_content([(80, 60), (60, 80)])
    paths = write_dataset(content)
    change(content)
    paths.json.write_text(json.dumps(content))
    annotations = load_annotations(paths.json, paths.images)
    assert annotations.report.counts == {kind: 1}
    example = annotations.report.examples[kind][0]
    assert (example.file, example.record_id) == (str(paths.json), record_id)
    assert len(annotations.images) == images
    assert sum(image.objects.size for image in annotations.images) == objects
    assert str(record_id) in annotations.report.summary()
    assert kind in annotations.report.summary()
    with pytest.raises(AnnotationError) as error:
        load_annotations(paths.json, paths.images, strict=True)
    assert str(paths.json) in str(error.value)
    assert str(record_id) in str(error.value)


def test_polygon_of_two_points(write_dataset):
    """The polygon is named, and the object, which has no other, too."""
    content = make_content([(80, 60)])
    content["annotations"][0]["segmentation"] = [[1, 1, 9, 9]]
    paths = write_dataset(content)
    annotations = load_annotations(paths.json, paths.images)
    assert annotations.report.counts == {"bad polygon": 1, "empty segmentation": 1}
    assert [o.id for o in annotations.images[0].objects.records()] == [2]


@pytest.mark.parametrize("segmentation", [[1, 1, 9, 1, 9, 9], [[[1, 1], [9, 1], [9, 9]]], [["x", "y"]], "text"])
def test_segmentation_nested_wrongly(write_dataset, segmentation):
    """One list too few or too many: named, not a crash."""
    content = make_content([(80, 60)])
    paths = write_dataset(content)
    content["annotations"][0]["segmentation"] = segmentation
    paths.json.write_text(json.dumps(content))
    annotations = load_annotations(paths.json, paths.images)
    assert annotations.report.counts["empty segmentation"] == 1
    assert [o.id for o in annotations.images[0].objects.records()] == [2]


@pytest.mark.parametrize("image_id", [-1, 2**63])
def test_image_ids_that_no_batch_can_hold(write_dataset, image_id):
    """-1 marks padding rows; ids are int64."""
    paths = write_dataset(content := make_content([(80, 60)] * 2))
    for record in (content["images"][0], *content["annotations"][:2]):
        record["id" if "width" in record else "image_id"] = image_id
    paths.json.write_text(json.dumps(content))
    annotations = load_annotations(paths.json, paths.images)
    assert annotations.report.counts == {"bad image record": 1, "unknown image": 2}
    assert [image.id for image in annotations.images] == [102]


def test_negative_categories_that_are_no_list(write_dataset):
    content = make_content([(80, 60)])
    content["images"][0]["neg_category_ids"] = 77
    paths = write_dataset(content)
    annotations = load_annotations(paths.json, paths.images)
    assert annotations.report.counts == {"unknown category": 1}


def test_unknown_negative_category(write_dataset):
    content = make_content([(80, 60)])
    content["images"][0]["neg_category_ids"] = [10, 77]
    paths = write_dataset(content)
    annotations = load_annotations(paths.json, paths.images)
    assert annotations.images[0].neg_classes.tolist() == [0]
    assert annotations.report.examples["unknown category"][0].record_id == 101


def test_boxes_on_the_border_are_no_fault(write_dataset):
    """LVIS rounds to hundredths: half a pixel over the border is clipped silently."""
    content = make_content([(80, 60)], objects_per_image=1)
    content["annotations"][0]["bbox"] = [-0.3, 0, 80.5, 60.2]
    paths = write_dataset(content)
    annotations = load_annotations(paths.json, paths.images, strict=True)
    assert annotations.images[0].objects.boxes.tolist() == [[0, 0, 80, 60]]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_json_cut_off(write_dataset, share):
    paths = write_dataset(make_content([(80, 60)] * 3))
    text = paths.json.read_text()
    cut = text[: int(len(text) * share)]
    paths.json.write_text(cut)
    with pytest.raises(AnnotationError, match="cut off") as error:
        load_annotations(paths.json, paths.images)
    message = str(error.value)
    assert str(paths.json) in message
    assert f"of {len(cut)}" in message
    assert "ownload it again" in message


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"PK\x03\x04...", "zip"),
        (b"\x1f\x8b\x08...", "gzip"),
        (b"<html>404</html>", "web page"),
        (b"\xff\xd8\xff\xe0", "not UTF-8"),
        (b"images = 3" + b" " * 100, "not valid JSON"),
        (b"[]", "results file"),
        (b"3", "int"),
        (b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no images"),
        (b'{"images": [{"id": 1}], "annotations": [], "categories": []}', "no categories"),
        (b'{"images": {"id": 1}, "annotations": [], "categories": []}', "must be a list"),
        (b'{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no usable image"),
        (b'{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1}]}', "no usable category"),
    ],
)
def test_useless_file(tmp_path, content, match):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=match) as error:
        load_annotations(path, tmp_path)
    assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path, write_dataset):
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        load_annotations(tmp_path / "nothing.json", tmp_path)
    paths = write_dataset(make_content([(80, 60)]))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_annotations(paths.json, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotationError, match="right folder"):
        load_annotations(paths.json, tmp_path / "empty")


def truncate(path):
    """Cuts an image file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged_dataset(write_dataset):
    """Eight images of one bucket: 102 truncated, 104 of another size than stated, 106 no image, 107 gone."""
    paths = write_dataset(make_content([(80, 60)] * 8))
    folder = paths.images / "train2017"
    annotations = load_annotations(paths.json, paths.images)
    truncate(folder / "000000000102.jpg")
    Image.new("RGB", (40, 30)).save(folder / "000000000104.jpg")
    (folder / "000000000106.jpg").write_text("no image")
    (folder / "000000000107.jpg").unlink()
    return annotations


DAMAGE = {"unreadable image": 2, "size mismatch": 1, "missing image": 1}
GOOD_IDS = {101, 103, 105, 108}


def test_training_replaces_unusable_images(write_dataset, config):
    annotations = damaged_dataset(write_dataset)
    iterator = make_train_iterator(annotations, config)
    ids = np.stack([next(iterator)["image_id"] for _ in range(6)])
    iterator.close()
    assert set(ids.ravel().tolist()) == GOOD_IDS
    assert iterator.report.counts == DAMAGE
    truncated = {fault.record_id: fault for fault in iterator.report.examples["unreadable image"]}[102]
    assert truncated.file.endswith("000000000102.jpg")
    assert "truncated" in truncated.message
    assert iterator.report.examples["size mismatch"][0].message.startswith("the file is 40 x 30, the JSON says 80 x 60")
    # What replaces what does not depend on where the run began.
    resumed = make_train_iterator(annotations, config, start_step=3)
    np.testing.assert_array_equal(np.stack([next(resumed)["image_id"] for _ in range(3)]), ids[3:])
    resumed.close()


def test_strict_training_stops(write_dataset, config):
    annotations = damaged_dataset(write_dataset)
    config.data.strict = True
    iterator = make_train_iterator(annotations, config)
    with pytest.raises(AnnotationError, match=r"0000000001\d\d.jpg, id 10\d"):
        for _ in range(4):
            next(iterator)


def test_no_image_can_be_read(write_dataset, config):
    paths = write_dataset(make_content([(80, 60)] * 3))
    annotations = load_annotations(paths.json, paths.images)
    for image in annotations.images:
        truncate(image.path)
    with pytest.raises(AnnotationError, match="none of the 3 images"):
        next(make_train_iterator(annotations, config))


def test_evaluation_leaves_unusable_images_out(write_dataset, config):
    annotations = damaged_dataset(write_dataset)
    batches = make_eval_batches(annotations, config)
    for _ in range(2):  # again: nothing is counted twice
        ids = np.concatenate([batch["image_id"] for batch in batches])
        assert set(ids.tolist()) == GOOD_IDS | {-1}
        assert batches.report.counts == DAMAGE
        assert len(batches.skipped) == 4
    config.data.strict = True
    with pytest.raises(AnnotationError):
        list(make_eval_batches(annotations, config))


def test_prediction_reports_and_skips(write_dataset, config, tmp_path):
    annotations = damaged_dataset(write_dataset)
    batches = make_prediction_batches([str(image.path) for image in annotations.images], config, batch_size=4)
    found = [i for batch in batches for i in batch["image_id"].tolist() if i >= 0]
    assert sorted(batches.records[i].path.name for i in found) == [f"{i:012d}.jpg" for i in (101, 103, 104, 105, 108)]
    reasons = {skipped.path.name: skipped.reason for skipped in batches.skipped}
    assert set(reasons) == {f"{i:012d}.jpg" for i in (102, 106, 107)}
    assert "truncated" in reasons["000000000102.jpg"]
    assert "no such file" in reasons["000000000107.jpg"]
    with pytest.raises(ValueError, match="no images"):
        make_prediction_batches([], config, batch_size=4)
    (tmp_path / "x.jpg").write_text("")
    none = make_prediction_batches([tmp_path / "x.jpg"], config, batch_size=4)
    assert (len(none), list(none), len(none.skipped)) == (0, [], 1)


def test_read_image_reasons(tmp_path):
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    with pytest.raises(ImageError) as error:
        read_image(folder)
    assert error.value.kind == "unreadable image"
    with pytest.raises(ImageError, match="40 x 30"):
        Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
        read_image(tmp_path / "a.png", expected=Size(40, 30))


def test_image_without_objects(write_dataset, config):
    """Left out of training on request, kept for evaluation; with crowds alone there is nothing to learn either."""
    content = make_content([(80, 60)] * 4)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 102]
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["image_id"] == 103)
    paths = write_dataset(content)
    annotations = load_annotations(paths.json, paths.images, strict=True)
    assert len(annotations.images) == 4
    iterator = make_train_iterator(annotations, config)
    assert set(iterator.index.ids.tolist()) == {101, 104}
    assert iterator.report.notes == {"image without a usable object left out": 2}
    config.data.drop_empty_images = False
    iterator = make_train_iterator(annotations, config)
    batch = next(iterator)
    iterator.close()
    assert set(iterator.index.ids.tolist()) == {101, 102, 103, 104}
    empty = batch["image_id"].tolist().index(102)
    assert (batch["gt_classes"][empty] == -1).all()
    assert not batch["gt_boxes"][empty].any()
    assert not batch["gt_masks"][empty].any()
    ids = np.concatenate([b["image_id"] for b in make_eval_batches(annotations, config)])
    assert sorted(ids.tolist()) == [101, 102, 103, 104]


def test_nothing_to_train_on(write_dataset, config):
    content = make_content([(80, 60)], objects_per_image=0)
    paths = write_dataset(content)
    annotations = load_annotations(paths.json, paths.images)
    with pytest.raises(AnnotationError, match="none of 1 images has a usable object"):
        make_train_iterator(annotations, config)


def test_more_objects_than_padding(write_dataset, config):
    """The five largest of eight are kept, in the file's order, and three are counted."""
    content = make_content([(80, 60)], objects_per_image=8)
    paths = write_dataset(content)
    annotations = load_annotations(paths.json, paths.images)
    objects = annotations.images[0].objects
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    kept = np.sort(np.argsort(-sides.prod(axis=1), kind="stable")[:5])
    config.train.batch_size = 1
    iterator = make_train_iterator(annotations, config)
    batch = next(iterator)
    iterator.close()
    np.testing.assert_array_equal(batch["gt_classes"][0], objects.classes[kept])
    assert list(iterator.report.notes.values()) == [3]
    assert "max_objects" in iterator.report.summary()


def test_config_values_out_of_range(write_dataset, config):
    paths = write_dataset(make_content([(80, 60)]))
    annotations = load_annotations(paths.json, paths.images)
    for path, value, match in [
        ("data.sampler", "fancy", "repeat_factor"),
        ("data.buckets", (), "buckets"),
        ("data.buckets", ((64,),), "buckets"),
        ("data.shorter_side", (0,), "shorter_side"),
        ("train.batch_size", 0, "batch_size"),
    ]:
        changed = config.copy_and_resolve_references()
        with changed.unlocked(), changed.ignore_type():
            changed.update_from_flattened_dict({path: value})
        with pytest.raises(ValueError, match=match):
            make_train_iterator(annotations, changed)
    with pytest.raises(ValueError, match="multiple of the 3 hosts"):
        make_train_iterator(annotations, config, host=0, num_hosts=3)
    with pytest.raises(ValueError, match="host is 2"):
        make_eval_batches(annotations, config, host=2, num_hosts=2)


def test_report():
    report = FaultReport(max_examples=2)
    for i in range(4):
        report.add("missing image", file="a.json", record_id=i, message="gone")
    report.note("thing seen", 2)
    assert report.total == 4
    assert len(report.examples["missing image"]) == 2
    assert "... and 2 more" in report.summary()
    assert "2 x thing seen" in report.summary()
    with pytest.raises(KeyError):
        report.add("surprise", file="a", record_id=1, message="")
    assert all(len(text) > 10 for text in FAULT_KINDS.values())
