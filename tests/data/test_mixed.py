"""Mixed data sets: ids, mapped classes, which classes give negatives, and the batches."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from eql_jax.data.annotations import load_annotations
from eql_jax.data.class_map import load_class_map, same_classes
from eql_jax.data.mixed import ID_STRIDE, ExtraSet, has_verified_classes, mix
from eql_jax.data.open_images import convert
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.prepare import prepare
from eql_jax.data.records import ImageIndex
from eql_jax.data.validation import AnnotationError
from eql_jax.training.extra_sets import with_extra_sets
from tests.data.conftest import make_content
from tests.data.test_pipeline import assert_equal, take

MAIN = [(80, 60), (60, 80), (90, 60), (64, 64), (50, 100), (80, 50), (33, 61)]
EXTRA = [(80, 60), (60, 80), (70, 60), (64, 64), (90, 50)]
# Classes of the other set: 0 ball and 1 globe come together in shape2, 2 cube is shape3, 3 tree is left out.
NAMES = ("ball", "globe", "cube", "tree")
MAP = {"ball": "shape2", "globe": "shape2", "cube": "30"}


@pytest.fixture
def written(write_dataset, tmp_path):
    """Writes the main set (categories 10, 20, 30) and the other; returns their paths."""
    main = write_dataset(make_content(MAIN, objects_per_image=3))
    content = make_content(EXTRA, objects_per_image=4, seed=5)
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    for i, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = 1 + i % 4
    # Image 1 has no ball, no tree. Nothing is known of its globes but those with a box; cubes are not exhaustive.
    image = content["images"][1]
    image["neg_category_ids"] = [1, 4]
    image["not_exhaustive_category_ids"] = [3]
    for annotation in content["annotations"]:
        if annotation["image_id"] == image["id"] and annotation["category_id"] in (1, 4):
            annotation["category_id"] = 3
    # Image 2 has trees alone, and no ball; image 3 has neither balls nor globes, and trees.
    content["images"][2]["neg_category_ids"] = [1]
    content["images"][3]["neg_category_ids"] = [1, 2]
    for annotation in content["annotations"]:
        if annotation["image_id"] in (content["images"][2]["id"], content["images"][3]["id"]):
            annotation["category_id"] = 4
    images = main.images.parent / "other"
    images.mkdir()
    for image in content["images"]:
        # The ids are those of images of the main set, the pictures are not.
        Image.new("RGB", (image["width"], image["height"]), (0, 0, 250)).save(images / f"{image['id']:012d}.jpg")
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    table = tmp_path / "map.json"
    table.write_text(json.dumps(MAP))
    return main, (path, images), table


def opened(written, *, share=0.3, negatives="verified", masks=True, source="json"):
    main, other, table = written
    main = load_annotations(*main, strict=True)
    if source == "prepared":
        out = table.parent / "records"
        other = prepare(*other, out, progress=False, masks=masks)
    else:
        other = load_annotations(*other, masks=masks)
    class_map = load_class_map(table, other.categories, main.categories)
    return mix(main, [ExtraSet(other, class_map, share, negatives, has_masks=masks)])


@pytest.fixture
def mixed(written):
    return opened(written)


def test_ids_and_records(mixed, written):
    """The main set's records are its own; the others have ids beyond, mapped classes, and no tree."""
    main = load_annotations(*written[0])
    assert len(mixed.images) == 12 and [len(MAIN), len(EXTRA)] == [s.stop - s.start for s in mixed.sets]
    for mine, alone in zip(mixed.images[:7], main.images, strict=True):
        assert mine.id == alone.id and mine.annotated_classes is None and mine.path == alone.path
        np.testing.assert_array_equal(mine.objects.boxes, alone.objects.boxes)
    other = load_annotations(*written[1])
    targets = np.array([1, 1, 2, -1])
    for mine, alone in zip(mixed.images[7:], other.images, strict=True):
        assert mine.id == 10**16 + alone.id
        kept = alone.objects.classes != 3
        np.testing.assert_array_equal(mine.objects.classes, targets[alone.objects.classes[kept]])
        np.testing.assert_array_equal(mine.objects.boxes, alone.objects.boxes[kept])
        for mask, expected in zip(
            mine.objects.segmentations, [alone.objects.segmentations[i] for i in np.flatnonzero(kept)], strict=True
        ):
            np.testing.assert_array_equal(np.concatenate(mask), np.concatenate(expected))
    ids = mixed.index.ids
    assert np.unique(ids).size == np.unique(ids.astype(np.uint32)).size == 12
    left_out = sum((record.objects.classes == 3).sum() for record in other.images)
    assert f"{left_out} x {written[1][0]}: object of a class that the class map leaves out" in mixed.report.summary()


