"""The mirror in MLflow: complete, never doubled, closed; and a sweep does not care whether it is up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grokscale import track
from grokscale.store import Store
from tests import synthetic

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing answers there


def client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs(uri: str, name: str) -> list[Run]:
    mlflow = client(uri)
    experiment = mlflow.get_experiment_by_name(name)
    return [] if experiment is None else list(mlflow.search_runs([experiment.experiment_id], max_results=1000))


def experiment(name: str) -> dict[str, Any]:
    return synthetic.EXPERIMENT | {"name": name}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One database for all tests here: creating its schema takes seconds. Every test has a sweep of its own."""
    yield Store(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def uri(store: Store) -> str:
    found = track.default_uri(store)
    assert found is not None
    return found


def test_a_finished_sweep(store: Store, uri: str) -> None:
    sweep_id = synthetic.confirmed(store, "done-00000001", experiment=experiment("done"))
    track.sync(store, sweep_id, uri)
    first = runs(uri, "done")
    parents = [run for run in first if run.data.tags["kind"] == "sweep"]
    children = [run for run in first if run.data.tags["kind"] == "trial"]
    trials = store.trials(sweep_id=sweep_id).to_pylist()
    assert len(parents) == 1 and len(children) == len(trials)
    parent = parents[0]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in first} == {"FINISHED", "KILLED"}  # one trial of each arm was only asked
    assert sum(run.info.status == "KILLED" for run in children) == sum(row["state"] == "asked" for row in trials)
    assert "made-up" in parent.data.tags["mlflow.note.content"] and "swift" in parent.data.tags["mlflow.note.content"]
    assert parent.data.metrics["S.swift.steps"] > 1
    mlflow = client(uri)
    assert [file.path for file in mlflow.list_artifacts(parent.info.run_id)] == ["survival.png"]
    drawn = [run for run in children if mlflow.list_artifacts(run.info.run_id)]
    assert {(run.data.tags["arm"], run.data.tags["number"]) for run in drawn} == {(a, "0") for a in synthetic.PARAMS}
    searched = [run for run in children if run.data.tags["phase"] == "search"]
    ended = next(run for run in searched if run.info.status == "FINISHED")
    assert ended.data.params["lr"] and "value" in ended.data.metrics
    assert ended.data.metrics["cap"] == synthetic.HORIZON

    track.sync(store, sweep_id, uri)  # and again: nothing is doubled
    second = runs(uri, "done")
    assert {(run.info.run_id, run.info.status, run.info.end_time) for run in first} == {
        (run.info.run_id, run.info.status, run.info.end_time) for run in second
    }
    for run in (parent, ended):
        for key in run.data.metrics:
            points = mlflow.get_metric_history(run.info.run_id, key)
            assert len(points) == len({(p.step, p.timestamp, p.value) for p in points})


def test_curves_are_means_over_seeds(store: Store, uri: str) -> None:
    sweep_id = synthetic.confirmed(store, "curves-00000001", experiment=experiment("curves"))
    seeds = synthetic.SEEDS
    track.sync(store, sweep_id, uri)
    confirmed = [run for run in runs(uri, "curves") if run.data.tags.get("phase") == "confirm"]
    run = next(run for run in confirmed if run.data.tags["arm"] == "swift")
    assert run.data.metrics["n"] == len(seeds) == run.data.metrics["grokked"]
    points = client(uri).get_metric_history(run.info.run_id, "test_accuracy")
    assert [p.step for p in points] == sorted({p.step for p in points}) and len(points) > 50
    rows = store.curves(trial_id=synthetic.trial_id("swift"), seed=seeds).to_pylist()
    at = [row["test_acc"] for row in {r["seed"]: r for r in rows if r["step"] == points[30].step}.values()]
    assert points[30].value == pytest.approx(sum(at) / len(at))


def test_runs_that_a_killed_driver_left_running_are_closed(store: Store, uri: str) -> None:
    sweep_id = synthetic.searched(store, "left-00000001", experiment("left"))
    track.sync(store, sweep_id, uri, status="RUNNING")
    asked = [row for row in store.trials(sweep_id=sweep_id).to_pylist() if row["state"] == "asked"]
    running = [run for run in runs(uri, "left") if run.info.status == "RUNNING"]
    assert len(running) == 1 + len(asked)
    # The driver is gone; the sweep goes on elsewhere: one trial ends, one fails, one is asked another way.
    ended = {**asked[0], "state": "ended", "value": 7.0}
    store.append("trials", [ended, {**asked[1], "state": "failed", "error": "no"}])
    store.append("trials", [{**asked[2], "trial_id": "another", "state": "ended", "value": 7.5}])
    track.sync(store, sweep_id, uri, status="FINISHED")
    found = runs(uri, "left")
    states = {(run.data.tags.get("arm"), run.data.tags.get("trial_id")): run.info.status for run in found}
    assert "RUNNING" not in states.values()
    assert states[None, None] == "FINISHED"
    assert states[asked[0]["arm"], asked[0]["trial_id"]] == "FINISHED"
    assert states[asked[1]["arm"], asked[1]["trial_id"]] == "FAILED"
    assert states[asked[2]["arm"], asked[2]["trial_id"]] == "KILLED"
    assert states[asked[2]["arm"], "another"] == "FINISHED"
    assert len(found) == 2 + len(store.trials(sweep_id=sweep_id))


def test_mirror_follows_and_ends(store: Store, uri: str) -> None:
    sweep_id = synthetic.searched(store, "mirror-00000001", experiment("mirror"))
    mirror = track.Mirror(store, sweep_id, uri)
    mirror.start()
    mirror.start()
    mirror.poke()
    with mirror.paused():
        pass
    mirror.close("KILLED", 60)
    assert mirror.problem is None
    states = [run.info.status for run in runs(uri, "mirror")]
    assert len(states) == 1 + len(store.trials(sweep_id=sweep_id)) and "RUNNING" not in states


def test_mlflow_may_be_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = Store(tmp_path)
    sweep_id = synthetic.searched(store)
    with pytest.raises(track.TrackingError, match=r"MLflow at http://127\.0\.0\.1:9"):
        track.sync(store, sweep_id, NOBODY)
    mirror = track.Mirror(store, sweep_id, NOBODY)
    began = time.monotonic()
    mirror.start()
    mirror.poke()
    mirror.close("FINISHED", 30)
    assert time.monotonic() - began < 30
    assert mirror.problem is not None and "127.0.0.1:9" in mirror.problem
    assert sum("track sync" in record.message for record in caplog.records) == 1


def test_where_a_sweep_is_tracked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert track.default_uri(store) == f"sqlite:///{tmp_path}/mlflow.db"
    full = {"task": {"name": "toy"}}
    for name, asked, wanted in (
        ("plain", None, track.default_uri(store)),
        ("off", "none", track.default_uri(store)),
        ("far", "http://there:5000", "http://there:5000"),
    ):
        about = experiment(name) | full | ({"tracking": asked} if asked else {})
        sweep_id = synthetic.searched(store, f"{name}-00000001", about)
        assert track.uri_of(store, sweep_id) == wanted
    with pytest.raises(Exception, match="no sweep"):
        track.uri_of(store, "nothing-00000000")
