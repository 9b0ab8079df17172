"""Batches: every image once in an epoch, the same batch of a step whoever asks, and images that cannot be read."""

import numpy as np
import pytest
from PIL import Image

from configs.classification import base
from eql_jax.classification.batches import TrainBatches, eval_batches
from eql_jax.classification.image_set import ImageSet
from eql_jax.data.images import ImageError
from eql_jax.data.validation import AnnotationError

N, SIZE = 23, 16


def make_set(unreadable=()):
    """Image i has the colour i all over; classes are i % 3."""

    def read(i):
        if i in unreadable:
            raise ImageError("unreadable image", "cut off", file=f"{i}.png")
        return Image.new("RGB", (SIZE, SIZE), (i, i, i))

    return ImageSet("toy", (np.arange(N) % 3).astype(np.int32), ("a", "b", "c"), read)


def make_config(**fields):
    c = base.get_config()
    values = {
        "train.batch_size": 8,
        "eval.batch_size": 10,
        "data.image_size": SIZE,
        "data.workers": 2,
        "data.crop": "none",
        "data.auto_augment": "",
        "data.cutout": 0,
    }
    c.update_from_flattened_dict(values | fields)
    return c


def take(batches, count):
    found = [{k: v.copy() for k, v in next(batches).items()} for _ in range(count)]
    batches.close()
    return found


def test_every_image_once_in_an_epoch():
    batches = take(TrainBatches(make_set(), make_config()), 23)  # 8 epochs of 23 images
    ids = np.concatenate([b["image_id"] for b in batches])
    for epoch in ids.reshape(8, 23):
        assert sorted(epoch.tolist()) == list(range(23))
    assert (ids[:23] != ids[23:46]).any()
    for batch in batches:
        assert (batch["image"] == batch["image_id"][:, None, None, None]).all()
        assert (batch["label"] == batch["image_id"] % 3).all()
        assert batch["image"].shape == (8, SIZE, SIZE, 3) and batch["label"].dtype == np.int32


def augmented(**fields):
    return make_config(**{"data.crop": "padded", "data.auto_augment": "cifar10", "data.cutout": 6} | fields)


def test_a_batch_depends_on_the_step_alone():
    images, config = make_set(), augmented()
    first = take(TrainBatches(images, config), 6)
    later = take(TrainBatches(images, config, start_step=3), 3)
    threads = take(TrainBatches(images, augmented(**{"data.workers": 5, "data.prefetch": 4})), 6)
    halves = [take(TrainBatches(images, config, host=h, num_hosts=2), 6) for h in (0, 1)]
    for i, batch in enumerate(first):
        for key, values in batch.items():
            np.testing.assert_array_equal(values, threads[i][key])
            np.testing.assert_array_equal(values, np.concatenate([halves[0][i][key], halves[1][i][key]]))
            if i >= 3:
                np.testing.assert_array_equal(values, later[i - 3][key])
    other = take(TrainBatches(images, augmented(seed=1)), 1)[0]
    assert (other["image_id"] != first[0]["image_id"]).any()
    # What is drawn for an image changes from epoch to epoch.
    pixels = {}
    for batch in first:
        for i, image in zip(batch["image_id"].tolist(), batch["image"], strict=True):
            pixels.setdefault(i, []).append(image.tobytes())
    assert any(len(set(p)) > 1 for p in pixels.values())


def test_tf_data_gives_the_same():
    pytest.importorskip("tensorflow")
    expected = take(TrainBatches(make_set(), augmented()), 2)
    found = take(TrainBatches(make_set(), augmented(**{"data.engine": "tf.data"})), 2)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_unreadable_image_is_replaced_by_one_of_its_class():
    batches = TrainBatches(make_set(unreadable=(4, 7)), make_config())
    found = take(batches, 23)
    ids = np.concatenate([b["image_id"] for b in found])
    assert not {4, 7} & set(ids.tolist())
    assert all((b["label"] == b["image_id"] % 3).all() for b in found)
    assert (ids == 10).sum() == 3 * 8  # it stands in for both
    assert "4.png" in batches.report.summary() and batches.report.total == 2
    with pytest.raises(AnnotationError, match=r"toy: none of the 7 images of class 'c' can be read"):
        take(TrainBatches(make_set(unreadable=range(2, 23, 3)), make_config()), 3)


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_sees_every_image_once(hosts):
    config = make_config()
    parts = [list(eval_batches(make_set(), config, host=h, num_hosts=hosts)) for h in range(hosts)]
    assert [len(p) for p in parts] == [3] * hosts
    batches = [b for p in parts for b in p]
    ids, labels = (np.concatenate([b[k] for b in batches]) for k in ("image_id", "label"))
    assert sorted(ids[ids >= 0].tolist()) == list(range(N)) and len(ids) == 30
    assert (labels[ids < 0] == -1).all() and (labels[ids >= 0] == ids[ids >= 0] % 3).all()
    for batch in batches:
        assert (batch["image"] == np.maximum(batch["image_id"], 0)[:, None, None, None]).all()


def test_evaluation_of_some_and_of_unreadable_images():
    few = list(eval_batches(make_set(), make_config(**{"eval.max_images": 5})))
    assert [i for b in few for i in b["image_id"].tolist() if i >= 0] == [0, 6, 11, 16, 22]
    with pytest.raises(ImageError, match="cut off"):
        list(eval_batches(make_set(unreadable=(3,)), make_config()))
    with pytest.raises(ValueError, match="eval.batch_size is 10, expected a positive multiple of the 3 hosts"):
        eval_batches(make_set(), make_config(), num_hosts=3)
