"""Several tasks at once: geometric mean and worst task of S, and Dolan and More's performance profile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from grokscale.stats.base import LEVEL, Floats, exp, mean_interval

TASKS = 8  # an interval over fewer tasks says more of their choice than of the method


class OverTasks(NamedTuple):
    """S over n tasks: geometric mean, its t interval over the tasks (None below TASKS), the worst and its place."""

    mean: float
    lo: float | None
    hi: float | None
    n: int
    worst: float
    place: int


def over_tasks(s: ArrayLike, level: float = LEVEL) -> OverTasks:
    """Geometric mean of S over tasks, each counted once whatever its seeds.

    s: (tasks,) above 0.  Raises ValueError for no task and for values that are not finite and above 0.
    """
    x = np.asarray(s, dtype=float)
    if not len(x) or not np.isfinite(x).all() or not (x > 0).all():
        raise ValueError(f"finite values > 0 are needed, got {x.tolist()}")
    log, worst = mean_interval(np.log(x), level), int(np.argmin(x))
    known = len(x) >= TASKS
    lo, hi = (math.exp(log.lo), exp(log.hi)) if known else (None, None)
    return OverTasks(math.exp(log.value), lo, hi, len(x), float(x[worst]), worst)


class Profile(NamedTuple):
    """share[i] of the tasks cost the method at most ratio[i] times the best method's; a step at every ratio."""

    ratio: Floats
    share: Floats

    def at(self, r: float) -> float:
        """The share of tasks within a factor r of the best."""
        below = np.flatnonzero(self.ratio <= r * (1 + 1e-12))
        return float(self.share[below[-1]]) if len(below) else 0.0


def profile(costs: Mapping[str, ArrayLike]) -> dict[str, Profile]:
    """Performance profiles of methods over tasks (Dolan and More 2002, Mathematical Programming 91).

    costs: method -> (tasks,) above 0, inf where it did not solve the task; the same tasks in the same order.
    A task that no method solved counts against all of them: the shares then end below 1.
    Raises ValueError where the numbers of tasks differ, for none, and for costs that are not above 0.
    """
    table = {name: np.asarray(values, dtype=float) for name, values in costs.items()}
    counts = {name: len(values) for name, values in table.items()}
    if not table or len(set(counts.values())) > 1 or not next(iter(counts.values())):
        raise ValueError(f"every method needs the same tasks, at least one, got {counts}")
    if any(not (values > 0).all() for values in table.values()):
        raise ValueError("costs must be > 0, with inf for a task that was not solved")
    best = np.min(np.stack(list(table.values())), axis=0)
    found = {}
    for name, values in table.items():
        solved = np.isfinite(values)
        ratios, counted = np.unique(values[solved] / best[solved], return_counts=True)
        found[name] = Profile(ratios, np.cumsum(counted) / len(values))
    return found
