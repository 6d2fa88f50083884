"""From a store's rows to the speed-ups of a sweep, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from grokscale import answers
from grokscale.errors import GrokscaleError, InputError
from grokscale.store import Store
from tests.rows import SPEC, grokked, plan, replica, sweep, timing, trial

SWEEP = "q-00000001"
SEEDS = [11, 12, 13, 14]
BASE, SWIFT = [4000, 8000, 6000, None], [1000, 4000, 1500, 2500]


DAY_0 = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A sweep whose arm swift is confirmed against plain, with one baseline seed that never grokked."""
    store = Store(tmp_path / "runs")
    store.append("sweeps", [sweep()])
    store.append("plans", [plan({"plain": "t", "swift": "u"}, SEEDS)])
    put(store, "t", BASE)
    put(store, "u", SWIFT, oracle_per_step=64.0)
    return store


def put(
    store: Store, trial_id: str, steps: Sequence[int | None], seeds: list[int] | None = None, **values: Any
) -> None:
    store.append("replicas", [replica(trial_id, seed, **values) if step is None
                              else grokked(trial_id, seed, step, **values)
                              for seed, step in zip(seeds or SEEDS, steps, strict=True)])  # fmt: skip


def changed(**values: Any) -> dict[str, Any]:
    """A row's spec_json with these parts in place of SPEC's."""
    return {"spec_json": json.dumps({**SPEC, **values})}


def by_clock(rows: list[dict[str, Any]], arm: str = "swift") -> dict[str, dict[str, Any]]:
    return {row["clock"]: row for row in rows if row["arm"] == arm}


# ----------------------------------------------------------------------------------------- the answer


def test_steps_and_oracle_calls(store: Store):
    rows = by_clock(answers.compute(store, SWEEP))
    assert set(rows) == {"steps", "oracle"}
    steps = rows["steps"]
    assert steps["s"] == pytest.approx((4 * 2 * 4 * 20_000 / 2500) ** 0.25)
    assert (steps["n"], steps["bound"], steps["censored_base"], steps["censored_arm"]) == (4, ">=", 1, 0)
    assert (steps["median_base"], steps["median_arm"], steps["horizon"]) == (6000, 1500, 20_000)
    assert (steps["sweep_id"], steps["block"], steps["baseline"], steps["phase"]) == (SWEEP, 0, "plain", "confirm")
    assert rows["oracle"]["s"] == pytest.approx(steps["s"] / 2) and rows["oracle"]["median_arm"] == 1500 * 64


def test_seconds_charge_the_transform_while_it_is_on(store: Store):
    store.append("timings", [timing("t", 0.01, 0.01), timing("t", 9.0, 9.0, device="gpu"), timing("u", 0.04, 0.01)])
    assert by_clock(answers.compute(store, SWEEP))["seconds"]["median_arm"] == pytest.approx(1500 * 0.04)
    put(store, "u", SWIFT, active_steps=500, attempt="switched off at 500", observed_to=25_000)
    got = by_clock(answers.compute(store, SWEEP))["seconds"]
    assert got["median_arm"] == pytest.approx(500 * 0.04 + 1000 * 0.01) and got["bound"] == ">="
    assert got["median_base"] == pytest.approx(60)
    own = [500 * 0.04 + (step - 500) * 0.01 for step in SWIFT if step]
    assert got["s"] == pytest.approx(((40 / own[0]) * (80 / own[1]) * (60 / own[2]) * (200 / own[3])) ** 0.25)


def test_seconds_are_of_trials_that_took_turns(store: Store):
    """Another sweep timed `u` later on a slower day, and then both again in turns."""
    def seconds() -> float:
        return by_clock(answers.compute(store, SWEEP))["seconds"]["median_arm"] / 1500

    day = timedelta(days=1)
    store.append("timings", [timing("t", 0.01, 0.01, at=DAY_0), timing("u", 0.04, 0.04, at=DAY_0)])
    store.append("timings", [timing("u", 9.0, 9.0, at=DAY_0 + day)])
    assert seconds() == pytest.approx(0.04)
    store.append("timings", [timing("t", 0.02, 0.02, at=DAY_0 + 2 * day), timing("u", 0.06, 0.06, at=DAY_0 + 2 * day)])
    assert seconds() == pytest.approx(0.06)


