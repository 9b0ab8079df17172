"""Which classes are shown, by hand, and what is drawn of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from eql_jax.analysis import examples
from eql_jax.analysis.collect import ClassAP, Evaluation, Run
from eql_jax.data.annotations import load_annotations
from eql_jax.training.compatibility import Classes
from eql_jax.training.errors import UserError
from eql_jax.training.inference_model import InferenceModel
from tests.analysis.runs import make_data

NAN = np.nan


def evaluation(*ap, kind="masks", folder=Path("evaluation")):
    """Classes 1, 2, .. with these AP; the training images are 10, 20, .."""
    classes = tuple(ClassAP(i, f"c{i}", "f", 10 * i, 10 * i, 5, {kind: value}) for i, value in enumerate(ap, start=1))
    return Evaluation(folder, 1, 4, {"segm" if kind == "masks" else "bbox": {}}, classes, ())


def ids(classes):
    return [c.class_id for c in classes]


def test_best_and_worst():
    best, worst = examples.best_and_worst(evaluation(0.5, NAN, 0.5, 0.0, 0.0, 0.2), 2)
    assert ids(best) == [1, 3]  # of equals the one with fewer training images first
    assert ids(worst) == [5, 4]  # and here the one with more
    best, worst = examples.best_and_worst(evaluation(0.5, NAN, 0.1, 0.2), 2)
    assert (ids(best), ids(worst)) == ([1], [3])  # three classes: none is in both
    assert examples.best_and_worst(evaluation(NAN), 2) == ([], [])


def test_largest_changes():
    rises, falls = examples.largest_changes(evaluation(0.1, 0.5, NAN, 0.3, 0.2), evaluation(0.4, 0.1, 0.3, 0.3, 0.3), 1)
    assert ids(a for a, _ in rises) == [1] and ids(b for _, b in falls) == [2]
    assert rises[0][1].ap["masks"] == 0.4
    assert examples.largest_changes(evaluation(0.1), evaluation(0.1), 3) == ([], [])


def test_pictures(tmp_path):
    """The class's detections are drawn, others only where they lie on one of its objects."""
    data = make_data(tmp_path / "data", num_classes=20)
    annotations = load_annotations(data.val_annotations, data.images)
    names = tuple(c.name for c in annotations.categories)
    classes = Classes(tuple(annotations.class_ids.tolist()), names, ("f",) * len(names))
    run = Run("run", tmp_path, InferenceModel(None, classes, {}, {}, 1))
    record = next(r for r in annotations.images if r.objects.size)
    thing = record.objects.record(0)
    class_id = int(annotations.class_ids[thing.class_index])
    x1, y1, x2, y2 = thing.box.tolist()
    box, away = [x1, y1, x2 - x1, y2 - y1], [x1, y1, 1.0, 1.0]
    other = next(i for i in classes.ids if i != class_id)
    objects = [{"category_id": class_id, "bbox": box}]
    wanted = [
        ({"category_id": class_id, "bbox": away}, True),
        ({"category_id": other, "bbox": box}, True),
        ({"category_id": other, "bbox": away}, False),
        ({"category_id": other, "bbox": [x1, y1, x2 - x1, 0.49 * (y2 - y1)]}, False),
    ]
    assert [examples._concerns(result, class_id, objects) for result, _ in wanted] == [shown for _, shown in wanted]

    found = evaluation(0.5, kind="boxes", folder=tmp_path)
    shown = [found.classes[0]._replace(class_id=class_id, name="square")]
    results = [result | {"image_id": record.id, "score": 0.7} for result, _ in wanted]

    def draw():
        return examples.draw_examples(run, found, annotations, shown, per_class=2, score_threshold=0.3)

    with pytest.raises(UserError, match="results.json"):
        draw()
    (tmp_path / "results.json").write_text(json.dumps(results))
    drawn = draw()
    assert 1 <= len(drawn) <= 2 and drawn[0].class_id == class_id
    assert drawn[0].picture.width > 2 * 640 and drawn[0].caption.startswith("square (f), AP 50.0, 10 training images")
    (tmp_path / "results.json").write_text(json.dumps([results[0] | {"image_id": 10**6}]))
    with pytest.raises(UserError, match="is of another evaluation set"):
        draw()
