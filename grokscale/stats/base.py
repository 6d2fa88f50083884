"""Times, horizons and t intervals: what the other parts share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
LOG_SD = 0.4  # of grok steps between seeds: what designs are worked out with

Floats = NDArray[np.floating[Any]]
Times = ArrayLike | Sequence[float | None]  # None is "never" too
Clock = Callable[[Floats], Floats]


class Interval(NamedTuple):
    """An estimate with its interval; n: the pairs it rests on."""

    value: float
    lo: float
    hi: float
    n: int


def clamped(times: Times, tau: float) -> tuple[Floats, NDArray[np.bool_]]:
    """(min(T, tau), whether T <= tau): times and events of right-censored data.

    Raises ValueError for a time or a horizon that is not positive: they are compared by their logs.
    """
    listed = np.atleast_1d(np.asarray(times, dtype=object))
    t = np.array([math.nan if value is None else value for value in listed], dtype=float)
    if not tau > 0 or not math.isfinite(tau):
        raise ValueError(f"0 < tau < inf must hold, got tau={tau}")
    if (t <= 0).any():
        raise ValueError(f"times must be > 0, got {t[t <= 0][0]}")
    event = t <= tau  # False for NaN
    return np.where(event, t, tau), event


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Mean and Student's t interval, n - 1 degrees; (-inf, inf) for n = 1, width 0 for equal values."""
    d = np.asarray(values, dtype=float)
    mean = float(d.mean())
    return student(mean, d - mean, level)


def student(centre: float, residuals: Floats, level: float) -> Interval:
    """centre +- t standard errors of the mean of n residuals, n - 1 degrees."""
    from scipy.special import stdtrit

    n = len(residuals)
    if n == 1:
        return Interval(centre, -math.inf, math.inf, 1)
    error = math.sqrt(float(np.square(residuals).sum()) / (n - 1) / n)
    reach = float(stdtrit(n - 1, (1 + level) / 2)) * error
    return Interval(centre, centre - reach, centre + reach, n)


def welch(centre: float, a: Floats, b: Floats, level: float = LEVEL) -> Interval:
    """centre +- t standard errors of a difference of means of independent samples with residuals a (n,), b (m,).

    Degrees by Welch and Satterthwaite; n of the result is the smaller number. (-inf, inf) where a side is alone.
    Welch 1947, Biometrika 34.
    """
    from scipy.special import stdtrit

    n, m = len(a), len(b)
    if min(n, m) == 1:
        return Interval(centre, -math.inf, math.inf, 1)
    u, v = (float(np.square(x).sum()) / (len(x) - 1) / len(x) for x in (a, b))
    if u + v == 0:
        return Interval(centre, centre, centre, min(n, m))
    degrees = (u + v) ** 2 / (u * u / (n - 1) + v * v / (m - 1))
    reach = float(stdtrit(degrees, (1 + level) / 2)) * math.sqrt(u + v)
    return Interval(centre, centre - reach, centre + reach, min(n, m))


def paired_difference(base: ArrayLike, arm: ArrayLike, level: float = LEVEL) -> Interval:
    """Mean of base - arm with its t interval, over the n pairs where both are known; NaN for none.

    For what is not censored: delays, final accuracies.
    """
    d = np.asarray(base, dtype=float) - np.asarray(arm, dtype=float)
    d = d[np.isfinite(d)]
    return mean_interval(d, level) if len(d) else Interval(math.nan, -math.inf, math.inf, 0)


def objective(val_grok_steps: Times, tau: float) -> float:
    """What a search minimises: the log of the geometric mean of the clamped steps; always finite.

    A step of 0 (there before the training) counts as 1.
    """
    steps = np.atleast_1d(np.asarray(val_grok_steps, dtype=object))
    return float(np.log(clamped([1 if step == 0 else step for step in steps], tau)[0]).mean())


def geometric_mean_clamped(times: Times, tau: float) -> float:
    """exp(mean of log min(T, tau))."""
    return math.exp(objective(times, tau))


def power_of_two_up(value: float) -> int:
    """The smallest power of two that is not below value; 1 for anything up to 1."""
    return 1 << max(0, math.ceil(value) - 1).bit_length()


def exp(value: float) -> float:
    """exp that answers inf where math.exp raises: a huge interval is one, not an error."""
    return math.exp(value) if value < 700 else math.inf
