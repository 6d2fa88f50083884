"""Published values of an experiment against the seeds in a store: clocks, epochs, crossings, what cannot be said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grokscale import answers, stats
from grokscale.store import Store
from tests.rows import curve, grokked, plan, sweep, timing

SWEEP = "q-00000001"
SEEDS = [11, 12, 13, 14]
PLAIN, SWIFT = [4000, 4400, 3800, 4100], [1000, 1100, 950, 1050]
FIRST = [900, 1000, 900, 1000]  # first crossings of swift; it was not there for good yet
TIME = {"id": "t", "claim": "time", "value": 1000, "arm": "swift", "source": "table 1"}
RATIO = {"id": "r", "claim": "speedup", "value": 4, "arm": "swift", "source": "table 1"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs")
    store.append("plans", [plan({"plain": "t", "swift": "u"}, SEEDS)])
    for name, steps, first in (("t", PLAIN, PLAIN), ("u", SWIFT, FIRST)):
        store.append("replicas", [grokked(name, *pair, first_step=step)
                                  for *pair, step in zip(SEEDS, steps, first, strict=True)])  # fmt: skip
    return store


def judged(store: Store, *papers: dict[str, Any]) -> list[dict[str, Any]]:
    store.append("sweeps", [sweep(experiment_json=json.dumps({"paper": papers}))])
    return answers.verdicts(store, "q")


def test_a_published_time_is_held_against_first_crossings(store: Store):
    (row,) = judged(store, TIME)
    assert (row["verdict"], row["median"], row["n"], row["percentile"]) == ("reproduced", 950, 4, 75)
    assert row["lo"] < 1000 < row["hi"] and row["s"] is row["retained"] is row["against"] is row["why"] is None
    assert judged(store, TIME)[0]["source"] == "table 1"


def test_a_published_time_with_its_baselines_is_a_claim_of_a_speed_up_too(store: Store):
    (row,) = judged(store, {**TIME, "value": 250, "against": "plain", "against_value": 4000})
    logs = np.log(PLAIN) - np.log(SWIFT)
    s = np.exp(logs.mean())
    assert row["verdict"] == "smaller" and row["s"] == pytest.approx(s) and row["s_claimed"] == 16
    assert row["retained"] == pytest.approx(np.log(s) / np.log(16))
    assert (row["s_lo"], row["s_hi"]) == pytest.approx(tuple(np.exp(stats.mean_interval(logs)[1:3])))


def test_a_published_speed_up_is_held_against_the_pairs(store: Store):
    fits, larger = judged(store, RATIO, {**RATIO, "id": "low", "value": 1.5})
    pairs = np.array(PLAIN) / FIRST
    assert (fits["verdict"], fits["against"]) == ("reproduced", "plain")
    assert fits["median"] == pytest.approx(np.median(pairs))
    assert larger["verdict"] == "larger" and larger["retained"] > 1 and larger["claimed"] == 1.5


def test_epochs_are_counted_in_steps(store: Store):
    time, ratio = judged(store, {**TIME, "value": 100, "clock": "epochs", "steps_per_epoch": 9},
                         {**RATIO, "clock": "epochs"})  # fmt: skip
    assert (time["claimed"], time["verdict"]) == (900, "reproduced")
    assert (ratio["claimed"], ratio["verdict"]) == (4, "reproduced")


def test_other_clocks_need_what_the_store_knows_of_them(store: Store):
    second = {**TIME, "clock": "seconds", "value": 9.5}
    (row,) = judged(store, second)
    assert row["verdict"] == "not run" and row["why"] == f"{SWEEP}: the store has no seconds of arm 'swift'"
    store.append("timings", [timing("u", 0.01, 0.01)])
    assert answers.verdicts(store, "q")[0]["verdict"] == "reproduced"
    assert answers.verdicts(store, "q", [{**RATIO, "clock": "seconds"}])[0]["why"] == (
        f"{SWEEP}: the store has no seconds of both 'plain' and 'swift'")  # fmt: skip
    store.append("timings", [timing("t", 0.01, 0.01)])
    assert answers.verdicts(store, "q", [{**RATIO, "clock": "seconds"}])[0]["verdict"] == "reproduced"
    assert answers.verdicts(store, "q", [{**RATIO, "clock": "flops"}])[0]["verdict"] == "not run"


def test_a_seed_that_never_crossed_counts_as_the_horizon_and_is_counted(store: Store):
    lost = {"outcome": "memorised", "grok_step": None, "first_step": None, "observed_to": 20_000}
    store.append("replicas", [grokked("v", seed, 1000, first_step=1000) for seed in SEEDS[:3]])
    store.append("replicas", [{**grokked("v", SEEDS[3], 1000), **lost}])
    store.append("plans", [plan({"plain": "t", "swift": "v"}, SEEDS, block=1)])
    (row,) = judged(store, TIME)
    assert (row["censored"], row["n"], row["median"], row["verdict"]) == (1, 4, 1000, "inconclusive")


def test_seeds_none_of_which_crossed_do_not_contradict_a_time(store: Store):
    lost = {"outcome": "memorised", "grok_step": None, "first_step": None, "observed_to": 20_000}
    store.append("replicas", [{**grokked("v", seed, 1000), **lost} for seed in SEEDS])
    store.append("plans", [plan({"plain": "v", "swift": "u"}, SEEDS, block=1)])
    time, ratio = judged(store, {**TIME, "arm": "plain", "value": 4000}, RATIO)
    assert (time["censored"], time["n"], time["lo"], time["verdict"]) == (4, 4, None, "inconclusive")
    assert ratio["lo"] is not None and (ratio["verdict"], ratio["bound"]) == ("larger", ">=")
    assert judged(store, {**RATIO, "value": 40})[0]["verdict"] == "inconclusive", "S is at least 20"


def test_a_published_endpoint_is_held_against_that_of_every_seed(store: Store):
    values = {"t": [0.8, 0.82, 0.81, 0.83], "u": [0.9, 0.88, 0.91, 0.89]}
    for name, finals in values.items():
        for seed, value in zip(SEEDS, finals, strict=True):
            store.append("curves", curve(name, seed, test_acc=value, test_loss=1 - value))
    ends = [{"name": "final", "metric": "test_acc"}, {"name": "loss", "kind": "final", "metric": "test_loss"}]
    level = {"id": "e", "claim": "endpoint", "endpoint": "final", "value": 0.9, "arm": "swift", "source": "table 2"}
    papers = [
        level, {**level, "id": "base", "arm": "plain", "value": 0.9},
        {**level, "id": "both", "against": "plain", "against_value": 0.8},
        {**level, "id": "loss", "endpoint": "loss", "value": 0.1, "against": "plain", "against_value": 0.2},
        {**level, "id": "ratio", "claim": "ratio", "value": 4},
    ]  # fmt: skip
    store.append("sweeps", [sweep(experiment_json=json.dumps({"paper": papers, "endpoint": ends}))])
    found = {row["id"]: row for row in answers.verdicts(store, "q")}
    assert (found["e"]["verdict"], found["e"]["median"], found["e"]["n"]) == ("reproduced", pytest.approx(0.895), 4)
    assert (found["base"]["verdict"], found["base"]["s"]) == ("smaller", None)
    assert found["both"]["s"] == pytest.approx(np.exp(np.mean(np.log(values["u"]) - np.log(values["t"]))))
    assert found["both"]["s_claimed"] == pytest.approx(0.9 / 0.8) and found["both"]["verdict"] == "reproduced"
    assert found["loss"]["s_claimed"] == 2 and found["loss"]["s"] > 1, "less of a loss is better"
    assert (found["ratio"]["verdict"], found["ratio"]["against"]) == ("smaller", "plain")
    kept = answers.compute_endpoints(store, "q")
    store.append("endpoints", [{**row, "version": "0"} for row in kept])
    assert list(found.values()) == answers.verdicts(store, "q"), "what a sweep stored says the same"


def test_a_value_read_at_the_end_is_held_against_seeds_that_were_watched_to_it(store: Store):
    ends = [{"name": "final", "metric": "test_acc"}]
    level = {"id": "e", "claim": "endpoint", "endpoint": "final", "value": 0.9, "arm": "swift", "source": "table 2"}
    over = {**level, "id": "over", "against": "plain", "against_value": 0.8, "at": 20_000}
    papers = [{**level, "at": 20_000}, over, {**level, "id": "early", "at": 10_000}]
    for name in "tu":
        for seed, level in zip(SEEDS, (0.9, 0.88, 0.91, 0.89), strict=True):
            store.append("curves", curve(name, seed, test_acc=level))
    store.append("sweeps", [sweep(experiment_json=json.dumps({"paper": papers, "endpoint": ends}))])

    def found() -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in answers.verdicts(store, "q")}

    assert found()["e"]["verdict"] == "not run" and found()["e"]["why"] == (
        f"{SWEEP}: published at step 20,000, and 4 of 4 seeds of arm 'swift' were watched less far, one to 1,900 only; "
        "confirm.until = \"horizon\" watches them on")
    assert found()["early"]["why"] == f"{SWEEP}: published at step 10,000, and endpoints are read at 20,000"
    store.append("replicas", [grokked("u", *pair, observed_to=20_000) for pair in zip(SEEDS, SWIFT, strict=True)])
    assert found()["e"]["verdict"] == "reproduced"
    assert "of arm 'plain' were" in found()["over"]["why"], "its ratio needs the other arm's too"
    lost = {"outcome": "diverged", "grok_step": None, "diverged_step": 9000, "observed_to": 9000}
    store.append("replicas", [grokked("t", seed, 4000, observed_to=20_000) for seed in SEEDS[:3]])
    store.append("replicas", [{**grokked("t", SEEDS[3], 4000), **lost, "attempt": "second"}])
    assert found()["over"]["why"] is None, "one that diverged has its last value"
    store.append("endpoints", [{**row, "version": "0"} for row in answers.compute_endpoints(store, "q")])
    assert found()["over"]["why"] is None
    store.append("replicas", [grokked("u", SEEDS[0], SWIFT[0], observed_to=21_000)])
    assert found()["over"]["why"] == (
        f"{SWEEP}: seeds of arm 'swift' were watched on since 'final' was read; run the sweep to its end")


def test_an_endpoint_that_nothing_is_known_of_says_so(store: Store):
    row = {"id": "e", "claim": "endpoint", "endpoint": "final", "value": 0.9, "arm": "swift", "source": "table 2"}
    (found,) = judged(store, row)
    assert found["verdict"] == "not run" and found["why"] == "'e': nothing is known of endpoint 'final' of arm 'swift'"


@pytest.mark.parametrize(("paper", "said"), [
    ({**TIME, "arm": "gone"}, "no confirmed arm 'gone'; "),
    ({**TIME, "threshold": 0.85}, "they differ in threshold: 0.85 ('t') against 0.95 ('swift')"),
])  # fmt: skip
def test_what_cannot_be_compared_is_not_run_and_says_why(store: Store, paper: dict[str, Any], said: str):
    bad, good = judged(store, paper, {**TIME, "id": "good"})
    assert bad["verdict"] == "not run" and said in bad["why"] and bad["n"] == 0 and bad["claimed"] == 1000
    assert good["verdict"] == "reproduced"


def test_missing_seeds_and_missing_plans_are_not_run(tmp_path: Path, store: Store):
    store.append("plans", [plan({"plain": "t", "swift": "u"}, [*SEEDS, 15], block=1)])
    assert "has no result for 1 of 5" in judged(store, TIME)[0]["why"]
    empty = Store(tmp_path / "empty")
    (row,) = judged(empty, RATIO)
    assert (row["verdict"], row["why"], row["s_claimed"]) == ("not run", f"{SWEEP}: nothing is confirmed yet", 4)
    assert answers.verdicts(empty, "q", []) == []
