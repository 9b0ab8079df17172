"""config.data.extra_sets: what is opened, and what is said of an entry that is wrong."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from configs import base
from eql_jax.data.prepare import prepare
from eql_jax.training.config import load_config
from eql_jax.training.errors import ConfigError, UserError
from eql_jax.training.inputs import load_training


@pytest.fixture
def write(tmp_path):
    """Writes a set of two images with one object each: classes of the names, ids 10, 20, ..; returns JSON, folder."""

    def write(name, categories, *, masks=True, negatives=(), size=(40, 30)):
        folder = tmp_path / name
        folder.mkdir()
        images, annotations = [], []
        for i in (1, 2):
            Image.new("RGB", size).save(folder / f"{i}.png")
            images.append({"id": i, "width": size[0], "height": size[1], "file_name": f"{i}.png"})
            if negatives:
                images[-1] |= {"neg_category_ids": list(negatives), "not_exhaustive_category_ids": []}
            box = {"id": i, "image_id": i, "category_id": 10 * i, "bbox": [1, 1, 9, 9], "area": 81}
            annotations.append(box | ({"segmentation": [[1, 1, 10, 1, 10, 10, 1, 10]]} if masks else {}))
        named = [{"id": 10 * i, "name": text} for i, text in enumerate(categories, start=1)]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": named}))
        return str(path), str(folder)

    return write


@pytest.fixture
def main(write):
    config = base.get_config()
    config.data.frequencies = "train_annotations"
    config.data.train_annotations, config.data.train_images = write("main", ["car", "dog", "sky"])
    return config


def test_three_sets(main, write, tmp_path, caplog):
    """The same classes; others by a table, boxes only, verified; and prepared records with a rule that is given."""
    table = tmp_path / "map.json"
    table.write_text('{"Auto": "car", "Hound": "dog"}')
    boxes = write("boxes", ["Auto", "Hound", "Tree"], masks=False, negatives=[30])
    prepare(*write("more", ["car", "dog"], negatives=[20]), tmp_path / "records", progress=False)
    main.data.extra_sets = (
        (*write("same", ["car", "dog"]), "", 0.25),
        (*boxes, str(table), 0.125),
        (str(tmp_path / "records"), "", "", 0.5, "annotated"),
    )
    with caplog.at_level(logging.INFO):
        found, statistics = load_training(main)
    assert [one.share for one in found.sets] == [0.125, 0.25, 0.125, 0.5]
    assert [one.negatives for one in found.sets] == ["all", "annotated", "verified", "annotated"]
    assert [one.has_masks for one in found.sets] == [True, True, False, True]
    assert [one.annotated.tolist() for one in found.sets] == [[True] * 3, *[[True, True, False]] * 3]
    assert [image.id for image in found.images] == [1, 2, *(i * 10**16 + k for i in (1, 2, 3) for k in (1, 2))]
    assert "data.extra_sets[1], " in caplog.text and "0.125 of the rows; 2 of 3 classes to 2 of 3" in caplog.text
    assert "negatives: verified; boxes only, which train no masks" in caplog.text
    assert "0.125 of the images" in caplog.text
    # Frequencies are the main set's.
    assert statistics.num_images == 2
    np.testing.assert_array_equal(statistics.image_counts, [1, 1, 0])

    main.model.with_mask = False
    assert [one.has_masks for one in load_training(main)[0].sets[1:]] == [False] * 3


def test_faults_of_a_set_name_it(main, write, tmp_path):
    same = write("same", ["car", "cat"])
    main.data.extra_sets = ((*write("good", ["car", "dog"]), "", 0.1), (*same, "", 0.2))
    with pytest.raises(UserError, match=r"extra_sets\[1\] \(.*same.json\): .*id 20 is 'cat' here, 'dog' there. Give a"):
        load_training(main)
    table = tmp_path / "map.json"
    table.write_text('{"cat": "dogg"}')
    main.data.extra_sets = ((*same, str(table), 0.2),)
    with pytest.raises(UserError, match=r"extra_sets\[0\] .*map.json: .* key 'cat' names 'dogg'.* mean 'dog'"):
        load_training(main)
    main.data.extra_sets = ((*same, str(tmp_path / "none.json"), 0.2),)
    with pytest.raises(UserError, match=r"extra_sets\[0\] .*none.json"):
        load_training(main)
    main.data.extra_sets = ((str(tmp_path / "gone.json"), same[1], "", 0.2),)
    with pytest.raises(UserError, match=r"extra_sets\[0\] .*gone.json"):
        load_training(main)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("a.json", "b", "", 0.5), r"extra_sets\[0\] is 'a.json'; expected \(annotations, images, class map, share\)"),
        ((("a.json", "b", 0.5),), r"extra_sets\[0\] is \('a.json', 'b', 0.5\); expected"),
        ((("a.json", "b", "", "", 0.5),), "has the share ''"),
        ((("", "b", "", 0.5),), "expected texts for the first three"),
        ((("a.json", "b", None, 0.5),), "expected texts for the first three"),
        ((("a.json", "", "", 0.5),), "has no folder of the images of a.json"),
        ((("a", "", "", 1.5),), r"has the share 1.5; expected a number from 0 to 1"),
        ((("a", "", "", float("nan")),), "has the share nan"),
        ((("a", "", "", True),), "has the share True"),
        ((("a", "", "", 0.5, "none"),), "ends with 'none'; expected one of 'all', 'annotated', 'verified'"),
        ((("a", "", "", 0.5), ("b", "", "", 0.6)), "shares of 1.1 in sum; expected at most 1"),
        ((("a", "", "", 0.0),) * 100, "has 100 sets; expected fewer than 100"),
    ],
)
def test_entries(sets, message):
    config = base.get_config()
    config.data.extra_sets = sets
    with pytest.raises(ConfigError, match=message):
        load_config(config, base=base.get_config())


def test_from_the_command_line():
    words = ["--config.data.extra_sets=(('a.json','b','m.json',0.25),('records','','',0.5,'verified'))"]
    found = load_config(base.get_config(), words, base=base.get_config())
    assert found.data.extra_sets == (("a.json", "b", "m.json", 0.25), ("records", "", "", 0.5, "verified"))
