"""Batch plans: epochs, proportions, repeat factors, random access."""

import json
from pathlib import Path

import numpy as np
import pytest

from eql_jax.data.samplers import Sampler
from eql_jax.data.sampling_weights import class_aware_probabilities, repeat_factors

TESTDATA = Path(__file__).parents[1] / "testdata"


def ragged(classes):
    """Classes and offsets of a list of each image's classes."""
    offsets = np.cumsum([0, *(len(of_image) for of_image in classes)])
    return np.array([c for of_image in classes for c in of_image], np.int32), offsets


def stream(sampler, steps, bucket=0):
    """The images of a bucket over a number of steps, in order."""
    plans = [sampler.batch(step) for step in range(steps)]
    return np.concatenate([plan.indices for plan in plans if plan.bucket == bucket])


def test_every_epoch_is_a_permutation():
    sampler = Sampler(buckets=[0] * 10, batch_size=4, seed=3)
    images = stream(sampler, 10)  # four epochs; the batches straddle them
    for epoch in images.reshape(4, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert len({tuple(epoch) for epoch in images.reshape(4, 10).tolist()}) == 4  # each in its own order


def test_every_bucket_has_its_epochs():
    buckets = np.array([0, 2] * 20 + [0] * 17)
    sampler = Sampler(buckets=buckets, batch_size=3, seed=0)
    for bucket in (0, 2):
        members = np.flatnonzero(buckets == bucket)
        np.testing.assert_array_equal(sampler.members(bucket), members)
        images = stream(sampler, 400, bucket)
        epochs = images.size // members.size
        assert epochs > 5
        for epoch in images[: epochs * members.size].reshape(epochs, -1):
            np.testing.assert_array_equal(np.sort(epoch), members)


def test_buckets_have_their_share_at_all_times():
    """Shares of 70, 25 and 5 %: at any step each bucket is within three batches of its share."""
    buckets = [0] * 70 + [1] * 25 + [2] * 5
    sampler = Sampler(buckets=buckets, batch_size=2, seed=11)
    chosen = np.array([sampler.batch(step).bucket for step in range(2000)])
    steps = np.arange(1, 2001)
    for bucket, share in ((0, 0.70), (1, 0.25), (2, 0.05)):
        assert np.abs(np.cumsum(chosen == bucket) - share * steps).max() < 3


def test_random_access():
    """A plan does not depend on what was asked before, across blocks and epochs."""
    kwargs = dict(buckets=[0] * 50 + [1] * 30, batch_size=8, seed=5, factors=np.linspace(1, 3, 80))
    forward = Sampler(**kwargs)
    steps = [0, 1, 7, 500, 4095, 4096, 5000, 9000]
    expected = {step: forward.batch(step) for step in range(9001) if step in steps}
    for step in reversed(steps):
        plan = Sampler(**kwargs).batch(step)
        assert plan.bucket == expected[step].bucket
        np.testing.assert_array_equal(plan.indices, expected[step].indices)


def test_seed_decides():
    plans = [[Sampler(buckets=[0] * 30, batch_size=30, seed=s).batch(0).indices.tolist()] for s in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_fewer_images_than_the_batch():
    sampler = Sampler(buckets=[0, 0, 0], batch_size=16, seed=0)
    counts = np.bincount(np.concatenate([sampler.batch(step).indices for step in range(3)]), minlength=3)
    assert counts.tolist() == [16, 16, 16]
    assert Sampler(buckets=[1], batch_size=4, seed=0).batch(9).indices.tolist() == [0, 0, 0, 0]


def test_repeats():
    """An image with factor 2.25 comes twice or three times an epoch, over many epochs 2.25 times on average."""
    factors = np.array([1.0, 2.25, 1.0, 3.0])
    sampler = Sampler(buckets=[0] * 4, batch_size=29, seed=2, factors=factors)
    images = stream(sampler, 500)
    counts = np.bincount(images, minlength=4)
    np.testing.assert_allclose(counts / counts[0], factors, rtol=0.02)
    lengths = [sampler._order(0, epoch).size for epoch in range(40)]
    assert set(lengths) == {7, 8}
    for epoch in range(40):
        per_image = np.bincount(sampler._order(0, epoch), minlength=4)
        assert per_image[[0, 2, 3]].tolist() == [1, 1, 3]
        assert per_image[1] in (2, 3)


def test_repeat_factors_of_detectron2():
    """40 images of LVIS v0.5 at four thresholds; three have no class, or only frequent ones."""
    golden = json.loads((TESTDATA / "data_mapper.json").read_text())["repeat_factors"]
    for threshold, expected in golden["thresholds"].items():
        factors = repeat_factors(
            *ragged(golden["classes"]), num_classes=golden["num_classes"], threshold=float(threshold)
        )
        np.testing.assert_allclose(factors, expected, rtol=1e-6)


def test_repeat_factors_by_hand():
    """Class 0 in all four images, class 1 in one (f = .25), class 2 nowhere; t = 1: sqrt(1 / .25) = 2."""
    classes = ragged([[0], [0, 0, 1, 1], [0], [0]])
    np.testing.assert_array_equal(repeat_factors(*classes, num_classes=3, threshold=1.0), [1, 2, 1, 1])
    np.testing.assert_array_equal(repeat_factors(*ragged([[]]), num_classes=1, threshold=1.0), [1])
    assert repeat_factors(*ragged([]), num_classes=1, threshold=1.0).shape == (0,)


def test_class_aware_probabilities_by_hand():
    """Class 0 in three images, 1 in one, 2 in two, 3 nowhere: C = 3, p = 1/3 (1/3 + ..)."""
    found = class_aware_probabilities(*ragged([[0, 0], [1, 0, 0], [2, 2, 2], [0, 2], []]), num_classes=4)
    np.testing.assert_allclose(found, [1 / 9, 1 / 9 + 1 / 3, 1 / 6, 1 / 9 + 1 / 6, 0], rtol=1e-12)


def long_tail(images=300, num_classes=12, seed=0):
    """Classes and buckets of images: class c is in about a share .6 / (c + 1)^1.5 of them; image 0 has none."""
    random = np.random.default_rng(seed)
    share = 0.6 / np.arange(1, num_classes + 1) ** 1.5
    classes = [np.flatnonzero(random.random(num_classes) < share) for _ in range(images)]
    classes[0] = np.zeros(0, np.int64)
    return classes, random.choice(3, images, p=[0.7, 0.25, 0.05])


def test_class_aware_frequencies():
    """Images and classes come as often as their probabilities say, to 5 standard errors, with buckets as without."""
    classes, buckets = long_tail()
    probabilities = class_aware_probabilities(*ragged(classes), num_classes=12)
    has_class = np.array([np.isin(np.arange(12), of_image) for of_image in classes])
    seen = has_class.any(axis=0)
    expected = probabilities @ has_class  # probability that an image of a batch contains the class
    assert expected[seen].min() >= 1 / seen.sum() - 1e-12  # a class is drawn with probability 1 / C, and comes along
    for assigned in (np.zeros(300, int), buckets):
        sampler = Sampler(buckets=assigned, batch_size=16, seed=1, probabilities=probabilities)
        plans = [sampler.batch(step) for step in range(4000)]
        assert all((assigned[plan.indices] == plan.bucket).all() for plan in plans)
        images = np.bincount(np.concatenate([plan.indices for plan in plans]), minlength=300)
        draws = images.sum()
        assert images[0] == 0 and draws == 64_000
        for count, p in ((images, probabilities), (images @ has_class, expected)):
            error = np.sqrt(p * (1 - p) / draws)
            assert (np.abs(count / draws - p) <= 5 * error).all()
        # A low-discrepancy sequence chooses the buckets: each is within a few steps of its share.
        steps = np.bincount([plan.bucket for plan in plans], minlength=3)
        shares = np.bincount(assigned, weights=probabilities, minlength=3)
        assert np.abs(steps - 4000 * shares).max() < 4


def test_class_aware_random_access_and_hosts():
    """A plan is a function of (seed, step): any start, any order, any instance (host) gives the same."""
    classes, buckets = long_tail()
    kwargs = dict(
        buckets=buckets, batch_size=8, probabilities=class_aware_probabilities(*ragged(classes), num_classes=12)
    )
    forward = Sampler(seed=5, **kwargs)
    expected = [forward.batch(step) for step in range(50)]
    resumed = Sampler(seed=5, **kwargs)
    for step in (49, 3, 20):
        plan = resumed.batch(step)
        assert plan.bucket == expected[step].bucket
        np.testing.assert_array_equal(plan.indices, expected[step].indices)
    assert len({tuple(plan.indices) for plan in expected}) == 50
    other = Sampler(seed=6, **kwargs)
    assert any((other.batch(step).indices != plan.indices).any() for step, plan in enumerate(expected))


def test_class_aware_far_step_is_as_fast():
    """No state is built up with the steps but 24 bytes for every 4096 of them."""
    sampler = Sampler(buckets=[0, 1, 1], batch_size=4, seed=0, probabilities=np.array([0.2, 0.3, 0.5]))
    sampler.batch(1_000_000)
    assert not sampler._orders and not any(sampler._epoch_ends.values()) and len(sampler._block_starts) <= 246


def test_images_of_probability_zero_never_come():
    """Not the first, not the last of a bucket, and not a whole bucket of them."""
    sampler = Sampler(buckets=[0, 0, 0, 0, 1, 1], batch_size=50, seed=0, probabilities=np.array([0, 1, 1, 0, 0, 0]))
    drawn = np.concatenate([sampler.batch(step).indices for step in range(50)])
    assert set(drawn.tolist()) == {1, 2}
    np.testing.assert_array_equal(sampler.members(1), [4, 5])


def test_bad_arguments():
    with pytest.raises(ValueError, match="no images"):
        Sampler(buckets=[], batch_size=2, seed=0)
    with pytest.raises(ValueError, match="repeat factor"):
        Sampler(buckets=[0, 0], batch_size=2, seed=0, factors=np.array([1.0, 0.5]))
    with pytest.raises(ValueError, match="one probability >= 0 for each of 2 images"):
        Sampler(buckets=[0, 0], batch_size=2, seed=0, probabilities=np.array([1.0, -0.5]))
    with pytest.raises(ValueError, match="one above 0"):
        Sampler(buckets=[0, 0], batch_size=2, seed=0, probabilities=np.zeros(2))
    with pytest.raises(ValueError, match="both given"):
        Sampler(buckets=[0], batch_size=2, seed=0, factors=np.ones(1), probabilities=np.ones(1))
    with pytest.raises(ValueError, match="2 images without a class"):
        class_aware_probabilities(*ragged([[], []]), num_classes=3)
    with pytest.raises(ValueError, match=r"from 0 to 3, expected 0 .. 2"):
        repeat_factors(*ragged([[0], [3, 1]]), num_classes=3, threshold=0.1)
    for offsets in ([0, 1], [1, 2], [0, 3, 2], []):
        with pytest.raises(ValueError, match="from 0 to the 2 classes"):
            repeat_factors(np.array([0, 1]), np.array(offsets, np.int64), num_classes=3, threshold=0.1)
    with pytest.raises(ValueError, match="batch size"):
        Sampler(buckets=[0], batch_size=0, seed=0)
    with pytest.raises(ValueError, match="step"):
        Sampler(buckets=[0], batch_size=1, seed=0).batch(-1)
