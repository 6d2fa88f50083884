"""The search as a pure function: proposals, caps, winners, horizons, and whole searches under any scheduling."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from grokscale import search
from grokscale.checkpoint import Claim
from grokscale.desk import Ledger, PhaseDesk, Phases
from grokscale.methods.spaces import Complement
from grokscale.search import Ended, FixedPlan, Job, SearchPlan
from grokscale.spec import Resolved, TrialSpec, parse, seed_for
from grokscale.spec.settings import described
from grokscale.store import Store
from tests import rows
from tests.fakes import basic, registry

HORIZON = 2000


def resolved(**changes: Any) -> Resolved:
    return parse(basic(**changes)).resolve(registry())


EXPERIMENT = resolved()
ARM = EXPERIMENT.arm("damp")
values = st.floats(math.log(25), math.log(HORIZON))


def ended(outcomes: list[float | None], *, seed: int = 3) -> list[Ended]:
    """Trials as a search would have asked them, one generation after the other, with these values."""
    trials: list[Ended] = []
    while len(trials) < len(outcomes):
        generation = len(trials) // 4
        asked = search.propose(ARM, trials, generation, count=4, seed=seed + generation)
        trials += [Ended(len(trials) + i, params, outcomes[len(trials) + i]) for i, params in enumerate(asked)]
    return trials


# ------------------------------------------------------------------------------------------- proposals


@settings(max_examples=15, deadline=None)
@given(st.lists(values, min_size=8, max_size=8), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_proposals_are_a_pure_function(outcomes: list[float], seed: int, order: random.Random) -> None:
    past = ended(list(outcomes))
    wanted = search.propose(ARM, past, 2, count=4, seed=seed)
    shuffled = order.sample(past, len(past))
    assert search.propose(ARM, shuffled, 2, count=4, seed=seed) == wanted
    for count in (1, 2, 3):  # a shorter generation is the beginning of a longer one
        assert search.propose(ARM, past, 2, count=count, seed=seed) == wanted[:count]
    assert len({str(params) for params in wanted}) == 4


@settings(max_examples=15, deadline=None)
@given(st.lists(values, min_size=8, max_size=8))
def test_proposals_lie_in_the_space(outcomes: list[float]) -> None:
    for params in search.propose(ARM, ended(list(outcomes)), 2, count=4, seed=1):
        assert search.inside(params, ARM.space)
        assert EXPERIMENT.trial("damp", params).trial_id


@settings(max_examples=10, deadline=None)
@given(st.lists(values, min_size=12, max_size=12), st.integers(0, 2**32 - 1))
def test_proposals_are_those_of_a_study_that_was_told_in_full(outcomes: list[float], seed: int) -> None:
    """What is shared in place of copied changes no proposal."""
    past = ended(list(outcomes))
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=search.STARTUP))
    for trial in past:
        if search.inside(trial.params, ARM.space):
            told = {knob: trial.params[knob] for knob in ARM.space}
            study.add_trial(optuna.trial.create_trial(
                value=trial.value, params=told, distributions=dict(ARM.space)))  # fmt: skip
    wanted = [{**ARM.defaults, **study.ask(dict(ARM.space)).params} for _ in range(3)]
    assert search.propose(ARM, past, 3, count=3, seed=seed) == wanted


def test_the_points_are_asked_first_and_zeros_are_not_told() -> None:
    points = list(ARM.points)
    assert points[0] == ARM.defaults
    assert points[-1]["wd"] == 0 and not search.inside(points[-1], ARM.space)
    first = search.propose(ARM, [], 0, count=len(points), seed=1)
    assert first == points
    past = [Ended(i, point, 6.0 + i) for i, point in enumerate(points)]
    other = [*past[:-1], past[-1]._replace(value=3.0)]
    told = search.propose(ARM, past, 1, count=4, seed=1)
    assert search.propose(ARM, other, 1, count=4, seed=1) == told


def test_a_failed_trial_is_not_told_but_counts() -> None:
    outcomes: list[float | None] = [6.0, 7.0, 6.5, 7.2, 6.1, 7.1, 6.6, 7.3, 6.2, 7.4, 6.3, 7.5]
    past = ended(outcomes)
    failed = [trial._replace(value=None) if trial.number == 5 else trial for trial in past]
    again = [trial._replace(value=None, params=ARM.defaults) if trial.number == 5 else trial for trial in past]
    assert search.propose(ARM, failed, 3, count=4, seed=1) == search.propose(ARM, again, 3, count=4, seed=1)


def test_a_gap_in_the_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the trials 0 to 2"):
        search.propose(ARM, [trial for trial in ended([6.0] * 4) if trial.number != 1], 1, count=4, seed=1)


def test_an_arm_without_knobs_has_its_points_only() -> None:
    tables = {**basic(), "space": {}, "arm": [{"name": "none"}, {"name": "damp", "search": []}]}
    plan = SearchPlan(parse(tables).resolve(registry()))
    assert dict(plan.sizes) == {"none": 1, "damp": 1}


# A knob of which 1 - x matters: the decay of a running mean. A copy of ARM that searches one of its knobs so.
DECAY = Complement(0.8, 0.995)
MEAN = replace(
    ARM, defaults={"rate": 0.98}, space={"rate": DECAY}, points=({"rate": 0.98},), zeros=(),
    addresses={"rate": ARM.addresses["rate"]},
)  # fmt: skip


def test_a_complement_is_asked_on_the_log_scale_of_one_minus_x() -> None:
    """1 - x is uniform in its logarithm: a quarter of all in [0.005, 0.0126], 1.2 % where x itself were uniform."""
    drawn = [search.propose(MEAN, [Ended(0, {"rate": 0.98}, 6.0)], 1, count=1, seed=s)[0]["rate"] for s in range(400)]
    assert all(DECAY.low <= x <= DECAY.high for x in drawn)
    edges = [1 - 0.005 * 40 ** (k / 4) for k in range(5)]
    counts = [sum(low < x <= high for low, high in [(edges[k + 1], edges[k])] for x in drawn) for k in range(4)]
    assert all(70 < count < 130 for count in counts), counts  # 100 each, 8.7 of standard deviation


@given(st.floats(0.8, 0.995))
def test_the_way_to_the_sampler_and_back(x: float) -> None:
    asked = search.asked(DECAY)
    assert asked == FloatDistribution(1 - 0.995, 1 - 0.8, log=True)
    there = search.mirrored(x, DECAY)
    assert asked._contains(there)
    assert search.returned(there, DECAY) == pytest.approx(x, abs=1e-16)
    assert search.returned(1 - 0.995 - 1e-18, DECAY) == 0.995


def test_what_was_told_of_a_complement_draws_the_search_there() -> None:
    """Trials near x = 0.99 were best: later ones lie nearer to it, on the log scale, than trials at random do."""
    told = [Ended(0, {"rate": 0.98}, 6.0)]
    while len(told) < 24:
        [one] = search.propose(MEAN, told, len(told), count=1, seed=len(told))
        told.append(Ended(len(told), one, abs(math.log((1 - one["rate"]) / 0.01))))
    late = [search.propose(MEAN, told, 24, count=1, seed=s)[0]["rate"] for s in range(20)]
    far = [abs(math.log((1 - x) / 0.01)) for x in late]
    assert np.mean(far) < 0.6  # at random 1.1
    assert search.propose(MEAN, told, 24, count=4, seed=1) == search.propose(MEAN, told[::-1], 24, count=4, seed=1)


def test_a_complement_is_another_space() -> None:
    assert described(DECAY) != described(FloatDistribution(0.8, 0.995))
    assert described(DECAY) != described(FloatDistribution(0.8, 0.995, log=True))
    assert search.inside({"rate": 0.8}, {"rate": DECAY}) and not search.inside({"rate": 0.996}, {"rate": DECAY})


# ------------------------------------------------------------------------------------------- caps and values


def test_cap_is_twice_the_best_of_earlier_generations() -> None:
    assert search.cap_for([], HORIZON) == HORIZON
    known = [Ended(0, {}, math.log(400)), Ended(1, {}, math.log(300.4)), Ended(2, {}, None)]
    assert search.cap_for(known, HORIZON) == 601
    assert search.cap_for([*known, Ended(3, {}, math.log(100), capped=True)], HORIZON) == 601
    assert search.cap_for([Ended(0, {}, math.log(1500))], HORIZON) == HORIZON


def row(grok: int | None, diverged: int | None = None) -> dict[str, Any]:
    return {"val_grok_step": grok, "diverged_step": diverged}


def test_values() -> None:
    value, capped = search.value_of([row(100), row(400)], HORIZON, HORIZON)
    assert (round(math.exp(value)), capped) == (200, False)
    # What happened after the cap is not seen, whatever the store knows of it.
    late, unknown = (
        search.value_of([row(100), row(900)], 600, HORIZON),
        search.value_of([row(100), row(None)], 600, HORIZON),
    )
    assert late == unknown == (math.log(HORIZON), True)
    assert search.value_of([row(100), row(600)], 600, HORIZON)[1] is False
    # Never, at the horizon: not capped, and clamped there.
    value, capped = search.value_of([row(500), row(None)], HORIZON, HORIZON)
    assert (round(math.exp(value)), capped) == (1000, False)
    # Divergence is known for good.
    value, capped = search.value_of([row(500), row(None, 30)], 600, HORIZON)
    assert (round(math.exp(value)), capped) == (1000, False)


def test_the_shortlist_leaves_capped_failed_and_hopeless_trials_out() -> None:
    trials = [Ended(0, {}, 6.6), Ended(1, {}, 5.0, True), Ended(2, {}, 6.0), Ended(3, {}, None), Ended(4, {}, 6.0)]
    trials.append(Ended(5, {}, 6.0 + math.log(2) + 1e-6))  # beyond twice the best, though it was never capped
    assert [trial.number for trial in search.shortlist(trials, 5)] == [2, 4, 0]
    assert [trial.number for trial in search.shortlist(trials, 2)] == [2, 4]
    assert [trial.number for trial in search.shortlist(trials[1:2], 5)] == [1]
    assert search.shortlist([trials[3]], 5) == []


def test_the_winner_is_pooled_over_search_and_race() -> None:
    one = resolved(search={"trials": 4, "seeds": 4}, race={"top": 2, "seeds": 8})
    found = {arm.name: [Ended(i, arm.points[0], v) for i, v in enumerate((6.0, 6.1, 6.2))] for arm in one.arms}
    race = search.race_plan(one, found)
    assert [(job.arm, job.number) for job in race.jobs()][:4] == [("none", 0), ("damp", 0), ("boost", 0), ("none", 1)]
    seeds = {seed_for("search", k) for k in range(4, 12)}
    assert {frozenset(job.seeds) for job in race.jobs()} == {frozenset(seeds)}
    for job in race.jobs():  # 0 was lucky on the seeds of the search, but for one arm whose races fail
        race.tell(job, None if job.arm == "boost" else (6.5 if job.number == 0 else 6.2), False)
    assert race.done
    winners = search.winners(one, found, race)
    assert {arm: winner.number for arm, winner in winners.items()} == {"none": 1, "damp": 1, "boost": 0}


def test_tau_confirm() -> None:
    never = math.inf
    assert search.tau_confirm([300, 500, 700, 900], 2000) == 2048
    assert search.tau_confirm([1000, 1200, 1500], 2000) == 4096
    assert search.tau_confirm([100, 110, 120], 2000) == 2000
    assert search.tau_confirm([1000, 1200, never, never, never], 2000) == 4000
    assert search.tau_confirm([], 2000) == 4000


# ------------------------------------------------------------------------------------------- whole searches


def fate(spec: TrialSpec, seed: int) -> tuple[int | None, int | None]:
    """(grok step, diverged step) of a made-up replica: a function of trial and seed, as for a real one."""
    digest = hashlib.sha256(f"{spec.trial_id}/{seed}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    lr = spec.optimiser["lr"]
    if lr > 0.08 and rng.random() < 0.5:
        return None, 50
    return int(60 / lr * math.exp(0.5 * rng.standard_normal())), None


def work(store: Store, config: Mapping[str, Any]) -> str:
    """Write what a worker would; the name of the file."""
    job = config["job"]
    spec = TrialSpec.from_json(job["spec"])
    out = []
    for seed in job["seeds"]:
        grok, diverged = fate(spec, seed)
        if diverged is not None:
            out.append(
                rows.replica(spec.trial_id, seed, outcome="diverged", diverged_step=diverged, observed_to=diverged)
            )
        elif grok is not None and grok <= job["horizon"]:
            out.append(rows.grokked(spec.trial_id, seed, grok))
        else:
            out.append(rows.replica(spec.trial_id, seed, observed_to=job["horizon"]))
    name = store.append("replicas", out)
    assert name is not None
    return name


def desks(one: Resolved, ledger: Ledger) -> Any:
    worker = {"root": "", "lanes": 4, "threads": 1, "device": "cpu"}
    plan = SearchPlan(one)
    yield PhaseDesk(plan, ledger, one.horizon, worker, lambda progress: None)
    racing = search.race_plan(one, plan.ended)
    yield PhaseDesk(racing, ledger, one.horizon, worker, lambda progress: None)
    won = search.winners(one, plan.ended, racing)
    seeds = [seed_for("confirm", k) for k in range(3)]
    yield PhaseDesk(search.confirm_plan(one, won, seeds, 4000), ledger, 4000, worker, lambda progress: None)


def simulate(one: Resolved, root: Path, workers: int, order: random.Random, deaths: int = 0) -> Store:
    """A sweep with `workers` at a time that end in any order; the driver dies `deaths` times on the way."""
    store = Store(root)
    alive = True
    while alive:
        phases = Phases(desks(one, Ledger(store, one.sweep_id)))
        under_way: list[tuple[Any, Mapping[str, Any]]] = []
        alive = False
        while not phases.through:
            while len(under_way) < workers and (taken := phases.take()) is not None:
                under_way.append(taken)
            if not under_way:
                break
            key, config = under_way.pop(order.randrange(len(under_way)))
            name = work(store, config)
            if deaths and order.random() < 0.1:
                deaths, alive = deaths - 1, True  # after the worker's part, before the driver's row
                break
            phases.finished(key, [name] if order.random() < 0.5 else [])
        else:
            assert not under_way
    return store


def account(store: Store) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    table = store.trials().to_pylist()
    return {
        (row["arm"], row["phase"], row["number"], tuple(row["seeds"])): (
            row["trial_id"],
            row["cap"],
            row["value"],
            row["state"],
        )
        for row in table
    }


def test_neither_workers_nor_order_nor_deaths_change_a_sweep(tmp_path: Path) -> None:
    one = resolved(search={"trials": 11, "seeds": 2, "parallel": 4}, race={"top": 3, "seeds": 2})
    alone = account(simulate(one, tmp_path / "alone", 1, random.Random(0)))
    assert {state for *_, state in alone.values()} == {"ended"}
    assert sum(phase == "search" for _, phase, *_ in alone) == 33
    caps = {cap for (_, phase, *_), (_, cap, *_) in alone.items() if phase == "search"}
    assert HORIZON in caps and len(caps) > 3
    for i, workers in enumerate((1, 2, 4, 4)):
        store = simulate(one, tmp_path / f"{i}", workers, random.Random(i), deaths=3 * (i % 2))
        assert account(store) == alone
        keys = [(row["trial_id"], row["seed"]) for row in store.replicas().to_pylist()]
        assert len(keys) == len(set(keys))


def test_a_longer_search_begins_with_the_shorter_one(tmp_path: Path) -> None:
    sizes = {"seeds": 2, "parallel": 4}
    short = resolved(search={"trials": 6, **sizes}, race={"top": 2, "seeds": 2})
    long = resolved(search={"trials": 9, **sizes}, race={"top": 2, "seeds": 2})
    assert short.sweep_id == long.sweep_id
    afresh = account(simulate(long, tmp_path / "long", 2, random.Random(1)))
    simulate(short, tmp_path / "grown", 2, random.Random(2))
    grown = account(simulate(long, tmp_path / "grown", 2, random.Random(3)))
    assert {key: value for key, value in grown.items() if key in afresh} == afresh
    assert sum(key[1] == "search" for key in grown) == 27


def test_a_trial_that_two_arms_ask_for_is_trained_once(tmp_path: Path) -> None:
    twins = resolved(arm=[{"name": "none"}, {"name": "twin", "method": "none"}], search={"trials": 2, "seeds": 2})
    plan = SearchPlan(twins)
    desk = PhaseDesk(plan, Ledger(Store(tmp_path), twins.sweep_id), HORIZON, {"root": ""}, lambda progress: None)
    handed = []
    while (taken := desk.take()) is not None:
        handed.append(taken)
    assert len({config["job"]["spec"] for _, config in handed}) == len(handed) < len(plan.jobs())
    for key, config in handed:
        work(desk.ledger.store, config)
        desk.finished(key)
    desk.settle()
    assert desk.through and desk.reused == len(plan.ended["twin"]) == 2


def test_a_trial_that_another_sweep_trains_is_handed_out_last(tmp_path: Path) -> None:
    one = resolved(arm=[{"name": "none"}], search={"trials": 3, "seeds": 2})
    store, plan = Store(tmp_path), SearchPlan(one)
    first, *others = [job.trial_id for job in plan.jobs()]
    claim = Claim(store, first)
    assert len(others) == 2 and claim.take()
    desk = PhaseDesk(plan, Ledger(store, one.sweep_id), HORIZON, {"root": ""}, lambda progress: None)
    handed = [TrialSpec.from_json(taken[1]["job"]["spec"]).trial_id for _ in range(3) if (taken := desk.take())]
    claim.release()
    assert handed == [*others, first]


def test_the_driver_takes_its_workers_word_for_where_an_answer_lies_and_the_stores_for_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = resolved(arm=[{"name": "none"}], search={"trials": 3, "seeds": 4})
    store = Store(tmp_path)
    desk = PhaseDesk(SearchPlan(one), Ledger(store, one.sweep_id), HORIZON, {"root": ""}, lambda p: None)
    (first, config), (second, halved), (third, moved) = [taken for _ in range(3) if (taken := desk.take()) is not None]
    asked: list[Any] = []
    answered = store.answered
    monkeypatch.setattr(store, "answered", lambda ids: asked.append(ids) or answered(ids))
    desk.finished(first, [work(store, config)])
    assert asked == []
    seeds = halved["job"]["seeds"]
    parts = [work(store, {"job": {**halved["job"], "seeds": some}}) for some in (seeds[:2], seeds[2:])]
    desk.finished(second, parts[1:])  # the first is of a worker that died
    assert len(asked) == 1
    name = work(store, moved)
    store.compact(grace=0.0)
    assert store.part("replicas", name) is None
    desk.finished(third, [name])
    assert len(asked) > 1 and desk.through and not desk.failures and desk.trained == 12


def test_a_failed_trial_neither_stops_nor_wins(tmp_path: Path) -> None:
    one = resolved(search={"trials": 2, "seeds": 2, "parallel": 2})
    plan = SearchPlan(one)
    desk = PhaseDesk(plan, Ledger(Store(tmp_path), one.sweep_id), HORIZON, {"root": ""}, lambda progress: None)
    while (taken := desk.take()) is not None:
        key, config = taken
        if key[1:] == ("none", 0):
            desk.failed(key, "Traceback ...\nMemoryError: no")
        else:
            work(desk.ledger.store, config)
            desk.finished(key)
    assert desk.through
    assert [(f.arm, f.number, f.error[-2:]) for f in desk.failures] == [("none", 0, "no")]
    assert [trial.number for trial in search.shortlist(plan.ended["none"], 5)] == [1]
    stored = {(row["arm"], row["number"]): row for row in desk.ledger.store.trials().to_pylist()}
    assert stored["none", 0]["state"] == "failed" and "MemoryError" in stored["none", 0]["error"]
    again = PhaseDesk(SearchPlan(one), Ledger(desk.ledger.store, one.sweep_id), HORIZON, {"root": ""}, lambda p: None)
    retried = again.take()
    assert retried is not None and retried[0][1:] == ("none", 0)


def test_a_worker_that_leaves_no_answer_is_a_failure_and_no_loop(tmp_path: Path) -> None:
    one = resolved(arm=[{"name": "none"}], search={"trials": 1, "seeds": 2})
    desk = PhaseDesk(SearchPlan(one), Ledger(Store(tmp_path), one.sweep_id), HORIZON, {"root": ""}, lambda p: None)
    taken = desk.take()
    assert taken is not None
    desk.finished(taken[0])
    assert desk.through and "no answer" in desk.failures[0].error


def test_a_phase_without_jobs_is_done() -> None:
    plan = FixedPlan("race", [])
    assert plan.done and plan.jobs() == []
    job = Job("race", "none", 0, {}, EXPERIMENT.trial("none"), (1, 2), HORIZON)
    assert not FixedPlan("race", [job]).done
