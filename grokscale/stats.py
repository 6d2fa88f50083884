"""What counts as a speed-up, as pure functions over arrays (evaluation.md section 2). numpy and scipy only.

Everywhere: a time T is in steps unless a clock is given, NaN or inf stands for "never", tau is the horizon,
and what lies beyond tau is censored. Ratios say "times fewer": S = 2 is half the steps of the baseline.
scipy.stats takes most of a second to import, so only the log-rank test loads it; reading results does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
LOG_SD = 0.4  # of grok steps between seeds: what designs are worked out with
EXACT = 20  # up to this many pairs every one of the 2^n sign flips is counted

Floats = NDArray[np.floating[Any]]
Times = ArrayLike | Sequence[float | None]  # None is "never" too
Clock = Callable[[Floats], Floats]


class Interval(NamedTuple):
    """An estimate with its interval; n: the pairs it rests on."""

    value: float
    lo: float
    hi: float
    n: int


@dataclass(frozen=True, slots=True)
class SpeedUp:
    """S of an arm over the baseline, and what stands beside it.

    s, lo, hi: exp(mean paired log difference) with its t interval; (0, inf) where there is none: one pair, or
    nothing grokked at all (`undetermined`: then s = 1 only says that both were clamped).
    p: sign-flip permutation.  corr: of the pairs' logs, None where one side does not vary.
    bound: ">=" where s is a lower bound (the baseline has censored seeds, the arm none), else "=".
    s_half: s at tau / 2.  rmst_*: ratio of mean clamped times.  median_*: Kaplan-Meier, None if not reached.
    success_*: share that grokked.  p_sooner: P(T_arm < T_base).  logrank_p: None where nothing grokked.
    """

    s: float
    lo: float
    hi: float
    n: int
    p: float
    corr: float | None
    censored_base: int
    censored_arm: int
    bound: str
    horizon: float
    s_half: float
    rmst_ratio: float
    rmst_lo: float
    rmst_hi: float
    median_base: float | None
    median_arm: float | None
    success_base: float
    success_arm: float
    p_sooner: float
    logrank_p: float | None

    @property
    def undetermined(self) -> bool:
        return self.censored_base == self.censored_arm == self.n


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


def paired_speedup(
    t_base: Times,
    t_arm: Times,
    tau: float,
    *,
    clock_base: Clock | None = None,
    clock_arm: Clock | None = None,
    rng: np.random.Generator | None = None,
) -> SpeedUp:
    """S = exp(mean over pairs of log min(T_base, tau) - log min(T_arm, tau)), with all that stands beside it.

    t_base, t_arm: (n,) steps, the same seed at the same place.  tau: common horizon in steps.
    clock_base, clock_arm: clamped steps (n,) -> another clock (n,), seconds say; censoring stays by steps.
    rng: draws the sign flips where there are more than EXACT pairs; needed there.
    Raises ValueError where the sides differ in length or are empty.

    The interval covers 94 to 96 % for log-normal times, n = 3 to 20, with 10 % failing seeds too.
    """
    x, base = clamped(t_base, tau)
    y, arm = clamped(t_arm, tau)
    if len(x) != len(y) or not len(x):
        raise ValueError(f"pairs are needed, got {len(x)} times of the baseline and {len(y)} of the arm")
    clock_base, clock_arm = clock_base or _steps, clock_arm or _steps
    half = tau / 2
    halved = np.log(clock_base(np.minimum(x, half))) - np.log(clock_arm(np.minimum(y, half)))
    x, y = clock_base(x), clock_arm(y)
    logs = np.log(x), np.log(y)
    s = mean_interval(logs[0] - logs[1])
    cost = rmst_ratio(x, y)
    grokked = base.any() or arm.any()
    if not grokked:
        s, cost = s._replace(lo=-math.inf, hi=math.inf), cost._replace(lo=0.0, hi=math.inf)
    return SpeedUp(
        s=math.exp(s.value), lo=math.exp(s.lo), hi=_exp(s.hi), n=len(x),
        p=sign_flip(logs[0] - logs[1], rng), corr=correlation(*logs),
        censored_base=int((~base).sum()), censored_arm=int((~arm).sum()),
        bound=">=" if arm.all() and not base.all() else "=", horizon=tau, s_half=math.exp(halved.mean()),
        rmst_ratio=cost.value, rmst_lo=cost.lo, rmst_hi=cost.hi,
        median_base=median(x, base), median_arm=median(y, arm),
        success_base=float(base.mean()), success_arm=float(arm.mean()),
        p_sooner=p_sooner(x, base, y, arm), logrank_p=logrank(x, base, y, arm).p if grokked else None,
    )  # fmt: skip


def _exp(value: float) -> float:
    """exp that answers inf where math.exp raises: a huge interval is one, not an error."""
    return math.exp(value) if value < 700 else math.inf


def _steps(steps: Floats) -> Floats:
    return steps


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Mean and Student's t interval, n - 1 degrees; (-inf, inf) for n = 1, width 0 for equal values."""
    d = np.asarray(values, dtype=float)
    mean = float(d.mean())
    return _student(mean, d - mean, level)


