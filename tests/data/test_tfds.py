"""TFDS `lvis`, written by TFDS's own writer from drawn images: the same records and batches as from the JSON."""

import json
import os

import numpy as np
import pytest

from eql_jax.data.annotations import load_annotations
from eql_jax.data.categories import class_statistics, packaged_categories
from eql_jax.data.images import ImageError
from eql_jax.data.polygons import RunLengths, decode_run_lengths
from eql_jax.data.prepare import prepare
from eql_jax.data.records import ImageIndex
from eql_jax.data.sources import open_annotations
from eql_jax.data.tfds_lvis import load_tfds
from eql_jax.data.validation import AnnotationError
from tests.data.conftest import WrittenDataset, make_content

tfds = pytest.importorskip("tensorflow_datasets")


def lvis_content():
    """Rectangles with whole-numbered corners, which masks and polygons say alike, of all 1203 classes of LVIS v1."""
    content = make_content([(80, 60), (60, 80), (31, 47)] * 4, objects_per_image=3)
    rng = np.random.default_rng(4)
    for annotation in content["annotations"]:
        annotation["category_id"] = int(rng.integers(1, 1204))
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 105]
    content["images"][2].update(neg_category_ids=[3, 1203], not_exhaustive_category_ids=[7])
    content["categories"] = [category._asdict() for category in packaged_categories("lvis_v1")]
    return content


def polygon_mask(size, polygons):
    from pycocotools import mask as mask_api

    width, height = size
    return mask_api.decode(mask_api.merge(mask_api.frPyObjects(polygons, height, width)))


def write_tfds(content, images_dir, data_dir):
    """Writes a data set with the features of lvis 1.4.0."""
    classes = tfds.features.ClassLabel(names_file=tfds.core.tfds_path("datasets/lvis/classes.txt"))
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/id": np.int64,
            "neg_category_ids": tfds.features.Sequence(classes),
            "not_exhaustive_category_ids": tfds.features.Sequence(classes),
            "objects": tfds.features.Sequence(
                {
                    "id": np.int64,
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "label": classes,
                    "segmentation": tfds.features.Image(shape=(None, None, 1)),
                }
            ),
        }
    )

    def example(image):
        width, height = image["width"], image["height"]
        objects = []
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                box = tfds.features.BBox(ymin=y / height, xmin=x / width, ymax=(y + h) / height, xmax=(x + w) / width)
                mask = polygon_mask((width, height), annotation["segmentation"])[..., None] * np.uint8(255)
                of_one = {"id": annotation["id"], "area": annotation["area"], "bbox": box}
                objects.append({**of_one, "label": annotation["category_id"] - 1, "segmentation": mask})
        return {
            "image": str(images_dir / "train2017" / f"{image['id']:012d}.jpg"),
            "image/id": image["id"],
            "neg_category_ids": [i - 1 for i in image["neg_category_ids"]],
            "not_exhaustive_category_ids": [i - 1 for i in image["not_exhaustive_category_ids"]],
            "objects": objects,
        }

    examples = [(image["id"], example(image)) for image in content["images"]]
    tfds.dataset_builders.store_as_tfds_dataset(
        "lvis", "1.4.0", features, {"train": examples}, data_dir=data_dir, disable_shuffling=True
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The three forms of one data set: (JSON and images, prepared folder, TFDS folder)."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("tfds")
    content = lvis_content()
    (folder / "images" / "train2017").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for image in content["images"]:
        pixels = rng.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "train2017" / f"{image['id']:012d}.jpg")
    paths = WrittenDataset(folder / "lvis.json", folder / "images")
    paths.json.write_text(json.dumps(content))
    prepare(paths.json, paths.images, folder / "prepared", images_per_shard=5, progress=False)
    write_tfds(content, paths.images, folder / "tfds")
    return paths, folder / "prepared", folder / "tfds"