def test_seconds_of_rounds_of_their_own_are_the_newest_of_one_place(store: Store):
    at = [DAY_0 + timedelta(days=n) for n in range(3)]
    store.append("timings", [timing("t", 0.01, 0.01, at=at[0]), timing("u", 0.04, 0.04, at=at[1])])
    store.append("timings", [timing("u", 0.05, 0.05, at=at[2]), timing("t", 0.03, 0.03, device="gpu", at=at[2])])
    assert by_clock(answers.compute(store, SWEEP))["seconds"]["median_arm"] == pytest.approx(1500 * 0.05)


def test_flops_are_those_of_the_oracle_and_the_transforms_own_while_it_is_on(store: Store):
    put(store, "t", BASE, attempt="counted", observed_to=30_000, flops_per_step=1e6, method_flops=0.0)
    put(store, "u", SWIFT, attempt="counted", observed_to=30_000, flops_per_step=2e6, method_flops=5e6,
        active_steps=500)  # fmt: skip
    got = by_clock(answers.compute(store, SWEEP))["flops"]
    own = [500 * 5e6 + step * 2e6 for step in SWIFT if step]
    base = [4000e6, 8000e6, 6000e6, 20_000e6]
    assert got["s"] == pytest.approx(math.prod(b / a for b, a in zip(base, own, strict=True)) ** 0.25)
    assert got["median_arm"] == pytest.approx(own[2]) and got["bound"] == ">="


@pytest.mark.parametrize("missing", ["flops_per_step", "method_flops"])
def test_no_flops_where_a_replica_was_not_counted(store: Store, missing: str):
    counts: dict[str, Any] = {"flops_per_step": 1e6, "method_flops": 1.0}
    put(store, "t", BASE, attempt="counted", observed_to=30_000, **counts)
    put(store, "u", SWIFT[:3], SEEDS[:3], attempt="counted", observed_to=30_000, **counts)
    put(store, "u", SWIFT[3:], SEEDS[3:], attempt="counted", observed_to=30_000, **{**counts, missing: None})
    assert set(by_clock(answers.compute(store, SWEEP))) == {"steps", "oracle"}


def test_p_is_corrected_for_the_arms_on_a_clock(store: Store):
    put(store, "v", [900, 900, 900, 900])
    store.append("plans", [plan({"plain": "t", "swift": "u", "third": "v"}, SEEDS, block=1)])
    rows = [row for row in answers.compute(store, SWEEP) if row["clock"] == "steps"]
    assert [row["p"] for row in rows] == [2 / 16, 2 / 16] and [row["p_holm"] for row in rows] == [4 / 16, 4 / 16]
    assert all(row["paired"] for row in rows)


def test_no_seconds_without_timings_from_one_place(store: Store):
    store.append("timings", [timing("t", 0.01, 0.01), timing("u", 0.04, 0.01, threads=2)])
    assert set(by_clock(answers.compute(store, SWEEP))) == {"steps", "oracle"}


def test_a_diverged_replica_is_censored_and_never_dropped(store: Store):
    put(store, "v", [1000, 1000, 1000], SEEDS[:3])
    store.append("replicas", [replica("v", SEEDS[3], outcome="diverged", diverged_step=60, observed_to=60)])
    store.append("plans", [plan({"plain": "t", "shaky": "v"}, SEEDS, block=1)])
    got = by_clock(answers.compute(store, SWEEP), "shaky")["steps"]
    assert (got["n"], got["censored_arm"], got["censored_base"], got["bound"]) == (4, 1, 1, "=")
    assert got["s"] == pytest.approx((4 * 8 * 6 * 1) ** 0.25) and got["block"] == 1


def test_grokking_beyond_tau_is_censored(store: Store):
    put(store, "w", [1000, 30_000, 1000, 20_000])
    store.append("plans", [plan({"plain": "t", "late": "w"}, SEEDS, block=1)])
    got = by_clock(answers.compute(store, SWEEP), "late")["steps"]
    assert got["censored_arm"] == 1 and got["success_arm"] == 0.75
    assert got["s"] == pytest.approx((4 * (8 / 20) * 6 * 1) ** 0.25)


