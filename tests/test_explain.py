"""Trajectories and associations: pure functions on made-up numbers, then a store whose answers are known."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grokscale as gs
from grokscale import report
from grokscale.explain import Distances, associations, distances, interval, measured, pearson, plane
from grokscale.report.paths import paths
from grokscale.store import Store
from tests import reference_metrics as ref
from tests import synthetic
from tests.rows import grokked, replica


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def take(store: Store, row: dict[str, Any], columns: dict[str, dict[int, Any]]) -> None:
    """Store a replica with what was measured of it: column -> step -> value or vector."""
    flat = [(name, step, value) for name, values in columns.items() for step, value in values.items()]
    vectors = [isinstance(value, list) for *_, value in flat]
    store.append("measures", {
        "trial_id": row["trial_id"], "seed": row["seed"], "attempt": row["attempt"],
        "step": [step for _, step, _ in flat], "measure": [name for name, *_ in flat],
        "value": [None if v else value for (*_, value), v in zip(flat, vectors, strict=True)],
        "vector": [value if v else None for (*_, value), v in zip(flat, vectors, strict=True)],
    })  # fmt: skip
    store.append("replicas", [{**row, "measured": "drawn"}])


# ---------------------------------------------------------------------------------------------- trajectories


def test_distances_of_a_path_along_a_triangle() -> None:
    steps = np.array([0, 100, 500, 700, 900])
    points = np.array([[0, 0], [1, 0], [3, 0], [3, 2], [3, 4]], dtype=float)
    assert distances(steps, points) == Distances(3.0, 4.0, 5.0, 500, 900)
    assert distances(steps, points, fitted=90) == Distances(1.0, math.sqrt(20), 5.0, 100, 900)
    found = distances(steps, points, fitted=600)
    assert found is not None and (found.b, found.squared) == (700, pytest.approx((13.0, 4.0, 25.0)))
    assert distances(steps, points, fitted=901) is None
    assert distances(steps[1:], points[1:]) is None  # A was not looked at


@given(st.integers(0, 1000))
def test_lengths_obey_the_triangle_inequality_and_squares_need_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = distances(np.array([0, 500, 900]), rng.normal(size=(3, 4)))
    assert found is not None and found.ac <= found.ab + found.bc + 1e-12
    straight = distances(np.array([0, 500, 900]), np.array([[0.0], [1.0], [2.0]]))
    assert straight is not None and straight.squared[2] > straight.squared[0] + straight.squared[1]


def test_the_plane_is_that_of_the_reference() -> None:
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0][:3]
    flat = rng.normal(size=(40, 2)) * [5.0, 2.0]
    reference = flat @ basis[:2] + rng.normal(size=8) * 0
    shifted = reference[:10] + 7 * basis[2]  # off the plane, where it must not show
    (on, off), share = plane([reference[:25], reference[25:]], [reference, shifted])
    assert share.sum() == pytest.approx(1.0) and share[0] > share[1]
    assert np.allclose(np.diff(on, axis=0)[:9], np.diff(off, axis=0))
    lengths = [np.linalg.norm(a - b) for a, b in pairwise(flat)]
    assert np.allclose(np.linalg.norm(np.diff(on, axis=0), axis=1), lengths)
    assert np.allclose(on.var(0) / reference.var(0).sum(), share)
    again, _ = plane([reference], [-reference + 2 * reference.mean(0)])
    assert np.allclose(again[0], -plane([reference], [reference])[0][0])


# ---------------------------------------------------------------------------------------------- associations


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=30))
def test_rho_is_that_of_the_slow_version(pairs: list[tuple[int, int]]) -> None:
    x, y = ([float(v) for v in column] for column in zip(*pairs, strict=True))
    found = pearson(np.array(ref.ranks(x)), np.array(ref.ranks(y)))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(ref.spearman(x, y), abs=1e-12)


def test_intervals_of_rho() -> None:
    found = interval(0.5, 28)  # z = .5493, se = sqrt(1.125 / 25) = .21213, +- .41577
    assert (found["lo"], found["hi"]) == (pytest.approx(math.tanh(0.13354), abs=1e-4),
                                          pytest.approx(math.tanh(0.96508), abs=1e-4))  # fmt: skip
    assert interval(0.5, 4) == {"rho": 0.5, "lo": None, "hi": None}
    assert interval(1.0, 9) == {"rho": 1.0, "lo": None, "hi": None}
    assert interval(math.nan, 9) == {"rho": None, "lo": None, "hi": None}


def test_intervals_hold_what_they_say() -> None:
    """Ranks of a correlated normal pair: its population rho is 6/pi asin(r/2); 95 % of intervals hold it."""
    rng, r, held, rounds = np.random.default_rng(11), 0.6, 0, 400
    truth = 6 / math.pi * math.asin(r / 2)
    for _ in range(rounds):
        x = rng.normal(size=20)
        y = r * x + math.sqrt(1 - r * r) * rng.normal(size=20)
        found = interval(pearson(*(v.argsort().argsort().astype(float) for v in (x, y))), 20)
        assert found["lo"] is not None and found["hi"] is not None
        held += found["lo"] <= truth <= found["hi"]
    assert 0.92 <= held / rounds <= 0.98


def rows(store: Store, **filters: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """(predictor, level) -> row of the associations."""
    return {(row["predictor"], row["level"]): row for row in associations(store, **filters).to_pylist()}


def looks(early: float, drop: float, bc: float) -> dict[str, dict[int, Any]]:
    """What a replica with these predictors measured; AGE peaks at 3 and falls by `drop` until step 400."""
    return {
        "weight_norm": {0: 1.0, 100: 50.0, 204: early, 4000: 9.0},
        "age_raw": {100: 2.0, 200: 3.0, 400: 3.0 - drop, 30_000: -50.0},
        "kappa95/w1": {100: 99.0, 210: math.exp(early)}, "kappa95/w2": {210: math.exp(-2 * early)},
        "trajectory": {0: [0.0, 0.0], 500: [1.0, 0.0], 30_000: [1.0, bc]},
    }  # fmt: skip


def test_predictors_are_read_where_they_say_and_censored_replicas_come_last(store: Store) -> None:
    steps = [900, 1500, 2000, 4000, 9000, None, None]
    for i, step in enumerate(steps):
        row = replica("t", i) if step is None else grokked("t", i, step, final_acc=None)
        take(store, row, looks(early=1.0 + i, drop=5.0 - i / 2, bc=2.0 + (i % 2)))
    found = rows(store)
    censored = [*steps[:5], 20_000, 20_000]
    assert found["norm_200", "all"]["rho"] == pytest.approx(ref.spearman(range(7), censored))
    assert found["condition_200", "all"]["rho"] == pytest.approx(ref.spearman([-i for i in range(7)], censored))
    assert found["age_drop", "all"]["rho"] == pytest.approx(ref.spearman([-i for i in range(7)], censored))
    assert found["d_bc", "all"]["rho"] == pytest.approx(ref.spearman([i % 2 for i in range(7)], censored))
    one = found["norm_200", "all"]
    assert (one["n"], one["trials"], one["censored"], one["task"], one["exploratory"]) == (7, 1, 2, "toy", True)
    assert one["lo"] < one["rho"] < one["hi"]


def test_what_came_after_grokking_predicts_nothing(store: Store) -> None:
    for i, step in enumerate([150, 600, 700, 800, 900, 1000]):
        take(store, grokked("t", i, step), looks(1.0 + i, 1.0 + i, 1.0 + i))
    found = rows(store)
    assert found["norm_200", "all"]["n"] == found["condition_200", "all"]["n"] == 5
    assert found["d_bc", "all"]["n"] == 6
    late = {"weight_norm": {0: 1.0, 300: 2.0}}  # no look near step 200
    take(store, grokked("t", 9, 5000), late)
    assert rows(store)["norm_200", "all"]["n"] == 5


def test_within_trials_the_settings_drop_out(store: Store) -> None:
    """Between trials a great norm goes with late grokking, between the seeds of one with early."""
    for t in range(3):
        for i in range(4):
            take(store, grokked(f"t{t}", i, 2000 + 3000 * t - 10 * i), looks(10.0 * t + i, 1.0, 1.0))
    found = rows(store)
    assert found["norm_200", "all"]["rho"] > 0.5
    assert found["norm_200", "within"]["rho"] == pytest.approx(-1.0)
    assert found["norm_200", "within"]["trials"] == 3
    assert found["age_drop", "all"]["rho"] is None  # no replica differs


def test_tasks_stand_apart_and_what_was_not_measured_counts_for_nothing(store: Store) -> None:
    for n in (60, 70):
        for i in range(6):
            spec = {"task": {"name": "toy", "n": n}}
            early = float(i if n == 60 else -i)
            take(store, grokked(f"t{n}", i, 1000 + 100 * i, spec=spec), looks(10 + early, 1.0, 1.0))
    store.append("replicas", [grokked("bare", 1, 900)])
    table = associations(store).to_pylist()
    both = {row["task_json"]: row["rho"] for row in table if (row["predictor"], row["level"]) == ("norm_200", "all")}
    assert both == {'{"n":60,"name":"toy"}': pytest.approx(1.0), '{"n":70,"name":"toy"}': pytest.approx(-1.0)}
    assert {row["n"] for row in associations(store, trial_id="t60").to_pylist()} == {6}
    assert associations(store, trial_id="bare").num_rows == 0
    assert gs.associations(store).equals(associations(store))


def test_series_come_back_in_order_of_steps(store: Store) -> None:
    take(store, grokked("t", 1, 900), looks(1.0, 1.0, 1.0))
    series = measured(store, lambda name: name != "age_raw")["t", 1]
    assert set(series) == {"weight_norm", "kappa95/w1", "kappa95/w2", "trajectory"}
    assert series["weight_norm"][0].tolist() == [0, 100, 204, 4000]
    assert series["trajectory"][1].shape == (3, 2)


# ---------------------------------------------------------------------------------------------- the figure


def walked(store: Store, arms: tuple[str, ...]) -> None:
    rng = np.random.default_rng(5)
    for arm in arms:
        for seed in synthetic.SEEDS[:3]:
            path = np.cumsum(rng.normal(size=(6, 256)), 0)
            steps = [0, 500, 1400, 3000, 9000, 16_000]
            store.append("measures", {
                "trial_id": synthetic.trial_id(arm), "seed": seed, "attempt": f"{arm}-{seed}", "step": steps,
                "measure": "trajectory", "value": [None] * 6, "vector": path.tolist(),
            })  # fmt: skip


def test_trajectories_are_drawn_on_the_baselines_plane(store: Store) -> None:
    synthetic.confirmed(store)
    view = report.collect(store)
    assert paths(store, view) is None
    assert "tiny-trajectories.svg" not in report.figure_files(store)
    walked(store, ("swift",))
    assert paths(store, report.collect(store)) is None  # without the baseline there is no plane
    walked(store, ("plain",))
    found = paths(store, report.collect(store))
    assert found is not None and {arm: len(mine) for arm, mine in found.arms.items()} == {"plain": 3, "swift": 3}
    line, fitted = found.arms["plain"][0]
    assert line.shape == (6, 2) and fitted == 2  # it fitted at 1,300
    drawn = report.figure_files(store)
    assert drawn == report.figure_files(store)
    assert b"of the baseline" in drawn["tiny-trajectories.svg"] and b"swift" in drawn["tiny-trajectories.svg"]
    page = report.html(store)
    assert "Trajectories (exploratory)" in page
