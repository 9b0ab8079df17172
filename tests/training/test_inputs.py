"""Which data set a config names, and what is said when it names none."""

import json

import pytest
from PIL import Image

from configs.base import get_config
from eql_jax.data.prepare import prepare
from eql_jax.training.errors import ConfigError, UserError
from eql_jax.training.inputs import data_paths, load_training


@pytest.fixture
def written(tmp_path):
    """A JSON of one image, and its folder."""
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    box = {"bbox": [1, 1, 9, 9], "area": 81, "segmentation": [[1, 1, 10, 1, 10, 10, 1, 10]]}
    content = {
        "images": [{"id": 1, "width": 40, "height": 30, "file_name": "1.png"}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, **box}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path / "a.json", tmp_path


def config_of(annotations, images=""):
    config = get_config()
    config.data.frequencies = "train_annotations"
    config.data.train_annotations, config.data.train_images = str(annotations), str(images)
    return config


def test_json_and_prepared(written, tmp_path):
    prepare(*written, tmp_path / "out", progress=False)
    for config in (config_of(*written), config_of(tmp_path / "out")):
        annotations, statistics = load_training(config)
        assert [image.id for image in annotations.images] == [1]
        assert statistics.names == ("thing",)
    # Prepared records need no folder of images, so that no other data set is made for one.
    config = config_of(tmp_path / "out")
    config.data.supershapes.out = str(tmp_path / "shapes")
    assert data_paths(config, ("train",)) == {"train_annotations": str(tmp_path / "out"), "train_images": ""}
    assert not (tmp_path / "shapes").exists()


def test_nothing_named(written):
    with pytest.raises(ConfigError, match="train_annotations is empty; .*prepared records"):
        load_training(config_of(""))
    with pytest.raises(ConfigError, match="train_images is empty; expected the folder of the images of .*a.json"):
        load_training(config_of(written[0]))
    with pytest.raises(UserError, match="folder without prepared records"):
        load_training(config_of(written[1]))
    with pytest.raises(UserError, match="expected 'tfds:lvis/SPLIT'"):
        load_training(config_of("tfds:coco/train"))


def test_paths_that_lead_nowhere(written):
    """The message has the fields of the config, and where relative paths start."""
    with pytest.raises(ConfigError, match="folder nowhere does not exist.*data.train_images 'nowhere'.*start at /"):
        load_training(config_of(written[0], "nowhere"))
    with pytest.raises(ConfigError, match="none.json.*config.data.train_annotations is 'none.json'"):
        load_training(config_of("none.json", written[1]))


def test_more_groups_than_classes(written):
    """Known before training, not at the first evaluation."""
    config = config_of(*written)
    config.eval.image_count_groups = 2
    with pytest.raises(ConfigError, match="image_count_groups is 2; expected at most 1"):
        load_training(config)


def test_data_without_masks_by_the_config(written):
    config = config_of(*written)
    assert load_training(config)[0].images[0].objects.segmentations is not None
    config.model.with_mask = False
    assert load_training(config)[0].images[0].objects.segmentations is None