def test_the_newest_plan_and_its_seeds_alone_count(store: Store):
    more = [21, 22]
    put(store, "t", [3000, 3000], more)
    put(store, "u", [1000, 1000], more)
    store.append("plans", [plan({"plain": "t", "swift": "u"}, more, block=1, tau=10_000)])
    got = by_clock(answers.compute(store, SWEEP))["steps"]
    assert (got["n"], got["block"], got["horizon"]) == (2, 1, 10_000) and got["s"] == pytest.approx(3)


def test_another_baseline_gives_the_inverse(store: Store):
    there = by_clock(answers.compute(store, SWEEP))["steps"]
    back = by_clock(answers.compute(store, SWEEP, baseline="swift"), "plain")["steps"]
    assert there["s"] * back["s"] == pytest.approx(1) and back["baseline"] == "swift"
    with pytest.raises(InputError, match=r"no confirmed arm 'swft'; did you mean 'swift'"):
        answers.compute(store, SWEEP, baseline="swft")


def test_many_seeds_give_the_same_p_every_time(store: Store):
    seeds = list(range(100, 130))
    put(store, "t", [4000 + 10 * seed for seed in seeds], seeds)
    put(store, "u", [9000 - 45 * seed for seed in seeds], seeds)
    store.append("plans", [plan({"plain": "t", "swift": "u"}, seeds, block=1)])
    one, two = (by_clock(answers.compute(store, SWEEP))["steps"] for _ in range(2))
    assert one["n"] == 30 and one["p"] == two["p"] and 0 < one["p"] < 1


# ---------------------------------------------------------------------------- stored and read again


def test_stored_rows_are_what_is_read(store: Store):
    assert answers.speedups(store, "q")["arm"].to_pylist() == ["swift"] * 2  # worked out: none is stored
    rows = answers.compute(store, SWEEP)
    store.append("speedups", [{**row, "version": "stored"} for row in rows])
    table = answers.speedups(Store(store.root))
    assert table["version"].to_pylist() == ["stored"] * 2
    assert {row["clock"]: row["s"] for row in table.to_pylist()} == {row["clock"]: row["s"] for row in rows}
    assert set(answers.speedups(store, "q", baseline="swift")["baseline"].to_pylist()) == {"swift"}
    assert table.schema == answers.speedups(store, "q", baseline="swift").schema
    store.append("plans", [plan({"plain": "t", "swift": "u"}, [98, 99], block=1)])  # asked, not answered yet
    assert answers.speedups(store)["block"].to_pylist() == [0, 0]


