"""Data sets without masks: read, prepared and made into batches, for models that have none."""

import copy
import json

import numpy as np
import pytest

from eql_jax.data import object_columns, prepare
from eql_jax.data.annotations import load_annotations
from eql_jax.data.browse import draw_row
from eql_jax.data.categories import class_statistics
from eql_jax.data.object_columns import ObjectColumns
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.placement import place_objects
from eql_jax.data.prepared import load_prepared
from eql_jax.data.sources import open_annotations
from eql_jax.data.to_lvis import to_lvis
from eql_jax.data.transforms import Size
from eql_jax.data.validation import AnnotationError
from eql_jax.data.views import View
from eql_jax.visualize.ground_truth import record_objects
from tests.data.conftest import make_content
from tests.data.test_object_columns import spoiled_content


def boxes_only(content):
    content = copy.deepcopy(content)
    for annotation in content["annotations"]:
        annotation.pop("segmentation", None)
    return content


@pytest.fixture
def boxes_dataset(write_dataset):
    """Six images of 80 x 60 with two objects each, and an annotation file without masks."""
    content = make_content([(80, 60)] * 6)
    paths = write_dataset(content)
    paths.json.write_text(json.dumps(boxes_only(content)))
    return paths, content


def assert_same_boxes(images, expected):
    assert len(images) == len(expected)
    for a, b in zip(images, expected, strict=True):
        assert (a.id, a.width, a.height) == (b.id, b.width, b.height)
        assert a.objects.segmentations is None
        for mine, theirs in zip(a.objects[:-1], b.objects[:-1], strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


def test_boxes_of_a_file_with_and_without_masks(write_dataset):
    content = make_content([(80, 60)] * 6)
    paths = write_dataset(content)
    full = load_annotations(paths.json, paths.images)
    ignored = load_annotations(paths.json, paths.images, masks=False)
    paths.json.write_text(json.dumps(boxes_only(content)))
    bare = load_annotations(paths.json, paths.images, masks=False)
    for other in (ignored, bare):
        assert other.report.total == 0
        assert_same_boxes(other.images, full.images)
        assert other.index.classes.tolist() == full.index.classes.tolist()
    assert bare.images[0].objects.size == 2
    assert [thing.segmentation for thing in bare.images[0].objects.records()] == [None, None]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [1, 8192])
def test_faults_of_boxes_packed_and_one_by_one(write_dataset, monkeypatch, seed, chunk):
    """Faulty boxes, ids and classes are found by either path; a faulty mask is none, whatever stands there."""
    monkeypatch.setattr(object_columns, "_CHUNK", chunk)
    paths = write_dataset(make_content([(80, 60)] * 12))
    paths.json.write_text(json.dumps(spoiled_content(seed)))
    packed = load_annotations(paths.json, paths.images, masks=False)

    def refuse(self, record):
        raise ValueError

    monkeypatch.setattr(ObjectColumns, "_append_regular", refuse)
    single = load_annotations(paths.json, paths.images, masks=False)
    assert packed.report.total and packed.report.examples == single.report.examples
    assert not {"bad polygon", "empty segmentation", "bad mask"} & packed.report.counts.keys()
    assert_same_boxes(packed.images, single.images)


def test_area_is_that_of_the_box_where_none_is_stated(boxes_dataset):
    paths, content = boxes_dataset
    content = boxes_only(content)
    content["annotations"][0].update(bbox=[-10, 5, 30, 20])  # clipped to 20 x 20
    content["annotations"][0].pop("area")
    content["annotations"][1].update(area=7.5)
    paths.json.write_text(json.dumps(content))
    areas = load_annotations(paths.json, paths.images, masks=False).images[0].objects.areas
    assert areas.tolist() == [400, 7.5]


def test_masks_asked_of_boxes(boxes_dataset):
    paths, _ = boxes_dataset
    with pytest.raises(AnnotationError, match="has boxes only.*config.model.with_mask=False.*--no-masks"):
        load_annotations(paths.json, paths.images)
    with pytest.raises(AnnotationError, match="boxes only"):
        prepare.prepare(paths.json, paths.images, paths.json.parent / "out", progress=False)


def test_images_without_objects(boxes_dataset):
    paths, content = boxes_dataset
    content = content | {"annotations": []}
    paths.json.write_text(json.dumps(content))
    for masks in (True, False):  # nothing says that it has no masks
        annotations = load_annotations(paths.json, paths.images, masks=masks)
        assert [image.objects.size for image in annotations.images] == [0] * 6


