"""A sweep as the store knows it, gathered for reading: plan, arms with their replicas, speed-ups."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscale import answers
from grokscale.report import asked
from grokscale.report.words import plain

if TYPE_CHECKING:
    from grokscale.store import Store

Row = Mapping[str, Any]
OUTCOMES: tuple[str, ...] = ("grokked", "memorised", "unfitted", "diverged")
NEVER = math.inf


@dataclass(frozen=True)
class ArmView:
    """One arm's chosen setting and what its confirmation seeds did.

    params: knobs of the chosen trial.  number: its number in the search.  spec: the trial in full, {} while
    no replica is stored.  rows: its `replicas`, in the order of the plan.  wanted: how many it asks for.
    timing: its row of `timings`, None while there is none.
    """

    name: str
    trial_id: str
    params: Mapping[str, Any]
    number: int | None
    spec: Mapping[str, Any]
    rows: Sequence[Row]
    wanted: int
    timing: Row | None

    @property
    def settings(self) -> dict[str, Any]:
        """What was chosen, and where a replica is stored also what was fixed."""
        fixed = json.loads(self.rows[0]["params_json"]) if self.rows else {}
        return {**fixed, **self.params}

    def times(self, column: str, tau: float) -> np.ndarray:
        """(n,) steps of an event per seed; inf where it did not happen by tau."""
        return np.array([_by(row[column], tau) for row in self.rows], dtype=np.float64)

    def delays(self, tau: float) -> np.ndarray:
        """(n,) steps from fitting to grokking per seed; inf where it did not grok by tau."""
        grok, fit = self.times("grok_step", tau), self.times("fit_step", tau)
        return np.array(
            [max(0.0, g - f) if g < NEVER and f < NEVER else NEVER for g, f in zip(grok, fit, strict=True)]
        )

    def seconds(self, tau: float) -> np.ndarray:
        """(n,) solo seconds to grok per seed; inf where it did not by tau. Needs `timing`."""
        assert self.timing is not None
        times = self.times("grok_step", tau)
        price = answers.switched(self.rows, self.timing["seconds_on"], self.timing["seconds_off"])
        return np.where(times < NEVER, price(np.minimum(times, tau)), NEVER)

    def outcomes(self, tau: float) -> dict[str, int]:
        """How many seeds ended in each of OUTCOMES by tau."""
        counts = dict.fromkeys(OUTCOMES, 0)
        for row in self.rows:
            counts[outcome_by(row, tau)] += 1
        return counts


@dataclass(frozen=True)
class SweepView:
    """Everything that the reports of a sweep say.

    plan: the newest row of `plans` with "seeds" and "tau", None before the confirmation was planned.
    speedups: the rows of `speedups` that answer that plan, over the baseline; over_practice: those over the
    practice baseline, where that is another arm.  trials: the sweep's rows of `trials` that the plan rests on.
    later: how many of search and race have ended since.
    flags: arm -> what makes its search doubtful.  budget: S by trials, as `answers.budget`.  importances: arm -> knob
    -> share.  endpoints: rows of `answers.endpoints`, or why there are none.  papers: rows of `answers.verdicts`.
    """

    sweep_id: str
    name: str
    question: str
    baseline: str
    horizon: int
    experiment: Mapping[str, Any]
    plan: Row | None
    arms: Sequence[ArmView]
    speedups: Sequence[Row]
    trials: Sequence[Row] = field(repr=False)
    over_practice: Sequence[Row] = ()
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    budget: Sequence[Row] = field(default=(), repr=False)
    importances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    endpoints: Sequence[Row] | str = ()
    papers: Sequence[Row] = ()
    later: int = 0

    @property
    def tau(self) -> float:
        """The horizon under which the confirmation is judged, or that of the search before there is one."""
        return float(self.plan["tau"]) if self.plan is not None else float(self.horizon)

    def arm(self, name: str) -> ArmView:
        return next(arm for arm in self.arms if arm.name == name)

    def settings(self, arm: ArmView) -> dict[str, Any]:
        """An arm's settings, and where it departs from the baseline in task, model and optimiser, by a file's keys."""
        base, found = next((one.spec for one in self.arms if one.name == self.baseline), {}), dict(arm.settings)
        for table in ("task", "model", "optimiser") if base and arm.spec else ():
            for key, value in sorted(arm.spec[table].items()):
                other = base[table].get(key)
                # Of the optimiser, what was searched is there already.
                if other != value and not (table == "optimiser" and key in arm.settings):
                    found[f"{table}.{key}"] = value if plain(value) != plain(other) else repr(value)
        return found

    def order(self) -> list[str]:
        """The arms' names as the experiment lists them, the baseline first."""
        listed = [arm["name"] for arm in self.experiment.get("arm", [])]
        seen = dict.fromkeys([self.baseline, *listed, *sorted({row["arm"] for row in self.trials})])
        return [name for name in seen if name in {row["arm"] for row in self.trials} or name in listed]


