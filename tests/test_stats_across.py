"""Several tasks at once: geometric mean, worst task, profiles by hand; and sweeps joined from a store."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from grokscale import answers
from grokscale.errors import GrokscaleError
from grokscale.stats.across import over_tasks, profile
from grokscale.store import Store
from tests.rows import SPEC, grokked, plan, replica, sweep

COSTS = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.one_of(st.floats(1, 100), st.just(math.inf)), min_size=n, max_size=n), min_size=1,
                       max_size=4))  # fmt: skip


def test_few_tasks_have_a_mean_and_a_worst_and_no_interval():
    got = over_tasks([4.0, 1.0, 2.0])
    assert (got.mean, got.lo, got.hi, got.n, got.worst, got.place) == (pytest.approx(2), None, None, 3, 1, 1)
    assert over_tasks([2.0] * 7).lo is None and over_tasks([2.0] * 8).lo == pytest.approx(2)
    for wrong in ([], [1.0, 0.0], [math.inf]):
        with pytest.raises(ValueError, match="finite values > 0"):
            over_tasks(wrong)


def test_eight_tasks_have_the_t_interval_of_scipy():
    s = np.exp(np.random.default_rng(1).standard_normal(8))
    theirs = scipy.stats.ttest_1samp(np.log(s), 0).confidence_interval()
    got = over_tasks(s)
    assert (got.lo, got.hi) == pytest.approx((math.exp(theirs.low), math.exp(theirs.high)))
    assert got.mean == pytest.approx(scipy.stats.gmean(s))


def test_profiles_by_hand():
    """Three tasks: a is best on the first, b on the second by 4, nobody solves the third."""
    got = profile({"a": [10, 80, math.inf], "b": [15, 20, math.inf]})
    assert got["a"].ratio.tolist() == [1, 4] and got["a"].share == pytest.approx([1 / 3, 2 / 3])
    assert got["b"].ratio.tolist() == [1, 1.5] and got["b"].share == pytest.approx([1 / 3, 2 / 3])
    assert (got["a"].at(1), got["a"].at(3.9), got["a"].at(4), got["a"].at(1e9)) == pytest.approx((1/3, 1/3, 2/3, 2/3))
    assert profile({"a": [math.inf]})["a"].at(10) == 0
    for wrong in ({}, {"a": []}, {"a": [1], "b": [1, 2]}):
        with pytest.raises(ValueError, match="same tasks"):
            profile(wrong)
    with pytest.raises(ValueError, match="costs must be > 0"):
        profile({"a": [0.0]})


@given(COSTS, st.floats(0.1, 10))
def test_profiles_rise_from_the_best_and_know_no_unit(table: list[list[float]], unit: float):
    costs = {str(i): row for i, row in enumerate(table)}
    got, n = profile(costs), len(table[0])
    solved = sum(any(math.isfinite(row[i]) for row in table) for i in range(n))
    assert sum(one.at(1) for one in got.values()) >= solved / n - 1e-9  # somebody is the best of every solved task
    for name, one in got.items():
        assert (np.diff(one.share) > 0).all() and (one.ratio >= 1).all()
        assert one.at(1e9) == pytest.approx(sum(map(math.isfinite, costs[name])) / n)
    other = profile({name: [value * unit for value in row] for name, row in costs.items()})
    assert all(other[name].share == pytest.approx(one.share) for name, one in got.items())


# ------------------------------------------------------------------------------------------- from a store

SEEDS = [11, 12, 13]


def task(store: Store, number: int, speed: float | None, *, arms: tuple[str, ...] = ("swift",), **values: Any) -> str:
    """A confirmed sweep on a task of its own: the arms take 8,000 / speed steps and plain 8,000; None: never."""
    sweep_id = f"s{number}-0000000{number}"
    store.append("sweeps", [sweep(sweep_id)])
    store.append("plans", [plan({"plain": f"p{number}", **{arm: f"{arm}{number}" for arm in arms}}, SEEDS,
                                sweep_id=sweep_id)])  # fmt: skip
    spec = json.dumps({**SPEC, "task": {"name": "toy", "n": 60 + number}})
    put(store, f"p{number}", 8000.0, spec_json=spec)
    steps = None if speed is None else 8000 / speed
    for arm in arms:
        put(store, f"{arm}{number}", steps, **{"spec_json": spec, "method": arm} | values)
    return sweep_id


def lose(store: Store, sweep_id: str, number: int) -> None:
    """Put a baseline that never groks in the place of the one of `task`."""
    put(store, "lost", None, spec_json=json.dumps({**SPEC, "task": {"name": "toy", "n": 60 + number}}))
    store.append("plans", [plan({"plain": "lost", "swift": f"swift{number}"}, SEEDS, sweep_id=sweep_id, block=1)])


def never(store: Store, number: int) -> str:
    """A confirmed sweep in which neither side groks."""
    sweep_id = task(store, number, None)
    lose(store, sweep_id, number)
    return sweep_id


def put(store: Store, trial_id: str, steps: float | None, **values: Any) -> None:
    store.append("replicas", [replica(trial_id, seed, **values) if steps is None
                              else grokked(trial_id, seed, round(steps), **values) for seed in SEEDS])  # fmt: skip


def test_sweeps_are_joined_task_by_task(tmp_path: Path):
    store = Store(tmp_path)
    ids = [task(store, i, speed, arms=("swift", "odd") if i < 2 else ("swift",)) for i, speed in enumerate((4, 2, 0.5))]
    got = answers.across(store, ids)
    (row,) = got.arms
    assert (row["arm"], row["n"], row["lo"], row["p"], row["p_holm"]) == ("swift", 3, None, None, None)
    assert row["s"] == pytest.approx(4 ** (1 / 3)) and row["by_sweep"] == pytest.approx([4, 2, 0.5])
    assert (row["worst"], row["worst_sweep"]) == (pytest.approx(0.5), ids[2])
    assert got.left_out == {"odd": (ids[2],)} and got.baseline == "plain"
    assert got.profiles["swift"].at(1) == pytest.approx(2 / 3) and got.profiles["swift"].at(2) == 1
    assert got.profiles["plain"].at(1) == pytest.approx(1 / 3) and got.profiles["plain"].at(3) == pytest.approx(2 / 3)
    assert answers.across(store, ids[:2], clock="oracle").profiles["odd"].at(1) == 1


def test_a_task_that_an_arm_never_grokked_is_not_solved(tmp_path: Path):
    store = Store(tmp_path)
    ids = [task(store, 1, 2), task(store, 2, None)]
    found = answers.across(store, ids)
    assert found.profiles["swift"].at(1e9) == 0.5
    (row,) = found.arms
    assert (row["by_sweep_bound"], row["bound"], row["worst_bound"]) == (["=", "<="], "<=", "<=")


def test_a_mean_of_bounds_is_a_bound_where_all_are_of_one_kind(tmp_path: Path):
    store = Store(tmp_path)
    ids = [task(store, 1, 2), task(store, 2, 4), task(store, 3, None)]
    lose(store, ids[1], 2)
    assert [row["bound"] for row in answers.across(store, ids[:2]).arms] == [">="]
    assert [row["bound"] for row in answers.across(store, ids).arms] == ["mixed"]


def test_a_task_on_which_neither_side_groks_says_so(tmp_path: Path):
    store = Store(tmp_path)
    ids = [task(store, 1, 2), never(store, 2)]
    (row,) = answers.across(store, ids).arms
    assert (row["by_sweep"], row["by_sweep_bound"], row["bound"]) == ([pytest.approx(2), 1], ["=", "neither"], "mixed")
    assert (row["worst"], row["worst_bound"]) == (1, "neither")


def test_eight_tasks_have_an_interval_and_a_corrected_p(tmp_path: Path):
    store = Store(tmp_path)
    ids = [task(store, i, 2 + 0.1 * i, arms=("swift", "odd")) for i in range(8)]
    one, two = answers.across(store, ids).arms
    assert one["lo"] < one["s"] < one["hi"] and one["p"] == 2 / 2**8 and one["p_holm"] == two["p_holm"] == 4 / 2**8


def test_what_is_not_several_tasks_with_one_question_is_refused(tmp_path: Path):
    store = Store(tmp_path)
    first = task(store, 1, 2)
    with pytest.raises(GrokscaleError, match="is named twice: a task counts once"):
        answers.across(store, [first, first])
    with pytest.raises(GrokscaleError, match=f"{first}: no speed-up in seconds over 'plain': it has oracle, steps"):
        answers.across(store, [first], clock="seconds")
    with pytest.raises(GrokscaleError, match="no sweep to join"):
        answers.across(store, [])
    other = task(store, 2, 2, method="another")
    with pytest.raises(GrokscaleError, match="arm 'swift' differs in method: another, swift"):
        answers.across(store, [first, other])
    same = task(store, 3, 2, spec_json=json.dumps(SPEC))
    put(store, "p3", 8000, spec_json=json.dumps({**SPEC, "task": {"name": "toy", "n": 61}}), attempt="again",
        observed_to=30_000)  # fmt: skip
    put(store, "swift3", 4000, spec_json=json.dumps({**SPEC, "task": {"name": "toy", "n": 61}}), attempt="again",
        observed_to=30_000, method="swift")  # fmt: skip
    with pytest.raises(GrokscaleError, match=f"{same} has the task and model of {first}"):
        answers.across(store, [first, same])
    store.append("sweeps", [sweep("t-00000009", baseline="swift")])
    store.append("plans", [plan({"plain": "p2", "swift": "swift2"}, SEEDS, sweep_id="t-00000009")])
    with pytest.raises(GrokscaleError, match="differ in baseline: plain, swift"):
        answers.across(store, [first, "t"])
    store.append("sweeps", [sweep("u-00000010")])
    with pytest.raises(GrokscaleError, match="nothing is confirmed"):
        answers.across(store, [first, "u"])
