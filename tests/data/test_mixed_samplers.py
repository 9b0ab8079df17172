"""Batches of several data sets: exact shares, every set's own epochs, random access, hosts."""

from collections import Counter

import numpy as np
import pytest

from eql_jax.data.row_shares import RowShares
from eql_jax.data.samplers import Sampler

# Set 0 mostly in bucket 0, set 1 mostly in bucket 2, set 2 a single image in bucket 1.
SIZES = {(0, 0): 70, (0, 1): 25, (0, 2): 5, (1, 0): 4, (1, 2): 37, (2, 1): 1}
SETS = np.concatenate([[s] * n for (s, _), n in SIZES.items()])
BUCKETS = np.concatenate([[b] * n for (_, b), n in SIZES.items()])
SHARES = (0.7, 0.26, 0.04)
KINDS = ["uniform", "repeat_factor", "class_aware"]


def make(kind="uniform", *, sets=SETS, buckets=BUCKETS, shares=SHARES, batch_size=16, seed=0):
    """A sampler of some images, by data.sampler's name; images are shuffled, sets are not in one piece."""
    order = np.random.default_rng(1).permutation(len(sets))
    weights = 1 + np.random.default_rng(0).exponential(1.5, len(sets)) * (np.arange(len(sets)) % 3 == 0)
    argument = {"uniform": {}, "repeat_factor": {"factors": weights}, "class_aware": {"probabilities": weights}}[kind]
    sets, buckets = np.asarray(sets)[order], np.asarray(buckets)[order]
    sampler = Sampler(buckets=buckets, batch_size=batch_size, seed=seed, sets=sets, shares=shares, **argument)
    return sampler, sets, buckets


def bucket_rate(sampler, number, bucket, kind="uniform"):
    """Rows of a set and bucket among all rows: the set's share times the bucket's in the set's epoch."""
    if kind == "uniform":
        sizes = {b: n for (s, b), n in SIZES.items() if s == number}
    else:
        sizes = sampler.streams[number].weights
    return SHARES[number] * sizes.get(bucket, 0) / sum(sizes.values())


@pytest.mark.parametrize("batch_size", [1, 7, 16])
@pytest.mark.parametrize(
    "weights", [(0.8, 0.2), (1, 0), (0, 3), (0.5, 0.25, 0.25), (0.61, 0.0, 0.3, 0.09), (1e-6, 1), (0, 0, 2)]
)
def test_rows_of_a_batch(weights, batch_size):
    """Two sets: within one row of the share at any time, floor or ceil of it in each batch. More: S - 1, one beyond."""
    shares = np.array(weights) / np.sum(weights)
    with_rows = np.count_nonzero(weights)
    for offset in (0, 2**63, 2**64 - 1):
        rows = RowShares(weights, batch_size=batch_size, offset=offset)
        np.testing.assert_allclose(rows.shares, shares, rtol=1e-15)
        for first in (0, 10**12):
            starts = np.array([rows.starts(first + n) for n in range(400)], np.int64)
            assert (starts.sum(axis=1) == batch_size * (first + np.arange(400))).all()
            if not first:
                error = np.abs(starts - batch_size * np.arange(400)[:, None] * shares)
                assert error.max() <= with_rows - 1 + 1e-9  # shares are rounded
            each = np.diff(starts, axis=0)
            assert (each >= 0).all() and not each[:, shares == 0].any()
            beyond = 0 if with_rows <= 2 else 1
            assert (each >= np.floor(batch_size * shares + 1e-9) - beyond).all()
            assert (each <= np.ceil(batch_size * shares - 1e-9) + beyond).all()


