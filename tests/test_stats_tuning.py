"""What a search says of itself: the expected best of k, late gains, flags, slices, S by budget; functions and store."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokscale import answers, stats
from grokscale.answers.tuning import at_edge, ranges
from grokscale.report import html, results_text
from grokscale.store import Store
from tests import synthetic
from tests.rows import plan, replica, sweep, trial

VALUES = st.lists(st.floats(-5, 5), min_size=1, max_size=7)
SPACES = {"plain": {"lr": ["float", 0.01, 1.0, True]},
          "swift": {"lr": ["float", 0.01, 1.0, True], "mode": ["choices", "a", "b"]}}  # fmt: skip

# ------------------------------------------------------------------------------------------- functions


@given(VALUES)
def test_the_expected_best_is_the_mean_over_all_choices(values: list[float]):
    for k in range(1, len(values) + 1):
        mean = np.mean([min(choice) for choice in itertools.combinations(values, k)])
        assert stats.expected_best(values, k) == pytest.approx(float(mean), abs=1e-9)


@given(VALUES)
def test_more_trials_are_never_expected_to_do_worse(values: list[float]):
    best = [stats.expected_best(values, k) for k in range(1, len(values) + 1)]
    assert best[0] == pytest.approx(np.mean(values), abs=1e-9) and best[-1] == pytest.approx(min(values), abs=1e-9)
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(best))


def test_the_expected_best_needs_its_trials():
    for k in (0, 3):
        with pytest.raises(ValueError, match=rf"1 <= k <= n must hold, got k={k}, n=2"):
            stats.expected_best([1.0, 2.0], k)
    assert stats.expected_best([float(i) for i in range(1, 1001)], 500) == pytest.approx(1001 / 501)


def test_the_gain_of_the_last_third():
    assert stats.late_gain([math.log(v) for v in (400, 200, 300, 100)]) == pytest.approx(2)  # the last of four
    assert stats.late_gain([math.log(v) for v in (400, 100, 300, 200, 100, 100)]) == 1
    assert stats.late_gain([1.0, 0.0]) == stats.late_gain([]) == 1


@pytest.mark.parametrize(("value", "range_", "edge"), [
    (0.0105, ["float", 0.01, 1.0, True], True), (0.1, ["float", 0.01, 1.0, True], False),
    (0.9, ["float", 0.01, 1.0, True], True), (0.9, ["float", 0.0, 1.0, False], False),
    (0.04, ["float", 0.0, 1.0, False], True), (0.0, ["float", 0.01, 1.0, True], False), (9, ["int", 1, 9, False], True),
    ("a", ["choices", "a", "b"], False), (True, ["choices", True, False], False),
    (0.9, ["float", 0.0, 0.99, "complement"], False), (0.989, ["float", 0.0, 0.99, "complement"], True),
    (0.02, ["float", 0.0, 0.99, "complement"], True), (1.0, ["float", 1.0, 1.0, False], False),
])  # fmt: skip
def test_an_edge_is_one_on_the_scale_of_the_range(value: Any, range_: list[Any], edge: bool):
    assert at_edge(value, range_) is edge


# ------------------------------------------------------------------------------------------- from a store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Six trials an arm: plain comes down to 1,000 late, swift to 500 early; some of swift's are capped."""
    store = Store(tmp_path)
    store.append("sweeps", [sweep(spaces_json=json.dumps(SPACES))])
    search(store, "plain", [4000, 3000, 2000, 2000, 2000, 1000], [0.1, 0.2, 0.3, 0.4, 0.5, 0.98])
    search(store, "swift", [1000, 500, None, None, 800, 700], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], mode="a")
    store.append("replicas", [replica("swift2", seed, observed_to=1000) for seed in (1, 2)])
    lost = {"outcome": "diverged", "diverged_step": 9, "observed_to": 9}
    store.append("replicas", [replica("swift3", seed, **lost) for seed in (1, 2)])
    return store


def search(store: Store, arm: str, steps: list[int | None], rates: list[float], **params: Any) -> None:
    """Search trials that reached these steps; None: the horizon, under a cap of 1,000."""
    store.append("trials", [
        trial(arm, i, f"{arm}{i}", [1, 2], value=math.log(20_000 if step is None else step),
              cap=1000 if step is None else 20_000, params_json=json.dumps({"lr": rates[i], **params}))
        for i, step in enumerate(steps)
    ])  # fmt: skip


def test_s_by_the_budget_of_tuning(store: Store):
    rows = answers.budget(store, "q")
    assert [(row["arm"], row["k"]) for row in rows] == [("swift", k) for k in range(1, 7)]
    assert rows[0]["s_asked"] == pytest.approx(4) and rows[-1]["s"] == rows[-1]["s_asked"] == pytest.approx(2)
    assert rows[1]["s_asked"] == pytest.approx(3000 / 500)
    base, mine = ([math.log(v) for v in values] for values in (
        (4000, 3000, 2000, 2000, 2000, 1000), (1000, 500, 20_000, 20_000, 800, 700)))  # fmt: skip
    assert rows[0]["s"] == pytest.approx(math.exp(np.mean(base) - np.mean(mine)))
    assert {(row["n"], row["n_base"], row["capped"], row["capped_base"]) for row in rows} == {(6, 6, 1, 0)}


