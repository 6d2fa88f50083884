"""A published value against the spread of our seeds, and what may be concluded (evaluation.md section 5).

A published value is one draw, or the mean of m. It is held against the interval in which such a draw would fall,
not against the interval of our mean, which a correct claim misses more often the more seeds we run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from grokscale.stats.base import LEVEL, Interval, exp

WIDE = 4.0  # a prediction interval that spans more than this factor agrees with too much
ROUNDING = 1e-9  # of exp and log: seeds that all cross at one look have an interval of no width, maybe the claim

VERDICTS = ("reproduced", "smaller", "larger", "no effect", "reversed", "inconclusive", "not run")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What our seeds say of a published value.

    verdict: one of VERDICTS.  claimed: the published value.  median, n, lo, hi: of our seeds, with the prediction
    interval.  percentile: share of our seeds below the claim, in per cent, ties one half.  retained: log S measured /
    log S claimed, None where no speed-up was claimed or measured; as much a bound as S. Without seeds only `claimed`
    is known.
    """

    verdict: str
    claimed: float
    median: float | None = None
    n: int = 0
    percentile: float | None = None
    lo: float | None = None
    hi: float | None = None
    retained: float | None = None


def prediction_interval(values: ArrayLike, m: int = 1, level: float = LEVEL) -> Interval:
    """Where the geometric mean of m further draws falls: exp of mean +- t(n - 1) s sqrt(1/m + 1/n) of the logs.

    values: (n,) above 0; value of the result: their geometric mean. (0, inf) for n = 1.
    Raises ValueError for no value, one that is not above 0, and m < 1.
    """
    from scipy.special import stdtrit

    x = np.asarray(values, dtype=float)
    if not len(x) or not (x > 0).all() or not np.isfinite(x).all():
        raise ValueError(f"finite values > 0 are needed, got {x.tolist()}")
    if m < 1:
        raise ValueError(f"m >= 1 must hold, got m={m}")
    logs, n = np.log(x), len(x)
    centre = float(logs.mean())
    if n == 1:
        return Interval(math.exp(centre), 0.0, math.inf, 1)
    reach = float(stdtrit(n - 1, (1 + level) / 2)) * float(logs.std(ddof=1)) * math.sqrt(1 / m + 1 / n)
    return Interval(math.exp(centre), math.exp(centre - reach), exp(centre + reach), n)


def percentile(values: ArrayLike, claimed: float) -> float:
    """Per cent of the values below the claim, those equal to it counted by half."""
    x = np.asarray(values, dtype=float)
    return 100 * float(np.mean((x < claimed) + 0.5 * (x == claimed)))


def judge(
    values: ArrayLike,
    claimed: float,
    *,
    m: int = 1,
    s: Interval | None = None,
    s_claimed: float | None = None,
    bound: str = "=",
    relative: bool = False,
    seen: bool = True,
) -> Verdict:
    """Compare a published value with ours.

    values: (n,) what our seeds gave in the claim's unit (times, or S per pair of seeds); never is the horizon.
    s, s_claimed: S over the arm it was compared with, ours with its interval and the paper's; None where only a
    time was published.  bound: ">=" or "<=" where censoring makes S a bound (`SpeedUp.bound`); it is open where the
    claimed S may lie beyond it.  relative: the values are ratios over the other arm, and no times of this one.
    seen: did any seed get there? Where none did, and no S says more, the horizon in place of every time has no spread
    that means anything: no prediction interval, and `inconclusive`.

    reproduced: the claim lies in the prediction interval.  smaller, larger: it lies outside, and S's interval
    excludes 1 on the claimed side; which of the two is told by S against the claimed S, where S is an open bound or
    none is claimed by our geometric mean time against the published one.  no effect: outside, and S's interval
    contains 1.  reversed: outside, and S's interval excludes 1 on the other side.
    inconclusive: one seed; S's interval contains 1 and the claim fits, in either sense; the claim lies in a
    prediction interval that spans more than WIDE; or it lies outside, S is an open bound, and there is no time to tell
    by or S's interval does not exclude 1 on the claimed side.  not run: no values.
    Raises ValueError for a claim that is not above 0 and for s_claimed = 1, which claims no side.
    """
    x = np.asarray(values, dtype=float)
    if not claimed > 0:
        raise ValueError(f"a claim must be > 0, got {claimed}")
    if s_claimed is not None and (s_claimed == 1 or not s_claimed > 0):
        raise ValueError(f"a claimed speed-up must be > 0 and not 1, got {s_claimed}")
    if not len(x):
        return Verdict("not run", claimed)
    retained = math.log(s.value) / math.log(s_claimed) if s is not None and s_claimed is not None else None
    about = (claimed, float(np.median(x)), len(x), percentile(x, claimed))
    if s is None and not seen:
        return Verdict("inconclusive", *about)
    found = prediction_interval(x, m)
    return Verdict(_verdict(found, claimed, s, s_claimed, bound, relative), *about, found.lo, found.hi, retained)


def _verdict(
    found: Interval, claimed: float, s: Interval | None, s_claimed: float | None, bound: str, relative: bool
) -> str:
    inside = found.lo * (1 - ROUNDING) <= claimed <= found.hi * (1 + ROUNDING)
    if found.n == 1 or (inside and found.hi / found.lo > WIDE):
        return "inconclusive"
    if s is None or s_claimed is None:
        return "reproduced" if inside else "larger" if found.value > claimed else "smaller"
    opened = (bound == ">=" and s_claimed > s.value) or (bound == "<=" and s_claimed < s.value)
    if opened and not inside:
        if relative or not (s.lo > 1 if s_claimed > 1 else s.hi < 1):
            return "inconclusive"
        return "smaller" if (found.value > claimed) == (s_claimed > 1) else "larger"
    if s.lo <= 1 <= s.hi:
        fits = inside or s.lo <= s_claimed <= s.hi
        return "inconclusive" if fits else "no effect"
    if inside:
        return "reproduced"
    if (s.value > 1) != (s_claimed > 1):
        return "reversed"
    return "larger" if abs(math.log(s.value)) > abs(math.log(s_claimed)) else "smaller"
