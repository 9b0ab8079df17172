"""Class maps: what they say, what they propose, and what their errors name."""

import json

import numpy as np
import pytest

from eql_jax.data.class_map import load_class_map, main, propose, read_categories, same_classes
from eql_jax.data.prepare import prepare
from eql_jax.data.records import Category
from eql_jax.data.validation import AnnotationError
from tests.data.conftest import make_content


def categories(*named, synsets=None):
    """Categories of (id, name)."""
    synsets = synsets or {}
    return [Category(i, name, synsets.get(i, ""), "f", 1, 1) for i, name in named]


SOURCE = categories((7, "Man"), (8, "Woman"), (9, "Car"), (12, "Tree"), (13, "9"))
TARGET = categories((1, "person"), (3, "car_(automobile)"), (5, "tree_house"), (6, "12"))


@pytest.fixture
def read(tmp_path):
    def read(content, source=SOURCE, target=TARGET):
        path = tmp_path / "map.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return load_class_map(path, source, target)

    return read


def test_names_ids_and_null(read):
    """Two to one; key '9' is a name before it is an id, '8' an id; the value 12 is an id, '12' a name."""
    found = read({"Man": "person", "8": 1, "Car": "3", "Tree": None, "9": "12"})
    np.testing.assert_array_equal(found.targets, [0, 0, 1, -1, 3])
    assert found.targets.dtype == np.int32
    np.testing.assert_array_equal(found.annotated, [True, True, False, True])


def test_classes_of_several_sources_are_complete_only_together(read):
    found = read({"Man": "person", "Woman": "person", "Car": "car_(automobile)"})
    np.testing.assert_array_equal(found.complete(np.array([0])), [False] * 4)
    np.testing.assert_array_equal(found.complete(np.array([0, 2, 3])), [False, True, False, False])
    np.testing.assert_array_equal(found.complete(np.array([1, 0, 0])), [True, False, False, False])
    np.testing.assert_array_equal(found.complete(np.zeros(0, int)), [False] * 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"Man": "person", "Man": "person"}', "map.json has the key 'Man' twice"),
        ({"Man": "person", "7": "person"}, "key '7' is the same category as key 'Man', id 7 'Man'"),
        ({"Mann": "person"}, "key 'Mann' names 'Mann', which the set that is mapped does not have: did you mean 'Man'"),
        ({"Car": "car_automobile"}, "key 'Car' names 'car_automobile', .* main set .* did you mean 'car_.automobile.'"),
        ({"Car": 2}, "map.json: 1 of 1 entries .* key 'Car' names id 2, which the main set does not have"),
        ({"999": "person"}, "key '999' names id 999, which the set that is mapped does not have"),
        ({"Car": None, "Man": None}, "maps no category"),
        ({"Car": ["person"]}, r"key 'Car' has the value .*person.*, expected a name, an id or null"),
        ({"Car": {"a": "b"}}, "key 'Car' has the value"),
        ({"Car": True}, "key 'Car' has the value 'True'"),
        ({"Car": 1.5}, "key 'Car' has the value '1.5'"),
        ([["Car", "person"]], "expected an object"),
        ("{}", "expected an object"),
        ('"Car"', "expected an object"),
        ("{", "map.json is no JSON"),
    ],
)
def test_faults(read, content, message):
    with pytest.raises(AnnotationError, match=message):
        read(content)


def test_a_name_of_two_categories_asks_for_the_id(read):
    target = categories((1, "bat"), (2, "bat"))
    with pytest.raises(AnnotationError, match=r"2 categories of the main set have \(ids 1, 2\): give the id"):
        read({"Car": "bat"}, target=target)
    np.testing.assert_array_equal(read({"Car": 2}, target=target).targets, [-1, -1, 1, -1, -1])


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_class_map(tmp_path / "none.json", SOURCE, TARGET)


def test_same_classes():
    target = categories((1, "a"), (5, "b"), (9, "c"))
    found = same_classes(categories((5, "b"), (9, "c")), target, origin="x.json")
    np.testing.assert_array_equal(found.targets, [1, 2])
    np.testing.assert_array_equal(found.annotated, [False, True, True])
    with pytest.raises(
        AnnotationError,
        match="x.json: 2 of 3 categories .*: id 5 is 'B' here, 'b' there; id 6 'd' is not there. Give a class map",
    ):
        same_classes(categories((1, "a"), (5, "B"), (6, "d")), target, origin="x.json")


def test_proposals():
    source = categories(
        (1, "Traffic_Light"), (2, "Car"), (3, "Mouse"), (4, "Auto"), (5, "Cow"), (6, "Bat"), synsets={5: "cow.n.01"}
    )
    target = categories(
        (10, "traffic light"),
        (11, "car_(automobile)"),
        (12, "mouse_(animal)"),
        (13, "mouse_(computer)"),
        (14, "cattle"),
        (15, "bat"),
        (16, "bat"),
        synsets={14: "cow.n.01"},
    )
    found = propose(source, target, {11: ["automobile", "auto"], 14: ["bat"]})
    assert found == {
        "Traffic_Light": "traffic light",
        "Car": "car_(automobile)",
        "Mouse": None,  # two qualified names
        "Auto": "car_(automobile)",
        "Cow": "cattle",
        "Bat": None,  # two names, before the synonym
    }


def test_command(write_dataset, tmp_path, capsys):
    content = make_content([(40, 30)], num_categories=3)
    content["categories"][1]["synonyms"] = ["box"]
    paths = write_dataset(content)
    source = tmp_path / "oid.json"
    names = [{"id": 4, "name": "Shape1"}, {"id": 2, "name": "Box"}, {"id": 9, "name": "Ball"}]
    source.write_text(json.dumps({"images": [{"id": 1}], "annotations": [], "categories": names}))
    out = tmp_path / "map.json"
    words = [f"--source={source}", f"--target={paths.json}", f"--out={out}"]
    main(words)
    assert json.loads(out.read_text()) == {"Box": "shape2", "Shape1": "shape1", "Ball": None}
    printed = capsys.readouterr().out
    assert "Shape1 -> shape1" in printed and "2 of 3 categories, to 2 of 3" in printed
    found = load_class_map(out, read_categories(source)[0], read_categories(paths.json)[0])
    np.testing.assert_array_equal(found.targets, [1, 0, -1])

    with pytest.raises(SystemExit):
        main(words)
    assert "is there, maybe with your edits" in capsys.readouterr().err
    prepare(paths.json, paths.images, tmp_path / "records", progress=False)
    assert [c.name for c in read_categories(tmp_path / "records")[0]] == ["shape1", "shape2", "shape3"]
    assert len(read_categories("lvis_v0.5")[0]) == 1230
    source.write_text(json.dumps({"categories": [{"id": "x", "name": "a"}]}))
    with pytest.raises(AnnotationError, match="oid.json: 1 of 1 categories have no integer id"):
        read_categories(source)
