"""A published value against our seeds: the interval by hand, its coverage, and every verdict."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from grokscale.stats import Interval
from grokscale.stats.published import VERDICTS, judge, percentile, prediction_interval

EMA = [910.0, 1340.0, 910.0, 1070.0, 1460.0]  # what the authors' script gives with seeds 0 to 4, where they print 910
TIGHT = [95.0, 100.0, 105.0, 98.0, 102.0]  # log-sd 0.04: the prediction interval spans about 90 to 111
LOOSE = [20.0, 60.0, 100.0, 300.0, 500.0]
FASTER, NONE, SLOWER = Interval(3.0, 2.0, 4.5, 5), Interval(1.1, 0.8, 1.5, 5), Interval(0.5, 0.4, 0.7, 5)


def test_the_prediction_interval_by_hand():
    got = prediction_interval(EMA)
    logs = np.log(EMA)
    reach = 2.776445 * logs.std(ddof=1) * math.sqrt(1 + 1 / 5)  # the 97.5 % point of t with 4 degrees of freedom
    assert (got.value, got.n) == (pytest.approx(math.exp(logs.mean())), 5)
    assert (got.lo, got.hi) == pytest.approx((math.exp(logs.mean() - reach), math.exp(logs.mean() + reach)), rel=1e-6)
    of_three = prediction_interval(EMA, m=3)
    assert math.log(of_three.hi / of_three.lo) == pytest.approx(2 * reach * math.sqrt((1 / 3 + 1 / 5) / (1 + 1 / 5)))
    assert prediction_interval([7.0]) == (pytest.approx(7), 0, math.inf, 1)
    assert prediction_interval([5.0, 5.0]) == pytest.approx((5, 5, 5, 2))


@pytest.mark.parametrize("m", [1, 3])
def test_a_further_draw_falls_into_the_interval_in_95_of_100(m: int):
    rng, repeats = np.random.default_rng(m), 4000
    hits = 0
    for _ in range(repeats):
        ours, theirs = np.exp(0.4 * rng.standard_normal(5)), math.exp(0.4 * rng.standard_normal(m).mean())
        interval = prediction_interval(ours, m)
        hits += interval.lo <= theirs <= interval.hi
    low, high = scipy.stats.binom.interval(0.999, repeats, 0.95)
    assert low <= hits <= high, hits


@given(st.lists(st.floats(0.1, 1000), min_size=2, max_size=10), st.floats(0.1, 1000), st.floats(0.1, 100))
def test_another_unit_changes_no_verdict(values: list[float], claimed: float, unit: float):
    one = judge(values, claimed)
    _, lo, hi, _ = prediction_interval(values)
    assume(all(abs(claimed / end - 1) > 1e-6 for end in (lo, hi)))
    assume(np.std(np.log(values)) > 1e-6 and abs(hi / lo - 4) > 1e-6)
    assume(all(abs(value / claimed - 1) > 1e-9 for value in values))
    other = judge([value * unit for value in values], claimed * unit)
    assert (one.verdict, one.percentile, one.n) == (other.verdict, other.percentile, other.n)


def test_percentiles_count_ties_by_half():
    assert percentile(EMA, 910) == pytest.approx(20) and percentile(EMA, 909) == 0 and percentile(EMA, 2000) == 100


CASES: list[tuple[list[float], float, Interval | None, float | None, str]] = [
    (TIGHT, 100, FASTER, 3.0, "reproduced"),
    (TIGHT, 100, FASTER, 40.0, "reproduced"),  # the time is what was published, and it is ours
    (TIGHT, 50, FASTER, 10.0, "smaller"),
    (TIGHT, 300, FASTER, 1.5, "larger"),
    (TIGHT, 50, NONE, 10.0, "no effect"),
    (TIGHT, 50, SLOWER, 10.0, "reversed"),
    (TIGHT, 300, SLOWER, 0.9, "larger"),  # claimed to be slower, and slower still
    (TIGHT, 300, SLOWER, 0.1, "smaller"),
    (TIGHT, 300, FASTER, 0.5, "reversed"),
    (TIGHT, 100, NONE, 3.0, "inconclusive"),  # both 1 and the claim fit
    (TIGHT, 50, Interval(1.1, 0.2, 15.0, 5), 10.0, "inconclusive"),  # S may be 1 or what was claimed
    (LOOSE, 100, FASTER, 3.0, "inconclusive"),  # so wide that much would fit
    (LOOSE, 1e6, FASTER, 30.0, "smaller"),  # but not this
    ([100.0], 100, FASTER, 3.0, "inconclusive"),
    ([], 100, None, 3.0, "not run"),
    (TIGHT, 101, None, None, "reproduced"),
    (TIGHT, 50, None, None, "larger"),  # a time alone: ours is the greater
    (TIGHT, 300, None, None, "smaller"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "claimed", "s", "s_claimed", "verdict"), CASES)
def test_verdicts(values: list[float], claimed: float, s: Interval | None, s_claimed: float | None, verdict: str):
    assert judge(values, claimed, s=s, s_claimed=s_claimed).verdict == verdict


BOUNDS: list[tuple[float, Interval, float, str, str, str]] = [  # claimed, S, claimed S, bound, of a time, of a ratio
    (50, FASTER, 10.0, ">=", "smaller", "inconclusive"),  # our time is longer; S may be 10 for all that is known
    (300, FASTER, 10.0, ">=", "larger", "inconclusive"),
    (300, FASTER, 1.5, ">=", "larger", "larger"),  # at least 3 is more than 1.5
    (300, FASTER, 1.5, "<=", "larger", "inconclusive"),  # at most 3 may be 1.5
    (50, FASTER, 10.0, "<=", "smaller", "smaller"),
    (50, NONE, 10.0, ">=", "inconclusive", "inconclusive"),
    (50, NONE, 10.0, "<=", "no effect", "no effect"),
    (50, SLOWER, 10.0, ">=", "inconclusive", "inconclusive"),  # at least 0.5 is not on the other side of 1
    (50, SLOWER, 10.0, "<=", "reversed", "reversed"),
    (300, SLOWER, 0.1, "<=", "smaller", "inconclusive"),
    (50, SLOWER, 0.1, "<=", "larger", "inconclusive"),
    (100, FASTER, 10.0, ">=", "reproduced", "reproduced"),
]  # fmt: skip


@pytest.mark.parametrize(("claimed", "s", "s_claimed", "bound", "of_time", "of_ratio"), BOUNDS)
def test_a_bound_tells_no_more_than_it_bounds(
    claimed: float, s: Interval, s_claimed: float, bound: str, of_time: str, of_ratio: str
):
    found = [
        judge(TIGHT, claimed, s=s, s_claimed=s_claimed, bound=bound, relative=relative).verdict
        for relative in (False, True)
    ]
    assert found == [of_time, of_ratio]


def test_every_verdict_is_tested():
    assert {case[-1] for case in CASES} == set(VERDICTS)


@given(st.integers(1, 10**6), st.integers(2, 20))
def test_seeds_that_all_cross_where_the_claim_does_reproduce_it(step: int, n: int):
    assert judge([step] * n, step, s=FASTER, s_claimed=2.0).verdict == "reproduced"
    assert judge([step] * n, 2 * step, s=FASTER, s_claimed=2.0).verdict != "reproduced"


def test_what_is_retained_of_a_claim():
    assert judge(TIGHT, 50, s=Interval(4.0, 3, 5, 5), s_claimed=16.0).retained == pytest.approx(0.5)
    assert judge(TIGHT, 50, s=SLOWER, s_claimed=2.0).retained == pytest.approx(-1)
    assert judge(TIGHT, 50).retained is None and judge(TIGHT, 50, s=FASTER).retained is None


def test_a_verdict_says_what_it_rests_on():
    got = judge(EMA, 910)
    assert (got.claimed, got.median, got.n, got.percentile) == (910, 1070, 5, pytest.approx(20))
    assert got.verdict == "reproduced" and (got.lo, got.hi) == prediction_interval(EMA)[1:3]
    empty = judge([], 910)
    assert (empty.n, empty.median, empty.lo, empty.percentile) == (0, None, None, None)


@pytest.mark.parametrize(("values", "claimed", "more", "said"), [
    (EMA, 0, {}, "a claim must be > 0, got 0"),
    (EMA, 1, {"s": NONE, "s_claimed": 1}, "not 1, got 1"),
    ([1.0, 0.0], 1, {}, "finite values > 0"),
    ([1.0, math.inf], 1, {}, "finite values > 0"),
    (EMA, 1, {"m": 0}, "m >= 1 must hold, got m=0"),
])  # fmt: skip
def test_impossible_claims_are_errors(values: list[float], claimed: float, more: dict[str, float], said: str):
    with pytest.raises(ValueError, match=said):
        judge(values, claimed, **more)  # pyright: ignore[reportArgumentType]


def test_seeds_that_never_get_there_do_not_tell_a_time_from_another():
    found = judge([60_000.0] * 3, 39_890, seen=False)
    assert (found.verdict, found.n, found.median, found.percentile) == ("inconclusive", 3, 60_000, 0)
    assert (found.lo, found.hi) == (None, None)
    assert judge([60_000.0] * 3, 39_890).verdict == "larger"
    assert judge([60_000.0] * 3, 910, s=SLOWER, s_claimed=43.8, seen=False).verdict == "reversed", "S says more"
