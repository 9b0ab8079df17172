"""Batches of test-time augmentation: sizes and pixels of the views, padded sizes, odd files, hosts, engines."""

import numpy as np
import pytest
from PIL import Image

from configs import base
from eql_jax.data.annotations import load_annotations
from eql_jax.data.eval_batches import make_eval_batches, make_prediction_batches
from eql_jax.data.tta_views import ViewsLayout
from tests.data.conftest import make_content

MIXED = [(80, 60), (60, 80), (90, 60), (64, 64), (50, 120), (80, 50), (33, 61)]  # (width, height)


def resize_shortest_edge(height, width, side, longest):
    """Size of a view (height, width), by the rule of detectron2's ResizeShortestEdge."""
    factor = side * 1.0 / min(height, width)
    h, w = (side, factor * width) if height < width else (factor * height, side)
    if max(h, w) > longest:
        factor = longest * 1.0 / max(h, w)
        h, w = h * factor, w * factor
    return int(h + 0.5), int(w + 0.5)


@pytest.fixture
def tta_config(config):
    config.eval.tta.update(shorter_sides=(32, 64, 80), longest_side=200)
    return config


@pytest.fixture
def mixed(write_dataset):
    paths = write_dataset(make_content(MIXED, objects_per_image=1))
    return load_annotations(paths.json, paths.images, strict=True)


def lvis_layout(**changes):
    config = base.get_config()
    config.data.buckets = ((800, 1344), (1344, 800), (800, 1088), (1088, 800))
    config.eval.tta.shorter_sides = (600, 800, 1000, 1200, 1400)
    config.update_from_flattened_dict(changes)
    return ViewsLayout(config)


def test_padded_sizes_of_the_buckets():
    """By hand: 1088 x 600 / 800 = 816, in multiples of 32 832; 600 itself becomes 608."""
    layout = lvis_layout()
    photograph = layout.groups[layout.choose(480, 640)]
    assert photograph == ((608, 832), (800, 1088), (1024, 1376), (1216, 1632), (1408, 1920))
    assert layout.groups[layout.choose(640, 480)] == tuple(size[::-1] for size in photograph)
    assert layout.groups[layout.choose(427, 640)][1] == (800, 1344)  # 800 x 1199


def test_images_longer_than_the_buckets():
    """16:9 at 800 is 800 x 1422, which evaluation makes smaller (longest side 1333) and test-time augmentation not."""
    layout = lvis_layout()
    assert layout.groups[layout.choose(360, 640)] == (
        (608, 1216),
        (800, 1600),
        (1024, 2016),
        (1216, 2400),
        (1408, 2816),
    )
    longest = layout.groups[layout.choose(10, 4000)]
    assert [size.width for size in longest] == [4000] * 5
    assert layout.groups[layout.choose(4000, 10)][0] == (4000, 608)


def test_every_size_fits_and_groups_are_few():
    layout = lvis_layout()
    assert layout.num_groups <= 4 + 2 * 6
    rng = np.random.default_rng(0)
    for height, width in np.exp(rng.uniform(0, np.log(6000), (2000, 2))).astype(int).tolist():
        group = layout.groups[layout.choose(height, width)]
        for padded, side in zip(group, (600, 800, 1000, 1200, 1400), strict=True):
            h, w = resize_shortest_edge(height, width, side, 4000)
            assert h <= padded.height and w <= padded.width and padded.height % 32 == padded.width % 32 == 0


@pytest.mark.parametrize("longest", [100, 600, 601])
def test_longest_side_below_the_shorter_ones(longest):
    layout = lvis_layout(**{"eval.tta.longest_side": longest})
    for size in ((480, 640), (1, 900), (900, 1), (77, 77)):
        group = layout.groups[layout.choose(*size)]
        assert max(max(padded) for padded in group) <= longest + 31


