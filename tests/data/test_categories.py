"""Training frequencies of the classes, from the package, from a file or counted."""

import json

import numpy as np
import pytest

from eql_jax.data.annotations import load_annotations
from eql_jax.data.categories import PACKAGED_SOURCES, _packaged, class_statistics
from eql_jax.data.records import Annotations, Category
from eql_jax.data.validation import AnnotationError, FaultReport
from tests.data.conftest import make_content


def annotations_of(categories):
    """Annotations with categories and nothing else."""
    ids = np.array([category.id for category in categories], np.int64)
    return Annotations(list(categories), ids, [], FaultReport(), "some/file.json")


@pytest.mark.parametrize(
    ("source", "classes", "images", "letters", "instances"),
    [
        ("lvis_v1", 1203, 99388, {"r": 337, "c": 461, "f": 405}, 1270141),
        ("lvis_v0.5", 1230, 56740, {"r": 454, "c": 461, "f": 315}, 693958),
    ],
)
def test_packaged_counts(source, classes, images, letters, instances):
    """The totals that the files' publishers state."""
    counts = _packaged(source)
    statistics = class_statistics(annotations_of(counts.categories.values()), source)
    assert len(statistics.names) == classes
    assert statistics.num_images == images
    assert {letter: statistics.frequencies.count(letter) for letter in "rcf"} == letters
    assert statistics.instance_counts.sum() == instances
    assert statistics.image_counts.shape == (classes,)
    assert statistics.image_counts.dtype == np.int64
    assert statistics.category_ids.tolist() == list(range(1, classes + 1))


def test_hand_picked_classes():
    statistics = class_statistics(annotations_of(_packaged("lvis_v1").categories.values()), "lvis_v1")
    assert statistics.names[2] == "airplane"
    assert (statistics.image_counts[2], statistics.instance_counts[2], statistics.frequencies[2]) == (1911, 3720, "f")
    assert (statistics.image_counts[12], statistics.frequencies[12]) == (4, "r")  # applesauce


def test_a_subset_of_the_categories_and_renamed_ones():
    """The synset decides; the file's own counts do not."""
    categories = [
        Category(3, "plane", "airplane.n.01", "r", 1, 1),
        Category(13, "applesauce", "", "f", 0, 0),
    ]
    statistics = class_statistics(annotations_of(categories), "lvis_v1")
    assert statistics.names == ("plane", "applesauce")
    assert statistics.image_counts.tolist() == [1911, 4]
    assert statistics.frequencies == ("f", "r")


def test_wrong_version_is_refused():
    v1 = _packaged("lvis_v1").categories.values()
    with pytest.raises(AnnotationError) as error:
        class_statistics(annotations_of(v1), "lvis_v0.5")
    message = str(error.value)
    assert "'aerosol_can' here, 'acorn' there" in message
    assert "more" in message
    for source in PACKAGED_SOURCES:
        assert source in message
    with pytest.raises(AnnotationError, match="id 5000"):
        class_statistics(annotations_of([Category(5000, "a", "", "r", 1, 1)]), "lvis_v1")


def test_counted_over_usable_objects(write_dataset):
    content = make_content([(80, 60)] * 3, objects_per_image=2)
    for annotation, category_id in zip(content["annotations"], [10, 10, 10, 20, 20, 20], strict=True):
        annotation["category_id"] = category_id
    content["annotations"][4]["iscrowd"] = content["annotations"][5]["iscrowd"] = 1
    for category in content["categories"]:
        category.update(image_count=1000, instance_count=1000)
    paths = write_dataset(content)
    statistics = class_statistics(load_annotations(paths.json, paths.images), "train_annotations")
    assert statistics.image_counts.tolist() == [2, 1, 0]
    assert statistics.instance_counts.tolist() == [3, 1, 0]
    assert statistics.num_images == 2  # the third has crowds only
    assert statistics.frequencies == ("c", "f", "r")  # the file's


def test_from_another_file(write_dataset, tmp_path):
    """The training JSON's categories serve a validation set; so does a table in the package's form."""
    content = make_content([(80, 60)] * 2)
    paths = write_dataset(content)
    annotations = load_annotations(paths.json, paths.images)
    for i, category in enumerate(content["categories"]):
        category.update(image_count=7 * (i + 1), instance_count=9)
    training = tmp_path / "train.json"
    training.write_text(json.dumps(content))
    statistics = class_statistics(annotations, str(training))
    assert statistics.image_counts.tolist() == [7, 14, 21]
    assert statistics.num_images == 2

    table = tmp_path / "table.json"
    columns = ["id", "name", "synset", "frequency", "image_count", "instance_count"]
    rows = [[10 * i, f"shape{i}", f"shape{i}.n.01", "r", i, i] for i in (1, 2, 3)]
    table.write_text(json.dumps({"columns": columns, "categories": rows, "train_images_denominator": 50}))
    statistics = class_statistics(annotations, str(table))
    assert statistics.image_counts.tolist() == [1, 2, 3]
    assert statistics.num_images == 50

    table.write_text(json.dumps({"columns": columns, "categories": [[1, 2]], "train_images_denominator": 50}))
    with pytest.raises(AnnotationError, match=r"table.json has no class counts"):
        class_statistics(annotations, str(table))
    content["categories"][0]["image_count"] = None
    training.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"train.json has no class counts"):
        class_statistics(annotations, str(training))
    del content["categories"][0]["image_count"]
    training.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="image_count"):
        class_statistics(annotations, str(training))
    with pytest.raises(FileNotFoundError, match="lvis_v2"):
        class_statistics(annotations, "lvis_v2")
