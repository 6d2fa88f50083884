"""What a metric's curve says where nothing groks, and how two arms differ in it (evaluation.md section 2).

A curve is (steps, values), both (E,), steps increasing; only what lies at or before tau counts. A value that is
not finite counts as the worst finite one of its curve. Where a curve ends before tau its last value stands
until tau: a replica that grokked is watched to twice its grok step only.

up: greater is better. Differences and ratios are turned so that a difference above 0 and a ratio above 1 speak
for the arm.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from grokscale import outcomes
from grokscale.stats.base import LEVEL, Floats, Interval, exp, mean_interval


def time_to(steps: ArrayLike, values: ArrayLike, tau: float, threshold: float, *, up: bool = True) -> float:
    """The step from which the metric is at or beyond the threshold, sustained as a grok step is; inf for never.

    A crossing at step 0 counts as step 1, since times are compared by their logs.
    """
    t, v = np.asarray(steps), np.asarray(values, dtype=float)
    found = outcomes.crossing(t, v if up else -v, threshold if up else -threshold).sustained
    return math.inf if found is None or found > tau else float(max(1, found))


def best(steps: ArrayLike, values: ArrayLike, tau: float, *, up: bool = True) -> float:
    """The best value up to tau."""
    _, v = _known(steps, values, tau, up)
    return float(v.max() if up else v.min())


def final(steps: ArrayLike, values: ArrayLike, tau: float, *, up: bool = True) -> float:
    """The last value up to tau."""
    return float(_known(steps, values, tau, up)[1][-1])


def area(steps: ArrayLike, values: ArrayLike, tau: float, *, up: bool = True) -> float:
    """The mean over time from the first evaluation to tau: the trapezoids between the evaluations, over their width."""
    t, v = _known(steps, values, tau, up)
    t, v = np.append(t, tau), np.append(v, v[-1])
    width = float(tau - t[0])
    return float(v[0]) if width == 0 else float(np.sum(np.diff(t) * (v[1:] + v[:-1]) / 2)) / width


def distance(steps: ArrayLike, values: ArrayLike, tau: float, *, up: bool = True) -> float:
    """How far the last value up to tau lies from the first, without its sign."""
    _, v = _known(steps, values, tau, up)
    return float(abs(v[-1] - v[0]))


def _known(steps: ArrayLike, values: ArrayLike, tau: float, up: bool) -> tuple[Floats, Floats]:
    t, v = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    t, v = t[t <= tau], v[t <= tau]
    finite = v[np.isfinite(v)]
    if not len(finite):
        raise ValueError(f"a curve needs a finite value up to tau={tau:g}, got {len(v)} points and none of them finite")
    return t, np.where(np.isfinite(v), v, finite.min() if up else finite.max())


# ------------------------------------------------------------------------------------------- two arms


def gain(base: ArrayLike, arm: ArrayLike, *, up: bool = True, level: float = LEVEL) -> Interval:
    """Mean paired difference of two (n,) of endpoints with its t interval, above 0 where the arm is better."""
    d = np.asarray(arm, dtype=float) - np.asarray(base, dtype=float)
    return mean_interval(d if up else -d, level)


def log_ratio(base: ArrayLike, arm: ArrayLike, *, up: bool = True, level: float = LEVEL) -> Interval:
    """exp of the mean paired log ratio of two (n,) of endpoints, above 1 where the arm is better.

    Raises ValueError where a value is not above 0.
    """
    x, y = np.asarray(base, dtype=float), np.asarray(arm, dtype=float)
    least = min(x.min(), y.min())
    if not least > 0:
        raise ValueError(f"a ratio needs values > 0, got {least:g}")
    log = gain(np.log(x), np.log(y), up=up, level=level)
    return Interval(math.exp(log.value), math.exp(log.lo), exp(log.hi), log.n)


def noninferior(difference: Interval, margin: float) -> bool:
    """Is the arm shown to be worse by less than the margin? The interval of `gain` lies above -margin.

    With a 95 % interval the one-sided error is 2.5 %.  Raises ValueError for a margin that is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin must be > 0, got {margin}")
    return difference.lo > -margin


def sd_ratio(base: ArrayLike, arm: ArrayLike, level: float = LEVEL) -> Interval:
    """sd(base) / sd(arm) of n pairs: how many times less an endpoint spreads over the seeds of the arm.

    With F the ratio of variances, r the correlation of the pairs and t the quantile with n - 2 degrees,
    F (K -+ sqrt(K^2 - 1)), K = 1 + 2 (1 - r^2) t^2 / (n - 2), is exact for pairs from a normal distribution
    (Pitman 1939, Morgan 1939; Biometrika 31). (0, inf) below three pairs, or where one side does not vary.
    """
    from scipy.special import stdtrit

    x, y = np.asarray(base, dtype=float), np.asarray(arm, dtype=float)
    n = len(x)
    u, v = (float(np.square(side - side.mean()).sum()) for side in (x, y))
    if n < 2 or (u == 0 and v == 0):
        return Interval(1.0, 0.0, math.inf, n)
    if u == 0 or v == 0 or n < 3:
        return Interval(math.inf if v == 0 else math.sqrt(u / v), 0.0, math.inf, n)
    r2 = min(1.0, float((x - x.mean()) @ (y - y.mean())) ** 2 / (u * v))
    t = float(stdtrit(n - 2, (1 + level) / 2))
    k = 1 + 2 * (1 - r2) * t * t / (n - 2)
    reach = k + math.sqrt(k * k - 1)  # times k - sqrt(k^2 - 1) it is 1
    f = u / v
    return Interval(math.sqrt(f), math.sqrt(f / reach), math.sqrt(f * reach), n)