def test_views_of_a_batch(mixed, tta_config):
    """Sizes by detectron2's rule, pixels Pillow's, zeros beyond; every image once; sizes of the file for results."""
    batches = make_eval_batches(mixed, tta_config, augmented=True)
    records = {record.id: record for record in mixed.images}
    ids, shapes = [], set()
    for batch in batches:
        assert set(batch) == {"image_id", "image_size", "original_size"} | {
            f"view{i}/{key}" for i in range(3) for key in ("image", "image_size")
        }
        np.testing.assert_array_equal(batch["image_size"], batch["original_size"])
        shapes.add(tuple(batch[f"view{i}/image"].shape for i in range(3)))
        for row, image_id in enumerate(batch["image_id"].tolist()):
            if image_id >= 0:
                ids.append(image_id)
                record = records[image_id]
                assert tuple(batch["original_size"][row]) == (record.height, record.width)
            for i, side in enumerate((32, 64, 80)):
                image, size = batch[f"view{i}/image"][row], tuple(batch[f"view{i}/image_size"][row].tolist())
                if image_id < 0:
                    assert size == image.shape[:2] and not image.any()
                    continue
                assert size == resize_shortest_edge(record.height, record.width, side, 200)
                picture = Image.open(record.path).convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
                np.testing.assert_array_equal(image[: size[0], : size[1]], np.asarray(picture))
                assert not image[size[0] :].any() and not image[:, size[1] :].any()
    assert sorted(ids) == sorted(records)
    sizes = {shape[1:3] for group in shapes for shape in group}
    assert f"{len(shapes)} groups of images by shape, {len(sizes)} padded sizes" in batches.description
    assert all(f"{height}x{width}" in batches.description for height, width in sizes)


def test_plain_batches_without_sides_or_where_they_are_not_asked_for(mixed, config, tta_config):
    assert "image" in next(iter(make_eval_batches(mixed, tta_config)))
    tta_config.eval.tta.shorter_sides = ()
    batches = make_eval_batches(mixed, tta_config, augmented=True)
    assert "image" in next(iter(batches)) and batches.description == ""


@pytest.mark.parametrize(("masks", "with_mask", "count"), [(True, True, 3), (False, True, 4), (False, False, 3)])
def test_plain_view_for_the_masks(mixed, tta_config, masks, with_mask, count):
    """Only where masks come from it: the image as plain evaluation has it (shorter side 64, longest 96)."""
    tta_config.eval.tta.masks, tta_config.model.with_mask = masks, with_mask
    batch = next(iter(make_eval_batches(mixed, tta_config, augmented=True)))
    assert sum(key.endswith("/image") for key in batch) == count
    if count == 4:
        rows = batch["image_id"] >= 0
        for size, original in zip(batch["view3/image_size"][rows], batch["original_size"][rows], strict=True):
            assert tuple(size) == resize_shortest_edge(*original.tolist(), 64, 96)


def test_files_that_cannot_be_read(mixed, tta_config):
    """Become padding rows, told once."""
    broken = mixed.images[2].path
    broken.write_bytes(broken.read_bytes()[:100])
    mixed.images[4].path.unlink()
    batches = make_eval_batches(mixed, tta_config, augmented=True)
    for _ in range(2):
        ids = np.concatenate([batch["image_id"] for batch in batches])
        assert sorted(ids[ids >= 0]) == sorted({r.id for r in mixed.images} - {mixed.images[2].id, mixed.images[4].id})
    assert sorted(s.path.name for s in batches.skipped) == sorted(mixed.images[i].path.name for i in (2, 4))


def test_hosts(mixed, tta_config):
    """Disjoint shares of as many batches; together the batches of one host."""
    whole = list(make_eval_batches(mixed, tta_config, augmented=True))
    parts = [list(make_eval_batches(mixed, tta_config, host=h, num_hosts=2, augmented=True)) for h in (0, 1)]
    for batch, a, b in zip(whole, *parts, strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([a[key], b[key]]), err_msg=key)


def test_engines_and_prediction_give_the_same(mixed, tta_config):
    expected = list(make_eval_batches(mixed, tta_config, augmented=True))
    tta_config.data.engine = "tf.data"
    others = [make_eval_batches(mixed, tta_config, augmented=True)]
    others.append(make_prediction_batches(mixed.images, tta_config, batch_size=4, augmented=True))
    for other in others:
        for batch, again in zip(expected, other, strict=True):
            assert batch.keys() == again.keys()
            for key in batch:
                np.testing.assert_array_equal(batch[key], again[key], err_msg=key)
