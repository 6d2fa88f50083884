"""What became of a replica: crossings, outcomes, clamped times (evaluation.md section 1). numpy only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FIT = 0.99  # train accuracy that counts as fitted
SUSTAIN = 1.1  # a crossing at t must hold until SUSTAIN * t ...
LOOKS = 3  # ... and for at least this many evaluations
STABLE = 2.0  # a confirmed replica is watched until STABLE * grok_step
UNTIL = ("decided", "stable", "horizon")  # how long a replica is watched


class Crossing(NamedTuple):
    """first: first evaluation at or above the threshold.  sustained: first that also held.  pending: the latest
    crossing, where it has held so far but not for long enough to be decided."""

    first: int | None
    sustained: int | None
    pending: int | None


class Outcome(NamedTuple):
    """One replica judged; the field names are the store's columns (steps; None = did not happen or not watched)."""

    outcome: str  # grokked, memorised, unfitted, diverged
    fit_step: int | None
    grok_step: int | None
    val_grok_step: int | None
    first_step: int | None
    val_first_step: int | None
    delay: int | None
    comprehended: bool | None
    stable_step: int | None
    dips: int | None
    dip_min: float | None
    diverged_step: int | None
    observed_to: int


def crossing(steps: np.ndarray, accuracy: np.ndarray, threshold: float) -> Crossing:
    """Where accuracy crosses the threshold for the first time, and for good.

    A crossing at step t is sustained when accuracy is at or above the threshold at every evaluation from t to 1.1 t
    and at three at least.  steps: (E,) increasing.  accuracy: (E,).
    """
    above = np.concatenate([[False], accuracy >= threshold, [False]])
    stretches = np.flatnonzero(above[1:] != above[:-1]).reshape(-1, 2)  # [start, end) of each stay above
    if not len(stretches):
        return Crossing(None, None, None)
    first = int(steps[stretches[0, 0]])
    for start, end in stretches:
        # In whole numbers: 1.1 * 50 is a little more than 55. An evaluation beyond 1.1 t decides even if it is below.
        due = 11 * int(steps[start])
        held = 10 * int(steps[end - 1]) >= due or (end < len(steps) and 10 * int(steps[end]) > due)
        if end - start >= LOOKS and held:
            return Crossing(first, int(steps[start]), None)
    start, end = stretches[-1]
    return Crossing(first, None, int(steps[start]) if end == len(steps) else None)


def judge(curve: Mapping[str, np.ndarray], *, threshold: float, observed_to: int,
          diverged_step: int | None = None) -> Outcome:
    """The outcome of a replica from its curve.

    curve: step, train_acc, val_acc, test_acc, each (E,).  With validation = 0 the caller hands test as val.
    observed_to: the step up to which it was watched.  diverged_step: first step with a non-finite loss.

    A replica that grokked before it diverged is `grokked`: the crossing had been sustained.
    """
    steps = curve["step"]
    fit = crossing(steps, curve["train_acc"], FIT).sustained
    test = crossing(steps, curve["test_acc"], threshold)
    val = crossing(steps, curve["val_acc"], threshold)
    grok = test.sustained
    if grok is not None:
        outcome = "grokked"
    elif diverged_step is not None:
        outcome = "diverged"
    else:
        outcome = "memorised" if fit is not None else "unfitted"
    delay = comprehended = stable = dips = dip_min = None
    if grok is not None and fit is not None:
        delay, comprehended = max(0, grok - fit), grok <= SUSTAIN * fit
    if grok is not None and observed_to >= STABLE * grok:
        window = (steps >= grok) & (steps <= STABLE * grok)
        below = curve["test_acc"][window] < threshold
        starts = below & ~np.concatenate([[False], below[:-1]])
        dips, dip_min = int(starts.sum()), float(curve["test_acc"][window].min())
        last_below = int(np.flatnonzero(below)[-1]) if below.any() else -1
        after = steps[window][last_below + 1 :]
        stable = int(after[0]) if len(after) else None
    return Outcome(outcome, fit, grok, val.sustained, test.first, val.first, delay, comprehended, stable, dips,
                   dip_min, diverged_step, observed_to)


def clamp(step: float | None, tau: float) -> float:
    """min(T, tau), where None or NaN stands for never."""
    return float(tau) if step is None or math.isnan(step) else float(min(step, tau))


def finished(curve: Mapping[str, np.ndarray], *, threshold: float, step: int, horizon: int, until: str) -> bool:
    """May a replica that has not diverged stop at this evaluation?

    until = "decided": both crossings are sustained, or the horizon is reached and none is pending (a crossing just
    before the horizon is watched until it is decided, at most 1.1 x).  until = "stable": a grokked replica goes on
    to 2 x grok_step, beyond the horizon if need be.  until = "horizon": so too, and no replica stops before it.
    """
    if until == "horizon" and step < horizon:
        return False
    steps = curve["step"]
    test = crossing(steps, curve["test_acc"], threshold)
    val = crossing(steps, curve["val_acc"], threshold)
    if test.sustained is not None:
        if until != "decided" and test.sustained <= horizon:
            return step >= STABLE * test.sustained
        if until == "decided" and val.sustained is not None:
            return True
    waiting = any(c.sustained is None and c.pending is not None and c.pending <= horizon for c in (test, val))
    return step >= horizon and not waiting


def answers(row: Mapping[str, Any], horizon: int, until: str, metrics: Sequence[str] = ()) -> bool:
    """Does a stored replica answer a request for (horizon, until) without training a step more?

    metrics: the measures that are asked for; one that was not taken means training it again.
    """
    if not set(metrics) <= set(measured(row)):
        return False
    if row["diverged_step"] is not None:
        return True
    if until == "horizon" and row["observed_to"] < horizon:
        return False
    grok, val = row["grok_step"], row["val_grok_step"]
    if grok is not None and grok <= horizon:
        if until != "decided":
            return row["observed_to"] >= STABLE * grok
        return (val is not None and val <= horizon) or row["observed_to"] >= horizon
    return row["observed_to"] >= horizon


def measured(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The measures that were taken of a stored replica."""
    return tuple(name for name in (row.get("measured") or "").split(",") if name)


class Again(NamedTuple):
    """What replicas have to do when they are trained again, so that the new rows are worth more than the old ones.

    at_least: the step to which they were watched already.  metrics: what is asked for, and what was taken already.
    """

    at_least: int
    metrics: tuple[str, ...]


def again(rows: Iterable[Mapping[str, Any]], metrics: Sequence[str] = ()) -> Again:
    """`rows`: those there are of the replicas of a pack that is about to be trained.

    Of two rows of a replica the one that was watched longer counts, and an answer must never be lost: so a replica
    trained again for its measures is watched as long as before, and one trained on is measured as before.
    """
    rows = list(rows)
    return Again(max((row["observed_to"] for row in rows), default=0),
                 tuple(sorted({*metrics, *(name for row in rows for name in measured(row))})))
