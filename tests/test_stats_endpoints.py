"""Endpoints of a curve by hand, and how two arms differ in them against scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from grokscale.stats import endpoints as ends

STEPS = np.array([0, 100, 200, 300, 400, 500])
RISE = np.array([0.1, 0.2, 0.95, 0.96, 0.97, 0.9])
CURVE = st.lists(st.floats(-10, 10), min_size=1, max_size=12)
PAIRS = st.integers(3, 10).flatmap(lambda n: st.tuples(*[st.lists(st.floats(0.1, 10), min_size=n, max_size=n)] * 2))


def test_endpoints_by_hand():
    assert ends.best(STEPS, RISE, 1000) == 0.97 and ends.best(STEPS, RISE, 1000, up=False) == 0.1
    assert ends.final(STEPS, RISE, 1000) == 0.9 and ends.final(STEPS, RISE, 450) == 0.97
    assert ends.distance(STEPS, RISE, 1000) == ends.distance(STEPS, -RISE, 1000) == pytest.approx(0.8)
    trapezoids = 100 * (0.15 + 0.575 + 0.955 + 0.965 + 0.935)
    assert ends.area(STEPS, RISE, 500) == pytest.approx(trapezoids / 500)
    assert ends.area(STEPS, RISE, 1000) == pytest.approx((trapezoids + 500 * 0.9) / 1000)  # the last value stands
    assert ends.area(STEPS, RISE, 450) == pytest.approx((100 * (0.15 + 0.575 + 0.955 + 0.965) + 50 * 0.97) / 450)


def test_the_area_is_that_of_numpy():
    rng = np.random.default_rng(0)
    steps, values = np.sort(rng.choice(5000, 40, replace=False)), rng.random(40)
    tau = float(steps[-1])
    assert ends.area(steps, values, tau) == pytest.approx(np.trapezoid(values, steps) / (tau - steps[0]))


def test_the_time_to_a_threshold_is_sustained_as_a_grok_step_is():
    assert ends.time_to(STEPS, RISE, 1000, 0.95) == 200
    assert ends.time_to(STEPS, RISE, 199, 0.95) == math.inf
    assert ends.time_to(STEPS, [0.1, 0.96, 0.2, 0.2, 0.2, 0.2], 1000, 0.95) == math.inf
    assert ends.time_to(STEPS, -RISE, 1000, -0.95, up=False) == 200
    assert ends.time_to(STEPS, np.ones(6), 1000, 0.5) == 1  # there from the start


def test_what_is_not_finite_is_the_worst_there_was():
    curve = [0.5, math.nan, 0.9, math.nan]
    assert ends.final(STEPS[:4], curve, 1000) == 0.5 and ends.final(STEPS[:4], curve, 1000, up=False) == 0.9
    assert ends.best(STEPS[:4], curve, 1000) == 0.9 and ends.distance(STEPS[:4], curve, 1000) == 0
    for nothing in ([math.nan, math.inf], []):
        with pytest.raises(ValueError, match="needs a finite value"):
            ends.best(STEPS[: len(nothing)], nothing, 1000)
    with pytest.raises(ValueError, match="needs a finite value"):
        ends.final([500], [1.0], 400)


@given(CURVE)
def test_endpoints_lie_between_the_least_and_the_greatest(values: list[float]):
    steps = 25 * np.arange(len(values))
    low, high = ends.best(steps, values, 1e4, up=False), ends.best(steps, values, 1e4)
    assert (low, high) == (min(values), max(values))
    for of in (ends.area, ends.final):
        assert low - 1e-9 <= of(steps, values, 1e4) <= high + 1e-9
    assert ends.distance(steps, values, 1e4) <= high - low


@given(CURVE, st.floats(0.1, 10), st.floats(-5, 5))
def test_endpoints_follow_the_unit_of_the_metric(values: list[float], unit: float, shift: float):
    steps, other = 25 * np.arange(len(values)), unit * np.array(values) + shift
    for of in (ends.best, ends.final, ends.area):
        assert of(steps, other, 1e4) == pytest.approx(unit * of(steps, values, 1e4) + shift, abs=1e-6)
    assert ends.distance(steps, other, 1e4) == pytest.approx(unit * ends.distance(steps, values, 1e4), abs=1e-6)


def test_gains_are_the_paired_t_interval_of_scipy():
    rng = np.random.default_rng(1)
    base, arm = rng.random(9), rng.random(9)
    theirs = scipy.stats.ttest_rel(arm, base).confidence_interval()
    got = ends.gain(base, arm)
    assert (got.lo, got.hi) == pytest.approx((theirs.low, theirs.high)) and got.n == 9
    down = ends.gain(base, arm, up=False)
    assert (down.value, down.lo, down.hi) == pytest.approx((-got.value, -got.hi, -got.lo))


def test_ratios_speak_for_the_arm_above_one():
    got = ends.log_ratio([2.0, 8.0], [1.0, 2.0], up=False)
    assert got.value == pytest.approx(math.sqrt(2 * 4))
    assert ends.log_ratio([2.0, 8.0], [1.0, 2.0]).value == pytest.approx(1 / math.sqrt(8))
    with pytest.raises(ValueError, match="values > 0, got 0"):
        ends.log_ratio([0.0, 1.0], [1.0, 1.0])


def test_worse_by_less_than_the_margin():
    """Accuracies that differ by 0.002 with an interval of +-0.001 or so: within half a point, not within 0.2."""
    base = np.array([0.970, 0.980, 0.975, 0.985])
    loss = ends.gain(base, base - np.array([0.002, 0.0025, 0.0015, 0.002]))
    assert ends.noninferior(loss, 0.005) and not ends.noninferior(loss, 0.002)
    assert not ends.noninferior(ends.gain([0.9], [0.99]), 0.005)  # one pair shows nothing
    with pytest.raises(ValueError, match="margin must be > 0"):
        ends.noninferior(loss, 0)


def test_the_interval_of_an_sd_ratio_ends_where_morgans_test_says_5_percent():
    """Var x = w Var y is rejected where x + sqrt(w) y and x - sqrt(w) y are correlated: at the ends p is 5 %."""
    rng = np.random.default_rng(2)
    common = rng.standard_normal(12)
    x, y = 3 * rng.standard_normal(12) + common, rng.standard_normal(12) + common
    got = ends.sd_ratio(x, y)
    assert got.value == pytest.approx(x.std() / y.std())
    for end in (got.lo, got.hi):
        assert scipy.stats.pearsonr(x + end * y, x - end * y)[1] == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("corr", [0.0, 0.7])
def test_the_interval_of_an_sd_ratio_covers_what_it_promises(corr: float):
    rng, repeats = np.random.default_rng([3, int(10 * corr)]), 2000
    hits = 0
    for _ in range(repeats):
        a, b = rng.standard_normal((2, 8))
        got = ends.sd_ratio(5 * a, corr * a + math.sqrt(1 - corr**2) * b)
        hits += got.lo <= 5 <= got.hi
    low, high = scipy.stats.binom.interval(0.999, repeats, 0.95)
    assert low <= hits <= high, hits


@given(PAIRS, st.floats(0.1, 10))
def test_an_sd_ratio_turned_around_is_its_inverse(pair: tuple[list[float], list[float]], unit: float):
    x, y = (np.array(side) for side in pair)
    assume(min(x.std(), y.std()) > 1e-3)
    there, back = ends.sd_ratio(x, y), ends.sd_ratio(y, x)
    assert there.value * back.value == pytest.approx(1) and there.lo * back.hi == pytest.approx(1)
    assert there.lo <= there.value <= there.hi
    assert ends.sd_ratio(unit * x, unit * y).hi == pytest.approx(there.hi, rel=1e-6)


def test_sd_ratios_that_cannot_be_told():
    assert ends.sd_ratio([1, 1, 1], [2, 2, 2]) == (1, 0, math.inf, 3)
    assert ends.sd_ratio([1, 2, 3], [2, 2, 2]) == (math.inf, 0, math.inf, 3)
    assert ends.sd_ratio([1, 1, 1], [1, 2, 3]) == (0, 0, math.inf, 3)
    assert ends.sd_ratio([1, 3], [1, 2]) == (2, 0, math.inf, 2) and ends.sd_ratio([1], [2])[1:] == (0, math.inf, 1)
