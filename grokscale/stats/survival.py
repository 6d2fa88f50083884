"""Right-censored times: Kaplan-Meier, the log-rank test, the restricted mean; shares with Wilson's interval."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grokscale.stats.base import LEVEL, Floats, Times, clamped


def rmst(times: Times, tau: float) -> float:
    """Mean of min(T, tau): all censoring is at tau, so this is the area under Kaplan-Meier up to tau."""
    return float(clamped(times, tau)[0].mean())


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
