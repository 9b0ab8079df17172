"""Batches: their form, geometry, determinism, hosts, buckets, and the pixels of odd image files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eql_jax.data.annotations import load_annotations
from eql_jax.data.buckets import choose_bucket, parse_buckets
from eql_jax.data.eval_batches import make_eval_batches, make_prediction_batches
from eql_jax.data.images import read_image, read_size
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.transforms import Size, fit_size, output_size
from tests.data.conftest import make_content, resize_and_pad

MIXED = [(80, 60), (60, 80), (90, 60), (64, 64), (50, 100), (80, 50), (33, 61)]


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture
def mixed(write_dataset):
    content = make_content(MIXED, objects_per_image=3)
    content["images"][0]["neg_category_ids"] = [30]
    content["annotations"][0]["iscrowd"] = 1
    paths = write_dataset(content)
    return load_annotations(paths.json, paths.images, strict=True)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((300, 900), (444, 1333)), ((1, 5000), (1, 1333))],
)
def test_output_size(size, expected):
    assert output_size(*size, shorter_side=800, longest_side=1333) == expected


def test_buckets():
    buckets = parse_buckets([(800, 1344), (1344, 800), (800, 1088)])
    choose = lambda h, w: choose_bucket(h, w, buckets=buckets, shorter_side=800, longest_side=1333)  # noqa: E731
    assert choose(480, 640) == (2, True)  # 800 x 1067: the smallest that holds it
    assert choose(400, 800) == (0, True)
    assert choose(640, 480) == (1, True)
    assert choose(500, 500) == (2, True)
    small = parse_buckets([(100, 200), (200, 100)])
    assert choose_bucket(400, 300, buckets=small, shorter_side=128, longest_side=256) == (1, False)
    assert fit_size(Size(171, 128), small[1]) == (133, 100)
    assert fit_size(Size(90, 90), small[0]) == (90, 90)
    for h in range(1, 60):  # whatever the rounding, it fits
        size = fit_size(Size(7 * h, 311), Size(37, 41))
        assert size.height <= 37
        assert size.width <= 41


def test_form_of_a_training_batch(mixed, config):
    batch = take(make_train_iterator(mixed, config), 1)[0]
    height, width = batch["image"].shape[1:3]
    assert (height, width) in ((64, 96), (96, 64))
    expected = {
        "image": ((4, height, width, 3), np.uint8),
        "image_size": ((4, 2), np.int32),
        "original_size": ((4, 2), np.int32),
        "image_id": ((4,), np.int64),
        "gt_boxes": ((4, 5, 4), np.float32),
        "gt_classes": ((4, 5), np.int32),
        "gt_ignore": ((4, 5), bool),
        "gt_masks": ((4, 5, 16, 16), np.uint8),
        "verified_classes": ((4, 3), bool),
    }
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == expected


def test_ground_truth_of_a_batch(mixed, config):
    """Against the records: boxes scaled and flipped, classes, crowds, padding, verified classes."""
    records = {record.id: record for record in mixed.images}
    flips = set()
    for batch in take(make_train_iterator(mixed, config), 8):
        for row, image_id in enumerate(batch["image_id"].tolist()):
            record = records[image_id]
            h, w = batch["image_size"][row]
            assert batch["original_size"][row].tolist() == [record.height, record.width]
            assert not batch["image"][row, h:].any()
            assert not batch["image"][row, :, w:].any()
            n = record.objects.size
            scaled = record.objects.boxes * np.array([w / record.width, h / record.height] * 2)
            mirrored = np.stack([w - scaled[:, 2], scaled[:, 1], w - scaled[:, 0], scaled[:, 3]], axis=1)
            boxes = batch["gt_boxes"][row, :n]
            flipped = not np.allclose(boxes, scaled, atol=1e-3)
            np.testing.assert_allclose(boxes, mirrored if flipped else scaled, atol=1e-3)
            flips.add(flipped)
            np.testing.assert_array_equal(batch["gt_classes"][row], [*record.objects.classes, *[-1] * (5 - n)])
            np.testing.assert_array_equal(batch["gt_ignore"][row, :n], record.objects.ignore)
            assert not batch["gt_ignore"][row, n:].any()
            assert not batch["gt_masks"][row, n:].any()
            verified = {*record.objects.classes.tolist(), *record.neg_classes.tolist()}
            assert set(np.flatnonzero(batch["verified_classes"][row]).tolist()) == verified
    assert flips == {False, True}


def test_flip_mirrors_image_box_and_mask(write_dataset, config):
    """A white L-shape, off the middle: the white pixels of every batch are those that box and mask tell."""
    content = make_content([(200, 150)], objects_per_image=1)
    corner = [20, 30, 60, 30, 60, 50, 40, 50, 40, 110, 20, 110]
    content["annotations"][0].update(bbox=[20, 30, 40, 80], segmentation=[corner])
    paths = write_dataset(content, draw=False)
    mask = np.zeros((150, 200), bool)
    mask[30:50, 20:60] = mask[30:110, 20:40] = True
    Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)).save(
        paths.images / "train2017" / "000000000101.jpg", quality=100
    )
    annotations = load_annotations(paths.json, paths.images)
    config.train.batch_size = 1
    config.data.shorter_side = (90, 120)
    config.data.longest_side = 200
    config.data.buckets = ((128, 192),)
    config.data.mask_size = 64
    seen = set()
    for batch in take(make_train_iterator(annotations, config), 16):
        height, width = batch["image_size"][0]
        x1, y1, x2, y2 = batch["gt_boxes"][0, 0]
        seen.add((int(height), bool(x1 > width / 2)))
        rows, columns = np.mgrid[: batch["image"].shape[1], : batch["image"].shape[2]] + 0.5
        inside = (columns > x1) & (columns < x2) & (rows > y1) & (rows < y2)
        i = np.clip((rows - y1) / (y2 - y1) * 64, 0, 63).astype(int)
        j = np.clip((columns - x1) / (x2 - x1) * 64, 0, 63).astype(int)
        painted = inside & (batch["gt_masks"][0, 0][i, j] == 1)
        white = batch["image"][0, :, :, 0] > 127
        assert (painted & white).sum() / (painted | white).sum() > 0.97
    assert seen == {(90, False), (90, True), (120, False), (120, True)}


@pytest.mark.parametrize("sampler", ["repeat_factor", "class_aware"])
def test_same_batches_again_and_from_any_step(mixed, config, sampler):
    config.data.sampler = sampler
    config.data.repeat_threshold = 0.9
    first = take(make_train_iterator(mixed, config), 6)
    config.data.workers = 1
    for batch, other in zip(first, take(make_train_iterator(mixed, config), 6), strict=True):
        assert_equal(batch, other)
    iterator = make_train_iterator(mixed, config, start_step=4)
    assert iterator.step == 4
    resumed = take(iterator, 2)
    assert iterator.step == 6
    assert_equal(resumed[0], first[4])
    assert_equal(resumed[1], first[5])
    config.seed = 8
    other = take(make_train_iterator(mixed, config), 1)[0]
    assert other["image"].shape != first[0]["image"].shape or (other["image"] != first[0]["image"]).any()


@pytest.mark.parametrize(("num_hosts", "sampler"), [(2, "uniform"), (4, "uniform"), (2, "class_aware")])
def test_hosts_make_rows_of_the_same_batch(mixed, config, num_hosts, sampler):
    config.data.sampler = sampler
    whole = take(make_train_iterator(mixed, config), 3)
    parts = [take(make_train_iterator(mixed, config, host=h, num_hosts=num_hosts), 3) for h in range(num_hosts)]
    for step, batch in enumerate(whole):
        assert_equal(batch, {key: np.concatenate([part[step][key] for part in parts]) for key in batch})


def test_tf_data_gives_the_same_batches(mixed, config):
    threads = take(make_train_iterator(mixed, config, start_step=3), 4)
    dataset = make_train_iterator(mixed, config, start_step=3).as_tf_dataset()
    config.data.engine = "tf.data"
    through_tf = take(make_train_iterator(mixed, config, start_step=3), 4)
    tensors = list(dataset.take(4).as_numpy_iterator())
    for a, b, c in zip(threads, through_tf, tensors, strict=True):
        assert_equal(a, b)
        assert_equal(a, c)
    evaluated = list(make_eval_batches(mixed, config))
    config.data.engine = "threads"
    for a, b in zip(evaluated, make_eval_batches(mixed, config), strict=True):
        assert_equal(a, b)
    config.data.engine = "queue"
    with pytest.raises(ValueError, match="data.engine is 'queue', expected one of threads, tf.data"):
        make_train_iterator(mixed, config)


@pytest.mark.parametrize("engine", ["threads", "tf.data"])
def test_an_error_comes_out_as_it_was_raised(mixed, config, monkeypatch, engine):
    config.data.engine = engine

    def fail(*_, **__):
        raise ZeroDivisionError("in a worker")

    monkeypatch.setattr("eql_jax.data.pipeline.fill_train_row", fail)
    iterator = make_train_iterator(mixed, config)
    with pytest.raises(ZeroDivisionError, match="in a worker"):
        next(iterator)
    iterator.close()


def test_an_epoch_of_training_has_every_image_once(mixed, config):
    config.data.buckets = ((96, 96),)
    config.train.batch_size = len(MIXED)
    batch = take(make_train_iterator(mixed, config), 1)[0]
    assert sorted(batch["image_id"].tolist()) == [record.id for record in mixed.images]


def test_images_too_large_for_the_buckets(mixed, config):
    """They are scaled down to fit, with their boxes, and counted."""
    config.data.buckets = ((32, 64),)
    config.data.shorter_side = (48,)
    iterator = make_train_iterator(mixed, config)
    batch = take(iterator, 1)[0]
    assert (batch["image_size"] <= [32, 64]).all()
    assert (batch["gt_boxes"][..., 3].max(axis=1) <= batch["image_size"][:, 0]).all()
    assert list(iterator.report.notes.values()) == [len(MIXED)]
    assert "scaled down" in iterator.report.summary()


def test_evaluation_batches(mixed, config):
    batches = make_eval_batches(mixed, config)
    listed = list(batches)
    assert len(listed) == len(batches) == 2  # four landscape or square images, then three portrait ones and padding
    records = {record.id: record for record in mixed.images}
    ids = []
    for batch in listed:
        assert list(batch) == ["image", "image_size", "original_size", "image_id"]
        assert batch["image"].shape in ((4, 64, 96, 3), (4, 96, 64, 3))
        for row, image_id in enumerate(batch["image_id"].tolist()):
            if image_id < 0:
                assert not batch["image"][row].any()
                assert tuple(batch["image_size"][row]) == batch["image"].shape[1:3]
                continue
            ids.append(image_id)
            record = records[image_id]
            size = output_size(record.height, record.width, shorter_side=64, longest_side=96)
            assert tuple(batch["image_size"][row]) == size
            picture = Image.open(record.path).resize((size.width, size.height), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(batch["image"][row, : size.height, : size.width], np.asarray(picture))
    assert sorted(ids) == sorted(records)
    assert sorted(batches.records) == sorted(records)
    for batch, again in zip(listed, batches, strict=True):
        assert_equal(batch, again)


def test_evaluation_on_hosts(mixed, config):
    """Disjoint shares, as many batches and the same shapes on each; together the batches of one host."""
    whole = list(make_eval_batches(mixed, config))
    parts = [list(make_eval_batches(mixed, config, host=host, num_hosts=2)) for host in range(2)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for batch, a, b in zip(whole, *parts, strict=True):
        assert a["image"].shape == b["image"].shape
        assert_equal(batch, {key: np.concatenate([a[key], b[key]]) for key in batch})


def test_evaluation_of_some_images(mixed, config):
    config.eval.max_images = 3
    batches = make_eval_batches(mixed, config)
    ids = {i for batch in batches for i in batch["image_id"].tolist()} - {-1}
    assert ids == set(batches.records) == {101, 104, 107}  # evenly spaced


def test_prediction_gives_the_evaluation_batches(mixed, config):
    """From records and from paths alike."""
    expected = list(make_eval_batches(mixed, config))
    for batch, other in zip(expected, make_prediction_batches(mixed.images, config, batch_size=4), strict=True):
        assert_equal(batch, other)
    from_paths = make_prediction_batches([record.path for record in mixed.images], config, batch_size=4)
    for batch, other in zip(expected, from_paths, strict=True):
        np.testing.assert_array_equal(batch["image"], other["image"])
        np.testing.assert_array_equal(batch["original_size"], other["original_size"])
        np.testing.assert_array_equal(np.where(batch["image_id"] < 0, -1, batch["image_id"] - 100), other["image_id"])
    assert [from_paths.records[i].path for i in range(1, 8)] == [record.path for record in mixed.images]


def test_pillow_and_tensorflow_resize_alike():
    """An independent implementation of bilinear with antialias: at most 1 apart, .2 on average (rounding)."""
    import tensorflow as tf

    yy, xx = np.mgrid[:96, :128]
    drawn = np.stack([yy * 2, xx * 2, 255 * ((yy // 12 + xx // 12) % 2)], axis=2).astype(np.uint8)
    for size in (Size(48, 64), Size(61, 83), Size(150, 200)):
        ours = resize_and_pad(Image.fromarray(drawn), size=size, bucket=size).astype(int)
        theirs = np.rint(tf.image.resize(drawn, size, antialias=True).numpy()).clip(0, 255).astype(int)
        assert np.abs(ours - theirs).max() <= 1
        assert np.abs(ours - theirs).mean() < 0.2


def test_padding_and_flip_of_pixels():
    picture = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))
    plain = resize_and_pad(picture, size=Size(2, 3), bucket=Size(4, 5))
    np.testing.assert_array_equal(plain[:2, :3], np.asarray(picture))
    assert not plain[2:].any()
    assert not plain[:, 3:].any()
    flipped = resize_and_pad(picture, size=Size(2, 3), bucket=Size(4, 5), flip=True)
    np.testing.assert_array_equal(flipped[:2, :3], np.asarray(picture)[:, ::-1])


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1", "I;16"])
def test_odd_colour_modes(tmp_path, mode):
    """All become RGB of the same picture: left half dark, right half light."""
    grey = np.full((20, 30), 40, np.uint8)
    grey[:, 15:] = 200
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) << 8)
    else:
        picture = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
        picture = picture.quantize() if mode == "P" else picture.convert(mode)
    path = tmp_path / ("a.jpg" if mode in ("L", "CMYK") else "a.png")
    picture.save(path)
    pixels = np.asarray(read_image(path, expected=Size(20, 30)))
    assert pixels.shape == (20, 30, 3)
    if mode != "1":
        assert np.abs(pixels[:, :12].astype(int) - 40).max() <= 3
        assert np.abs(pixels[:, 18:].astype(int) - 200).max() <= 3


def test_exif_orientation_of_plain_paths(tmp_path, config):
    """Header and pixels agree on the size, also for TIFF files, which Pillow turns itself."""
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [tmp_path / f"a.{suffix}" for suffix in ("jpg", "png", "tif", "webp")]
    for path in paths:
        Image.new("RGB", (30, 20)).save(path, exif=exif)
        assert read_size(path) == (30, 20)
    batches = make_prediction_batches(paths, config, batch_size=4)
    (batch,) = batches
    assert not batches.skipped
    assert batch["original_size"].tolist() == [[30, 20]] * 4
    assert [(record.height, record.width) for record in batches.records.values()] == [(30, 20)] * 4


def test_exif_orientation(tmp_path):
    """Applied as detectron2 does, unless only the stored pixels have the size that the JSON states."""
    path = tmp_path / "a.jpg"
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the left side comes up
    Image.fromarray(stored).save(path, exif=exif, quality=100)
    assert read_size(path) == (30, 20)
    for expected in (None, Size(30, 20)):
        turned = np.asarray(read_image(path, expected=expected))
        assert turned.shape == (30, 20, 3)
        assert turned[:8].min() > 200
        assert turned[12:].max() < 50
    unturned = np.asarray(read_image(path, expected=Size(20, 30)))
    assert unturned[:, :8].min() > 200


def test_no_jax_and_no_early_tensorflow():
    """data/ imports neither; TensorFlow comes with the first batch."""
    modules = ["annotations", "categories", "examples", "images", "mixed", "parallel", "pipeline", "samplers"]
    code = "; ".join(f"import eql_jax.data.{module}" for module in modules)
    code += "; import sys; assert not {'jax', 'tensorflow', 'flax'} & set(sys.modules), 'imported too much'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_class_aware_sampling_counts_no_crowds(write_dataset, config):
    """Class 0 in images 0 and, as a crowd only, 1; class 1 in images 1 and 2: p = 1/2, 1/4, 1/4."""
    content = make_content([(80, 60)] * 3, objects_per_image=2)
    for annotation, category in zip(content["annotations"], [10, 10, 20, 10, 20, 20], strict=True):
        annotation["category_id"] = category
    content["annotations"][3]["iscrowd"] = 1
    paths = write_dataset(content)
    config.data.sampler = "class_aware"
    iterator = make_train_iterator(load_annotations(paths.json, paths.images), config)
    drawn = np.concatenate([iterator.sampler.batch(step).indices for step in range(500)])
    iterator.close()
    share = np.bincount(drawn, minlength=3) / drawn.size
    assert drawn.size == 2000
    np.testing.assert_allclose(share, [0.5, 0.25, 0.25], atol=5 * np.sqrt(0.25 / 2000))
