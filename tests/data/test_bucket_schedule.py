"""The schedule of the buckets: exact counts at any step, against counting one by one."""

import numpy as np
import pytest

from eql_jax.data.bucket_schedule import BucketSchedule, floor_sum

GOLDEN = 0x9E3779B97F4A7C15


def test_floor_sum_by_hand():
    """floor((3 i + 1) / 4), i = 0 .. 5, is 0, 1, 1, 2, 3, 4."""
    assert floor_sum(6, 4, 3, 1) == 11
    assert floor_sum(0, 4, 3, 1) == 0
    assert floor_sum(5, 1, 0, 7) == 35


def test_floor_sum_term_by_term():
    random = np.random.default_rng(0)
    for _ in range(2000):
        n, divisor, factor, constant = (int(random.integers(low, 60)) for low in (0, 1, 0, 0))
        large = int(random.integers(2)) * 2**64  # with numbers beyond 64 bits, too
        divisor, factor, constant = divisor + large, factor * (large + 1), constant * (large + 1)
        expected = sum((factor * i + constant) // divisor for i in range(n))
        assert floor_sum(n, divisor, factor, constant) == expected, (n, divisor, factor, constant)


@pytest.mark.parametrize("weights", [[1.0], [70, 25, 5], [1, 1e-30, 1], [1e-30, 1], [1, 1e-30], [3, 1, 4, 1, 5, 9]])
@pytest.mark.parametrize("offset", [0, 1, 2**63 + 12345, 2**64 - 1])
def test_counts_one_by_one(weights, offset):
    """Points of NumPy's own arithmetic modulo 2**64, and the first borders by the definition."""
    schedule = BucketSchedule(weights, offset=offset)
    steps = 3000
    with np.errstate(over="ignore"):
        points = np.arange(steps, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(offset)
    ends = [min(int(end * 2**64), 2**64 - 1) for end in np.cumsum(weights)[:-1] / np.sum(weights)]
    which = np.searchsorted(np.array(ends, np.uint64), points, side="right")
    for step in (0, 1, 2, 255, 256, 257, 1000, 2999):
        assert schedule.counts(step) == np.bincount(which[:step], minlength=len(weights)).tolist()
    for step in [*range(300), 2047, 2048, 2999, 5]:  # blocks are dropped and made anew
        assert schedule.locate(step) == (which[step], np.count_nonzero(which[:step] == which[step]))
    assert len(schedule._blocks) <= 8


def test_shares_are_kept_at_any_step():
    """To within 5 steps up to 10**9 and 32 at any; from there on step by step."""
    shares = np.array([0.70, 0.25, 0.05])
    schedule = BucketSchedule(shares, offset=77)
    np.testing.assert_allclose(schedule.shares, shares, rtol=1e-14)
    for start in (0, 10**6, 10**9, 10**12, 10**18):
        counts = schedule.counts(start)
        assert sum(counts) == start
        # In integers, as floats have no units digit at 10**18.
        for count, lower, upper in zip(counts, schedule._borders[:-1], schedule._borders[1:], strict=True):
            error = abs(count * 2**64 - start * (upper - lower)) / 2**64
            assert error < (5 if start <= 10**9 else 32)
        for step in range(start, start + 600):
            which, before = schedule.locate(step)
            assert before == counts[which]
            counts[which] += 1
        assert schedule.counts(start + 600) == counts


def test_nearby_counts_agree_far_out():
    """Counts of two steps differ by the steps between, one by one, at random places up to 2**70."""
    random = np.random.default_rng(1)
    schedule = BucketSchedule([1, 2, 3, 4], offset=5)
    for _ in range(50):
        start = int(random.integers(2**35)) * int(random.integers(2**35))
        between = [schedule.locate(step)[0] for step in range(start, start + 40)]
        difference = np.array(schedule.counts(start + 40), object) - np.array(schedule.counts(start), object)
        assert difference.tolist() == np.bincount(between, minlength=4).tolist()