def test_defaults_that_failed_have_no_s(tmp_path: Path):
    store = Store(tmp_path)
    store.append("sweeps", [sweep()])
    assert answers.budget(store, "q") == [] and answers.flags(store, "q") == {} and answers.slices(store, "q") == []
    search(store, "plain", [4000, 3000], [0.1, 0.2])
    store.append("trials", [trial("swift", 0, "swift0", [1, 2], state="failed", value=None),
                            trial("swift", 1, "swift1", [1, 2], value=math.log(1500))])  # fmt: skip
    (row,) = answers.budget(store, "q")
    assert (row["k"], row["s_asked"]) == (1, None) and row["s"] == pytest.approx(math.sqrt(12e6) / 1500)


def test_slices_leave_capped_trials_out_unless_asked(store: Store):
    rows = answers.slices(store, "q")
    swift = [(row["number"], row["x"]) for row in rows if row["arm"] == "swift" and row["knob"] == "lr"]
    assert swift == [(0, 0.1), (1, 0.2), (3, 0.4), (4, 0.5), (5, 0.6)]  # 3 diverged, and that is known for good
    assert not any(row["capped"] for row in rows) and {row["knob"] for row in rows if row["arm"] == "plain"} == {"lr"}
    every = [row for row in answers.slices(store, "q", capped=True) if row["arm"] == "swift"]
    assert [row["number"] for row in every if row["capped"]] == [2, 2]
    assert next(row["steps"] for row in every if row["number"] == 1) == pytest.approx(500)


def test_flags_of_the_best_trial_and_then_of_the_winner(store: Store):
    said = "still improving: the last third of the trials gained 100 %"
    assert answers.flags(store, "q") == {"plain": [said, "range-limited: lr"]}
    winners = {arm: {"trial_id": f"{arm}1", "number": 1, "params": {"lr": lr, "mode": "a"}}
               for arm, lr in (("plain", 0.2), ("swift", 0.0101))}  # fmt: skip
    store.append("plans", [plan({}, [5], winners_json=json.dumps(winners))])
    assert answers.flags(store, "q") == {"plain": [said], "swift": ["range-limited: lr"]}


def test_ranges_of_an_older_store_are_the_shared_ones():
    shared = {"lr": {"low": 0.1, "high": 1.0, "log": True}, "decay": {"choices": ["a", "b"], "low": None}}
    experiment = {"space": shared}
    head = {"spaces_json": None, "experiment_json": json.dumps(experiment)}
    assert ranges(head, "plain") == {"lr": ["float", 0.1, 1.0, True]}
    assert ranges({"spaces_json": json.dumps(SPACES)}, "swift") == SPACES["swift"]


def test_importances_are_read_as_they_were_stored(store: Store):
    rows = [("swift", "lr", 0.8), ("plain", "lr", 1.0), ("swift", "mode", 0.2)]
    about = {"sweep_id": "q-00000001", "trials": 6, "version": "0"}
    store.append("importances", [about | {"arm": a, "knob": k, "share": s} for a, k, s in rows])
    assert [(row["arm"], row["knob"]) for row in answers.importances(store, "q")] == [
        ("plain", "lr"), ("swift", "lr"), ("swift", "mode")]  # fmt: skip
    store.append("importances", [about | {"arm": "plain", "knob": "lr", "share": 0.5}])  # the newest counts
    assert answers.importances(store, "q")[0]["share"] == 0.5


def test_the_report_shows_flags_and_what_tuning_did(tmp_path: Path):
    store = Store(tmp_path)
    sweep_id = synthetic.confirmed(store)
    about = {"sweep_id": sweep_id, "arm": "swift", "trials": 9, "version": "0"}
    store.append("importances", [about | {"knob": "lr", "share": 0.75}, about | {"knob": "wd", "share": 0.25}])
    text = results_text(store)
    assert "EXPLORATORY: S over plain by trials of tuning, on the seeds of the search" in text
    assert "arm    defaults  k = 2  k = 3\n" in text and "\nswift  lr 75 %, wd 25 %\n" in text
    assert "(range-limited: lr)" in text and max(map(len, text.splitlines())) <= 100
    page = html(store)
    badge = '<span class="badge">EXPLORATORY</span> '
    assert f"{badge}S over plain by trials of tuning, on the seeds of the search." in page
    assert f"{badge}What tells the better half" in page and "lr 75 %, wd 25 %" in page
    assert "range-limited: lr" in page and "<th>defaults</th><th>k = 2</th><th>k = 3</th>" in page