def test_first_crossings_are_asked_for_and_said(tmp_path: Path):
    """What papers print. The baseline's last seed crosses at 5,000 and does not stay."""
    store = Store(tmp_path)
    store.append("sweeps", [sweep()])
    store.append("plans", [plan({"plain": "t", "swift": "u"}, SEEDS)])
    for trial_id, steps in (("t", BASE), ("u", SWIFT)):
        for seed, step in zip(SEEDS, steps, strict=True):
            put(store, trial_id, [step], [seed], first_step=5000 if step is None else step // 2)
    rows = answers.compute(store, SWEEP)
    store.append("speedups", rows)
    table = answers.speedups(store, "q", event="first_step")
    assert set(table["event"].to_pylist()) == {"first_step"} and table.drop(["event"]).schema == store.speedups().schema
    first = by_clock(table.to_pylist())["steps"]
    assert (first["censored_base"], by_clock(rows)["steps"]["censored_base"]) == (0, 1)
    assert first["s"] == pytest.approx((4 * 2 * 4 * 5000 / 1250) ** 0.25)
    assert set(answers.speedups(store, "q", baseline="swift", event="first_step")["baseline"].to_pylist()) == {"swift"}
    assert store.speedups().num_rows == len(rows), "nothing of it is stored"
    with pytest.raises(InputError, match="unknown event 'fit_step'; did you mean 'first_step'"):
        answers.speedups(store, "q", event="fit_step")  # pyright: ignore[reportArgumentType]


def test_nothing_planned_nothing_answered(tmp_path: Path):
    store = Store(tmp_path)
    store.append("sweeps", [sweep()])
    assert answers.compute(store, SWEEP) == [] and answers.speedups(store).num_rows == 0
    assert answers.arms(store, SWEEP) == []
    with pytest.raises(InputError, match="no sweep 'nope'"):
        answers.speedups(store, "nope")


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("values", "named"), [
    (changed(task={**SPEC["task"], "n_train": 2000}), "task.n_train: 1000 ('plain') against 2000 ('swift')"),
    (changed(threshold=0.85), "threshold: 0.95 ('plain') against 0.85 ('swift')"),
    (changed(eval={"epoch": True}), "eval.every: 0.02 ('plain') against None ('swift')"),
    (changed(monitor="test"), "monitor: 'val' ('plain') against 'test' ('swift')"),
    (changed(validation=0.2), "validation: 0.0 ('plain') against 0.2 ('swift')"),
    (changed(versions={"engine": 2, "task:toy": 1}), "version.engine: 1 ('plain') against 2 ('swift')"),
])  # fmt: skip
def test_another_question_is_refused_by_name(store: Store, values: dict[str, Any], named: str):
    put(store, "u", SWIFT, attempt="changed", observed_to=30_000, **values)
    with pytest.raises(GrokscaleError) as caught:
        answers.compute(store, SWEEP)
    assert "'swift' cannot be compared with 'plain'" in str(caught.value) and named in str(caught.value)


def test_another_method_model_or_rate_is_no_other_question(store: Store):
    values = changed(model={"name": "net", "width": 7}, method=[{"name": "x"}], optimiser={"name": "sgd", "lr": 9.0},
                     versions={**SPEC["versions"], "method:x": 3})  # fmt: skip
    put(store, "u", SWIFT, attempt="changed", observed_to=30_000, **values)
    assert len(answers.compute(store, SWEEP)) == 2


def test_a_missing_seed_is_refused(store: Store):
    store.append("plans", [plan({"plain": "t", "swift": "u"}, [*SEEDS, 15, 16], block=1)])
    with pytest.raises(GrokscaleError, match=r"arm 'plain' has no result for 2 of 6 confirmation seeds \(15, 16\)"):
        answers.compute(store, SWEEP)


def test_a_horizon_that_was_not_reached_is_refused(store: Store):
    store.append("plans", [plan({"plain": "t", "swift": "u"}, SEEDS, block=1, tau=40_000)])
    with pytest.raises(GrokscaleError, match=r"'plain' was watched to step 20000 only, .*tau = 40000 \(seeds 14\)"):
        answers.compute(store, SWEEP)


# ------------------------------------------------------------------------------------ arms' summaries


def test_confirmed_arms(store: Store):
    store.append("replicas", [  # better attempts at two of swift's seeds: one dips, one was comprehended at once
        grokked("u", 11, 1000, observed_to=9000, dips=2, dip_min=0.5, stable_step=1500, final_acc=0.9),
        grokked("u", 14, 2500, observed_to=9000, fit_step=2400, delay=100, comprehended=True)])  # fmt: skip
    plain, swift = answers.arms(store, SWEEP)
    assert (plain["arm"], plain["label"], plain["phase"], plain["tau"]) == ("plain", "confirmed", "confirm", 20_000)
    assert (plain["n"], plain["planned"], plain["grokked"], plain["memorised"], plain["diverged"]) == (4, 4, 3, 1, 0)
    assert plain["success"] == 0.75 and (plain["success_lo"], plain["success_hi"]) == pytest.approx(
        (0.3006, 0.9544), abs=1e-4
    )
    assert (plain["median_steps"], plain["median_fit"], plain["median_delay"]) == (6000, 500, 5500)
    assert (plain["params"], plain["trial_id"], plain["monitor"], plain["threshold"]) == ({"lr": 0.1}, "t", "val", 0.95)
    assert (swift["grokked"], swift["comprehended"], swift["watched"], swift["stable"]) == (4, 1, 4, 3)
    assert (swift["stable_share"], swift["final_acc"]) == (0.75, 1.0)
    # Delays saved, where both grokked: 3500 - 500, 7500 - 3500, 5500 - 1000.
    assert (swift["delay_saved"], swift["delay_n"]) == (pytest.approx((3000 + 4000 + 4500) / 3), 3)
    assert swift["delay_lo"] < 3833 < swift["delay_hi"] and plain["delay_saved"] == 0


