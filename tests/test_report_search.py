"""What a search found, as figures; where the numbers come from, as tables."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grokscale import report
from grokscale.report import landscape, origins
from grokscale.spec import load
from grokscale.store import Store
from tests import rows, synthetic

HORIZON = synthetic.HORIZON
SPACE = {"lr": [0.01, 0.02, 0.04, 0.08], "wd": [0.0, 1e-3, 1e-2, 1e-1], "kind": ["a", "b", "a", "b"], "same": [3] * 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An arm's search: trials 0 and 1 told, 2 capped, 3 diverged at the cap, 4 failed. Another with one trial."""
    store = Store(tmp_path_factory.mktemp("search"))
    store.append("sweeps", [rows.sweep(experiment_json=json.dumps({"arm": [{"name": "plain"}, {"name": "swift"}]}))])
    top = math.log(HORIZON)
    told: list[tuple[float | None, int, str]] = [
        (math.log(900), HORIZON, "ended"), (math.log(4000), HORIZON, "ended"), (top, 1800, "ended"),
        (top, 1800, "ended"), (None, 1800, "failed"),
    ]  # fmt: skip
    for i, (value, cap, state) in enumerate(told):
        params = {knob: values[min(i, 3)] for knob, values in SPACE.items()}
        store.append("trials", [rows.trial("swift", i, f"s{i}", [1, 2], params_json=json.dumps(params), cap=cap,
                                           value=value, state=state)])  # fmt: skip
    store.append("trials", [rows.trial("plain", 0, "p0", [1, 2])])
    store.append("replicas", [rows.replica("s2", seed, observed_to=1800) for seed in (1, 2)])
    lost = {"outcome": "diverged", "diverged_step": 100, "fit_step": None}
    store.append("replicas", [rows.replica("s3", seed, **lost) for seed in (1, 2)])
    store.append("importances", [
        {"sweep_id": "q-00000001", "arm": "swift", "knob": knob, "share": share, "trials": 4, "version": "0"}
        for knob, share in (("wd", 0.6), ("lr", 0.3))
    ])  # fmt: skip
    return store


@pytest.fixture
def found(store: Store) -> landscape.Landscape:
    (one,) = landscape.landscapes(store, report.collect(store))
    return one


def test_landscape_is_of_arms_that_searched_and_knobs_that_varied(found: landscape.Landscape) -> None:
    assert found.arm == "swift" and found.failed == 1
    assert found.knobs == ("wd", "lr", "kind")  # by importance; `same` never varied
    assert [point.capped for point in found.points] == [False, False, True, False]  # divergence caps nothing
    assert [round(point.steps) for point in found.points] == [900, 4000, HORIZON, HORIZON]
    assert found.best is not None and found.best.number == 0
    assert landscape.caption(found).startswith("swift: 4 trials, 1 capped, 1 failed and not shown. The best: lr 0.01")


def test_capped_trials_are_hollow_and_the_best_is_ringed(found: landscape.Landscape) -> None:
    panels = landscape.draw_knobs(found, "#0068b4").axes
    assert [axes.get_xlabel() for axes in panels] == ["wd, 60 % of the variance", "lr, 30 % of the variance", "kind"]
    assert [axes.get_xscale() for axes in panels] == ["symlog", "linear", "linear"]  # wd has its zero
    for axes in panels:
        points: list[Any] = list(axes.collections)
        assert len(points) == 5 and axes.get_yscale() == "log"
        assert [len(point.get_facecolors()) == 0 for point in points] == [False, False, True, False, True]
        heights = [float(np.asarray(point.get_offsets())[0, 1]) for point in points]
        assert heights == pytest.approx([900, 4000, HORIZON, HORIZON, 900])
    assert [label.get_text() for label in panels[2].get_xticklabels()] == ["a", "b"]


