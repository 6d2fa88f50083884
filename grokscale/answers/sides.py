"""One side of a comparison: an arm's confirmed replicas, and what both sides must share.

A comparison is refused, with the difference named, where its sides did not face the same question: another
task, threshold, evaluation, monitor, validation, data or engine, another horizon or one that was not reached,
missing seeds, seeds that are no pairs. Model and optimiser may differ: that can be the question, and pairs stay
independent of each other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grokscale.errors import GrokscaleError, InputError, suggest
from grokscale.store import Store

Row = Mapping[str, Any]
SAME = ("task", "threshold", "eval", "monitor", "validation", "data")  # what both sides of a comparison share


@dataclass(frozen=True)
class Side:
    """An arm as a sweep's newest plan confirmed it. rows: its replicas in the order of `seeds`."""

    sweep_id: str
    arm: str
    trial_id: str
    tau: int
    seeds: tuple[int, ...]
    rows: Sequence[Row]


def asked_for(head: Row) -> dict[str, Any]:
    """The tables of a sweep's experiment.  head: its row of `sweeps`.  Raises GrokscaleError where they are broken."""
    problem = "not a JSON object"
    try:
        if isinstance(tables := json.loads(head["experiment_json"]), dict):
            return tables
    except ValueError as error:
        problem = str(error)
    raise GrokscaleError(f"what sweep {head['sweep_id']} asked for cannot be read ({problem}); sweep its file anew")


def side(store: Store, sweep_id: str, arm: str, plan: Row) -> Side:
    """The arm's replica of every seed of the plan, each watched for as long as tau.

    Raises InputError for an arm that is not confirmed, GrokscaleError for missing seeds, for seeds that stand
    twice and for a horizon that was not reached.
    """
    winners: dict[str, Any] = json.loads(plan["winners_json"])
    if arm not in winners:
        raise InputError(f"{sweep_id}: no confirmed arm '{arm}'; {suggest(arm, winners)}")
    trial_id, seeds, tau = winners[arm]["trial_id"], seeds_of(plan, arm), plan["tau"]
    twice = [seed for seed, count in Counter(seeds).items() if count > 1]
    if twice:
        raise GrokscaleError(
            f"{sweep_id}: pairing: arm '{arm}' was asked for {_seeds(twice)} more than once, and a seed counts once; "
            "start a new confirmation with other [confirm] seeds"
        )
    known = store.answered([trial_id])
    missing = [seed for seed in seeds if (trial_id, seed) not in known]
    if missing:
        raise GrokscaleError(
            f"{sweep_id}: arm '{arm}' has no result for {len(missing)} of {len(seeds)} confirmation "
            f"seeds ({few(missing)}), and pairs are never dropped; the same `grokscale sweep` completes them"
        )
    rows = [known[trial_id, seed] for seed in seeds]
    short = [row for row in rows if undecided(row, tau)]
    if short:
        least = min(row["observed_to"] for row in short)
        raise GrokscaleError(
            f"{sweep_id}: horizon: arm '{arm}' was watched to step {least} only, the plan says "
            f"tau = {tau} (seeds {few([row['seed'] for row in short])}); the same `grokscale sweep` "
            "continues them"
        )
    return Side(sweep_id, arm, trial_id, tau, tuple(seeds), rows)


def paired(base: Side, arm: Side, *, apart: bool = False) -> bool:
    """Do the sides share their seeds? What they must share besides is checked.

    apart: the arms are meant to have seeds of their own (an A/A check); then they must share none.
    Raises GrokscaleError with every difference named.
    """
    found = [
        f"{key}: {a!r} ({_name(base, arm)}) against {b!r} ({_name(arm, base)})"
        for key, a, b in differences(_question(base), _question(arm))
    ]
    if common := set(base.seeds) & set(arm.seeds) if apart else set():
        found.append(f"pairing: {_seeds(sorted(common))} on both sides, and an A/A check takes none twice")
    if not apart and base.seeds != arm.seeds:
        mine, theirs = set(base.seeds) - set(arm.seeds), set(arm.seeds) - set(base.seeds)
        alone = [f"{_seeds(sorted(only))} of {_name(one, other)} alone"
                 for only, one, other in ((mine, base, arm), (theirs, arm, base)) if only]  # fmt: skip
        found.append("pairing: " + (", ".join(alone) or "the seeds stand in another order"))
    if found:
        raise GrokscaleError(
            f"{arm.sweep_id}: {_name(arm, base)} cannot be compared with {_name(base, arm)}, they differ in "
            + "; ".join(found)
        )
    return not apart


def _name(one: Side, other: Side) -> str:
    return f"'{one.arm}'" if one.sweep_id == other.sweep_id else f"'{one.arm}' of {one.sweep_id}"


def _question(one: Side) -> dict[str, Any]:
    spec = json.loads(one.rows[0]["spec_json"])
    versions = {
        name: value for name, value in spec.get("versions", {}).items() if name == "engine" or name.startswith("task:")
    }
    return {"horizon": one.tau, **{key: spec.get(key) for key in SAME}, "version": versions}


def differences(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value in a, value in b) of everything in which two nested tables differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in dict.fromkeys([*a, *b]):
            yield from differences(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    elif a != b:
        yield key, a, b


def seeds_of(plan: Row, arm: str) -> list[int]:
    """The confirmation seeds of an arm: those of the plan, or its own where the plan gives every arm its own."""
    own = json.loads(plan["winners_json"]).get(arm, {}).get("seeds")
    return list(plan["seeds"] if own is None else own)


def pairs_of(plan: Row, baseline: str, experiment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(baseline, arm) of every comparison of a plan.

    Every arm with the baseline; and with the practice baseline of the plan, where that is another, every arm that
    was no candidate for it.
    """
    winners = json.loads(plan["winners_json"])
    pairs = [(baseline, arm) for arm in winners if arm != baseline]
    practice, candidates = plan["practice"], experiment.get("practice", ())
    if candidates and practice not in (None, baseline):
        pairs += [(practice, arm) for arm in winners if arm != practice and arm not in candidates]
    return pairs


def newest_plan(store: Store, sweep_id: str) -> dict[str, Any] | None:
    return max(store.rows("plans", sweep_id=sweep_id), key=lambda plan: plan["block"], default=None)


def known_to(plan: Row | None, trials: Sequence[Row]) -> list[Row]:
    """The trials that a plan of a confirmation rests on; without one, all of them.

    Of search and race it is what had ended by then: a search that goes on later finds what this answer never saw.
    """
    return [row for row in trials if plan is None or row["phase"] == "confirm" or row["at"] <= plan["at"]]


def sweep_row(store: Store, sweep_id: str) -> dict[str, Any]:
    return store.rows("sweeps", sweep_id=store.find_sweep(sweep_id))[0]


def undetermined(row: Row) -> bool:
    """Did nothing grok on either side? S is then the ratio of the horizons, and says nothing."""
    return row["success_base"] == row["success_arm"] == 0


def by(step: int | None, tau: float) -> bool:
    return step is not None and step <= tau


def undecided(row: Row, tau: int) -> bool:
    """Not watched for long enough to say whether it grokked by tau."""
    return not by(row["grok_step"], tau) and row["outcome"] != "diverged" and row["observed_to"] < tau


def few(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds[:5])) + (", ..." if len(seeds) > 5 else "")


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {few(seeds)}"
