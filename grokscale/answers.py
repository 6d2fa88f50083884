"""From the store to the answer: a sweep's confirmed replicas, paired by seed, as rows of `speedups`.

A comparison is refused, with the difference named, where its sides did not face the same question: another
task, threshold, evaluation, monitor, validation, data or engine, missing seeds, a horizon not reached.
Model and optimiser may differ: that can be the question, and pairs stay independent of each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any

import numpy as np
import pyarrow as pa

from grokscale import stats
from grokscale.errors import GrokscaleError, InputError, suggest
from grokscale.store import Store
from grokscale.store.schemas import to_table

Row = Mapping[str, Any]
SAME = ("task", "threshold", "eval", "monitor", "validation", "data")  # what both sides of a comparison share


def speedups(store: Store, sweep: str | None = None, baseline: str | None = None) -> pa.Table:
    """The speed-ups of a sweep: one row per arm and clock, as in the table `speedups`.

    sweep: id or name, the latest by default.  baseline: another arm to compare with, worked out afresh.
    Without it these are the stored rows of the newest confirmation that has any; worked out if none has.
    """
    sweep_id = store.find_sweep(sweep)
    stored = store.speedups(sweep_id=sweep_id)
    if baseline is None and stored.num_rows:
        newest = max(stored["block"].to_pylist())
        return store.speedups(sweep_id=sweep_id, block=newest)
    return to_table("speedups", compute(store, sweep_id, baseline=baseline))


def compute(store: Store, sweep_id: str, *, baseline: str | None = None) -> list[dict[str, Any]]:
    """Rows for `speedups` from the newest plan: every arm against the baseline in steps, seconds and oracle.

    T is the sustained crossing on test, clamped at the plan's tau; a diverged replica counts as never.
    Seconds need timings of both sides on one device and are left out without. [] while nothing is planned.
    Raises GrokscaleError for an invalid comparison, naming the difference, and for replicas still missing.
    """
    plan = _newest_plan(store, sweep_id)
    if plan is None:
        return []
    winners: dict[str, Any] = json.loads(plan["winners_json"])
    against = baseline or _sweep(store, sweep_id)["baseline"]
    if against not in winners:
        raise InputError(f"{sweep_id}: no confirmed arm '{against}'; {suggest(against, winners)}")
    rows = {
        arm: _confirmed(store, sweep_id, arm, winner["trial_id"], plan) for arm, winner in winners.items()
    }
    timings = store.rows("timings", trial_id=[winner["trial_id"] for winner in winners.values()])
    answers = []
    for arm in winners:
        if arm != against:
            _same_question(sweep_id, against, rows[against][0], arm, rows[arm][0])
            answers.extend(_compare(sweep_id, plan, against, rows[against], arm, rows[arm], timings))
    return answers


def _compare(
    sweep_id: str,
    plan: Row,
    baseline: str,
    base: Sequence[Row],
    arm: str,
    mine: Sequence[Row],
    timings: Sequence[Row],
) -> Iterator[dict[str, Any]]:
    """The rows of one arm against the baseline.  base, mine: replicas in the order of the plan's seeds."""
    seconds = _timed(base[0]["trial_id"], mine[0]["trial_id"], timings)
    clocks = {
        "steps": (None, None),
        "seconds": seconds and (_seconds(base, seconds[0]), _seconds(mine, seconds[1])),
        "oracle": (_oracle(base), _oracle(mine)),
    }
    now = datetime.now(UTC)
    for clock, pair in clocks.items():
        if pair is None:
            continue
        seed = hashlib.sha256(f"{sweep_id}/{plan['block']}/{arm}/{baseline}/{clock}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(seed[:8], "big"))
        found = stats.paired_speedup(
            _times(base), _times(mine), plan["tau"], clock_base=pair[0], clock_arm=pair[1], rng=rng
        )
        yield {
            "sweep_id": sweep_id,
            "block": plan["block"],
            "arm": arm,
            "baseline": baseline,
            "clock": clock,
            "phase": "confirm",
            **asdict(found),
            "version": _version(),
            "at": now,
        }


def _times(rows: Sequence[Row]) -> list[float]:
    """T in steps, NaN for never; a crossing before the first step counts as the first, as logs are taken."""
    return [np.nan if row["grok_step"] is None else max(1, row["grok_step"]) for row in rows]


def _seconds(rows: Sequence[Row], timing: Row) -> stats.Clock:
    """Steps -> solo seconds: the transform's price while it was on, the plain step's after that."""
    active = np.array([np.inf if row["active_steps"] is None else row["active_steps"] for row in rows])

    def clock(steps: stats.Floats) -> stats.Floats:
        on = np.minimum(steps, active)
        return on * timing["seconds_on"] + (steps - on) * timing["seconds_off"]

    return clock


def _oracle(rows: Sequence[Row]) -> stats.Clock:
    """Steps -> gradient evaluations x examples."""
    price = np.array([row["oracle_per_step"] for row in rows])
    return lambda steps: steps * price


def _timed(base: str, arm: str, timings: Sequence[Row]) -> tuple[Row, Row] | None:
    """Timings of both trials on one host, device and number of threads, the earliest such, or None."""

    def where(row: Row) -> tuple[Any, ...]:
        return row["device"], row["threads"], row["host"]

    ordered = sorted(timings, key=lambda row: (row["at"], where(row)))
    for first in ordered:
        if first["trial_id"] == base:
            for second in ordered:
                if second["trial_id"] == arm and where(second) == where(first):
                    return first, second
    return None


def _confirmed(store: Store, sweep_id: str, arm: str, trial_id: str, plan: Row) -> Sequence[Row]:
    """The arm's replica of every seed of the plan, in that order, each watched for as long as tau."""
    known = store.answered([trial_id])
    missing = [seed for seed in plan["seeds"] if (trial_id, seed) not in known]
    if missing:
        raise GrokscaleError(
            f"{sweep_id}: arm '{arm}' has no result for {len(missing)} of {len(plan['seeds'])} confirmation "
            f"seeds ({_few(missing)}), and pairs are never dropped; the same `grokscale sweep` completes them"
        )
    rows = [known[trial_id, seed] for seed in plan["seeds"]]
    short = [row for row in rows if _undecided(row, plan["tau"])]
    if short:
        least = min(row["observed_to"] for row in short)
        raise GrokscaleError(
            f"{sweep_id}: horizon: arm '{arm}' was watched to step {least} only, the plan says "
            f"tau = {plan['tau']} (seeds {_few([row['seed'] for row in short])}); the same `grokscale sweep` "
            "continues them"
        )
    return rows


def _same_question(sweep_id: str, base_name: str, base: Row, arm_name: str, arm: Row) -> None:
    found = [
        f"{key}: {a!r} ('{base_name}') against {b!r} ('{arm_name}')"
        for key, a, b in _differences(_question(base), _question(arm))
    ]
    if found:
        raise GrokscaleError(
            f"{sweep_id}: '{arm_name}' cannot be compared with '{base_name}', they differ in "
            + "; ".join(found)
        )


def _question(row: Row) -> dict[str, Any]:
    spec = json.loads(row["spec_json"])
    versions = {
        name: value
        for name, value in spec.get("versions", {}).items()
        if name == "engine" or name.startswith("task:")
    }
    return {**{key: spec.get(key) for key in SAME}, "version": versions}


def _differences(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in dict.fromkeys([*a, *b]):
            yield from _differences(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    elif a != b:
        yield key, a, b


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
    sweep = _sweep(store, sweep_id)
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
    plan = _newest_plan(store, sweep_id)
    if plan is not None:
        winners = json.loads(plan["winners_json"])
        known = store.answered({winner["trial_id"] for winner in winners.values()})
        there = [(w["trial_id"], seed) in known for w in winners.values() for seed in plan["seeds"]]
        if any(there):
            label = "confirmed" if all(there) else "confirming"
            return {arm: _Choice(winner["trial_id"], winner["params"], plan["seeds"], "confirm", label)
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
    grokked = [row for row in rows if _by(row["grok_step"], tau)]
    rest = [row for row in rows if not _by(row["grok_step"], tau)]
    lost = [row for row in rest if _by(row["diverged_step"], tau)]
    open_ = [row for row in rest if _undecided(row, tau)]
    kept = [row for row in rest if row not in lost and row not in open_]
    fitted = [row for row in rows if _by(row["fit_step"], tau)]
    watched = [row for row in grokked if row["dips"] is not None]
    stable = [row for row in watched if row["dips"] == 0]
    low, high = stats.wilson(len(grokked), len(rows))
    accuracies = [row["final_acc"] for row in rows if row["final_acc"] is not None]
    delays = [
        (row["delay"], True)
        if row["delay"] is not None and _by(row["grok_step"], tau)
        else (max(0, _end(row, tau) - row["fit_step"]), False)
        for row in fitted
    ]
    return {
        "n": len(rows),
        "grokked": len(grokked),
        "diverged": len(lost),
        "undecided": len(open_),
        "memorised": sum(_by(row["fit_step"], tau) for row in kept),
        "unfitted": sum(not _by(row["fit_step"], tau) for row in kept),
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
        [row["delay"] if _by(row["grok_step"], tau) and row["delay"] is not None else np.nan for row in side]
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
    return _median([(row[event], True) if _by(row[event], tau) else (_end(row, tau), False) for row in rows])


def _median(times: Sequence[tuple[float, bool]]) -> float | None:
    return stats.median([time for time, _ in times], [event for _, event in times]) if times else None


def _by(step: int | None, tau: int) -> bool:
    return step is not None and step <= tau


def _end(row: Row, tau: int) -> int:
    """Up to when a replica without the event counts as without it; one that diverged never will have it."""
    return tau if row["outcome"] == "diverged" else min(row["observed_to"], tau)


def _undecided(row: Row, tau: int) -> bool:
    """Not watched for long enough to say whether it grokked by tau."""
    return not _by(row["grok_step"], tau) and row["outcome"] != "diverged" and row["observed_to"] < tau


def _newest_plan(store: Store, sweep_id: str) -> dict[str, Any] | None:
    return max(
        store.rows("plans", sweep_id=sweep_id), key=lambda plan: plan["block"], default=None
    )


def _sweep(store: Store, sweep_id: str) -> dict[str, Any]:
    return store.rows("sweeps", sweep_id=store.find_sweep(sweep_id))[0]


def _few(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds[:5])) + (", ..." if len(seeds) > 5 else "")


def _version() -> str:
    try:
        return installed("grokscale")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
