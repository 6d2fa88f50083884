"""Endpoints that an experiment names, from the curves in the store to rows with intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grokscale import answers, stats
from grokscale.answers.curves import summary
from grokscale.errors import GrokscaleError
from grokscale.store import Store
from tests.rows import curve, plan, replica, sweep

SWEEP = "q-00000001"
SEEDS = [11, 12, 13]
STEPS = 25 * np.arange(4)
PLAIN = {11: [0.2, 0.5, 0.6, 0.8], 12: [0.2, 0.4, 0.5, 0.7], 13: [0.2, 0.5, 0.6, 0.9]}
SWIFT = {11: [0.2, 0.9, 0.9, 0.9], 12: [0.2, 0.5, 0.8, 0.8], 13: [0.2, 0.9, 0.9, 0.8]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs")
    store.append("plans", [plan({"plain": "t", "swift": "u"}, SEEDS, tau=100)])
    put(store, "t", PLAIN)
    put(store, "u", SWIFT)
    return store


def put(store: Store, trial_id: str, values: dict[int, list[float]], **columns: Any) -> None:
    for seed, curve_ in values.items():
        v = np.array(curve_)
        store.append("curves", curve(trial_id, seed, test_acc=v, test_loss=1 - v))
        store.append("replicas", [replica(trial_id, seed, outcome="unfitted", observed_to=100, **columns)])


def asked(store: Store, *endpoints: dict[str, Any]) -> list[dict[str, Any]]:
    store.append("sweeps", [sweep(experiment_json=json.dumps({"endpoint": endpoints}))])
    return answers.endpoints(store, "q")


def test_a_final_accuracy_is_a_paired_difference_with_a_margin(store: Store):
    (row,) = asked(store, {"name": "final", "metric": "test_acc", "margin": 0.2})
    theirs = stats.mean_interval([0.1, 0.1, -0.1])
    assert (row["value"], row["lo"], row["hi"], row["n"]) == pytest.approx(theirs)
    assert (row["base"], row["mine"]) == pytest.approx((0.8, 2.5 / 3))
    assert (row["arm"], row["baseline"], row["scale"], row["kind"], row["p"]) == (
        "swift", "plain", "difference", "final", 1.0)  # fmt: skip
    assert row["noninferior"] is False and theirs.lo < -0.2
    assert summary(row) == "+0.0333 [-0.254, +0.32], loss < 0.2 not shown"


def test_losses_speak_for_the_arm_where_they_are_lower(store: Store):
    least, ratio = asked(store, {"name": "best", "metric": "test_loss", "margin": 0.01},
                         {"name": "r", "kind": "best", "metric": "test_loss", "scale": "ratio"})  # fmt: skip
    assert least["value"] == pytest.approx((0.1 + 0.1 + 0) / 3) and least["up"] is False
    logs = np.log([0.2 / 0.1, 0.3 / 0.2, 1.0])
    assert ratio["value"] == pytest.approx(np.exp(logs.mean())) and ratio["scale"] == "ratio"
    assert summary(ratio).startswith("1.44x [")


def test_the_time_to_a_threshold_is_censored_as_s_is(store: Store):
    (row,) = asked(store, {"name": "to-half", "kind": "time_to", "metric": "test_acc", "threshold": 0.5})
    assert (row["censored_base"], row["censored_arm"], row["bound"]) == (1, 0, ">=")  # seed 12: two looks only
    assert row["value"] == pytest.approx((1 * 100 / 25 * 1) ** (1 / 3))
    assert row["base"] == pytest.approx((25 * 100 * 25) ** (1 / 3)) and row["mine"] == pytest.approx(25)
    assert summary(row).startswith(">= 1.59x [")


def test_areas_distances_and_spreads(store: Store):
    area, way, spread = asked(store, {"name": "area", "metric": "test_acc"}, {"name": "distance", "metric": "test_acc"},
                              {"name": "sd_ratio", "metric": "test_acc"})  # fmt: skip
    whole = [np.trapezoid([*v, v[-1]], [*STEPS, 100]) / 100 for v in PLAIN.values()]
    assert area["base"] == pytest.approx(np.mean(whole)) and area["value"] > 0
    assert way["value"] == pytest.approx(np.exp(np.log([0.6 / 0.7, 0.5 / 0.6, 0.7 / 0.6]).mean())) and not way["up"]
    assert spread["value"] == pytest.approx(0.1 / np.std([0.9, 0.8, 0.8], ddof=1)) and spread["p"] is None
    assert 0 < spread["lo"] < spread["value"] < spread["hi"]


def test_a_replica_that_diverged_keeps_its_worst_value(store: Store):
    store.append("replicas", [replica("u", 11, outcome="diverged", diverged_step=80, observed_to=80)])
    final, best = asked(store, {"name": "final", "metric": "test_acc"}, {"name": "best", "metric": "test_acc"})
    assert final["mine"] == pytest.approx((0.2 + 0.8 + 0.8) / 3)
    assert best["mine"] == pytest.approx((0.9 + 0.8 + 0.9) / 3)


def test_a_replica_that_diverged_before_it_was_looked_at_is_the_worst_seed(store: Store):
    store.append("plans", [plan({"plain": "t", "swift": "w"}, SEEDS, tau=100, block=1)])
    put(store, "w", {seed: SWIFT[seed] for seed in SEEDS[1:]})
    store.append("replicas", [replica("w", 11, outcome="diverged", diverged_step=9, observed_to=9)])
    final, loss, never, spread = asked(
        store, {"name": "final", "metric": "test_acc"}, {"name": "loss", "kind": "best", "metric": "test_loss"},
        {"name": "never", "kind": "time_to", "metric": "test_acc", "threshold": 0.5},
        {"name": "sd_ratio", "metric": "test_acc"})  # fmt: skip
    assert final["mine"] == pytest.approx((0.7 + 0.8 + 0.8) / 3)
    assert loss["mine"] == pytest.approx((0.3 + 0.2 + 0.1) / 3)
    assert never["censored_arm"] == 1
    assert spread["value"] == pytest.approx(0.1 / np.std([0.7, 0.8, 0.8], ddof=1))


def test_a_ratio_of_zeros_and_a_lost_curve_are_refused_by_name(store: Store):
    endpoint = {"name": "ratio", "kind": "best", "metric": "val_acc", "scale": "ratio", "direction": "down"}
    put(store, "u", {}, attempt="x")
    with pytest.raises(GrokscaleError, match="'ratio' of 'swift' against 'plain': a curve needs a finite value"):
        asked(store, endpoint)
    store.append("plans", [plan({"plain": "t", "swift": "u"}, [*SEEDS, 14], tau=100, block=1)])
    store.append("replicas", [replica(name, 14, observed_to=100) for name in "tu"])
    with pytest.raises(GrokscaleError, match="arm 'plain' has no val_acc of seed 14"):
        answers.endpoints(store, "q")


def test_zeros_have_no_ratio(store: Store):
    put(store, "v", {seed: [0.0, 0.0, 0.0, 0.0] for seed in SEEDS})
    store.append("plans", [plan({"plain": "t", "zero": "v"}, SEEDS, tau=100, block=1)])
    with pytest.raises(GrokscaleError, match="a ratio needs values > 0, got 0"):
        asked(store, {"name": "final", "metric": "test_acc", "scale": "ratio"})


def test_nothing_named_nothing_read(store: Store):
    assert asked(store) == []


def test_the_same_question_gets_the_same_numbers(store: Store):
    one = asked(store, {"name": "final", "metric": "test_acc"}, {"name": "sd_ratio", "metric": "test_loss"})
    assert one == answers.endpoints(Store(store.root), "q")
    assert not any(isinstance(value, float) and math.isnan(value) for row in one for value in row.values())


def test_a_measure_is_an_endpoint_too(store: Store):
    for trial_id, last in (("t", 4.0), ("u", 1.0)):
        store.append("measures", [
            {"trial_id": trial_id, "seed": seed, "attempt": "first", "step": step, "measure": name, "value": value}
            for seed in SEEDS for name, step, value in (("way", 0, 9.0), ("way", 50, last + seed), ("other", 50, None))
        ])  # fmt: skip
    (row,) = asked(store, {"name": "final", "measure": "way"})
    assert (row["metric"], row["value"], row["up"], row["n"]) == ("way", pytest.approx(3), False, 3)
    with pytest.raises(GrokscaleError, match="arm 'plain' has no gone of seed 11"):
        asked(store, {"name": "final", "measure": "gone"})


def test_a_vector_counts_by_its_distance_from_its_first_value(store: Store):
    for trial_id, reach in (("t", 4.0), ("u", 1.0)):
        store.append("measures", [
            {"trial_id": trial_id, "seed": seed, "attempt": "first", "step": step, "measure": "trajectory",
             "vector": [seed + 0.6 * share * reach * seed, 7.0 - 0.8 * share * reach * seed]}
            for seed in SEEDS for step, share in ((100, 1.0), (0, 0.0), (50, 9.0))
        ])  # fmt: skip
    way, spread = asked(
        store, {"name": "way", "kind": "distance", "measure": "trajectory"},
        {"name": "spread", "kind": "sd_ratio", "measure": "trajectory"})  # fmt: skip
    assert (way["base"], way["mine"]) == (pytest.approx(48), pytest.approx(12))
    assert (way["value"], spread["value"]) == (pytest.approx(4), pytest.approx(4))
    assert not way["up"]


def test_p_of_several_arms_is_corrected_within_an_endpoint(tmp_path: Path):
    store = Store(tmp_path)
    store.append("plans", [plan({"plain": "t", "swift": "u", "third": "v"}, SEEDS, tau=100)])
    for trial_id, values in (("t", PLAIN), ("u", SWIFT), ("v", {11: [0.2] * 4, 12: [0.2] * 4, 13: [0.2] * 4})):
        put(store, trial_id, values)
    rows = asked(store, {"name": "final", "metric": "test_acc"},
                 {"name": "spread", "kind": "sd_ratio", "metric": "test_acc"})  # fmt: skip
    final = {row["arm"]: (row["p"], row["p_holm"]) for row in rows if row["endpoint"] == "final"}
    assert final == {"swift": (1.0, 1.0), "third": (0.25, 0.5)}
    assert {row["p_holm"] for row in rows if row["endpoint"] == "spread"} == {None}
    store.append("endpoints", [{**row, "version": "0"} for row in answers.compute_endpoints(store, "q")])
    assert answers.endpoints(store, "q")[0]["p_holm"] == final["swift"][1]
