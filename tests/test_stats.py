"""The statistics against published examples, scipy, simulation and their own symmetries."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from grokscale import stats
from grokscale.stats import paired_speedup

TAU = 1000.0
TIMES = st.lists(st.one_of(st.floats(1, 2000), st.just(math.inf)), min_size=2, max_size=12)
PAIRS = TIMES.flatmap(lambda a: st.tuples(st.just(a), st.lists(st.floats(1, 2000), min_size=len(a), max_size=len(a))))


def of(pair: Sequence[Sequence[float]], tau: float = TAU) -> stats.SpeedUp:
    """The speed-up of a drawn (baseline, arm)."""
    return paired_speedup(pair[0], pair[1], tau)


# Remission of leukaemia in weeks, 6-mercaptopurine against placebo (Freireich et al. 1963; Gehan 1965).
MP6 = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
MP6_ENDED = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
PLACEBO_ENDED = [1] * 21


# -------------------------------------------------------------------------------------- speed-up


def test_a_speedup_by_hand():
    got = paired_speedup([400, 800, math.nan], [100, 400, 200], 1000)
    logs = np.log([4, 2, 5])
    assert got.s == pytest.approx(np.exp(logs.mean()))
    reach = 4.302653 * logs.std(ddof=1) / math.sqrt(3)  # the 97.5 % point of t with 2 degrees of freedom
    assert (got.lo, got.hi) == pytest.approx((np.exp(logs.mean() - reach), np.exp(logs.mean() + reach)), rel=1e-6)
    assert got.p == 2 / 8 and got.n == 3  # of 8 sign flips only all plus and all minus lie as far out
    assert (got.censored_base, got.censored_arm, got.bound) == (1, 0, ">=")
    assert got.s_half == pytest.approx((4 * 500 / 400 * 500 / 200) ** (1 / 3))
    assert got.rmst_ratio == pytest.approx((400 + 800 + 1000) / (100 + 400 + 200))
    assert (got.success_base, got.success_arm) == (2 / 3, 1) and (got.median_base, got.median_arm) == (
        800,
        200,
    )
    assert got.p_sooner == pytest.approx((3 + 2.5 + 3) / 9) and not got.undetermined


@pytest.mark.parametrize(("base", "arm", "bound"), [
    ([10, 20], [5, 5], "="), ([10, math.inf], [5, 5], ">="), ([10, 20], [5, math.inf], "<="),
    ([10, math.inf], [5, math.inf], "="), ([10, 1000.5], [5, 1000], ">="),
])  # fmt: skip
def test_a_bound_only_where_one_side_alone_is_censored(base: list[float], arm: list[float], bound: str):
    assert paired_speedup(base, arm, TAU).bound == bound


def test_one_pair_has_no_interval():
    got = paired_speedup([400], [100], TAU)
    assert (got.lo, got.hi, got.p, got.corr) == (0, math.inf, 1, None) and got.s == pytest.approx(4)
    assert (got.rmst_lo, got.rmst_hi) == (0, math.inf)


def test_equal_pairs_have_an_interval_of_no_width():
    got = paired_speedup([400, 200, 100, 800], [200, 100, 50, 400], TAU)
    assert (got.s, got.lo, got.hi, got.corr) == pytest.approx((2, 2, 2, 1)) and got.p == 2 / 16
    same = paired_speedup([400, 200], [400, 200], TAU)
    assert same.s == same.lo == same.hi == 1 and same.p == 1 and same.p_sooner == 0.5


def test_nothing_grokked_says_nothing():
    got = paired_speedup([None, math.nan, math.inf], [1001, 2000, None], TAU)
    assert got.undetermined and (got.s, got.lo, got.hi, got.p, got.bound) == (1, 0, math.inf, 1, "=")
    assert got.median_base is got.median_arm is got.logrank_p is got.corr is None
    assert (got.rmst_ratio, got.rmst_lo, got.rmst_hi, got.p_sooner) == (1, 0, math.inf, 0.5)
    assert not paired_speedup([None, 999], [None, None], TAU).undetermined


@pytest.mark.parametrize(("base", "arm", "tau"), [
    ([1, 2], [1], 10), ([], [], 10), ([0, 1], [1, 1], 10), ([-1], [1], 10), ([1], [1], 0), ([1], [1], math.inf),
])  # fmt: skip
def test_impossible_input_is_an_error(base: list[float], arm: list[float], tau: float):
    with pytest.raises(ValueError, match=r"pairs are needed|must be > 0|must hold"):
        paired_speedup(base, arm, tau)


def test_another_clock_changes_the_times_and_not_the_censoring():
    """Seconds: 2 s a step for the baseline; the arm costs 6 s for its first 100 steps and 2 s after."""

    def costly(steps: stats.Floats) -> stats.Floats:
        return 6 * np.minimum(steps, 100) + 2 * np.maximum(steps - 100, 0)

    base, arm = [400, math.inf, 300], [100, 200, 50]
    got = paired_speedup(base, arm, TAU, clock_base=lambda steps: 2 * steps, clock_arm=costly)
    assert got.s == pytest.approx(((800 / 600) * (2000 / 800) * (600 / 300)) ** (1 / 3))
    assert got.s_half == pytest.approx(((800 / 600) * (1000 / 800) * (600 / 300)) ** (1 / 3))
    assert (got.censored_base, got.bound, got.median_arm, got.horizon) == (1, ">=", 600, TAU)


@given(PAIRS)
def test_swapping_the_sides_inverts_the_answer(pair: tuple[list[float], list[float]]):
    there, back = of(pair), of(pair[::-1])
    assert there.s * back.s == pytest.approx(1) and there.s_half * back.s_half == pytest.approx(1)
    assert there.rmst_ratio * back.rmst_ratio == pytest.approx(1) and there.p == back.p
    assert there.p_sooner + back.p_sooner == pytest.approx(1)
    if math.isfinite(there.hi):
        assert there.lo * back.hi == pytest.approx(1) and there.hi * back.lo == pytest.approx(1)
        assert there.lo <= there.s * (1 + 1e-9) and there.s <= there.hi * (1 + 1e-9)
    assert (there.censored_base, there.median_base) == (back.censored_arm, back.median_arm)


@given(PAIRS, st.floats(0.01, 100))
def test_another_unit_of_time_changes_no_ratio(pair: tuple[list[float], list[float]], unit: float):
    one = of(pair)
    assume(all(not math.isclose(t, TAU) for side in pair for t in side))  # rounding there is censoring
    other = of([[t * unit for t in side] for side in pair], TAU * unit)
    assert (one.censored_base, one.censored_arm, one.bound) == (other.censored_base, other.censored_arm, other.bound)
    for name in ("s", "lo", "hi", "s_half", "rmst_ratio", "p_sooner"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-6)


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_does_not_matter(pair, random):
    order = list(range(len(pair[0])))
    random.shuffle(order)
    one = dataclasses.asdict(of(pair))
    other = dataclasses.asdict(of([[side[i] for i in order] for side in pair]))
    for name, value in one.items():
        assert value == other[name] if value is None or isinstance(value, str) else value == pytest.approx(other[name])


@given(PAIRS, st.floats(1001, 1e9))
def test_what_happens_beyond_the_horizon_does_not_matter(pair: tuple[list[float], list[float]], late: float):
    moved = [[late if t > TAU else t for t in side] for side in pair]
    assert of(pair) == of(moved)


@pytest.mark.parametrize("n", [3, 5, 8, 12, 20])
@pytest.mark.parametrize("failing", [0.0, 0.1])
def test_the_intervals_cover_what_they_promise(n: int, failing: float):
    """Log-normal times of log-sd 0.4, half the steps. A failing seed never groks, on either side, and draws S
    to 1: the truth is the mean clamped log difference. One standard error of 4,000 repeats is 0.35 points."""
    rng, repeats, tau = np.random.default_rng(100 * n + int(10 * failing)), 4000, 40_000.0
    base, arm = (median * np.exp(0.4 * rng.standard_normal((repeats, n))) for median in (8000, 4000))
    if failing:
        base[rng.random(base.shape) < failing], arm[rng.random(arm.shape) < failing] = math.inf, math.inf
    truth = (1 - failing) * (np.log(8000) - np.log(4000))
    hits = costs = 0
    for b, a in zip(base, arm, strict=True):
        difference = np.log(np.minimum(b, tau)) - np.log(np.minimum(a, tau))
        s = stats.mean_interval(difference)
        hits += s.lo <= truth <= s.hi
        ratio = stats.rmst_ratio(np.minimum(b, tau), np.minimum(a, tau))
        costs += ratio.lo <= 2 <= ratio.hi
    assert 0.94 - 0.01 <= hits / repeats <= 0.96 + 0.01, hits / repeats
    if not failing:  # with failures the mean is a matter of a few seeds at small n
        assert 0.93 <= costs / repeats <= 0.97, costs / repeats


def test_the_interval_in_a_speedup_is_that_interval():
    base, arm = [400.0, 500.0, 900.0, 2000.0], [300.0, 100.0, 700.0, 900.0]
    got = paired_speedup(base, arm, TAU)
    expected = stats.mean_interval(np.log(np.minimum(base, TAU)) - np.log(arm))
    assert (got.lo, got.hi) == pytest.approx((math.exp(expected.lo), math.exp(expected.hi)))
    scipys = scipy.stats.ttest_rel(np.log(np.minimum(base, TAU)), np.log(arm)).confidence_interval()
    assert (got.lo, got.hi) == pytest.approx((math.exp(scipys.low), math.exp(scipys.high)))


# -------------------------------------------------------------------------------------- sign flips


@pytest.mark.parametrize("n", [2, 5, 9])
def test_sign_flips_are_those_of_scipy(n: int):
    d = np.random.default_rng(n).normal(0.4, 1, n)
    theirs = scipy.stats.permutation_test((d, np.zeros(n)), lambda x, y: np.mean(x - y), permutation_type="samples",
                                          n_resamples=10_000)  # fmt: skip
    assert stats.sign_flip(d) == pytest.approx(min(1.0, theirs.pvalue))


def test_sign_flips_of_ties_and_of_many():
    assert stats.sign_flip([1, 1, 1, -1]) == 10 / 16  # |sum| >= 2: one or none, three or four negative
    assert stats.sign_flip([0.1, 0.2, 0.3]) == stats.sign_flip([0.3, 0.2, 0.1]) == 2 / 8
    assert stats.sign_flip(np.zeros(5)) == 1
    assert stats.sign_flip(np.full(20, 0.3)) == 2 / 2**20
    d = np.random.default_rng(1).normal(0.35, 1, 20)
    exact, drawn = stats.sign_flip(d), stats.sign_flip(np.append(d, 0.0), np.random.default_rng(2))
    assert drawn == pytest.approx(exact, abs=0.005)  # a zero changes nothing, and 21 are drawn
    assert drawn == stats.sign_flip(np.append(d, 0.0), np.random.default_rng(2))
    with pytest.raises(ValueError, match="generator"):
        stats.sign_flip(np.ones(21))


def test_sign_flips_reject_as_often_as_they_say():
    rng = np.random.default_rng(4)
    p = np.array([stats.sign_flip(rng.standard_normal(8)) for _ in range(4000)])
    assert (p <= 0.05).mean() == pytest.approx(0.046875, abs=0.011)  # 12 of 256 flips


# ---------------------------------------------------------------------------------------- survival


def test_kaplan_meier_of_the_remission_data():
    curve = stats.kaplan_meier(MP6, MP6_ENDED)
    assert curve.times.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert curve.share == pytest.approx([0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], abs=5e-4)
    assert curve.at_risk.tolist() == [21, 17, 15, 12, 11, 7, 6]
    assert stats.median(MP6, MP6_ENDED) == 23 and stats.median(PLACEBO, PLACEBO_ENDED) == 8


def test_logrank_of_the_remission_data():
    got = stats.logrank(MP6, MP6_ENDED, PLACEBO, PLACEBO_ENDED)
    assert got.chi2 == pytest.approx(16.79, abs=0.005) and got.p == pytest.approx(4.17e-5, rel=0.01)
    assert stats.logrank(PLACEBO, PLACEBO_ENDED, MP6, MP6_ENDED) == pytest.approx(got)


def test_logrank_that_can_tell_nothing():
    assert stats.logrank([5, 5], [0, 0], [5], [0]) == (0, 1)
    assert stats.logrank([10], [1], [5], [0]) == (0, 1)  # alone at risk when it happened


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=25))
def test_kaplan_meier_is_that_of_scipy(data: list[tuple[int, bool]]):
    times, event = np.array([t for t, _ in data], dtype=float), np.array([e for _, e in data])
    assume(event.any())
    curve = stats.kaplan_meier(times, event)
    theirs = scipy.stats.ecdf(scipy.stats.CensoredData(uncensored=times[event], right=times[~event])).sf
    assert np.allclose(theirs.evaluate(curve.times), curve.share)
    inner = curve.share > 1e-12
    with warnings.catch_warnings(action="ignore"):  # it warns where the share is 0 or 1
        band = theirs.confidence_interval(method="log-log")
    for mine, other in ((curve.lo, band.low), (curve.hi, band.high)):
        assert np.allclose(mine[inner], other.evaluate(curve.times)[inner], equal_nan=True)
    half = [t for t in curve.times if theirs.evaluate(t) <= 0.5 + 1e-12]
    assert stats.median(times, event) == (half[0] if half else None)


def test_medians_at_the_edges():
    assert stats.median([10, 20, 30, 40], [1, 1, 0, 0]) == 20  # half are there, just
    assert stats.median([10, 40, 40, 40], [1, 0, 0, 0]) is None
    assert stats.median([7], [1]) == 7 and stats.median([7], [0]) is None


def test_the_restricted_mean_is_the_area_under_kaplan_meier():
    times = [12.0, 30.0, 30.0, 55.0, math.inf, math.nan]
    t, event = stats.clamped(times, 50)
    curve = stats.kaplan_meier(t, event)
    edges, heights = np.concatenate([[0], curve.times, [50]]), np.concatenate([[1], curve.share])
    assert stats.rmst(times, 50) == pytest.approx(np.sum(np.diff(edges) * heights)) == 37


def test_the_restricted_means_of_the_remission_data():
    """As R prints them (survfit, rmean): 8.67 weeks on placebo, 23.3 up to week 35 on 6-MP."""
    assert stats.rmst(PLACEBO, 23) == pytest.approx(8.67, abs=0.005)
    curve = stats.kaplan_meier(MP6, MP6_ENDED)
    edges, heights = np.concatenate([[0], curve.times, [35]]), np.concatenate([[1], curve.share])
    assert np.sum(np.diff(edges) * heights) == pytest.approx(23.3, abs=0.05)


def test_clamping():
    t, event = stats.clamped([5, 10, 10.5, None, math.nan, math.inf], 10)
    assert t.tolist() == [5, 10, 10, 10, 10, 10] and event.tolist() == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_sooner_over_all_pairs_with_ties_as_halves():
    base, arm = stats.clamped([10, 20, math.inf], 100), stats.clamped([10, math.inf], 100)
    # 10 < 20, 10 < never, 10 = 10, never = never
    assert stats.p_sooner(*base, *arm) == (2 + 0.5 + 0.5) / 6
    finite = [np.array([3.0, 8, 8, 1]), np.array([2.0, 8, 5])]
    theirs = scipy.stats.mannwhitneyu(finite[0], finite[1]).statistic / 12
    assert stats.p_sooner(finite[0], [1] * 4, finite[1], [1] * 3) == theirs


# ------------------------------------------------------------------------------- shares, p, design


@pytest.mark.parametrize(("k", "n", "interval"), [
    (81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718)),
])  # fmt: skip
def test_wilson_as_published(k: int, n: int, interval: tuple[float, float]):
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert stats.wilson(k, n) == pytest.approx(interval, abs=5e-5)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(counts: tuple[int, int]):
    theirs = scipy.stats.binomtest(*counts).proportion_ci(method="wilson")
    assert stats.wilson(*counts) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_at_the_edges():
    assert stats.wilson(0, 0) == (0, 1) and stats.wilson(8, 8)[1] == 1 and stats.wilson(0, 8)[0] == 0
    with pytest.raises(ValueError, match="0 <= k <= n"):
        stats.wilson(3, 2)


def test_holm_as_published():
    """Wikipedia's example (Holm-Bonferroni): at 5 % the first and the last of these stand."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == [] and stats.holm([0.6, 0.7]) == [1, 1] and stats.holm([0.02]) == [0.02]


