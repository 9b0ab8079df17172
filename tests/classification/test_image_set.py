"""Drawings, CIFAR as TFDS stores it, and image lists; what is wrong with one is told with file and line."""

import numpy as np
import pytest
from PIL import Image

from configs.classification import base
from eql_jax.classification.drawn import DrawnArgs, drawn_arrays
from eql_jax.classification.image_set import load_sets
from eql_jax.classification.imagenet_lt import ImageList
from eql_jax.training.errors import ConfigError, UserError


def make_config(**fields):
    c = base.get_config()
    c.update_from_flattened_dict(fields)
    return c


# ---------------------------------------------------------------------------------------------------- drawn
def test_drawings():
    arguments = DrawnArgs(size=24, seed=3, lookalikes=False)
    images, labels, names = drawn_arrays(np.array([4, 2, 1]), "train", arguments)
    assert images.shape == (7, 24, 24, 3) and labels.tolist() == [0, 0, 0, 0, 1, 1, 2] and len(set(names)) == 3
    assert len({image.tobytes() for image in images}) == 7
    again, _, _ = drawn_arrays(np.array([2, 1, 1]), "train", arguments)
    np.testing.assert_array_equal(again, images[[0, 1, 4, 6]])  # a class has the same pictures first
    val, _, _ = drawn_arrays(np.array([4, 2, 1]), "val", arguments)
    assert not {image.tobytes() for image in val} & {image.tobytes() for image in images}
    other, _, _ = drawn_arrays(np.array([4, 2, 1]), "train", DrawnArgs(size=24, seed=4, lookalikes=False))
    assert (other != images).any()


def test_drawn_sets():
    fields = {"num_classes": 5, "largest_class": 8, "val_per_class": 2, "lookalikes": False}
    config = make_config(
        **{"data.source": "drawn", "data.imbalance": 4.0} | {f"data.drawn.{k}": v for k, v in fields.items()}
    )
    sets = load_sets(config)
    assert sets.train.counts.tolist() == [8, 5, 4, 2, 2] and sets.val.counts.tolist() == [2] * 5
    assert sets.train.class_names == sets.val.class_names and sets.train.read(3).size == (32, 32)
    assert load_sets(config, train=False).train is None


# ---------------------------------------------------------------------------------------------------- CIFAR
@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """cifar10 of TFDS with 12 images a class for training and 2 for testing; the red value of an image is its label."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=names),
        }
    )

    def examples(split, each):
        for i in range(10 * each):
            image = np.full((32, 32, 3), i, np.uint8)
            image[..., 0] = i % 10
            yield f"{split}_{i:05d}", {"id": f"{split}_{i:05d}", "image": image, "label": i % 10}

    splits = {"train": list(examples("train", 12)), "test": list(examples("test", 2))}
    tfds.dataset_builders.store_as_tfds_dataset("cifar10", "3.0.2", features, splits, data_dir=folder)
    return folder


def test_cifar(tfds_dir):
    config = make_config(**{"data.source": "cifar10", "data.tfds_dir": str(tfds_dir), "data.imbalance": 6.0})
    sets = load_sets(config)
    assert sets.train.counts.tolist() == [12, 9, 8, 6, 5, 4, 3, 2, 2, 2] and sets.val.counts.tolist() == [2] * 10
    assert sets.train.class_names[3] == "cat"
    for images in sets:
        for i in range(len(images)):
            assert np.asarray(images.read(i))[0, 0, 0] == images.labels[i]
    greens = [np.asarray(sets.train.read(i))[0, 0, 1] for i in range(len(sets.train))]
    assert (np.diff(greens) > 0).all()  # in the order of their ids, which TFDS shuffles
    assert load_sets(config, train=False).train is None
    config.data.imbalance = 50.0
    with pytest.raises(UserError, match="leaves 4 of 10 classes without an image; expected at most 12"):
        load_sets(config)


def test_cifar_is_not_there(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    config = make_config(**{"data.tfds_dir": str(tmp_path)})
    with pytest.raises(UserError, match=f"cifar100/test is not in .*run: tfds build cifar100 --data_dir={tmp_path}"):
        load_sets(config)


# ---------------------------------------------------------------------------------------------------- image lists
@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("n1/a.png", "n1/b c.png", "n2/c.png", "n2/d.png")):
        path = tmp_path / "images" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 30), (i, 0, 0)).save(path)
    lines = "train/n1/a.png 0\ntrain/n1/b c.png 0\n\ntrain/n2/c.png 1\ntrain/n2/d.png 1\n"
    (tmp_path / "train.txt").write_text(lines)
    (tmp_path / "val.txt").write_text("train/n2/c.png 1\ntrain/n1/a.png 0\n")
    return tmp_path


def test_image_lists(folder):
    paths = {"images": folder / "images", "train_list": folder / "train.txt", "val_list": folder / "val.txt"}
    config = make_config(**{"data.source": "imagenet_lt"} | {f"data.{k}": str(v) for k, v in paths.items()})
    sets = load_sets(config)
    assert sets.train.labels.tolist() == [0, 0, 1, 1] and sets.val.labels.tolist() == [1, 0]
    assert sets.train.class_names == ("n1", "n2")
    assert [sets.train.read(i).size[0] for i in range(4)] == [40, 41, 42, 43]
    config.data.train_list = str(folder / "val.txt")
    (folder / "val.txt").write_text("train/n2/c.png 1\ntrain/n1/a.png 0\ntrain/n1/a.png 2\n")
    config.data.val_list, config.data.train_list = config.data.train_list, str(folder / "train.txt")
    with pytest.raises(UserError, match=r"val.txt has labels up to 2; those of .*train.txt go up to 1"):
        load_sets(config)
    config.data.train_list = ""
    with pytest.raises(ConfigError, match="config.data.train_list is empty; expected an image list"):
        load_sets(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train/n1/a.png 0\ntrain/n1/a.png\n", r"list.txt, line 2: 'train/n1/a.png'; expected 'path label'"),
        ("train/n1/a.png -1\n", r"line 1: 'train/n1/a.png -1'; expected 'path label'"),
        ("train/n1/a.png 1.0\n", r"line 1: .*expected 'path label'"),
        ("../secret.png 0\n", r"line 1: ../secret.png leads out of the image folder"),
        ("/etc/x.png 0\n", r"line 1: /etc/x.png leads out"),
        ("train/n1/a.png 0\ntrain/n2/c.png 2\n", r"labels up to 2, but 2 different ones; 1 has no image"),
        ("train/n1/a.png 99999999999\n", r"labels up to 99999999999, but 1 different ones; 0 has no image"),
        ("train/n1/a.png 0\n\ntrain/n1/z.png 1\ntrain/n9/z.png 1\n", r"line 3: .*z.png does not exist; 2 of 3 images"),
        ("\n \n", r"list.txt names no image"),
        ("", r"list.txt names no image"),
    ],
)
def test_faulty_lists(folder, text, message):
    (folder / "list.txt").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ImageList.load(folder / "list.txt", folder / "images")


def test_missing_list_folder_and_binary_file(folder):
    with pytest.raises(FileNotFoundError, match="image folder .*nowhere does not exist or is no folder"):
        ImageList.load(folder / "train.txt", folder / "nowhere")
    with pytest.raises(FileNotFoundError, match="none.txt"):
        ImageList.load(folder / "none.txt", folder / "images")
    with pytest.raises(ValueError, match="a.png is no text in UTF-8"):
        ImageList.load(folder / "images/train/n1/a.png", folder / "images")