def test_maps_of_two_knobs(found: landscape.Landscape) -> None:
    figure = landscape.draw_pairs(found)
    assert figure is not None
    panels = [axes for axes in figure.axes if axes.get_xlabel() in found.knobs]
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in panels] == [("wd", "lr"), ("wd", "kind"), ("lr", "kind")]
    points: list[Any] = list(panels[0].collections)
    assert [len(point.get_facecolors()) == 0 for point in points] == [False, False, True, False, True]
    assert np.asarray(points[1].get_offsets()).tolist() == [[1e-3, 0.02]]


def test_the_page_marks_what_a_search_shows(store: Store) -> None:
    page = report.html(store)
    shown = re.findall(r"<figure( class=\"exploratory\")?>(.*?)</figure>", page, re.DOTALL)
    assert len(shown) == 2
    for marked, inner in shown:
        assert marked and "EXPLORATORY</text>" in inner  # in the figure itself too
        assert '<figcaption><span class="badge">EXPLORATORY</span>' in inner
    assert {"q-search-swift.svg", "q-search-swift-pairs.png"} <= set(report.figure_files(store))
    assert all(b"EXPLORATORY" in data for name, data in report.figure_files(store).items() if name.endswith("svg"))


# ---------------------------------------------------------------------------------------------- origins


@pytest.fixture
def tiny(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs")
    synthetic.confirmed(store, git_sha="0badcafe")
    return store


def test_configurations_are_all_trials_with_those_confirmed_first(tiny: Store) -> None:
    lines, more = origins.configurations(tiny, report.collect(tiny))
    assert more == 0 and len(lines) == 15
    cells = [line for line, _ in lines]
    assert [c[:3] for c in cells[:4]] == [
        ["plain", "confirm", "0"], ["swift", "confirm", "0"], ["shaky", "confirm", "0"], ["plain", "search", "0"]
    ]  # fmt: skip
    assert cells[1][3] == "lr 0.0101, wd 0.01, floor 0.01" and cells[2][5] == "6 grokked, 1 memorised, 1 diverged"
    mean = math.exp(np.mean(np.log(np.minimum(synthetic.grok_steps("shaky"), synthetic.TAU))))
    assert cells[2][6] == f"{mean:,.0f}"
    assert cells[3][5:7] == ["-", "1,500"] and cells[6][5:7] == ["asked", "-"]
    assert {url for _, url in lines} == {None}


def test_configurations_lead_to_their_runs_of_a_server_and_to_nothing_else(tiny: Store) -> None:
    view = report.collect(tiny)
    key = origins.key_of(next(t for t in view.trials if t["arm"] == "swift" and t["phase"] == "confirm"))
    good = 'http://there:5000/#/experiments/1/runs/abc?a="<b>&c'
    path = tiny.sweep_dir(view.sweep_id) / origins.LINKS
    path.write_text(json.dumps({"": "https://there/#/x", key: good, "plain/search/0/plain0": "javascript:alert(1)"}))
    lines, _ = origins.configurations(tiny, view)
    assert [url for _, url in lines if url] == [good]
    page = report.html(tiny)
    assert '<a href="http://there:5000/#/experiments/1/runs/abc?a=&quot;&lt;b&gt;&amp;c">' in page
    assert '<a href="https://there/#/x">' in page and "javascript:" not in page
    path.write_text('{"": "http')
    assert origins.links(tiny, view.sweep_id) == {}


def test_provenance_names_commit_versions_device_and_a_specification_that_loads(tiny: Store, tmp_path: Path) -> None:
    view = report.collect(tiny)
    facts = dict(origins.provenance(view))
    assert (facts["commit"], facts["grokscale"], facts["torch"]) == ("0badcafe", "0", "2.13")
    assert facts["device"] == "cpu, fp32" and facts["this page"] == "grokscale report tiny-0123abcd"
    assert "24 replicas" in facts["training"]
    experiment = load(Path(__file__).parent.parent / "experiments/quickstart.toml")
    synthetic.searched(tiny, "quickstart-00000001", json.loads(experiment.to_json()) | {"horizon": 7})
    written = tmp_path / "quickstart.json"
    written.write_text(origins.specification(report.collect(tiny, "quickstart")))
    assert load(written).horizon == 7