def test_outcomes_are_those_at_tau(store: Store):
    store.append("replicas", [
        grokked("v", 11, 25_000),  # later than tau: memorised until then
        replica("v", 12, outcome="diverged", diverged_step=30, observed_to=30, fit_step=None),
        replica("v", 13, outcome="unfitted", fit_step=None),
        replica("v", 14, outcome="diverged", diverged_step=22_000, observed_to=22_000, fit_step=21_000)])  # fmt: skip
    store.append("plans", [plan({"odd": "v"}, SEEDS, block=1)])
    (odd,) = answers.arms(store, SWEEP)
    assert (odd["grokked"], odd["memorised"], odd["unfitted"], odd["diverged"]) == (0, 1, 2, 1)
    assert odd["median_steps"] is odd["stable_share"] is odd["delay_saved"] is None
    assert odd["success"] == 0 and odd["delay_n"] == 0


def test_a_confirmation_under_way_says_so(store: Store):
    store.append("plans", [plan({"plain": "t", "swift": "u"}, [*SEEDS, 15], block=1)])
    assert [(row["label"], row["n"], row["planned"]) for row in answers.arms(store, SWEEP)] == [
        ("confirming", 4, 5)
    ] * 2


def test_before_any_confirmation_all_is_exploratory(tmp_path: Path):
    store = Store(tmp_path)
    store.append("sweeps", [sweep()])
    store.append("trials", [
        trial("plain", 0, "a", [1, 2], value=9.0), trial("plain", 1, "b", [1, 2], value=8.0),
        trial("plain", 2, "c", [1, 2], state="asked", value=None), trial("swift", 0, "d", [1, 2], value=7.0),
        trial("swift", 1, "e", [1, 2], value=7.5), trial("swift", 1, "e", [3], phase="race", value=7.6),
        trial("swift", 0, "d", [3], phase="race", value=7.7)])  # fmt: skip
    put(store, "b", [3000, None], [1, 2])
    put(store, "e", [1500, 1600, 1900], [1, 2, 3])
    store.append("replicas", [replica("b", 2, observed_to=8000, attempt="capped", outcome="unfitted", fit_step=None)])
    store.append("plans", [plan({"plain": "b", "swift": "e"}, SEEDS)])  # planned, and not a seed trained yet
    plain, swift = answers.arms(store, SWEEP)
    assert (plain["label"], plain["phase"], plain["trial_id"], plain["n"]) == ("exploratory", "search", "b", 2)
    assert (swift["label"], swift["phase"], swift["trial_id"], swift["n"]) == ("exploratory", "race", "e", 3)
    assert swift["median_steps"] == 1600 and plain["tau"] == 20_000


def test_a_capped_replica_is_undecided(tmp_path: Path):
    store = Store(tmp_path)
    store.append("sweeps", [sweep()])
    store.append("trials", [trial("plain", 0, "a", [1, 2, 3])])
    put(store, "a", [3000, 4000], [1, 2])
    store.append("replicas", [replica("a", 3, observed_to=3500)])
    (plain,) = answers.arms(store, SWEEP)
    assert (plain["grokked"], plain["undecided"], plain["memorised"], plain["n"]) == (2, 1, 0, 3)
    assert plain["median_steps"] == 4000  # censored at 3500, between the two


def test_every_number_is_plain(store: Store):
    """Rows go to tables and to JSON: Python's own numbers, no NaN, and lists or dicts only for the parameters."""
    for row in answers.arms(store, SWEEP):
        json.dumps(
            {name: None if value in (math.inf, -math.inf) else value for name, value in row.items()}, allow_nan=False
        )