def test_low_bits_of_ids_do_not_collide():
    """Multiples of the stride are 24 million apart from each other, around a circle of 2**32."""
    starts = np.sort(np.array([number * ID_STRIDE % 2**32 for number in range(100)]))
    assert min(np.diff(starts).min(), starts[0] + 2**32 - starts[-1]) > 24_000_000


def test_index_is_that_of_the_records(mixed):
    expected = ImageIndex.of(mixed.images)
    for name, found in mixed.index._asdict().items():
        np.testing.assert_array_equal(found, getattr(expected, name), err_msg=name)


def test_verified_classes_by_hand(mixed):
    """Shape1 is no class of the other set. Shape2: ball and globe; shape3: cube."""
    found = [record.annotated_classes.tolist() for record in mixed.images[7:]]
    assert found[0] == [False, True, True]  # all present
    assert found[1] == [False, True, False]  # no ball, globes present; cubes present, but not all of them
    assert found[2] == [False, False, False]  # no ball, globes unknown; cubes unknown
    assert found[3] == [False, True, False]  # neither ball nor globe
    absent = [record.neg_classes.tolist() for record in mixed.images[7:]]
    assert absent == [[], [], [], [1], []]  # in image 1 there are globes
    assert mixed.images[8].not_exhaustive_classes.tolist() == [2]


def test_other_rules(written):
    found = [r.annotated_classes.tolist() for r in opened(written, negatives="annotated").images[7:]]
    assert found == [[False, True, True], [False, True, False], *[[False, True, True]] * 3]
    everything = opened(written, negatives="all")
    assert all(record.annotated_classes is None for record in everything.images)
    np.testing.assert_array_equal(everything.sets[1].annotated, [True] * 3)
    np.testing.assert_array_equal(opened(written).sets[1].annotated, [False, True, True])


def test_whether_a_set_has_verified_classes(written):
    assert has_verified_classes(load_annotations(*written[1])) and not has_verified_classes(
        load_annotations(*written[0])
    )


def test_form_of_a_batch(mixed, written, config):
    config.train.batch_size = 8
    batch = take(make_train_iterator(mixed, config), 1)[0]
    alone = take(make_train_iterator(load_annotations(*written[0]), config), 1)[0]
    assert set(batch) - set(alone) == {"annotated_classes", "gt_has_mask"} and not set(alone) - set(batch)
    assert batch["annotated_classes"].shape == (8, 3) and batch["annotated_classes"].dtype == bool
    assert batch["gt_has_mask"].shape == (8, 5) and batch["gt_has_mask"].dtype == bool
    np.testing.assert_array_equal(batch["gt_has_mask"], batch["gt_classes"] >= 0)
    config.model.with_mask = False
    assert "gt_has_mask" not in take(make_train_iterator(mixed, config), 1)[0]


def test_rows_are_those_of_their_records(mixed, config):
    records = {record.id: record for record in mixed.images}
    seen = Counter()
    for batch in take(make_train_iterator(mixed, config), 12):
        for row, image_id in enumerate(batch["image_id"].tolist()):
            record = records[image_id]
            seen[image_id] += 1
            # Blue pictures are the other set's.
            assert (batch["image"][row, 4, 4, 2] > 200) == (image_id >= ID_STRIDE)
            n = record.objects.size
            np.testing.assert_array_equal(batch["gt_classes"][row, :n], record.objects.classes)
            expected = [True] * 3 if record.annotated_classes is None else record.annotated_classes
            np.testing.assert_array_equal(batch["annotated_classes"][row], expected)
    assert len(seen) == 10  # images 2 and 3 of the other set have trees only


@pytest.mark.parametrize("sampler", ["uniform", "repeat_factor", "class_aware"])
def test_hosts_and_resuming(mixed, config, sampler):
    config.data.sampler = sampler
    config.data.repeat_threshold = 0.9
    config.train.batch_size = 8
    whole = take(make_train_iterator(mixed, config), 4)
    for hosts in (2, 8):
        parts = [take(make_train_iterator(mixed, config, host=h, num_hosts=hosts), 4) for h in range(hosts)]
        for step, batch in enumerate(whole):
            assert_equal(batch, {key: np.concatenate([part[step][key] for part in parts]) for key in batch})
    resumed = take(make_train_iterator(mixed, config, start_step=2), 2)
    assert_equal(resumed[0], whole[2])
    assert_equal(resumed[1], whole[3])
    drawn = np.concatenate([batch["image_id"] for batch in whole]) >= ID_STRIDE
    assert abs(drawn.sum() - 0.3 * 32) < 4