def test_the_detectable_speedup_of_the_plan():
    assert round(stats.detectable(8), 1) == 1.9 and round(stats.detectable(20), 2) == 1.45
    assert stats.detectable(1) == math.inf
    assert stats.detectable(3) > stats.detectable(8) > stats.detectable(8, corr=0.5) > 1
    # Against the power of the t test, by simulation at n = 8.
    rng = np.random.default_rng(0)
    d = math.log(stats.detectable(8)) + 0.4 * math.sqrt(2) * rng.standard_normal((20_000, 8))
    t = d.mean(1) / d.std(1, ddof=1) * math.sqrt(8)
    assert (t > 2.364624).mean() == pytest.approx(0.8, abs=0.01)


def test_paired_differences_leave_out_what_is_unknown():
    got = stats.paired_difference([5, 7, math.nan, 9], [4, 4, 1, math.nan])
    assert (got.value, got.n) == (2, 2) and got.lo < 1 < 3 < got.hi
    none = stats.paired_difference([math.nan], [1])
    assert math.isnan(none.value) and (none.lo, none.hi, none.n) == (-math.inf, math.inf, 0)


def test_the_objective_is_always_finite():
    assert stats.objective([100, 400], 1000) == pytest.approx(math.log(200))
    assert stats.objective([None, math.inf], 1000) == pytest.approx(math.log(1000))
    assert stats.objective([0, 100], 1000) == pytest.approx(math.log(10))
    assert stats.geometric_mean_clamped([100, math.nan], 10_000) == pytest.approx(1000)


@pytest.mark.parametrize(("value", "power"), [(0.3, 1), (1, 1), (1.1, 2), (2, 2), (3, 4), (4096, 4096), (4096.5, 8192)])
def test_powers_of_two(value: float, power: int):
    assert stats.power_of_two_up(value) == power


def test_correlation_is_that_of_numpy():
    x, y = np.random.default_rng(3).standard_normal((2, 9))
    assert stats.correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert stats.correlation(x, np.ones(9)) is None
