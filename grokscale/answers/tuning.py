"""What a search says of itself: flags, S against the tuning budget, one-knob slices. All of it exploratory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from grokscale import stats
from grokscale.answers.sides import Row, asked_for, known_to, newest_plan, sweep_row
from grokscale.store import Store

EDGE = 0.05  # a best knob within this share of its range of an end may want a wider range
GAIN = 1.05  # a search whose last third gained this much might gain more


def budget(store: Store, sweep: str | None = None) -> list[dict[str, Any]]:
    """S by the number of trials that either side may tune with: a row per arm and k, on the search seeds.

    arm, k; s: exp of the difference of `stats.expected_best` of k of the trials; s_asked: with the best of the first
    k trials as they were asked, so that k = 1 compares the defaults, None where either side has none of them;
    n, n_base: trials there are; capped, capped_base: those of them that count as the horizon, which holds a small k
    back; exploratory: always True, the seeds chose what they show.  [] while the baseline has no trial.
    """
    sweep_id = store.find_sweep(sweep)
    head, searched = sweep_row(store, sweep_id), trials(store, sweep_id)
    base = searched.pop(head["baseline"], [])
    rows = []
    for arm, mine in searched.items():
        about = {
            "arm": arm, "n": len(mine), "n_base": len(base), "capped": sum(row["capped"] for row in mine),
            "capped_base": sum(row["capped"] for row in base), "exploratory": True,
        }  # fmt: skip
        left, right = ([row["value"] for row in of] for of in (base, mine))
        for k in range(1, min(len(left), len(right)) + 1):
            s = math.exp(stats.expected_best(left, k) - stats.expected_best(right, k))
            first = [[row["value"] for row in of if row["number"] < k] for of in (base, mine)]
            s_asked = math.exp(min(first[0]) - min(first[1])) if all(first) else None
            rows.append({**about, "k": k, "s": s, "s_asked": s_asked})
    return rows


def slices(store: Store, sweep: str | None = None, *, capped: bool = False) -> list[dict[str, Any]]:
    """One-knob slices of every search: a row per trial and searched knob: arm, number, knob, x, steps, capped,
    exploratory (always True).

    steps: exp of the objective, the geometric mean of the clamped validation grok steps.
    capped: with the trials that were stopped early too, whose steps are the horizon; they are marked.
    """
    sweep_id = store.find_sweep(sweep)
    found = []
    for arm, rows in trials(store, sweep_id).items():
        for row in (row for row in rows if capped or not row["capped"]):
            about = {"arm": arm, "number": row["number"], "steps": math.exp(row["value"]), "capped": row["capped"],
                     "exploratory": True}  # fmt: skip
            found += [{**about, "knob": knob, "x": x} for knob, x in json.loads(row["params_json"]).items()]
    return found


def importances(store: Store, sweep: str | None = None) -> list[dict[str, Any]]:
    """What the search found each knob to matter, as the sweep stored it: arm, knob, share, trials; greatest first.

    exploratory: always True.
    """
    rows = store.rows("importances", sweep_id=store.find_sweep(sweep))
    marked = ({**row, "exploratory": True} for row in rows)
    return sorted(marked, key=lambda row: (row["arm"], -row["share"], row["knob"]))


def flags(store: Store, sweep: str | None = None) -> dict[str, list[str]]:
    """Arm -> what should make a reader doubt its search, in words; arms without a flag are left out.

    range-limited: a knob of the winner (before there is one, of the best trial) within 5 % of an end of its range.
    still improving: the last third of the trials made the best 5 % better.
    """
    sweep_id = store.find_sweep(sweep)
    head = sweep_row(store, sweep_id)
    plan = newest_plan(store, sweep_id)
    winners = json.loads(plan["winners_json"]) if plan else {}
    searched = trials(store, sweep_id)
    found = {}
    for arm in dict.fromkeys([*winners, *searched]):
        rows = searched.get(arm, [])
        params = winners[arm]["params"] if arm in winners else _best(rows)
        said = [improving(rows), limited(params, ranges(head, arm))]
        if any(said):
            found[arm] = [text for text in said if text]
    return found


def improving(rows: Sequence[Row]) -> str:
    """The flag of a search that had not come to rest, "" of one that had."""
    gain = stats.late_gain([row["value"] for row in sorted(rows, key=lambda row: row["number"])])
    return f"still improving: the last third of the trials gained {100 * (gain - 1):.0f} %" if gain >= GAIN else ""


def limited(params: Mapping[str, Any], space: Mapping[str, Sequence[Any]]) -> str:
    """The flag of settings that lie at an edge of their ranges, "" without any."""
    narrow = [knob for knob, value in params.items() if knob in space and at_edge(value, space[knob])]
    return f"range-limited: {', '.join(narrow)}" if narrow else ""


def at_edge(value: Any, range_: Sequence[Any]) -> bool:
    """Does a value lie within EDGE of an end of its range, on the range's scale?

    range_: ["float" | "int", low, high, log], where log may be "complement" (of 1 - x), or ["choices", ...], which
    has no edge. A value outside, as the zero that is asked besides, lies at none.
    """
    if range_[0] == "choices" or isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    low, high, log = range_[1:4]
    if not low <= value <= high or low == high:
        return False
    if log == "complement":
        low, high, value = 1 - high, 1 - low, 1 - value
    if log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    share = (value - low) / (high - low)
    return not EDGE < share < 1 - EDGE


def ranges(head: Row, arm: str) -> dict[str, Any]:
    """Searched knob -> range of an arm; of the shared knobs alone where the store is older than the ranges.

    head: the sweep's row.
    """
    if head["spaces_json"] is not None:
        return json.loads(head["spaces_json"]).get(arm, {})
    shared = asked_for(head).get("space", {})
    known = {knob: table for knob, table in shared.items() if table.get("low") is not None}
    return {knob: ["float", table["low"], table["high"], bool(table.get("log"))] for knob, table in known.items()}


def trials(store: Store, sweep_id: str) -> dict[str, list[dict[str, Any]]]:
    """Arm -> its search trials that the answer rests on, if they ended with a value, in order, each with `capped`.

    Capped is a trial of which a seed had neither grokked nor diverged at a cap below the horizon.
    """
    horizon = sweep_row(store, sweep_id)["horizon"]
    rows = known_to(
        newest_plan(store, sweep_id), store.rows("trials", sweep_id=sweep_id, phase="search", state="ended")
    )
    valued = sorted((row for row in rows if row["value"] is not None), key=lambda row: row["number"])

    def held(row: Row) -> bool:
        return row["cap"] < horizon and row["value"] >= math.log(horizon) - 1e-9

    known = store.answered({row["trial_id"] for row in valued if held(row)})
    found: dict[str, list[dict[str, Any]]] = {}
    for row in valued:
        lost = all(_diverged(known.get((row["trial_id"], seed)), row["cap"]) for seed in row["seeds"])
        found.setdefault(row["arm"], []).append({**row, "capped": held(row) and not lost})
    return found


def _diverged(row: Row | None, cap: int) -> bool:
    return row is not None and row["diverged_step"] is not None and row["diverged_step"] <= cap


def _best(rows: Sequence[Row]) -> dict[str, Any]:
    best = min(rows, key=lambda row: (row["value"], row["number"]), default=None)
    return {} if best is None else json.loads(best["params_json"])
