"""A/A experiments as a whole, drawn instead of trained: what searching, choosing and confirming do to an interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from grokscale import stats
from grokscale.answers.compare import _compare
from grokscale.answers.sides import Side
from grokscale.search import SearchPlan, Winner, apart, race_plan, winners
from grokscale.spec import Resolved, seed_for
from tests.rows import replica
from tests.test_search import resolved

TWINS: dict[str, Any] = {
    "arm": [{"name": "left", "method": "damp"}, {"name": "right", "method": "damp"}], "baseline": "left", "aa": True,
    "search": {"trials": 4, "seeds": 3}, "race": {"top": 2, "seeds": 8}, "confirm": {"seeds": 20},
}  # fmt: skip
MIDDLE, TAU, REPEATS = 4000, 20_000, 400


def drawn(rng: np.random.Generator, n: int) -> np.ndarray:
    """n grok steps. No setting makes a difference; one in ten never comes."""
    times = MIDDLE * np.exp(stats.LOG_SD * rng.standard_normal(n))
    return np.where(rng.random(n) < 0.1, math.inf, times)


def chosen(one: Resolved, rng: np.random.Generator) -> dict[str, Winner]:
    """The winners of two searches and races of their own."""
    plan = SearchPlan(one)
    while not plan.done:
        for job in plan.jobs():
            plan.tell(job, stats.objective(drawn(rng, len(job.seeds)), TAU), False)
    race = race_plan(one, plan.ended)
    for job in race.jobs():
        race.tell(job, stats.objective(drawn(rng, len(job.seeds)), TAU), False)
    return winners(one, plan.ended, race)


def confirmed(winner: Winner, arm: str, rng: np.random.Generator) -> Side:
    """Replicas of the winner on its own seeds."""
    assert winner.seeds is not None
    rows = []
    for seed, time in zip(winner.seeds, drawn(rng, len(winner.seeds)), strict=True):
        step = None if time > TAU else int(time)
        rows.append(replica(winner.trial_id, seed, grok_step=step, active_steps=None))
    rows = [{**row, "flops_per_step": None, "method_flops": None} for row in rows]
    return Side("twins-00000000", arm, winner.trial_id, TAU, winner.seeds, rows)


def test_intervals_of_aa_experiments_cover_1_in_95_of_100() -> None:
    """Two independent searches, disjoint seeds. The bounds hold a right interval in 99.9 of 100 such tests."""
    one, rng = resolved(**TWINS), np.random.default_rng(20)
    seeds = [seed_for("confirm", k) for k in range(40)]
    hits, logs = 0, []
    for _ in range(REPEATS):
        sides = {arm: confirmed(winner, arm, rng) for arm, winner in apart(one, chosen(one, rng), seeds).items()}
        assert {seed for side in sides.values() for seed in side.seeds} == set(seeds)
        row = next(_compare(sides["left"], sides["right"], [], 0, apart=True))
        assert (row["clock"], row["n"], row["paired"], row["phase"]) == ("steps", 20, False, "confirm")
        hits += row["lo"] <= 1 <= row["hi"]
        logs.append(math.log(row["s"]))
    low, high = scipy.stats.binom.interval(0.999, REPEATS, 0.95)
    assert low <= hits <= high, hits
    assert abs(np.mean(logs)) < 3.3 * np.std(logs) / math.sqrt(REPEATS)  # the luck of the search is not confirmed


@pytest.mark.parametrize(("trials", "shown"), [(200, 1.9), (1000, 2.1)])
def test_the_best_of_many_without_effect_shows_a_speedup_on_the_seeds_that_chose_it(trials: int, shown: float) -> None:
    """Why only fresh seeds confirm: evaluation.md section 3 names these two figures."""
    rng = np.random.default_rng(trials)
    best = [stats.LOG_SD * rng.standard_normal((trials, 3)).mean(axis=1).min() for _ in range(2000)]
    assert math.exp(-float(np.mean(best))) == pytest.approx(shown, abs=0.05)
