"""What a grid found, as text and as a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from grokscale import answers, report
from grokscale.report import maps
from grokscale.store import Store
from tests import rows, synthetic

SEEDS = [1, 2, 3]
TAU = 10_000
NEVER = None


Found = Mapping[str, tuple[dict[str, Any], Sequence[int | None]]]


def stored(root: Path, grid: Mapping[str, Any], found: Found) -> Store:
    """A confirmed sweep: arm -> (its `set`, grok steps by seed)."""
    store = Store(root)
    arms = [{"name": name, "set": fixed} for name, (fixed, _) in found.items()]
    experiment = {"name": "map", "question": "", "baseline": "none", "horizon": TAU, "arm": arms, "grid": grid}
    store.append("sweeps", [rows.sweep("map-00000001", name="map", baseline="none", horizon=TAU,
                                       experiment_json=json.dumps(experiment))])  # fmt: skip
    store.append("plans", [rows.plan({arm: f"t-{arm}" for arm in found}, SEEDS, sweep_id="map-00000001", tau=TAU)])
    for arm, (_, steps) in found.items():
        store.append("trials", [rows.trial(arm, 0, f"t-{arm}", SEEDS, sweep_id="map-00000001", phase="confirm")])
        store.append("replicas", [
            rows.replica(f"t-{arm}", seed, observed_to=TAU, spec_json=json.dumps(synthetic.SPEC))
            if step is None
            else rows.grokked(f"t-{arm}", seed, step, spec_json=json.dumps(synthetic.SPEC))
            for seed, step in zip(SEEDS, steps, strict=True)
        ])  # fmt: skip
    store.append("speedups", answers.compute(store, "map-00000001"))
    return store


@pytest.fixture
def product(tmp_path: Path) -> Store:
    steps = {(1, 0.9): [100, 200, 300], (1, 0.98): [400, 500, NEVER]}
    steps |= {(5, 0.9): [NEVER] * 3, (5, 0.98): [50, NEVER, NEVER]}
    found = {"none": ({}, [1000, 2000, 3000])} | {
        f"ema:lam={lam},alpha={alpha}": ({"lam": lam, "alpha": alpha}, s) for (lam, alpha), s in steps.items()
    }
    return stored(tmp_path / "runs", {"axes": {"lam": [1, 5], "alpha": [0.9, 0.98]}, "points": None, "arms": []}, found)


def test_a_product_is_a_table_of_medians_with_what_was_censored(product: Store) -> None:
    text = report.results_text(product)
    table = next(block for block in text.split("\n\n") if block.startswith("ema: median grok step")).splitlines()
    assert table[1].split() == ["lam", "alpha", "0.9", "alpha", "0.98"]
    assert table[3].split() == ["1", "200", "500", "(2/3)"]
    assert table[4].split() == ["5", "never", "(0/3)", "never", "(1/3)"]
    assert "ema is soonest at lam 1, alpha 0.9: 200 steps, of 4 cells" in " ".join(text.split())
    assert "EXPLORATORY" in text
    assert "ema:lam" not in text  # the cells stand in the map, the baseline below it
    assert "none" in text


def test_cells_know_their_speed_up_over_the_baseline(product: Store) -> None:
    (one,) = maps.maps(report.collect(product))
    cell = one.cell((1, 0.9))
    assert cell is not None and float(cell.s) == 10
    lost = one.cell((1, 0.98))
    assert lost is not None and lost.s.startswith("<= ")
    assert one.best is cell
    assert one.full


def test_a_cell_has_no_speed_up_where_neither_it_nor_the_baseline_groks(tmp_path: Path) -> None:
    found = {"none": ({}, [NEVER] * 3), "ema:lam=1": ({"lam": 1}, [NEVER] * 3), "ema:lam=5": ({"lam": 5}, [50, 60, 70])}
    store = stored(tmp_path / "runs", {"axes": {"lam": [1, 5]}, "points": None, "arms": []}, found)
    (one,) = maps.maps(report.collect(store))
    lost, got = one.cell((1,)), one.cell((5,))
    assert lost is not None and got is not None
    assert lost.s == "-" and got.s.startswith(">= ")


def test_a_figure_hatches_the_cells_that_did_not_get_there(product: Store) -> None:
    (one,) = maps.maps(report.collect(product))
    (axes,) = maps.draw(one).axes
    hatched = {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)): p.get_hatch() for p in axes.patches}  # type: ignore[attr-defined]
    assert hatched == {(0, 0): None, (0, 1): None, (1, 0): "////", (1, 1): "////"}
    assert {text.get_text() for text in axes.texts} == {"200", "500\n(2/3)", "never\n(0/3)", "never\n(1/3)"}
    assert "map-map-ema.svg" in report.figure_files(product)
    assert "Map (exploratory)" in report.html(product)


def test_sobol_points_are_a_list_and_dots(tmp_path: Path) -> None:
    points = {(0.1, 0.93): [700, 800, 900], (3.0, 0.95): [100, 200, 300], (9.0, 0.8): [NEVER] * 3}
    found = {"none": ({}, [1000, 2000, 3000])} | {
        f"ema:lam={lam},alpha={alpha}": ({"lam": lam, "alpha": alpha}, s) for (lam, alpha), s in points.items()
    }
    axes = {"lam": {"low": 0.1, "high": 10.0, "log": True}, "alpha": {"low": 0.8, "high": 0.99}}
    store = stored(tmp_path / "runs", {"axes": axes, "points": 3, "arms": []}, found)
    table = next(b for b in report.results_text(store).split("\n\n") if b.startswith("ema: median")).splitlines()
    assert [line.split()[0] for line in table[3:]] == ["3", "0.1", "9"]  # the soonest first
    (one,) = maps.maps(report.collect(store))
    (drawn,) = maps.draw(one).axes
    assert drawn.get_xscale() == "log"
    assert len(drawn.collections) == 3


def test_a_sweep_without_a_grid_has_no_map(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    synthetic.confirmed(store)
    assert maps.maps(report.collect(store)) == []
