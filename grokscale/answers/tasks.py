"""Several sweeps as one answer: the same methods on different tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokscale import stats
from grokscale.answers.compare import seeded, speedups
from grokscale.answers.sides import newest_plan, sweep_row, undetermined
from grokscale.errors import GrokscaleError
from grokscale.stats import across as tasks
from grokscale.store import Store


@dataclass(frozen=True)
class Across:
    """What several sweeps say together.

    sweeps: their ids, a task each.  baseline: its method.
    arms: a row per arm that all sweeps confirmed: arm, s (geometric mean over tasks), lo, hi, p, p_holm (by sign
    flips; these four None below eight tasks), n (tasks), worst, worst_sweep, by_sweep (S in the order of `sweeps`);
    bound, worst_bound, by_sweep_bound: as in `stats.SpeedUp`; "neither" of a task on which neither side ever groks
    (it counts as S = 1), and "mixed" of s where such a task, or tasks that bound it from both sides, leave no bound.
    profiles: arm, the baseline too -> Dolan and More's profile of the geometric mean cost.
    left_out: arm -> sweeps that did not confirm it.
    """

    sweeps: tuple[str, ...]
    clock: str
    baseline: str
    arms: tuple[dict[str, Any], ...]
    profiles: dict[str, tasks.Profile]
    left_out: dict[str, tuple[str, ...]]


def across(store: Store, sweeps: Sequence[str], clock: str = "steps") -> Across:
    """Join the confirmed answers of several sweeps, each over its baseline: one task counts once.

    sweeps: ids or names.  An arm that never grokked on a task has not solved it (its cost is inf).
    Raises GrokscaleError where a sweep is named twice or asks another's task, has no answer on this clock, or
    where a label stands for different methods; with the difference named.
    """
    ids = [store.find_sweep(sweep) for sweep in sweeps]
    if not ids:
        raise GrokscaleError("no sweep to join: name one per task")
    tables = [_of_baseline(store, sweep_id, clock) for sweep_id in ids]
    methods, names = _methods(store, ids), {sweep_row(store, sweep_id)["baseline"] for sweep_id in ids}
    if len(names) > 1:
        raise GrokscaleError(f"the sweeps differ in baseline: {', '.join(sorted(names))}; join those with one baseline")
    baseline = names.pop()
    every = dict.fromkeys(arm for table in tables for arm in table)
    left_out = {arm: tuple(s for s, table in zip(ids, tables, strict=True) if arm not in table) for arm in every}
    common = [arm for arm in every if not left_out[arm]]
    for label in [baseline, *common]:
        if len(of := {one[label] for one in methods}) > 1:
            raise GrokscaleError(f"arm '{label}' differs in method: {', '.join(sorted(of))}; a label is one method")
    rows = [_row(arm, ids, [table[arm] for table in tables]) for arm in common]
    for row, p in zip(rows, stats.holm([1.0 if row["p"] is None else row["p"] for row in rows]), strict=True):
        row["p_holm"] = None if row["p"] is None else p
    costs = {arm: [_cost(table[arm]) for table in tables] for arm in common}
    costs[baseline] = [_base_cost(table) for table in tables]
    kept = {arm: names for arm, names in left_out.items() if names}
    return Across(tuple(ids), clock, baseline, tuple(rows), tasks.profile(costs), kept)


def _of_baseline(store: Store, sweep_id: str, clock: str) -> dict[str, dict[str, Any]]:
    """Arm -> its confirmed row over the sweep's own baseline."""
    rows = [row for row in speedups(store, sweep_id).to_pylist() if row["phase"] == "confirm"]
    baseline = sweep_row(store, sweep_id)["baseline"]
    found = {row["arm"]: row for row in rows if row["clock"] == clock and row["baseline"] == baseline}
    if not found:
        clocks = sorted({row["clock"] for row in rows})
        known = f"it has {', '.join(clocks)}" if clocks else "nothing is confirmed"
        raise GrokscaleError(f"{sweep_id}: no speed-up in {clock} over '{baseline}': {known}")
    return found


def _methods(store: Store, ids: Sequence[str]) -> list[dict[str, str]]:
    """Per sweep: arm -> method. Raises where two sweeps have one task and model."""
    found, questions = [], {}
    for sweep_id in ids:
        plan = newest_plan(store, sweep_id)
        assert plan is not None
        winners = json.loads(plan["winners_json"])
        known = {row["trial_id"]: row for row in store.answered(w["trial_id"] for w in winners.values()).values()}
        found.append({arm: known[winner["trial_id"]]["method"] for arm, winner in winners.items()})
        spec = json.loads(known[winners[sweep_row(store, sweep_id)["baseline"]]["trial_id"]]["spec_json"])
        question = json.dumps([spec["task"], spec["model"]], sort_keys=True)
        if (other := questions.setdefault(question, sweep_id)) != sweep_id or ids.count(sweep_id) > 1:
            same = "is named twice" if other == sweep_id else f"has the task and model of {other}"
            raise GrokscaleError(f"{sweep_id} {same}: a task counts once")
    return found


def _row(arm: str, ids: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    s = [row["s"] for row in rows]
    bounds = ["neither" if undetermined(row) else row["bound"] for row in rows]
    found = tasks.over_tasks(s)
    p = None if found.lo is None else stats.sign_flip(np.log(s), seeded(f"{arm}/{'/'.join(ids)}"))
    return {
        "arm": arm, "s": found.mean, "lo": found.lo, "hi": found.hi, "p": p, "n": found.n, "worst": found.worst,
        "worst_sweep": ids[found.place], "by_sweep": s, "bound": _joined(bounds), "worst_bound": bounds[found.place],
        "by_sweep_bound": bounds,
    }  # fmt: skip


def _joined(bounds: Sequence[str]) -> str:
    """What a mean of bounds is."""
    ways = set(bounds) - {"="}
    return "=" if not ways else "mixed" if "neither" in ways or len(ways) > 1 else ways.pop()


def _cost(row: dict[str, Any]) -> float:
    """Of an arm in units of the baseline's geometric mean; inf where it never grokked."""
    return 1 / row["s"] if row["success_arm"] > 0 else math.inf


def _base_cost(table: dict[str, dict[str, Any]]) -> float:
    return 1.0 if any(row["success_base"] > 0 for row in table.values()) else math.inf
