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
