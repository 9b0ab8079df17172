"""Accuracies of many, medium and few classes against a hand-worked case, and the files that are written."""

import contextlib
import json

import numpy as np
import pytest

from eql_jax.classification.evaluation import Hits, accuracies, count_hits, format_accuracies, write_results
from eql_jax.classification.image_set import ImageSet, classes_of
from eql_jax.classification.long_tail import GroupBorders
from eql_jax.classification.run import check_class_names
from eql_jax.training.compatibility import Classes
from eql_jax.training.errors import CheckpointError, UserError

COUNTS = np.array([500, 101, 100, 20, 19, 3])
HITS = Hits(np.array([10, 10, 10, 20, 10, 0]), np.array([9, 7, 5, 3, 1, 0]))


def test_by_hand():
    """25 of 60 images; class shares .9 .7 | .5 .15 | .1, the last class has no test image."""
    found = accuracies(HITS, COUNTS, GroupBorders())
    assert found == pytest.approx({"top1": 25 / 60, "top1_many": 0.8, "top1_medium": 0.325, "top1_few": 0.1})
    other = accuracies(HITS, COUNTS, GroupBorders(many=600, few=100))  # no class is 'many'; .9 .7 .5 | .15 .1
    assert other == pytest.approx({"top1": 25 / 60, "top1_medium": 0.7, "top1_few": 0.125})
    with pytest.raises(ValueError, match="no test image"):
        accuracies(Hits(np.zeros(6, int), np.zeros(6, int)), COUNTS, GroupBorders())


def test_hits_of_batches():
    """The predictor says the red value of the first pixel; two rows have no image."""
    image = np.zeros((6, 2, 2, 3), np.uint8)
    image[:, 0, 0, 0] = [0, 1, 2, 2, 0, 0]
    batches = [
        {"image": image, "label": np.array([0, 1, 1, 2, -1, -1])},
        {"image": image[:2], "label": np.array([2, 2])},
    ]
    hits = count_hits(lambda _, x: x[:, 0, 0, 0].astype(np.int32), {}, batches, num_classes=3)
    assert hits.images.tolist() == [1, 2, 3] and hits.right.tolist() == [1, 1, 1]


def test_a_host_that_fails_keeps_no_other_waiting(monkeypatch):
    """Two hosts: what each sends is what the other gets beside its own."""
    sent = []

    def gathered(other):
        def gather(own):
            sent.append(own)
            return np.stack([own, own if other is None else other])

        return gather

    def unreadable():
        yield {"label": np.array([1]), "image": np.ones((1, 1, 1, 1), np.uint8)}
        raise OSError("b.png is broken")

    count = lambda batches: count_hits(  # noqa: E731
        lambda _, x: x[:, 0, 0, 0].astype(np.int32), {}, batches, num_classes=3, num_hosts=2
    )
    target = "eql_jax.classification.evaluation.multihost_utils.process_allgather"
    monkeypatch.setattr(target, gathered(None))
    with pytest.raises(OSError, match="b.png is broken"):
        count(unreadable())
    monkeypatch.setattr(target, gathered(sent[0]))
    with pytest.raises(UserError, match="failed on host 1; its log says why"):
        count([])
    monkeypatch.setattr(target, gathered(np.array([[0, 4, 0], [0, 3, 0], [0, 0, 0]])))
    found = count([{"label": np.array([1]), "image": np.ones((1, 1, 1, 1), np.uint8)}])
    assert (found.images.tolist(), found.right.tolist()) == ([0, 5, 0], [0, 4, 0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "dog", "owl"), "pictures has 3 classes, the checkpoint 2"),
        (("dog", "cat"), "pictures has class 0 = 'dog', the checkpoint 'cat'"),
        (("cat",), None),  # a list that lacks the last class
        (("0", "1"), None),  # a list that names no class
    ],
)
def test_pictures_of_other_classes_are_refused(names, message):
    val = ImageSet("pictures", np.arange(len(names)), names, None)
    with pytest.raises(CheckpointError, match=message) if message else contextlib.nullcontext():
        check_class_names(val, Classes((0, 1), ("cat", "dog"), ("f", "r")))


def test_files(tmp_path):
    labels = np.repeat(np.arange(6), COUNTS).astype(np.int32)
    classes = classes_of(ImageSet("toy", labels, tuple("abcdef"), lambda i: None), GroupBorders())
    assert classes.letters == ("f", "f", "c", "c", "r", "r") and classes.image_counts == tuple(COUNTS)
    metrics = accuracies(HITS, COUNTS, GroupBorders())
    write_results(tmp_path / "out", metrics, HITS, classes, GroupBorders(), step=7)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"step": 7, **metrics}
    lines = (tmp_path / "out" / "classes.csv").read_text().splitlines()
    assert lines[0] == "class,name,group,training_images,test_images,right,top1"
    assert lines[4] == "3,d,medium,20,20,3,0.1500" and lines[6] == "5,f,few,3,0,0,"
    text = format_accuracies(metrics, COUNTS, GroupBorders())
    assert text == "top-1 41.67 %; many (2 classes) 80.00, medium (2 classes) 32.50, few (2 classes) 10.00"