def _student(centre: float, residuals: Floats, level: float) -> Interval:
    from scipy.special import stdtrit

    n = len(residuals)
    if n == 1:
        return Interval(centre, -math.inf, math.inf, 1)
    error = math.sqrt(float(np.square(residuals).sum()) / (n - 1) / n)
    reach = float(stdtrit(n - 1, (1 + level) / 2)) * error
    return Interval(centre, centre - reach, centre + reach, n)


def paired_difference(base: ArrayLike, arm: ArrayLike, level: float = LEVEL) -> Interval:
    """Mean of base - arm with its t interval, over the n pairs where both are known; NaN for none.

    For what is not censored: delays, final accuracies.
    """
    d = np.asarray(base, dtype=float) - np.asarray(arm, dtype=float)
    d = d[np.isfinite(d)]
    return mean_interval(d, level) if len(d) else Interval(math.nan, -math.inf, math.inf, 0)


def sign_flip(differences: ArrayLike, rng: np.random.Generator | None = None, draws: int = 100_000) -> float:
    """Two-sided p of "symmetric about 0": the share of sign flips whose mean lies at least as far out.

    Exact up to EXACT differences; beyond, `draws` flips from rng: p = (1 + hits)/(1 + draws).
    """
    d = np.asarray(differences, dtype=float)
    observed = abs(d.sum())
    reach = observed - 1e-9 * np.abs(d).sum()  # the same sum in another order counts as equal
    if len(d) <= EXACT:
        sums = np.zeros(1)
        for value in d[1:]:  # a flip of all signs gives the same |sum|, so the first one stays
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums + d[0]) >= reach))
    if rng is None:
        raise ValueError(f"more than {EXACT} pairs need a generator")
    hits, left = 0, draws
    while left:
        count = min(left, 10_000)
        signs = rng.integers(0, 2, size=(count, len(d)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ d) >= reach).sum())
        left -= count
    return (1 + hits) / (1 + draws)


def correlation(x: ArrayLike, y: ArrayLike) -> float | None:
    """Pearson's correlation, None where one side does not vary or there is one pair."""
    a, b = (v - v.mean() for v in (np.asarray(x, dtype=float), np.asarray(y, dtype=float)))
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(np.clip(a @ b / norm, -1, 1)) if norm > 1e-12 * len(a) else None


def rmst(times: Times, tau: float) -> float:
    """Mean of min(T, tau): all censoring is at tau, so this is the area under Kaplan-Meier up to tau."""
    return float(clamped(times, tau)[0].mean())