def collect(store: Store, sweep: str | None = None) -> SweepView:
    """Read a sweep by id or name (the latest of that name, or of all).

    Raises InputError for one that the store does not know.
    """
    sweep_id = store.find_sweep(sweep)
    head = store.table("sweeps", sweep_id=sweep_id).to_pylist()[0]
    trials = _sorted(store.trials(sweep_id=sweep_id).to_pylist(), "arm", "phase", "number")
    plan = answers.newest_plan(store, sweep_id)
    told = answers.known_to(plan, trials)
    ended, known_ended = (sum(row["state"] in ("ended", "failed") for row in of) for of in (trials, told))
    speedups = (
        []
        if plan is None
        else store.speedups(sweep_id=sweep_id, block=plan["block"], phase="confirm").to_pylist()
    )
    known = _sorted(speedups, "arm", "clock")
    shares: dict[str, dict[str, float]] = {}
    for row in answers.importances(store, sweep_id):
        shares.setdefault(row["arm"], {})[row["knob"]] = row["share"]
    view = SweepView(
        sweep_id, head["name"], head["question"], head["baseline"], head["horizon"],
        answers.asked_for(head), plan, (), [r for r in known if r["baseline"] == head["baseline"]], told,
        [r for r in known if r["baseline"] != head["baseline"]], answers.flags(store, sweep_id),
        answers.budget(store, sweep_id), shares, asked.endpoints(store, sweep_id), answers.verdicts(store, sweep_id),
        ended - known_ended,
    )  # fmt: skip
    if plan is None:
        return view
    winners: dict[str, Any] = json.loads(plan["winners_json"])
    ids = [winner["trial_id"] for winner in winners.values()]
    replicas = {(r["trial_id"], r["seed"]): r for r in store.replicas(trial_id=ids).to_pylist()}
    timed = answers.rounds(store.rows("timings", trial_id=ids))
    arms = []
    for name in [*(n for n in view.order() if n in winners), *sorted(set(winners) - set(view.order()))]:
        winner = winners[name]
        seeds = answers.seeds_of(plan, name)
        rows = [replicas[key] for seed in seeds if (key := (winner["trial_id"], seed)) in replicas]
        timing = next((one[winner["trial_id"]] for one in timed if winner["trial_id"] in one), None)
        arms.append(ArmView(
            name, winner["trial_id"], winner["params"], winner.get("number"),
            json.loads(rows[0]["spec_json"]) if rows else {}, rows, len(seeds), timing,
        ))  # fmt: skip
    return SweepView(**{**view.__dict__, "arms": tuple(arms)})


def outcome_by(row: Row, tau: float) -> str:
    """The outcome of a replica as it stood at tau: what happened later does not count."""
    if _by(row["grok_step"], tau) < NEVER:
        return "grokked"
    if _by(row["diverged_step"], tau) < NEVER:
        return "diverged"
    return "memorised" if _by(row["fit_step"], tau) < NEVER else "unfitted"


def of_clock(view: SweepView, clock: str) -> list[Row]:
    """The speed-ups on one clock, the greatest first."""
    return sorted((row for row in view.speedups if row["clock"] == clock), key=lambda r: (-r["s"], r["arm"]))


def best_trials(view: SweepView) -> list[Row]:
    """Per arm the ended trial of the search with the lowest objective, in the order of the arms."""
    best = []
    for name in view.order():
        ended = [
            t for t in view.trials if t["arm"] == name and t["phase"] == "search" and t["value"] is not None
        ]
        best += sorted(ended, key=lambda t: (t["value"], t["number"]))[:1]
    return best


def curves_of(
    store: Store, trial_id: str, seeds: Sequence[int] | None = None
) -> dict[int, dict[str, np.ndarray]]:
    """Seed -> the columns of its curve in order of steps, for the replicas of a trial."""
    filters: dict[str, Any] = {"trial_id": trial_id} | ({} if seeds is None else {"seed": list(seeds)})
    table = store.curves(**filters)
    columns = {name: table[name].to_numpy() for name in ("seed", "step", "train_acc", "val_acc", "test_acc")}
    out = {}
    for seed in dict.fromkeys(seeds if seeds is not None else sorted(set(columns["seed"].tolist()))):
        mine = np.flatnonzero(columns["seed"] == seed)
        mine = mine[np.argsort(columns["step"][mine], kind="stable")]
        if len(mine):
            out[int(seed)] = {name: values[mine] for name, values in columns.items() if name != "seed"}
    return out


def _by(step: float | None, tau: float) -> float:
    return float(step) if step is not None and step <= tau else NEVER


def _sorted(rows: list[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: tuple(row[key] for key in keys))
