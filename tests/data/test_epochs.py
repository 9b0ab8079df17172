"""Streams of epochs: their ends, exactly; how often each image comes; repeat-factor sampling on a long-tailed set."""

import json
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import eql_jax.data
from eql_jax.data.epochs import EpochStream
from eql_jax.data.samplers import Sampler
from eql_jax.data.sampling_weights import repeat_factors

COUNTS = Path(eql_jax.data.__file__).parent / "counts" / "lvis_v1.json"
IMAGES = 5000
EPOCHS = 3


def make(factors, *, seed=0, bucket=0):
    factors = np.asarray(factors, np.float64)
    return EpochStream(100 + np.arange(factors.size), factors=factors, seed=seed, bucket=bucket)


def counts_of(stream, epochs, size):
    """How often each image comes in each of the epochs, int64 [epochs, size]."""
    return np.stack([np.bincount(stream.order(epoch) - 100, minlength=size) for epoch in epochs])


def test_places_one_by_one():
    """Each entry of the first epochs is found where counting finds it; every epoch is floor or ceil of the sum."""
    random = np.random.default_rng(0)
    for seed in range(30):
        factors = 1 + random.exponential(1, random.integers(1, 9)) * random.integers(0, 2)
        stream = make(factors, seed=seed)
        place = 0
        for epoch in range(40):
            assert stream.start(epoch) == place
            size = stream.order(epoch).size
            assert size in (np.floor(factors.sum()), np.ceil(factors.sum()))
            for i in range(size):
                assert stream.locate(place + i) == (epoch, i)
            place += size
        assert abs(place - 40 * stream.epoch_size) < 1


def test_places_far_out():
    """In fractions: epoch e starts at floor(e C + u), which no float gets right at epoch 10**15."""
    stream = make([1.1, 2.7, 1.0, 19.3], seed=4)
    total = sum((Fraction(round(f * 2**32), 2**32) for f in (1.1, 2.7, 1.0, 19.3)), Fraction(0))
    phase = Fraction(stream._phase, 2**32)
    assert 0 <= phase < 1
    for epoch in (10**6, 10**9, 10**15 + 1, 10**18):
        assert stream.start(epoch) == (epoch * total + phase).__floor__()
        size = stream.order(epoch).size
        assert stream.start(epoch + 1) - stream.start(epoch) == size
        assert stream.locate(stream.start(epoch)) == (epoch, 0)
        assert stream.locate(stream.start(epoch) + size - 1) == (epoch, size - 1)
        assert stream.locate(stream.start(epoch) - 1)[0] == epoch - 1


def test_every_epoch_has_floor_or_ceil_of_each_factor():
    random = np.random.default_rng(1)
    for seed in range(20):
        factors = np.round(1 + random.exponential(1.5, 200), int(random.integers(0, 4)))
        found = counts_of(make(factors, seed=seed), [0, 1, 2, 10**12], 200)
        assert (found >= np.floor(factors)).all() and (found <= np.ceil(factors)).all()
        assert (found >= 1).all()


@pytest.mark.parametrize("factors", [[2.25], [1.25, 1.75], [1.5] * 4, [1.1, 1.2, 1.3, 3.0, 1.9], [1.0, 1.001, 2.999]])
def test_each_image_comes_by_its_factor(factors):
    """Over the epochs of one seed, to 5 standard errors; also with a whole sum, where every epoch is as long."""
    for seed in range(4):
        stream = make(factors, seed=seed)
        mean = counts_of(stream, range(1500), len(factors)).mean(axis=0)
        fraction = np.array(factors) % 1
        assert (np.abs(mean - factors) <= 5 * np.sqrt(fraction * (1 - fraction) / 1500) + 1 / 1500).all()
        assert (mean[fraction == 0] == np.array(factors)[fraction == 0]).all()


def test_first_epoch_by_its_factor():
    """Over seeds, for the first epoch alone."""
    factors = np.array([1.25, 1.6, 2.5, 1.0])
    mean = np.mean([counts_of(make(factors, seed=seed), [0], 4)[0] for seed in range(1500)], axis=0)
    fraction = factors % 1
    assert (np.abs(mean - factors) <= 5 * np.sqrt(fraction * (1 - fraction) / 1500)).all()


def test_whole_factors_are_uniform_sampling():
    images = np.arange(50)
    uniform = EpochStream(images, factors=None, seed=3, bucket=1)
    ones = EpochStream(images, factors=np.ones(50), seed=3, bucket=1)
    for epoch in (0, 1, 10**9):
        np.testing.assert_array_equal(uniform.order(epoch), ones.order(epoch))
        assert uniform.start(epoch) == ones.start(epoch) == 50 * epoch
        assert uniform.locate(50 * epoch + 49) == ones.locate(50 * epoch + 49) == (epoch, 49)


