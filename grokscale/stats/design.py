"""How many seeds, how many methods, how many trials: power, Holm's correction, the price of tuning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from grokscale.stats.base import LEVEL, LOG_SD


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


def expected_best(values: Sequence[float], k: int) -> float:
    """The mean, over all choices of k of the n values, of the least of them: what a search of k trials would reach.

    sum_i v_(i) C(n - i, k - 1) / C(n, k) with v_(1) <= ... <= v_(n); unbiased where the trials are exchangeable,
    as those of a random search are; a sampler that learns does better with its later ones. Dodge et al. 2019
    (EMNLP) draw with replacement, which is biased.  Raises ValueError unless 1 <= k <= n.
    """
    n = len(values)
    if not 1 <= k <= n:
        raise ValueError(f"1 <= k <= n must hold, got k={k}, n={n}")
    ways = math.comb(n, k)
    return sum(value * (math.comb(n - i, k - 1) / ways) for i, value in enumerate(sorted(values), 1))


def late_gain(values: Sequence[float]) -> float:
    """How many times better the last third of a search made its best: exp(best before - best after), at least 1.

    values: objectives (logs) in the order of the trials.  1 with fewer than three trials.
    """
    first = len(values) - len(values) // 3
    if first == len(values):
        return 1.0
    return math.exp(min(values[:first]) - min(values))
