"""Seeds of one's own on either side: Welch, permuted labels, and what an A/A check and a power plan promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from grokscale import stats

TAU = 40_000.0
VALUES = st.lists(st.floats(-5, 5), min_size=2, max_size=8)


@given(VALUES, VALUES)
def test_welch_is_that_of_scipy(a: list[float], b: list[float]):
    assume(min(np.std(a), np.std(b)) > 1e-3)
    x, y = np.array(a), np.array(b)
    got = stats.welch(x.mean() - y.mean(), x - x.mean(), y - y.mean())
    theirs = scipy.stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert (got.lo, got.hi) == pytest.approx((theirs.low, theirs.high), rel=1e-6, abs=1e-9)
    assert got.n == min(len(a), len(b))


def test_welch_at_the_edges():
    none = np.zeros(3)
    assert stats.welch(1.0, none, none) == (1, 1, 1, 3)
    assert stats.welch(1.0, none, np.zeros(1)) == (1, -math.inf, math.inf, 1)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (4, 6), (5, 2)])
def test_swapped_labels_are_those_of_scipy(n: int, m: int):
    rng = np.random.default_rng([n, m])
    a, b = rng.normal(0.7, 1, n), rng.normal(0, 1, m)
    ways = math.comb(n + m, n)
    far = abs(a.mean() - b.mean()) * (1 - 1e-9)
    theirs = scipy.stats.permutation_test(
        (a, b), lambda x, y: float(abs(np.mean(x) - np.mean(y)) >= far), permutation_type="independent",
        n_resamples=10_000, alternative="greater")  # fmt: skip
    assert stats.label_swap(a, b) == pytest.approx(theirs.null_distribution.mean()) and len(
        theirs.null_distribution
    ) == ways


def test_swapped_labels_of_many_and_of_equals():
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.6, 1, 9), rng.normal(0, 1, 9)
    exact = stats.label_swap(a, b, draws=50_000)  # 48,620 ways
    assert stats.label_swap(a, b, np.random.default_rng(1), draws=20_000) == pytest.approx(exact, abs=0.01)
    assert stats.label_swap([1.0, 1.0], [1.0, 1.0]) == 1
    assert stats.label_swap([5.0, 6.0], [1.0, 2.0]) == 2 / 6
    with pytest.raises(ValueError, match="need a generator"):
        stats.label_swap(np.ones(20), np.ones(20))


def test_an_unpaired_speedup_by_hand():
    got = stats.unpaired_speedup([400, 800, math.inf], [100, 200], 1000)
    assert got.s == pytest.approx((400 * 800 * 1000) ** (1 / 3) / (100 * 200) ** 0.5)
    theirs = scipy.stats.ttest_ind(np.log([400, 800, 1000]), np.log([100, 200]), equal_var=False).confidence_interval()
    assert (math.log(got.lo), math.log(got.hi)) == pytest.approx((theirs.low, theirs.high))
    assert (got.n, got.corr, got.bound, got.censored_base, got.p) == (2, None, ">=", 1, 0.1)  # of 10 ways only this one
    assert got.rmst_ratio == pytest.approx((2200 / 3) / 150) and got.rmst_lo < got.rmst_ratio < got.rmst_hi
    assert got.s_half == pytest.approx((400 * 500 * 500) ** (1 / 3) / (100 * 200) ** 0.5)
    assert stats.unpaired_speedup([None] * 3, [None] * 2, 10).undetermined
    with pytest.raises(ValueError, match="pairs are needed"):
        stats.unpaired_speedup([], [1], 10)


@given(st.lists(st.floats(1, 2000), min_size=2, max_size=5), st.lists(st.floats(1, 2000), min_size=2, max_size=5))
def test_swapping_the_sides_inverts_the_unpaired_answer(a: list[float], b: list[float]):
    there, back = stats.unpaired_speedup(a, b, 1000), stats.unpaired_speedup(b, a, 1000)
    assert there.s * back.s == pytest.approx(1) and there.p == pytest.approx(back.p)
    assert there.rmst_ratio * back.rmst_ratio == pytest.approx(1)
    if math.isfinite(there.hi) and back.lo > 0:
        assert there.lo * back.hi == pytest.approx(1)


def drawn(rng: np.random.Generator, n: int, middle: float, failing: float) -> np.ndarray:
    """n grok steps of log-sd 0.4, of which a share never comes."""
    times = middle * np.exp(stats.LOG_SD * rng.standard_normal(n))
    return np.where(rng.random(n) < failing, math.inf, times)


@pytest.mark.parametrize("failing", [0.0, 0.1])
def test_an_aa_check_covers_one_in_95_of_100(failing: float):
    """400 A/A experiments of 20 seeds a side; the bounds hold a right interval in 99.9 of 100 such tests."""
    rng, repeats = np.random.default_rng([2, int(10 * failing)]), 400
    hits = small = 0
    for _ in range(repeats):
        got = stats.unpaired_speedup(drawn(rng, 20, 8000, failing), drawn(rng, 20, 8000, failing), TAU, rng=rng)
        hits += got.lo <= 1 <= got.hi
        small += got.p <= 0.05
    low, high = scipy.stats.binom.interval(0.999, repeats, 0.95)
    assert low <= hits <= high, hits
    assert repeats - high <= small <= repeats - low, small


@pytest.mark.parametrize("n", [8, 20])
def test_what_the_plan_calls_detectable_is_found_in_80_of_100(n: int):
    """By the interval of S, which lies above 1 in 80 % of experiments with an arm that is so much sooner."""
    rng, repeats = np.random.default_rng(n), 600
    s, found = stats.detectable(n), 0
    for _ in range(repeats):
        base, arm = drawn(rng, n, 8000, 0), drawn(rng, n, 8000 / s, 0)
        found += stats.mean_interval(np.log(base) - np.log(arm)).lo > 0
    low, high = scipy.stats.binom.interval(0.999, repeats, 0.8)
    assert low <= found <= high, found
