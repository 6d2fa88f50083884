"""A summary per arm: outcomes by tau, medians, delays, stability."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grokscale import stats
from grokscale.answers.sides import Row, by, newest_plan, seeds_of, sweep_row, undecided
from grokscale.store import Store


def arms(store: Store, sweep_id: str) -> list[dict[str, Any]]:
    """A summary per arm: what its replicas did by tau, the baseline first.

    label: "confirmed" (every seed of the newest plan is there), "confirming" (some are) or "exploratory" (the
    best trial so far, on the seeds that chose it, which flatters it; phase says whether search or race).
    n, planned: seeds there are, and were asked for.  grokked, memorised, unfitted, diverged: by tau;
    undecided: not watched to tau (capped).  success_*: share that grokked, with Wilson's interval.
    median_*: Kaplan-Meier, None if not reached; that of the delay over the seeds that fitted.
    delay_saved, delay_lo, delay_hi: the baseline's delay less this one's, over delay_n pairs that grokked.
    watched: grokked ones seen to 2 x grok_step; stable: those of them that never dipped.
    final_acc: median over all seeds.
    """
    sweep = sweep_row(store, sweep_id)
    chosen, tau = _chosen(store, sweep_id, sweep["horizon"])
    known = store.answered({choice.trial_id for choice in chosen.values()})
    rows = {arm: [known[choice.trial_id, seed] for seed in choice.seeds if (choice.trial_id, seed) in known]
            for arm, choice in chosen.items()}  # fmt: skip
    base = {row["seed"]: row for row in rows.get(sweep["baseline"], [])}
    summaries = []
    for arm in sorted(chosen, key=lambda name: (name != sweep["baseline"], name)):
        choice = chosen[arm]
        summaries.append({
            "arm": arm, "label": choice.label, "phase": choice.phase, "trial_id": choice.trial_id,
            "params": dict(choice.params), "tau": tau, "planned": len(choice.seeds),
            **_summary(rows[arm], tau), **_delay(base, rows[arm], tau),
        })  # fmt: skip
    return summaries


@dataclass(frozen=True)
class _Choice:
    """The trial that stands for an arm, and the seeds it was asked for."""

    trial_id: str
    params: Mapping[str, Any]
    seeds: Sequence[int]
    phase: str
    label: str


def _chosen(store: Store, sweep_id: str, horizon: int) -> tuple[dict[str, _Choice], int]:
    """Arm -> its trial; and tau. By the newest plan once it has a replica, else the best so far."""
    plan = newest_plan(store, sweep_id)
    if plan is not None:
        winners = json.loads(plan["winners_json"])
        known = store.answered({winner["trial_id"] for winner in winners.values()})
        there = [(w["trial_id"], seed) in known for arm, w in winners.items() for seed in seeds_of(plan, arm)]
        if any(there):
            label = "confirmed" if all(there) else "confirming"
            return {arm: _Choice(winner["trial_id"], winner["params"], seeds_of(plan, arm), "confirm", label)
                    for arm, winner in winners.items()}, plan["tau"]  # fmt: skip
    return _best(store, sweep_id), horizon


def _best(store: Store, sweep_id: str) -> dict[str, _Choice]:
    """Arm -> the ended trial of the lowest value, on all seeds that it had; race goes before search."""
    trials = store.rows("trials", sweep_id=sweep_id, state="ended", phase=["search", "race"])
    seeds: dict[tuple[str, str], set[int]] = {}
    for trial in trials:
        seeds.setdefault((trial["arm"], trial["trial_id"]), set()).update(trial["seeds"])
    valued = [trial for trial in trials if trial["value"] is not None]
    best: dict[str, _Choice] = {}
    for trial in sorted(valued, key=lambda t: (t["phase"] != "race", t["value"], t["number"])):
        arm, trial_id, params = trial["arm"], trial["trial_id"], json.loads(trial["params_json"])
        choice = _Choice(trial_id, params, sorted(seeds[arm, trial_id]), trial["phase"], "exploratory")
        best.setdefault(arm, choice)
    return best


def _summary(rows: Sequence[Row], tau: int) -> dict[str, Any]:
    grokked = [row for row in rows if by(row["grok_step"], tau)]
    rest = [row for row in rows if not by(row["grok_step"], tau)]
    lost = [row for row in rest if by(row["diverged_step"], tau)]
    open_ = [row for row in rest if undecided(row, tau)]
    kept = [row for row in rest if row not in lost and row not in open_]
    fitted = [row for row in rows if by(row["fit_step"], tau)]
    watched = [row for row in grokked if row["dips"] is not None]
    stable = [row for row in watched if row["dips"] == 0]
    low, high = stats.wilson(len(grokked), len(rows))
    accuracies = [row["final_acc"] for row in rows if row["final_acc"] is not None]
    delays = [
        (row["delay"], True)
        if row["delay"] is not None and by(row["grok_step"], tau)
        else (max(0, _end(row, tau) - row["fit_step"]), False)
        for row in fitted
    ]
    return {
        "n": len(rows),
        "grokked": len(grokked),
        "diverged": len(lost),
        "undecided": len(open_),
        "memorised": sum(by(row["fit_step"], tau) for row in kept),
        "unfitted": sum(not by(row["fit_step"], tau) for row in kept),
        "success": len(grokked) / len(rows) if rows else None,
        "success_lo": low,
        "success_hi": high,
        "median_steps": _median_of("grok_step", rows, tau),
        "median_fit": _median_of("fit_step", rows, tau),
        "median_delay": _median(delays),
        "comprehended": sum(bool(row["comprehended"]) for row in grokked),
        "watched": len(watched),
        "stable": len(stable),
        "stable_share": len(stable) / len(watched) if watched else None,
        "final_acc": float(np.median(accuracies)) if accuracies else None,
        "monitor": rows[0]["monitor"] if rows else None,
        "threshold": rows[0]["threshold"] if rows else None,
        "method": rows[0]["method"] if rows else None,
    }


def _delay(base: Mapping[int, Row], rows: Sequence[Row], tau: int) -> dict[str, Any]:
    pairs = [(base[row["seed"]], row) for row in rows if row["seed"] in base]
    one, other = (
        [row["delay"] if by(row["grok_step"], tau) and row["delay"] is not None else np.nan for row in side]
        for side in ([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    )
    saved = stats.paired_difference(one, other)
    known = saved.n > 0
    return {
        "delay_saved": saved.value if known else None,
        "delay_lo": saved.lo if known else None,
        "delay_hi": saved.hi if known else None,
        "delay_n": saved.n,
    }


def _median_of(event: str, rows: Sequence[Row], tau: int) -> float | None:
    return _median([(row[event], True) if by(row[event], tau) else (_end(row, tau), False) for row in rows])


def _median(times: Sequence[tuple[float, bool]]) -> float | None:
    return stats.median([time for time, _ in times], [event for _, event in times]) if times else None


def _end(row: Row, tau: int) -> int:
    """Up to when a replica without the event counts as without it; one that diverged never will have it."""
    return tau if row["outcome"] == "diverged" else min(row["observed_to"], tau)