def test_prepared_without_masks(boxes_dataset, tmp_path):
    paths, content = boxes_dataset
    expected = load_annotations(paths.json, paths.images, masks=False)
    made = prepare.prepare(paths.json, paths.images, tmp_path / "bare", masks=False, progress=False, workers=1)
    assert_same_boxes(made.images, expected.images)
    assert_same_boxes(open_annotations(tmp_path / "bare", masks=False).images, expected.images)
    assert json.loads((tmp_path / "bare" / "index.json").read_bytes())["source"]["masks"] is False
    with pytest.raises(AnnotationError, match="prepared with --no-masks.*with_mask=False"):
        load_prepared(tmp_path / "bare")
    assert prepare.main(["--verify", str(tmp_path / "bare")]) == 0
    # The same folder is not taken for one with masks, nor the other way round.
    paths.json.write_text(json.dumps(content))
    with pytest.raises(prepare.PrepareError, match="annotations was"):
        prepare.prepare(paths.json, paths.images, tmp_path / "bare", progress=False)
    prepare.prepare(paths.json, paths.images, tmp_path / "full", progress=False, workers=1)
    with pytest.raises(prepare.PrepareError, match="masks was True, now False"):
        prepare.prepare(paths.json, paths.images, tmp_path / "full", masks=False, progress=False)
    # One with masks serves models without.
    assert_same_boxes(load_prepared(tmp_path / "full", masks=False).images, expected.images)
    assert load_prepared(tmp_path / "full").images[0].objects.segmentations is not None


def test_the_command_without_masks(boxes_dataset, tmp_path, capsys):
    paths, _ = boxes_dataset
    words = ["--annotations", str(paths.json), "--images", str(paths.images), "--out", str(tmp_path / "out")]
    assert prepare.main(words) == 2
    assert "--no-masks" in capsys.readouterr().err
    assert prepare.main([*words, "--no-masks"]) == 0
    assert "6 images, 12 objects" in capsys.readouterr().out


def test_batches_without_masks(boxes_dataset, config):
    paths, content = boxes_dataset
    config.model.with_mask = False
    annotations = load_annotations(paths.json, paths.images, masks=False)
    batch = next(make_train_iterator(annotations, config))
    assert batch["gt_masks"].shape == (4, 5, 0, 0) and batch["gt_masks"].dtype == np.uint8
    paths.json.write_text(json.dumps(content))
    config.model.with_mask = True
    full = next(make_train_iterator(load_annotations(paths.json, paths.images), config))
    assert full["gt_masks"].shape == (4, 5, 16, 16)
    for key in full.keys() - {"gt_masks"}:
        np.testing.assert_array_equal(batch[key], full[key])
    statistics = class_statistics(annotations, "train_annotations")
    assert draw_row(batch, 0, statistics, annotations.class_ids).size[0] > 0


def test_cut_boxes_without_masks(boxes_dataset, config):
    """Large-scale jitter: what remains of a box on the canvas is the box; with masks it may be smaller."""
    paths, _ = boxes_dataset
    objects = load_annotations(paths.json, paths.images, masks=False).images[0].objects
    objects = objects._replace(boxes=np.array([[0, 0, 40, 40], [50, 10, 80, 60]], np.float32))
    view = View(Size(60, 80), Size(60, 80), False, 10, 20, Size(32, 32))  # the canvas shows x 20..52, y 10..42
    placed = place_objects(objects, view)
    np.testing.assert_array_equal(placed.boxes, [[0, 0, 20, 30], [30, 0, 32, 32]])
    assert placed.altered.tolist() == [True, True]
    config.model.with_mask = False
    config.data.scale_jitter = (0.5, 2.0)
    config.data.crop_size = (64, 64)
    batch = next(make_train_iterator(load_annotations(paths.json, paths.images, masks=False), config))
    assert batch["gt_boxes"].shape == (4, 5, 4) and (batch["gt_classes"] >= 0).any()


def test_records_without_masks_as_annotations(boxes_dataset):
    paths, _ = boxes_dataset
    annotations = load_annotations(paths.json, paths.images, masks=False)
    content = to_lvis(annotations.categories, annotations.images)
    assert len(content["annotations"]) == 12 and "segmentation" not in content["annotations"][0]
    assert record_objects(annotations.images[0], annotations.class_ids)[0]["segmentation"] is None