def test_samplers_weigh_within_each_set(mixed, config):
    """Class-aware: shape2 and shape3 half each in the other set, whatever the main set has."""
    config.data.sampler = "class_aware"
    iterator = make_train_iterator(mixed, config)
    iterator.close()
    rates = iterator.sampler.image_rates()
    np.testing.assert_allclose(np.bincount(iterator.sets, weights=rates), [0.7, 0.3], rtol=1e-9)
    other = [mixed.images[i] for i in iterator.images[iterator.sets == 1]]
    has = np.array([[c in record.objects.classes for c in (1, 2)] for record in other])
    np.testing.assert_allclose(rates[iterator.sets == 1], 0.3 * (has / has.sum(axis=0)).sum(axis=1) / 2, rtol=1e-9)
    config.data.sampler = "repeat_factor"
    config.data.repeat_threshold = 4.0
    iterator = make_train_iterator(mixed, config)
    iterator.close()
    factors = np.sqrt(4.0 / has.mean(axis=0))
    expected = np.where(has, factors, 1).max(axis=1)
    rates = iterator.sampler.image_rates()[iterator.sets == 1]
    np.testing.assert_allclose(rates / rates.sum(), expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_of_0_and_1(written, config, share):
    mixed = opened(written, share=share)
    iterator = make_train_iterator(mixed, config)
    batches = take(iterator, 4)
    drawn = np.concatenate([batch["image_id"] for batch in batches])
    assert (drawn >= ID_STRIDE).all() if share else (drawn < ID_STRIDE).all()
    assert "whose share is 0, left out" in iterator.report.summary()
    if not share:  # the batches of the main set alone
        for batch, alone in zip(
            batches, take(make_train_iterator(load_annotations(*written[0]), config), 4), strict=True
        ):
            assert batch["annotated_classes"].all()
            assert_equal({key: batch[key] for key in alone}, alone)


def test_shares_that_sum_to_1_but_for_rounding(written, config):
    """.7 + .2 + .1 in floats is below 1; the main set is left out all the same."""
    main = load_annotations(*written[0])
    same = same_classes(main.categories, main.categories, origin="x")
    assert sum((0.7, 0.2, 0.1)) < 1
    mixed = mix(main, [ExtraSet(main, same, share, "all") for share in (0.7, 0.2, 0.1)])
    assert mixed.sets[0].share == 0
    iterator = make_train_iterator(mixed, config)
    iterator.close()
    assert set(iterator.sets.tolist()) == {1, 2, 3}


def test_a_set_of_one_image(written, config):
    """All its rows are that image, as many as its share asks for."""
    path = written[1][0]
    content = json.loads(path.read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    path.write_text(json.dumps(content))
    config.data.buckets = ((96, 96),)
    batches = take(make_train_iterator(opened(written, share=0.25), config), 6)
    assert [int((batch["image_id"] == ID_STRIDE + 101).sum()) for batch in batches] == [1] * 6


@pytest.mark.parametrize("source", ["json", "prepared"])
def test_objects_without_masks(written, config, source):
    """They have boxes, classes and no mask; the main set's objects keep theirs."""
    mixed = opened(written, masks=False, source=source)
    assert not mixed.sets[1].has_masks
    seen = set()
    for batch in take(make_train_iterator(mixed, config), 6):
        objects = batch["gt_classes"] >= 0
        is_main = batch["image_id"] < ID_STRIDE
        np.testing.assert_array_equal(batch["gt_has_mask"], objects & is_main[:, None])
        assert not batch["gt_masks"][~is_main].any()
        assert batch["gt_masks"][is_main][objects[is_main]].any(axis=(1, 2)).all()
        seen |= set(is_main.tolist())
    assert seen == {False, True}


def test_prepared_records_give_the_same_batches(written, config):
    from_json = take(make_train_iterator(opened(written), config), 3)
    from_records = take(make_train_iterator(opened(written, source="prepared"), config), 3)
    for a, b in zip(from_json, from_records, strict=True):
        assert_equal(a, b)


def test_tf_data_gives_the_same_batches(mixed, config):
    threads = take(make_train_iterator(mixed, config), 2)
    config.data.engine = "tf.data"
    for a, b in zip(threads, take(make_train_iterator(mixed, config), 2), strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("source", ["batch", "bank"])
@pytest.mark.parametrize("masks", [True, False])
def test_copy_paste(written, config, source, masks):
    """Pasted objects are positives of their class; negatives stay those of the image's own set."""
    mixed = opened(written, share=0.5, masks=masks)
    config.train.batch_size = 8
    config.data.buckets = ((96, 96),)
    config.data.max_objects = 30
    config.data.copy_paste.probability = 1.0
    config.data.copy_paste.source = source
    config.data.copy_paste.max_objects = 2
    records = {record.id: record for record in mixed.images}
    pasted_into = Counter()
    for batch in take(make_train_iterator(mixed, config), 12):
        for row, image_id in enumerate(batch["image_id"].tolist()):
            record = records[image_id]
            expected = [True] * 3 if record.annotated_classes is None else record.annotated_classes
            np.testing.assert_array_equal(batch["annotated_classes"][row], expected)
            classes = batch["gt_classes"][row]
            objects = classes >= 0
            assert batch["verified_classes"][row][classes[objects]].all()
            has_mask = batch["gt_has_mask"][row]
            assert not has_mask[~objects].any()
            if masks:
                assert has_mask[objects].all()
            elif image_id >= ID_STRIDE:  # what has a mask was pasted, out of the main set
                pasted_into["other"] += int(has_mask.sum())
                assert not batch["gt_masks"][row][~has_mask].any()
            else:
                assert has_mask[objects].all()
            pasted_into["shape1 into other"] += int(image_id >= ID_STRIDE and (classes == 0).any())
    assert pasted_into["shape1 into other"] > 3
    assert masks or pasted_into["other"] > 3


def test_faults(written):
    main = load_annotations(*written[0])
    same = same_classes(main.categories, main.categories, origin="x")
    for extra in ([ExtraSet(main, same, 0.6, "all")] * 2, [], [ExtraSet(main, same, -0.1, "all")]):
        with pytest.raises(ValueError, match="1 to 99 sets, shares not negative and at most 1"):
            mix(main, extra)
    with pytest.raises(ValueError, match="negatives is 'none', expected one of all, annotated, verified"):
        mix(main, [ExtraSet(main, same, 0.5, "none")])
    far = load_annotations(*written[0])
    far.images.image_index.ids[0] = ID_STRIDE
    with pytest.raises(AnnotationError, match="annotations.json: image id 10000000000000000; in a mixed data set"):
        mix(main, [ExtraSet(far, same, 0.5, "all")])


def test_no_usable_object(written, config):
    written[2].write_text('{"tree": null, "cube": "shape1"}')
    content = written[1][0].read_text().replace('"category_id": 3', '"category_id": 4')
    written[1][0].write_text(content)
    with pytest.raises(AnnotationError, match="other.json: none of 5 images has a usable object to train on"):
        make_train_iterator(opened(written), config)


def test_a_damaged_image_is_replaced_by_one_of_its_set(written, config):
    config.data.buckets = ((96, 96),)
    (written[1][1] / "000000000101.jpg").write_bytes(b"")
    batches = take(make_train_iterator(opened(written, share=0.5), config), 6)
    drawn = np.concatenate([batch["image_id"] for batch in batches])
    assert (drawn >= ID_STRIDE).sum() == 12
    assert set(drawn[drawn >= ID_STRIDE].tolist()) == {ID_STRIDE + 102, ID_STRIDE + 105}


def test_from_the_tables_of_open_images(written, config, tmp_path):
    """Verified labels of a picture: Ball has a box, Cube is absent, Globe is there without a box, Tree is unknown."""
    name = "fffffffffffffff0"
    Image.new("RGB", (80, 60), (0, 0, 250)).save(tmp_path / f"{name}.jpg")
    head = "ImageID,Source,LabelName,Confidence"
    (tmp_path / "boxes.csv").write_text(
        f"{head},XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
        f"{name},xclick,/m/ball,1,0.25,0.5,0.25,0.75,0,0,0,0,0\n"
    )
    (tmp_path / "labels.csv").write_text(
        f"{head}\n{name},verification,/m/cube,0\n{name},verification,/m/globe,1\n{name},verification,/m/ball,1\n"
    )
    (tmp_path / "classes.csv").write_text("/m/ball,Ball\n/m/globe,Globe\n/m/cube,Cube\n/m/tree,Tree\n")
    (tmp_path / "map.json").write_text('{"Ball": "shape1", "Globe": "shape2", "Cube": "shape3"}')
    out = tmp_path / "oid.json"
    convert(tmp_path / "boxes.csv", tmp_path / "classes.csv", out, labels=tmp_path / "labels.csv", images=tmp_path)
    config.data.extra_sets = ((str(out), str(tmp_path), str(tmp_path / "map.json"), 1.0),)
    mixed = with_extra_sets(config, load_annotations(*written[0]))
    assert mixed.sets[1].negatives == "verified" and not mixed.sets[1].has_masks
    batch = take(make_train_iterator(mixed, config), 1)[0]
    assert set(batch["image_id"].tolist()) == {ID_STRIDE + 0xFFFFFFFFFFFF0}
    for row in range(4):
        assert batch["annotated_classes"][row].tolist() == [True, False, True]
        assert batch["verified_classes"][row].tolist() == [True, False, True]
        assert batch["gt_classes"][row].tolist() == [0, -1, -1, -1, -1] and not batch["gt_has_mask"][row].any()
