"""Weights by file and class, and the lists of classes they are made of."""

import json

import numpy as np
import pytest

from eql_jax.ensemble.errors import EnsembleError
from eql_jax.ensemble.known import parse_classes, read_class_factors, read_class_list, read_known
from eql_jax.ensemble.weights import class_weights
from tests.ensemble.cases import annotations, write


@pytest.fixture
def known(tmp_path):
    content = annotations(2, classes=6)  # letters r c f r c f
    content["categories"][5]["name"] = "class_5"
    (path,) = write(tmp_path, annotations=content)
    return read_known(path)


def test_raise():
    table = class_weights([1, 2], experts={1: [7, 3]}, expert_weight=4, elsewhere=0.5)
    assert table.ids.tolist() == [3, 7]
    assert table.weights.tolist() == [[1, 8], [1, 8], [1, 1]] and (table.factors == 1).all()
    assert table.rows(np.array([1, 3, 7, 8])).tolist() == [2, 0, 1, 2]


def test_only():
    table = class_weights([1, 2, 3], experts={1: [3], 2: [3, 7]}, mode="only", expert_weight=9, elsewhere=0)
    assert table.weights.tolist() == [[0, 2, 3], [0, 0, 3], [1, 0, 0]]


def test_factors():
    table = class_weights([1, 1], factors={0: {5: 0.5}, 1: {2: 2}})
    assert table.ids.tolist() == [2, 5] and (table.weights == 1).all()
    assert table.factors.tolist() == [[1, 2], [0.5, 1], [1, 1]]
    assert class_weights([1, 1]).rows(np.array([0, 5])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": [1, -1]}, r"weights: expected numbers of at least 0, found -1"),
        ({"weights": [1, float("nan")]}, r"found nan"),
        ({"weights": [0, 0]}, r"no file has a weight above 0 for classes without an expert"),
        ({"weights": [1, 0], "experts": {1: [4]}, "mode": "only"}, r"no file has a weight above 0 for class 4"),
        ({"weights": [1], "experts": {0: [4]}, "elsewhere": 0}, r"for classes without an expert"),
        ({"weights": [1], "mode": "most"}, r"expert mode: expected one of"),
    ],
)
def test_bad_weights(arguments, message):
    with pytest.raises(EnsembleError, match=message):
        class_weights(**arguments)


def test_lists_of_classes(known, tmp_path):
    assert read_class_list("r", known, where="x") == [1, 4]
    assert read_class_list("r, 3,class_2", known, where="x") == [1, 2, 3, 4]
    (tmp_path / "classes.txt").write_text("# ours\nf\n\nclass_1  # a name\n5\n")
    assert read_class_list(f"@{tmp_path}/classes.txt", known, where="x") == [1, 3, 5, 6]
    assert read_class_list("17", None, where="x") == [17]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class_9", r"x: expected a frequency letter, an id or the name .*found 'class_9'"),
        ("class_5", r"found 'class_5', which 2 categories have: give its id"),
        ("17", r"x: class 17 is none of the 6 categories of .*annotations.json"),
        (",", r"x: expected at least one class"),
    ],
)
def test_bad_lists(known, text, message):
    with pytest.raises(EnsembleError, match=message):
        read_class_list(text, known, where="x")


def test_letters_that_are_not_there(tmp_path):
    with pytest.raises(EnsembleError, match=r"names and frequency letters need --annotations"):
        parse_classes(["r"], None, where="x")
    (path,) = write(tmp_path, coco=annotations(1, letters=""))
    with pytest.raises(EnsembleError, match=r"no category of .*coco.json has the 'frequency' 'r', found no letters"):
        parse_classes(["r"], read_known(path), where="x")


def test_class_factors(known, tmp_path):
    path = tmp_path / "factors.json"
    path.write_text(json.dumps({"4": 0.25, "r": 2, "class_2": 3}))
    assert read_class_factors(path, known) == {1: 2, 4: 0.25, 2: 3}, "one class goes before its letter"
    for content, message in (
        ("[1]", "expected a JSON object"),
        ("{", "is not JSON"),
        ('{"r": -1}', "expected a factor of at least 0 for 'r', found -1"),
        ('{"r": true}', "found True"),
        ('{"r": NaN}', "found nan"),
        ('{"x": 1}', "factors.json: expected a frequency letter"),
    ):
        path.write_text(content)
        with pytest.raises(EnsembleError, match=message):
            read_class_factors(path, known)