@pytest.mark.parametrize("kind", KINDS)
def test_shares_at_all_times(kind):
    """Rows of each set after any of 2000 steps: within three batches of its share."""
    sampler, sets, _ = make(kind)
    plans = [sampler.batch(step) for step in range(2000)]
    counts = np.array([np.bincount(sets[plan.indices], minlength=3) for plan in plans])
    assert (counts.sum(axis=1) == 16).all()
    given = np.cumsum(counts, axis=0)
    error = np.abs(given - 16 * np.arange(1, 2001)[:, None] * np.array(SHARES))
    assert error.max() < 3 * 16  # 30.4, 23.3 and 23.3 in 4000 steps when this was written
    # In a bucket's batches each set has what is its own there, floor or ceil of it or, of three sets, one beyond.
    for bucket in range(3):
        rates = np.array([bucket_rate(sampler, number, bucket, kind) for number in range(3)])
        rows = 16 * rates / rates.sum()
        found = counts[[plan.bucket == bucket for plan in plans]]
        beyond = 0 if np.count_nonzero(rates) < 3 else 1
        assert (found >= np.floor(rows) - beyond).all() and (found <= np.ceil(rows) + beyond).all()
        assert np.abs(found.sum(axis=0) - len(found) * rows).max() < 2 + 1e-6
        assert np.abs(len(found) - 2000 * rates.sum()) < 4


def test_no_image_is_lost_or_doubled():
    """Every epoch of every set and bucket is a permutation of its images, whatever the borders of the batches."""
    sampler, sets, buckets = make()
    plans = [sampler.batch(step) for step in range(1500)]
    for (number, bucket), size in SIZES.items():
        members = np.flatnonzero((sets == number) & (buckets == bucket))
        np.testing.assert_array_equal(sampler.members(bucket, number), members)
        # A batch's rows come in a random order; where an epoch ends within a batch, the batch has parts of two.
        rows = [p.indices[sets[p.indices] == number] for p in plans if p.bucket == bucket]
        given = np.cumsum([len(r) for r in rows])
        counts = np.zeros(len(sets), np.int64)
        for r, total in zip(rows, given, strict=True):
            np.add.at(counts, r, 1)
            assert counts[members].min() == total // size and counts[members].max() == -(-total // size)
        assert given[-1] > 5 * size
        assert sampler.progress(1500, number)[bucket] == (len(rows), *divmod(int(given[-1]), size))
    # All buckets of a set are in one epoch, to a few batches.
    for number in range(3):
        progress = sampler.progress(10**9, number)
        epochs = [progress[b].epoch + progress[b].entry / SIZES[number, b] for b in range(3) if (number, b) in SIZES]
        assert max(epochs) - min(epochs) < 1e-6 * max(epochs)


