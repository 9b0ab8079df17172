"""Batch plans: epochs, proportions, repeat factors, random access."""

import json
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from eql_jax.data.annotations import load_annotations
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.samplers import Sampler
from eql_jax.data.sampling_weights import class_aware_probabilities, repeat_factors
from tests.data.conftest import make_content

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
    images = stream(sampler, 500)  # 14,500 = 2,000 epochs of 7.25
    counts = np.bincount(images, minlength=4)
    assert np.abs(counts[[0, 2]] - 2000).max() <= 1 and abs(counts[3] - 6000) <= 3
    assert abs(counts[1] - 4500) <= 3  # the only one rounded takes what makes the epochs' lengths
    starts = [sampler.streams[0].streams[0].start(epoch) for epoch in range(2000)]
    assert set(np.diff(starts)) == {7, 8}
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        per_image = np.bincount(images[start:end], minlength=4)
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


KINDS = ["uniform", "repeat_factor", "class_aware"]


def make_sampler(kind, *, images, batch_size=16, seed=0):
    """A sampler of many images in three buckets, by data.sampler's name."""
    random = np.random.default_rng(0)
    buckets = random.choice(3, images, p=[0.7, 0.25, 0.05])
    weights = 1 + random.exponential(1.5, images) * (random.random(images) < 0.3)
    argument = {"uniform": {}, "repeat_factor": {"factors": weights}, "class_aware": {"probabilities": weights}}[kind]
    return Sampler(buckets=buckets, batch_size=batch_size, seed=seed, **argument)


def seconds(call, repeats=7):
    """The fastest of some calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [10**9, 10**12])
def test_resume_at_a_far_step(kind, step):
    """The first batch of a new sampler and the following ones: as fast as at step 0, and the same from any start."""
    images = 20_000

    def resume(first):
        sampler = make_sampler(kind, images=images)
        return [sampler.batch(first + i) for i in range(100)]

    assert seconds(lambda: resume(step)) < 3 * seconds(lambda: resume(0))
    sampler = make_sampler(kind, images=images)
    for i in (70, 3, 99, 0):
        sampler.batch(i)
        plan = sampler.batch(step + i)
        expected = make_sampler(kind, images=images).batch(step + i)
        assert plan.bucket == expected.bucket and plan.indices.shape == (16,)
        np.testing.assert_array_equal(plan.indices, expected.indices)
        assert set(plan.indices) <= set(sampler.members(plan.bucket))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_constant(kind):
    """What a sampler holds after steps here and there, and the most it held, is what it is after a few first ones."""
    held = {}
    for name, starts in {"near": [0], "far": [10**9, 10**12], "all over": [5**i for i in range(26)]}.items():
        sampler = make_sampler(kind, images=20_000)
        tracemalloc.start()
        for start in starts:
            for step in range(start, start + 300):
                sampler.batch(step)
        held[name] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(sampler.streams[0]._orders) <= 6 and len(sampler._schedule._blocks) <= 8
    # Two orders a bucket, in bytes: 2 * 8 * 20,000 * 1.5; the blocks of the schedule: 60 kB each.
    assert max(now for now, _ in held.values()) < 1_100_000
    assert max(peak for _, peak in held.values()) < 2_200_000


@pytest.mark.parametrize("kind", KINDS)
def test_threads_get_the_same_plans(kind):
    """Eight threads at steps all over, with orders and blocks dropped and made anew meanwhile."""
    steps = [int(step) for step in np.random.default_rng(0).choice([0, 10**6, 10**9], 400) + np.arange(400)]
    expected = [make_sampler(kind, images=200).batch(step) for step in steps]
    shared = make_sampler(kind, images=200)
    with ThreadPoolExecutor(8) as pool:
        for found, plan in zip(pool.map(shared.batch, steps), expected, strict=True):
            assert found.bucket == plan.bucket
            np.testing.assert_array_equal(found.indices, plan.indices)


@pytest.mark.parametrize("kind", KINDS)
def test_progress(kind):
    """Against counting the batches; all of them make up the step, and `epoch` is their images over an epoch's."""
    sampler = make_sampler(kind, images=300)
    given = dict.fromkeys(range(3), 0)
    for step in range(150):
        if step % 7 == 0:
            progress = sampler.progress(step)
            assert {bucket: of_bucket.batches for bucket, of_bucket in progress.items()} == given
            for bucket, (batches, epoch, entry) in progress.items():
                if kind == "class_aware":
                    assert (epoch, entry) == (0, 16 * batches)
                else:
                    sizes = [sampler.streams[0].streams[bucket].order(e).size for e in range(epoch)]
                    assert sum(sizes) + entry == 16 * batches
                    assert entry < sampler.streams[0].streams[bucket].order(epoch).size
        given[sampler.batch(step).bucket] += 1
    assert sampler.epoch(0) == 0
    assert sampler.epoch(100) == pytest.approx(1600 / sampler.epoch_size)
    assert sum(of_bucket.batches for of_bucket in sampler.progress(10**12).values()) == 10**12
    if kind != "class_aware":  # each bucket is in the epoch that all of them are in, to a few batches
        for bucket, progress in sampler.progress(10**12).items():
            size = sampler.streams[0].streams[bucket].epoch_size
            fraction = progress.epoch + progress.entry / size
            assert abs(fraction - sampler.epoch(10**12)) < 32 * 16 / size + 1e-4