def rmst_ratio(x: ArrayLike, y: ArrayLike, level: float = LEVEL) -> Interval:
    """mean(x) / mean(y) of paired clamped times: the cost view, how many times fewer steps in sum.

    Studentised on the log scale by the delta method, pairs kept: the residuals x/mean(x) - y/mean(y) carry
    the standard error, t has n - 1 degrees.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    log = _student(math.log(a.mean() / b.mean()), a / a.mean() - b / b.mean(), level)
    return Interval(math.exp(log.value), math.exp(log.lo), _exp(log.hi), log.n)


class Survival(NamedTuple):
    """Kaplan-Meier: the share not there yet, from each event time on.  lo, hi: log-log band, NaN at 0."""

    times: Floats
    share: Floats
    lo: Floats
    hi: Floats
    at_risk: NDArray[np.int64]


def kaplan_meier(times: ArrayLike, event: ArrayLike, level: float = LEVEL) -> Survival:
    """The product-limit estimate prod(1 - d/n) over the event times up to t.

    times, event: (n,) the time of an event, or up to when it was watched and none seen (censored after events
    at the same time).  Kaplan and Meier 1958; band: Kalbfleisch and Prentice 1980 with Greenwood's variance.
    """
    t, seen = np.asarray(times, dtype=float), np.asarray(event, dtype=bool)
    at, events = np.unique(t[seen], return_counts=True)
    risk = np.array([(t >= moment).sum() for moment in at], dtype=np.int64)
    share = np.cumprod(1 - events / risk) if len(at) else np.zeros(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        greenwood = np.cumsum(events / (risk * (risk - events)))
        reach = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(greenwood) / np.log(share)
        lo, hi = share ** np.exp(-reach), share ** np.exp(reach)
    lo[share == 0], hi[share == 0] = math.nan, math.nan
    return Survival(at, share, lo, hi, risk)


def median(times: ArrayLike, event: ArrayLike) -> float | None:
    """The first time by which Kaplan-Meier's share falls to one half; None if it does not.

    times, event: as for `kaplan_meier`; `clamped(times, tau)` gives both.
    """
    curve = kaplan_meier(times, event)
    reached = np.flatnonzero(curve.share <= 0.5 + 1e-12)
    return float(curve.times[reached[0]]) if len(reached) else None


class LogRank(NamedTuple):
    """chi2: with one degree of freedom.  p: two-sided."""

    chi2: float
    p: float


def logrank(times_a: ArrayLike, event_a: ArrayLike, times_b: ArrayLike, event_b: ArrayLike) -> LogRank:
    """The log-rank test of two right-censored samples (Mantel 1966); chi2 = 0 where none can be told."""
    from scipy.stats import CensoredData
    from scipy.stats import logrank as test

    sides = []
    for times, event in ((times_a, event_a), (times_b, event_b)):
        t, seen = np.asarray(times, dtype=float), np.asarray(event, dtype=bool)
        sides.append(CensoredData(uncensored=t[seen], right=t[~seen]))
    with np.errstate(divide="ignore", invalid="ignore"):  # 0/0 where one side is at risk alone at every event
        result = test(*sides)
    chi2 = float(result.statistic) ** 2
    return LogRank(chi2, float(result.pvalue)) if math.isfinite(chi2) else LogRank(0.0, 1.0)


def wilson(k: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval for k successes of n; (0, 1) for n = 0. Wilson 1927."""
    if not 0 <= k <= n:
        raise ValueError(f"0 <= k <= n must hold, got k={k}, n={n}")
    if not n:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre = (k + z2 / 2) / (n + z2)
    reach = math.sqrt(z2 * (k * (n - k) / n + z2 / 4)) / (n + z2)
    return (0.0 if k == 0 else max(0.0, centre - reach)), (1.0 if k == n else min(1.0, centre + reach))


def p_sooner(x_base: ArrayLike, event_base: ArrayLike, x_arm: ArrayLike, event_arm: ArrayLike) -> float:
    """P(T_arm < T_base) over all n x m pairs of seeds, ties one half; two that never got there tie."""
    base = np.where(np.asarray(event_base, dtype=bool), np.asarray(x_base, dtype=float), math.inf)
    arm = np.where(np.asarray(event_arm, dtype=bool), np.asarray(x_arm, dtype=float), math.inf)
    sooner, tied = arm[:, None] < base, arm[:, None] == base
    return float(np.mean(sooner + 0.5 * tied))


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979), in the order given."""
    order = np.argsort(p, kind="stable")
    steps = ((len(p) - i) * p[j] for i, j in enumerate(order))
    adjusted = [0.0] * len(p)
    for j, value in zip(order, itertools.accumulate(steps, max), strict=True):
        adjusted[j] = min(1.0, float(value))
    return adjusted


def detectable(n: int, sd_log: float = LOG_SD, power: float = 0.8, corr: float = 0.0) -> float:
    """The smallest S that n pairs show with this power at 5 %: 1.9 at n = 8, 1.45 at n = 20; inf for n = 1.

    Assumes log-normal times of log-sd sd_log on either side, pairs correlated by corr (0 is the cautious
    choice, chaos leaves little), nothing censored, and the two-sided t test. The differences then have the
    standard deviation sd = sd_log sqrt(2 (1 - corr)), and S = exp(delta sd / sqrt(n)), where delta is the
    noncentrality at which t with n - 1 degrees exceeds its 97.5 % point with probability `power`.
    """
    from scipy.special import nctdtrinc, stdtrit

    if n < 2:
        return math.inf
    delta = float(nctdtrinc(n - 1, 1 - power, stdtrit(n - 1, (1 + LEVEL) / 2)))
    return math.exp(delta * sd_log * math.sqrt(2 * (1 - corr) / n))


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
