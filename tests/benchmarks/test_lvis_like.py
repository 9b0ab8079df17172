"""The made-up objects of the benchmarks have the distribution that benchmarks/lvis_like.py writes down."""

import numpy as np
import pytest

from benchmarks import lvis_like
from eql_jax.data.categories import packaged_statistics


def test_counts_have_mean_eleven_and_a_tail_to_three_hundred():
    counts = lvis_like.object_counts(np.random.default_rng(0), 100_000)
    assert counts.mean() == pytest.approx(11, abs=0.2)
    assert np.median(counts) == 6
    assert (counts > 100).mean() == pytest.approx(0.005, abs=0.001)
    assert counts.min() == 1 and counts.max() == 300


@pytest.mark.parametrize("images", [8, 16, 64])
def test_few_images_already_have_about_the_mean(images):
    means = [lvis_like.object_counts(np.random.default_rng(seed), images).mean() for seed in range(20)]
    assert np.mean(means) == pytest.approx(11, abs=1.5)
    assert np.std(means) < 4  # independent draws of 8 have 5.3


@pytest.mark.parametrize(("height", "width"), [(800, 1344), (400, 672)])
def test_sizes(height, width):
    boxes = lvis_like.object_boxes(np.random.default_rng(1), 50_000, height, width)
    sides = boxes[:, 2:] - boxes[:, :2]
    size = np.sqrt(sides.prod(axis=1)) * 800 / height  # proportional to the image
    shares = [(size < 32).mean(), ((size >= 32) & (size < 96)).mean(), (size >= 96).mean()]
    np.testing.assert_allclose(shares, [0.26, 0.42, 0.32], atol=0.015)
    assert np.median(size) == pytest.approx(60, abs=2)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= np.array([width, height]) + 1e-3).all()
    assert (sides > 1.9).all()


def test_classes_come_as_often_as_in_lvis():
    counts = packaged_statistics("lvis_v1").instance_counts
    shares = lvis_like.class_shares(1203)
    np.testing.assert_allclose(shares, np.sort(counts)[::-1] / counts.sum())
    few = lvis_like.class_shares(80)
    np.testing.assert_allclose(few, shares[:80] / shares[:80].sum())
    assert lvis_like.class_shares(2000).sum() == pytest.approx(1)


def test_batch():
    options = dict(batch=4, height=64, width=96, num_classes=20, max_objects=30, mask_size=8)
    batch = lvis_like.make_batch(**options, seed=3)
    count = (batch["gt_classes"] >= 0).sum(axis=1)
    assert batch["image"].shape == (4, 64, 96, 3) and batch["image"].dtype == np.uint8
    assert (count >= 1).all() and (count <= 30).all()
    for i, n in enumerate(count):
        assert (batch["gt_classes"][i, :n] >= 0).all() and (batch["gt_classes"][i, n:] == -1).all()
        assert batch["gt_masks"][i, :n].any(axis=(1, 2)).all() and not batch["gt_masks"][i, n:].any()
    assert batch["gt_classes"].max() < 20
    again = lvis_like.make_batch(**options, seed=3)
    assert all(np.array_equal(batch[k], again[k]) for k in batch)
    assert ((lvis_like.make_batch(**options, objects=7)["gt_classes"] >= 0).sum(axis=1) == 7).all()
    with pytest.raises(ValueError, match="at most max_objects, 30"):
        lvis_like.make_batch(**options, objects=31)