def test_epochs_and_seeds_and_buckets_differ():
    factors = np.linspace(1, 3, 40)
    orders = [make(factors, seed=s, bucket=b).order(e).tolist() for s in (0, 1) for b in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 8
    assert len({tuple(sorted(order)) for order in orders}) == 8  # rounded anew, too


def test_factors_too_large():
    with pytest.raises(ValueError, match="sum up to"):
        make([1.0, 2.0**30])
    with pytest.raises(ValueError, match="sum up to"):
        make([1.0, np.inf])


# A set of 5,000 images in which each class of LVIS v1 is in its share of the images of LVIS, at least one.


@pytest.fixture(scope="module")
def long_tail():
    """(image, class) int64 [P] each, every pair once; buckets int64 [N]."""
    content = json.loads(COUNTS.read_text())
    column = content["columns"].index("image_count")
    shares = np.array([row[column] for row in content["categories"]]) / content["train_images_denominator"]
    random = np.random.default_rng(5)
    images = [random.choice(IMAGES, max(1, round(share * IMAGES)), replace=False) for share in shares]
    classes = np.repeat(np.arange(len(images)), [of_class.size for of_class in images])
    images = np.concatenate(images)
    order = np.argsort(images, kind="stable")
    return images[order], classes[order], random.choice(2, IMAGES, p=[0.7, 0.3])


def factors_of(long_tail, threshold):
    images, classes, _ = long_tail
    offsets = np.concatenate([[0], np.cumsum(np.bincount(images, minlength=IMAGES))])
    return repeat_factors(classes, offsets, num_classes=1203, threshold=threshold)


def detectron2_factors(dicts, threshold):
    """RepeatFactorTrainingSampler.repeat_factors_from_category_frequency, as its documentation says."""
    frequency = defaultdict(int)
    for classes in dicts:
        for category in set(classes):
            frequency[category] += 1
    repeat = {c: max(1.0, (threshold / (count / len(dicts))) ** 0.5) for c, count in frequency.items()}
    return np.array([max((repeat[c] for c in classes), default=1.0) for classes in dicts])


def class_counts(long_tail, per_image):
    """Number of drawn images with each class, from how often each image was drawn; [K]."""
    images, classes, _ = long_tail
    return np.bincount(classes, weights=per_image[images], minlength=1203)


def drawn_in_epochs(sampler, epochs):
    """How often each image was drawn in the first epochs of each bucket, out of the batches; int64 [epochs, N]."""
    steps = int(np.ceil((epochs + 0.5) * sampler.epoch_size / sampler.batch_size))
    assert all(progress.epoch >= epochs for progress in sampler.progress(steps).values())
    plans = [sampler.batch(step) for step in range(steps)]
    found = np.zeros((epochs, IMAGES), np.int64)
    for bucket in sampler.progress(0):
        stream = np.concatenate([plan.indices for plan in plans if plan.bucket == bucket])
        start = 0
        for epoch in range(epochs):
            size = sampler.streams[0].streams[bucket].order(epoch).size
            found[epoch] += np.bincount(stream[start : start + size], minlength=IMAGES)
            start += size
    return found


@pytest.mark.parametrize("threshold", [5e-4, 1e-3])
def test_class_frequencies_of_three_epochs(long_tail, threshold):
    """As often as the factors say, within the sampling error, and every image floor or ceil of its factor each epoch.

    An image of factor r comes floor(r) or one more time, so its count of an epoch has variance f (1 - f), f the
    fraction of r. Rounded independently, a class's count over E epochs would have the variance E sum f (1 - f) over its
    images; systematic sampling of a random order has no more (the next test), and z is measured by that. A class with
    whole factors only has no error at all.
    """
    factors = factors_of(long_tail, threshold)
    assert (factors > 1).mean() > 0.05 and factors.max() > 1.5
    sampler = Sampler(buckets=long_tail[2], batch_size=16, seed=2, factors=factors)
    per_epoch = drawn_in_epochs(sampler, EPOCHS)
    assert (per_epoch >= np.floor(factors)).all() and (per_epoch <= np.ceil(factors)).all()
    found = class_counts(long_tail, per_epoch.sum(axis=0))
    expected = EPOCHS * class_counts(long_tail, factors)
    fraction = factors % 1
    error = np.sqrt(EPOCHS * class_counts(long_tail, fraction * (1 - fraction)))
    random = error > 0
    assert 200 < random.sum()
    np.testing.assert_allclose(found[~random], expected[~random], rtol=1e-12)
    z = (found - expected)[random] / error[random]
    assert np.abs(z).max() < 4.5
    assert 0.85 < np.sqrt(np.mean(z**2)) < 1.1
    assert abs(z.mean()) < 0.2
    # All images of all classes: the length of the epochs, which is not random but for the phase.
    assert abs(per_epoch.sum() - EPOCHS * factors.sum()) < 2


def test_variance_is_at_most_that_of_independent_rounding(long_tail):
    """Over 500 epochs: each class's variance against sum f (1 - f), and its mean; the total hardly varies."""
    epochs = 500
    factors = factors_of(long_tail, 1e-3)
    stream = make(factors, seed=9)
    images = counts_of(stream, range(epochs), IMAGES)
    found = np.stack([class_counts(long_tail, of_epoch) for of_epoch in images])
    fraction = factors % 1
    bound = class_counts(long_tail, fraction * (1 - fraction))
    random = bound > 0
    ratio = found.var(axis=0)[random] / bound[random]
    assert ratio.max() < 1 + 5 * np.sqrt(2 / epochs)
    assert 0.9 < ratio.mean() < 1.02
    z = (found.mean(axis=0) - class_counts(long_tail, factors))[random] / np.sqrt(bound[random] / epochs)
    assert np.abs(z).max() < 4.5 and np.sqrt(np.mean(z**2)) < 1.1
    assert images.sum(axis=1).var() <= 0.25
    # No two images are rounded up together or apart more often than by chance: correlations of neighbours in the list.
    some = images[:, np.flatnonzero(fraction)[:300]].astype(float)
    correlation = np.corrcoef(some.T)[np.triu_indices(some.shape[1], 1)]
    assert np.abs(correlation).max() < 5.5 / np.sqrt(epochs)


@pytest.mark.parametrize("threshold", [5e-4, 1e-3])
def test_expectation_of_detectron2(long_tail, threshold):
    """The factors, and each image's share of all rows: its factor over the sum, in one bucket as in two.

    detectron2 rounds factor r to floor(r) + [a uniform draw < its fraction], expectation r.
    """
    images, classes, buckets = long_tail
    dicts = [[] for _ in range(IMAGES)]
    for image, category in zip(images.tolist(), classes.tolist(), strict=True):
        dicts[image].append(category)
    expected = detectron2_factors(dicts, threshold)
    factors = factors_of(long_tail, threshold)
    np.testing.assert_allclose(factors, expected, rtol=1e-12)
    for assigned in (np.zeros(IMAGES, int), buckets):
        sampler = Sampler(buckets=assigned, batch_size=16, seed=0, factors=factors)
        np.testing.assert_allclose(sampler.image_rates(), expected / expected.sum(), rtol=1e-9)
        assert abs(sampler.epoch_size - expected.sum()) < 1e-5
    stream = make(factors, seed=1)
    np.testing.assert_allclose(stream.rates, expected, atol=2.0**-33)


def test_factors_of_the_images_left(long_tail):
    """f_c is of the images that are trained on: images left out raise it, and lower the factor."""
    images, classes, _ = long_tail
    kept = np.random.default_rng(0).random(IMAGES) < 0.8
    pairs = kept[images]
    counts = np.bincount(images[pairs], minlength=IMAGES)[kept]
    factors = repeat_factors(classes[pairs], np.concatenate([[0], np.cumsum(counts)]), num_classes=1203, threshold=1e-3)
    of_class = np.bincount(classes[pairs], minlength=1203)
    repeat = np.maximum(1, np.sqrt(1e-3 * kept.sum() / np.maximum(of_class, 1)))
    expected = np.ones(IMAGES)
    np.maximum.at(expected, images[pairs], repeat[classes[pairs]])
    np.testing.assert_allclose(factors, expected[kept], rtol=1e-12)
    assert (factors != factors_of(long_tail, 1e-3)[kept]).mean() > 0.05


@pytest.mark.parametrize("sampler_kind", ["uniform", "repeat_factor"])
def test_hosts_draw_the_same_multiset(long_tail, sampler_kind):
    """1, 2 and 8 hosts, each with a sampler of its own and rows host * B / n ... of every batch, over three epochs."""
    factors = factors_of(long_tail, 1e-3) if sampler_kind == "repeat_factor" else None
    drawn = {}
    for hosts in (1, 2, 8):
        rows = 16 // hosts
        drawn[hosts] = Counter()
        for host in range(hosts):
            sampler = Sampler(buckets=long_tail[2], batch_size=16, seed=3, factors=factors)
            steps = int(EPOCHS * sampler.epoch_size / 16)
            parts = [sampler.batch(step).indices[host * rows : (host + 1) * rows] for step in range(steps)]
            drawn[hosts].update(np.concatenate(parts).tolist())
    assert drawn[1] == drawn[2] == drawn[8]
    assert len(drawn[1]) == IMAGES and drawn[1].total() == 16 * steps