def test_records(written):
    paths, _, data_dir = written
    loaded = load_annotations(paths.json, paths.images)
    stored = load_tfds("tfds:lvis/train", data_dir)
    assert stored.categories == loaded.categories
    assert stored.class_ids.tolist() == list(range(1, 1204))
    assert stored.index.ids.tolist() == loaded.index.ids.tolist()
    for mine, theirs in zip(stored.index, ImageIndex.of(loaded.images), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(stored.images, loaded.images, strict=True):
        assert (mine.id, mine.width, mine.height) == (theirs.id, theirs.width, theirs.height)
        assert mine.path.name == theirs.path.name
        assert mine.encoded == theirs.path.read_bytes()
        for key in ("neg_classes", "not_exhaustive_classes"):
            np.testing.assert_array_equal(getattr(mine, key), getattr(theirs, key))
        for key in ("ids", "boxes", "classes", "ignore", "areas"):
            ours, other = getattr(mine.objects, key), getattr(theirs.objects, key)
            assert ours.dtype == other.dtype
            np.testing.assert_array_equal(ours, other)
        for mask, polygons in zip(mine.objects.segmentations, theirs.objects.segmentations, strict=True):
            assert isinstance(mask, RunLengths)
            expected = polygon_mask((theirs.width, theirs.height), [polygon.ravel().tolist() for polygon in polygons])
            np.testing.assert_array_equal(decode_run_lengths(mask), expected)
    statistics = class_statistics(stored, "lvis_v1")
    assert statistics.num_images == 99388
    assert statistics.image_counts.tolist() == [category.image_count for category in loaded.categories]
    assert stored.images[2].neg_classes.tolist() == [2, 1202]


def test_three_sources_give_the_same_batches(written, config):
    from eql_jax.data.eval_batches import make_eval_batches
    from eql_jax.data.pipeline import make_train_iterator

    paths, prepared, data_dir = written
    config.data.flip = True
    opened = [
        open_annotations(str(paths.json), str(paths.images)),
        open_annotations(str(prepared)),
        open_annotations("tfds:lvis/train", str(data_dir)),
    ]
    iterators = [make_train_iterator(annotations, config) for annotations in opened]
    seen = set()
    for _ in range(6):
        first, *others = [next(iterator) for iterator in iterators]
        first = {key: value.copy() for key, value in first.items()}
        seen.update(first["image_id"].tolist())
        for batch in others:
            assert batch.keys() == first.keys()
            for key, value in first.items():
                np.testing.assert_array_equal(batch[key], value, err_msg=key)
    for iterator in iterators:
        iterator.close()
    assert len(seen) == 11
    evaluated = [{k: v.copy() for k, v in batch.items()} for batch in make_eval_batches(opened[0], config)]
    for annotations in opened[1:]:
        for batch, expected in zip(make_eval_batches(annotations, config), evaluated, strict=True):
            for key, value in expected.items():
                np.testing.assert_array_equal(batch[key], value, err_msg=key)


def test_dataset_for_evaluation(written):
    """The contents of the JSON come back, but for the form of the masks and what TFDS does not store."""
    from eql_jax.evaluation.ground_truth import prepare_ground_truth

    paths, prepared, data_dir = written
    original = json.loads(paths.json.read_text())
    rebuilt = open_annotations("tfds:lvis/train", data_dir).dataset()
    key = "segmentation"
    assert len(rebuilt["annotations"]) == len(original["annotations"])
    sizes = {image["id"]: (image["width"], image["height"]) for image in original["images"]}
    for mine, theirs in zip(rebuilt["annotations"], original["annotations"], strict=True):
        assert {k: mine[k] for k in theirs if k != key} == {k: theirs[k] for k in theirs if k != key}
        from pycocotools import mask as mask_api

        packed = {**mine[key], "counts": mine[key]["counts"].encode()}
        np.testing.assert_array_equal(mask_api.decode(packed), polygon_mask(sizes[mine["image_id"]], theirs[key]))
    for mine, theirs in zip(rebuilt["images"], original["images"], strict=True):
        shared = mine.keys() & theirs.keys()
        assert shared >= {"id", "width", "height", "neg_category_ids", "not_exhaustive_category_ids"}
        assert {k: mine[k] for k in shared} == {k: theirs[k] for k in shared}
    assert rebuilt["categories"] == original["categories"]
    prepare_ground_truth(rebuilt, source="tfds")
    copied = open_annotations(prepared).dataset()
    assert [a["id"] for a in copied["annotations"]] == [a["id"] for a in original["annotations"]]


def test_the_mask_gap():
    """What the module's head says of TFDS's own masks, on a circle of 4 pixels radius off the pixel grid."""
    from tensorflow_datasets.datasets.lvis import lvis_dataset_builder

    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    found = []
    for shift in (0.2, 0.5, 0.8):
        circle = np.round(np.stack([20 + shift + 4 * np.cos(angles), 15 + shift + 4 * np.sin(angles)], 1), 2)
        polygons = [circle.ravel().tolist()]
        stored = lvis_dataset_builder._build_segmentation_mask({"width": 40, "height": 30}, polygons)[..., 0] > 0
        exact = polygon_mask((40, 30), polygons) > 0
        found.append((stored & exact).sum() / (stored | exact).sum())
    assert 0.7 < np.mean(found) < 0.9


def test_index_is_kept_and_made_again(written, monkeypatch):
    from eql_jax.data import tfds_lvis

    _, _, data_dir = written
    expected = load_tfds("tfds:lvis/train", data_dir)
    stored = data_dir / "lvis" / "1.4.0" / "eql_jax-train.npz"
    assert stored.exists()
    with monkeypatch.context() as patch:
        patch.setattr(tfds_lvis, "_make_index", lambda paths: pytest.fail("it was kept"))
        load_tfds("tfds:lvis/train", data_dir)
    stored.write_bytes(b"damaged")
    again = load_tfds("tfds:lvis/train", data_dir)
    np.testing.assert_array_equal(again.index.ids, expected.index.ids)
    assert stored.read_bytes() != b"damaged"

    def refuse(path):
        raise PermissionError("no")

    stored.unlink()
    monkeypatch.setattr(tfds_lvis, "write_whole", refuse)
    assert len(load_tfds("tfds:lvis/train", data_dir).images) == 12
    assert not stored.exists()


def test_an_image_that_is_stored_twice(written, monkeypatch):
    from eql_jax.data import tfds_lvis

    _, _, data_dir = written
    read = tfds_lvis._read_index

    def twice(*arguments):
        index, places = read(*arguments)
        rows = np.array([0, 1, 2, 1, 3])
        return index.select(rows), tfds_lvis.RecordPlaces(*(values[rows] for values in places))

    monkeypatch.setattr(tfds_lvis, "_read_index", twice)
    annotations = open_annotations("tfds:lvis/train", data_dir)
    assert annotations.index.ids.tolist() == [image.id for image in annotations.images] == [101, 102, 103, 104]
    assert annotations.report.counts == {"duplicate image id": 1}
    with pytest.raises(AnnotationError, match="duplicate image id.* id 102: its record at byte"):
        open_annotations("tfds:lvis/train", data_dir, strict=True)


def test_damage_and_mistakes(written, tmp_path):
    _, _, data_dir = written
    annotations = load_tfds("tfds:lvis/train", data_dir)
    shard = next((data_dir / "lvis" / "1.4.0").glob("*.tfrecord*"))
    pristine = shard.read_bytes()
    place = int(annotations.images._places.offset[3]) + 200
    shard.write_bytes(pristine[:place] + b"????" + pristine[place + 4 :])
    with pytest.raises(ImageError, match="checksum") as error:
        annotations.images[3]
    assert os.fspath(error.value.file) == str(shard)
    assert annotations.images[4].id == 105
    (data_dir / "lvis" / "1.4.0" / "eql_jax-train.npz").unlink(missing_ok=True)
    with pytest.raises(AnnotationError, match="record 3 cannot be read"):
        load_tfds("tfds:lvis/train", data_dir)
    shard.write_bytes(pristine)
    for where, kind, match in [
        ("tfds:coco/train", AnnotationError, "expected 'tfds:lvis/SPLIT'"),
        ("tfds:lvis", AnnotationError, "expected 'tfds:lvis/SPLIT'"),
        ("tfds:lvis:9.9.9/train", AnnotationError, "9.9.9"),
        ("tfds:lvis/validation", FileNotFoundError, "only the splits"),
    ]:
        with pytest.raises(kind, match=match):
            load_tfds(where, data_dir)
    with pytest.raises(FileNotFoundError, match="there is nothing"):
        load_tfds("tfds:lvis/train", tmp_path)
    shard.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="lacks"):
        load_tfds("tfds:lvis/train", data_dir)
    (tmp_path / "away").rename(shard)


def test_without_masks(written):
    """Boxes, classes and areas are the same; no mask is decoded, and annotations made of them have none."""
    _, _, data_dir = written
    stored, bare = load_tfds("tfds:lvis/train", data_dir), load_tfds("tfds:lvis/train", data_dir, masks=False)
    for mine, theirs in zip(bare.images, stored.images, strict=True):
        for ours, other in zip(mine.objects[:-1], theirs.objects[:-1], strict=True):
            np.testing.assert_array_equal(ours, other)
        assert mine.objects.segmentations is None or not mine.objects.size
    assert all("segmentation" not in annotation for annotation in bare.dataset()["annotations"])