def test_image_rates_by_hand():
    """Factors 1, 2 and 5 in buckets 0, 0 and 3; probabilities 1, 3, 4 and a bucket that never comes."""
    factors = Sampler(buckets=[0, 0, 3], batch_size=4, seed=0, factors=np.array([1.0, 2.0, 5.0]))
    np.testing.assert_allclose(factors.image_rates(), [1 / 8, 2 / 8, 5 / 8], rtol=1e-12)
    assert factors.epoch_size == 8 and factors.epoch(3) == 1.5
    assert factors.describe() == (
        "3 images in 2 buckets, 8.0 images an epoch, "
        "an image drawn 0.38 to 1.88 times as often as under uniform sampling"
    )
    drawn = Sampler(buckets=[0, 0, 1, 2], batch_size=4, seed=0, probabilities=np.array([1, 3, 4, 0]))
    np.testing.assert_allclose(drawn.image_rates(), [1 / 8, 3 / 8, 4 / 8, 0], rtol=1e-12)
    assert drawn.epoch(3) == 3 and drawn.progress(0)[2] == (0, 0, 0) and "no epochs" in drawn.describe()
    uniform = Sampler(buckets=[5, 1, 1, 1], batch_size=4, seed=0)
    np.testing.assert_allclose(uniform.image_rates(), np.full(4, 1 / 4), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_image_rates_are_those_of_the_batches(kind):
    """Over 8,000 batches of 300 images: to 5 standard errors of independent draws, which epochs undercut."""
    sampler = make_sampler(kind, images=300)
    rates = sampler.image_rates()
    assert rates.sum() == pytest.approx(1)
    rows = np.concatenate([sampler.batch(step).indices for step in range(8000)])
    share = np.bincount(rows, minlength=300) / rows.size
    assert (np.abs(share - rates) <= 5 * np.sqrt(rates / rows.size)).all()


def test_hosts_of_a_pipeline(write_dataset, config):
    """1, 2 and 8 hosts read the same images by repeat factors, of the images with objects only: over some epochs.

    Of 11 images two have no object and are left out. Class 0 is in all nine, class 1 in one of them: at threshold 1 its
    factor is sqrt(9) = 3, with the empty images it would be sqrt(11).
    """
    content = make_content([(48, 40)] * 11, objects_per_image=1)
    for annotation in content["annotations"]:
        annotation["category_id"] = 10
    content["annotations"][4]["category_id"] = 20
    content["annotations"].append({**content["annotations"][4], "id": 99, "category_id": 10})
    empty = {content["images"][i]["id"] for i in (2, 7)}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in empty]
    paths = write_dataset(content)
    annotations = load_annotations(paths.json, paths.images)
    config.data.sampler = "repeat_factor"
    config.data.repeat_threshold = 1.0
    config.data.buckets = ((96, 96),)
    config.train.batch_size = 8
    read = {}
    for hosts in (1, 2, 8):
        read[hosts] = Counter()
        for host in range(hosts):
            iterator = make_train_iterator(annotations, config, host=host, num_hosts=hosts)
            np.testing.assert_allclose(iterator.sampler.image_rates() * 11, [1, 1, 1, 3, 1, 1, 1, 1, 1], rtol=1e-9)
            for _ in range(4):
                read[hosts].update(next(iterator)["image_id"].tolist())
            iterator.close()
    assert read[1] == read[2] == read[8]
    assert read[1].total() == 32 and len(read[1]) == 9 and not empty & set(read[1])
    assert read[1][105] in (8, 9)  # 32 rows: two epochs of 11 and ten of the third, three times in each


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
    with pytest.raises(ValueError, match="repeat factor"):
        Sampler(buckets=[0, 0], batch_size=2, seed=0, factors=np.array([1.0, np.nan]))
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