def test_repeat_factors_hold_in_every_epoch():
    sampler, sets, buckets = make("repeat_factor")
    plans = [sampler.batch(step) for step in range(600)]
    for number, bucket in SIZES:
        stream = sampler.streams[number].streams[bucket]
        rows = np.concatenate([p.indices[sets[p.indices] == number] for p in plans if p.bucket == bucket])
        progress = sampler.progress(600, number)[bucket]
        expected = np.concatenate([stream.order(e) for e in range(progress.epoch + 1)])[: rows.size]
        assert rows.size == stream.start(progress.epoch) + progress.entry
        assert Counter(rows.tolist()) == Counter(expected.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_random_access_and_hosts(kind):
    """Any start, any order, any instance; 1, 2 and 8 hosts take the same rows."""
    forward = make(kind, seed=5)[0]
    steps = [0, 3, 299, 300, 10**6, 10**12]
    expected = {step: forward.batch(step) for step in [*range(301), *steps]}
    for step in reversed(steps):
        plan = make(kind, seed=5)[0].batch(step)
        assert plan.bucket == expected[step].bucket
        np.testing.assert_array_equal(plan.indices, expected[step].indices)
    for hosts in (1, 2, 8):
        rows = 16 // hosts
        drawn = Counter()
        for host in range(hosts):
            sampler = make(kind, seed=5)[0]
            for step in range(50):
                drawn.update(sampler.batch(step).indices[host * rows : (host + 1) * rows].tolist())
        assert drawn == Counter(np.concatenate([expected[step].indices for step in range(50)]).tolist())
    other = make(kind, seed=6)[0]
    assert any((other.batch(step).indices != expected[step].indices).any() for step in range(5))


def test_the_main_set_goes_through_its_epochs_as_alone():
    """Its stream in a bucket is the one it has by itself."""
    sampler, sets, buckets = make()
    main = np.flatnonzero(sets == 0)
    alone = Sampler(buckets=buckets[main], batch_size=16, seed=0)
    for bucket in range(3):
        mixed, single = sampler.streams[0].streams[bucket], alone.streams[0].streams[bucket]
        np.testing.assert_array_equal(mixed.order(3), main[single.order(3)])


def test_rows_of_sets_are_mixed():
    """Every place in a batch has each set about as often: hosts and parts of a batch are alike."""
    sampler, sets, _ = make(shares=(0.5, 0.5, 0.0))
    rows = np.stack([sets[sampler.batch(step).indices] for step in range(2000)])
    assert np.abs((rows == 1).mean(axis=0) - 0.5).max() < 5 * np.sqrt(0.25 / 2000)


def test_shares_of_0_and_1():
    sampler, sets, _ = make(shares=(0.0, 1.0, 0.0))
    indices = np.concatenate([sampler.batch(step).indices for step in range(200)])
    assert set(sets[indices]) == {1}
    assert sampler.epoch(100) == 0 and sampler.epoch_size == np.inf
    assert sampler.progress(200)[0].entry == 0 and sampler.progress(200, 1)[0].entry + 1
    main = np.flatnonzero(sets == 0)
    sampler, sets, buckets = make(shares=(1.0, 0.0, 0.0))
    alone = Sampler(buckets=buckets[main], batch_size=16, seed=0)
    for step in range(100):
        assert sampler.batch(step).bucket == alone.batch(step).bucket
        np.testing.assert_array_equal(sampler.batch(step).indices, main[alone.batch(step).indices])
    assert sampler.epoch(25) == 4


def test_a_set_of_one_image():
    """It comes in every batch of its bucket that it has rows in, as often as its share says."""
    sampler, sets, _ = make(sets=[0] * 30 + [1], buckets=[0] * 31, shares=(0.75, 0.25))
    image = int(np.flatnonzero(sets == 1)[0])
    for step in range(50):
        assert (sampler.batch(step).indices == image).sum() == 4
    assert sampler.progress(50, 1)[0] == (50, 200, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_image_rates(kind):
    """What is drawn in 2000 steps, and each set's rates sum up to its share."""
    sampler, sets, _ = make(kind)
    rates = sampler.image_rates()
    np.testing.assert_allclose(np.bincount(sets, weights=rates), SHARES, rtol=1e-9)
    drawn = np.bincount(np.concatenate([sampler.batch(step).indices for step in range(2000)]), minlength=len(sets))
    error = 5 * np.sqrt(rates * (1 - rates) / 32_000) + 40 / 32_000
    assert (np.abs(drawn / 32_000 - rates) < error).all()
    assert "70.00% of set 0 with" in sampler.describe() and "4.00% of set 2" in sampler.describe()


def test_bad_arguments():
    with pytest.raises(ValueError, match="sum up to 1"):
        make(shares=(0.5, 0.4, 0.0))
    with pytest.raises(ValueError, match="not be negative"):
        make(shares=(1.5, -0.5, 0.0))
    with pytest.raises(ValueError, match=r"one set of 0 .. 1 for each of"):
        make(shares=(0.5, 0.5))
    with pytest.raises(ValueError, match="set 1 has the share 0.5 and no image"):
        Sampler(buckets=[0], batch_size=1, seed=0, sets=[0], shares=(0.5, 0.5))
    with pytest.raises(ValueError, match="set 1 has the share 0.5 and no image"):
        Sampler(
            buckets=[0, 0], batch_size=1, seed=0, sets=[0, 1], shares=(0.5, 0.5), probabilities=np.array([1.0, 0.0])
        )
