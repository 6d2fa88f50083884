"""The mirror in MLflow: complete, never doubled, closed; and a sweep does not care whether it is up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from grokscale import runs as words
from grokscale import track
from grokscale.cli import app
from grokscale.errors import InputError
from grokscale.report import origins
from grokscale.store import Store
from grokscale.sweep import run_sweep
from tests import rows, synthetic
from tests.test_sweep import resolve

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
    assert [file.path for file in mlflow.list_artifacts(parent.info.run_id)] == ["figures", "report"]
    folders = [mlflow.list_artifacts(parent.info.run_id, folder) for folder in ("figures", "report")]
    kept = ["figures/speedups.png", "figures/survival.png", "report/report.html", "report/results.txt"]
    assert [file.path for folder in folders for file in folder] == kept
    drawn = [run for run in children if mlflow.list_artifacts(run.info.run_id, "figures")]
    assert {(run.data.tags["arm"], run.data.tags["number"]) for run in drawn} == {(a, "0") for a in synthetic.PARAMS}
    searched = [run for run in children if run.data.tags["phase"] == "search"]
    ended = next(run for run in searched if run.info.status == "FINISHED")
    arm = ended.data.tags["arm"]
    assert ended.data.params == {key: f"{value:.6g}" for key, value in synthetic.PARAMS[arm].items()}
    assert ended.data.metrics["detail/cap"] == synthetic.HORIZON and "detail/objective" in ended.data.metrics

    track.sync(store, sweep_id, uri)  # and again: nothing is doubled
    second = runs(uri, "done")
    assert {(run.info.run_id, run.info.status, run.info.end_time) for run in first} == {
        (run.info.run_id, run.info.status, run.info.end_time) for run in second
    }
    for run in (parent, ended):
        for key in run.data.metrics:
            points = mlflow.get_metric_history(run.info.run_id, key)
            assert len(points) == len({(p.step, p.timestamp, p.value) for p in points})


@pytest.fixture(scope="module")
def read(store: Store, uri: str) -> str:
    """A sweep that was mirrored, with a trial that failed and two that were only asked."""
    sweep_id = synthetic.confirmed(store, "read-00000001", experiment=experiment("read"))
    failed = store.trials(sweep_id=sweep_id, arm="shaky", state="asked").to_pylist()[0]
    store.append("trials", [{**failed, "state": "failed", "error": "loss is <nan>"}])
    track.sync(store, sweep_id, uri)
    return sweep_id


def test_curves_are_means_over_seeds(store: Store, uri: str, read: str) -> None:
    seeds = synthetic.SEEDS
    confirmed = [run for run in runs(uri, "read") if run.data.tags.get("phase") == "confirm"]
    run = next(run for run in confirmed if run.data.tags["arm"] == "swift")
    assert run.data.metrics["detail/seeds"] == len(seeds) and run.data.metrics["grokked"] == 1
    points = client(uri).get_metric_history(run.info.run_id, "test_accuracy")
    assert [p.step for p in points] == sorted({p.step for p in points}) and len(points) > 50
    looks = store.curves(trial_id=synthetic.trial_id("swift"), seed=seeds).to_pylist()
    at = [row["test_acc"] for row in {r["seed"]: r for r in looks if r["step"] == points[30].step}.values()]
    assert points[30].value == pytest.approx(sum(at) / len(at))


def test_runs_read_as_results(uri: str, read: str) -> None:
    named = ("arm", "phase", "number")
    found = {tuple(run.data.tags.get(name) for name in named): run for run in runs(uri, "read")}
    middle = sorted(synthetic.grok_steps("swift"))[3]
    swift = found["swift", "confirm", "0"]
    assert swift.info.run_name == f"swift lr=0.0101 wd=0.01 floor=0.01: 8/8 grokked, {middle:.0f} steps (confirmed)"
    assert {key: swift.data.tags[key] for key in ("method", "task", "phase", "outcome")} == {
        "method": "swift", "task": "toy", "phase": "confirm", "outcome": "grokked"}  # fmt: skip
    shaky = found["shaky", "confirm", "0"]
    assert "6/8 grokked" in str(shaky.info.run_name) and shaky.data.tags["outcome"] == "partly"
    lost = found["shaky", "search", "3"]
    assert lost.info.run_name == "shaky lr=0.05 wd=0.002 alpha=0.98: failed" and lost.data.tags["outcome"] == "failed"
    assert lost.data.tags["mlflow.note.content"] == "loss is <nan>"
    assert found["plain", "search", "3"].info.run_name == "plain lr=0.0416 wd=0.01"  # only asked
    parent = found[None, None, None]
    assert re.fullmatch(r"read-00000001: swift groks \d\.\dx sooner than plain", str(parent.info.run_name))
    note = parent.data.tags["mlflow.note.content"].splitlines()
    assert note[0] == r"### Which of two made-up methods groks &lt;sooner>?" and note[2].startswith("**swift groks ")
    assert "| swift |" in "".join(note) and len("\n".join(note)) < 8000
    assert {"S.swift.steps", "S.swift.seconds", "detail/S.swift.steps.lo"} <= set(parent.data.metrics)


def test_settings_are_short_and_names_fit() -> None:
    values = (0.7, 1e-4, 0.0416, 2.5e-6, 1.0, 0.0, 3, True, "hidden", 123456.0, 1.5e7, 0.04159)
    said = ["0.7", "1e-4", "0.0416", "2.5e-6", "1", "0", "3", "true", "hidden", "1.23e5", "1.5e7", "0.0416"]
    assert [words.compact(value) for value in values] == said
    row = rows.trial("egd", 0, "t", [1, 2], params_json='{"wd": 1e-4, "lr": 0.7}', cap=2000)
    none = rows.replica("t", 0, grok_step=None, diverged_step=None)
    steps = (1044, 900, 1044, 1100, 2001)
    five = [rows.grokked("t", seed, step, diverged_step=None) for seed, step in enumerate(steps)]
    assert words.name(row, five) == "egd lr=0.7 wd=1e-4: 4/5 grokked, 1044 steps (exploratory)"
    assert words.name({**row, "phase": "race"}, five).endswith(" 1044 steps (race, exploratory)")
    assert words.name({**row, "phase": "confirm", "state": "asked"}, five) == "egd lr=0.7 wd=1e-4"
    assert words.name(row, [none]) == "egd lr=0.7 wd=1e-4: 0/1 grokked by 2000 (exploratory)"
    assert words.outcome(row, [none]) == "memorised" and words.outcome(row, five) == "partly"
    many = rows.trial("a" * 90, 0, "t", [1], params_json=json.dumps({f"knob{i}": 0.123 for i in range(30)}))
    assert len(words.name(many, five)) == words.NAME
    assert words.name(many, five).endswith("…: 5/5 grokked, 1044 steps (exploratory)")


def test_a_server_leaves_the_addresses_of_its_runs_and_a_database_none(store: Store, uri: str, read: str) -> None:
    assert origins.links(store, read) == {}
    sync = track._Sync(store, read, uri)
    sync.uri = "http://there:5000/"  # as if this database had a server before it
    known = runs(uri, "read")
    parent = next(run for run in known if run.data.tags["kind"] == "sweep")
    sync._link(parent, {"swift/confirm/0/x": known[0]})
    place = f"http://there:5000/#/experiments/{parent.info.experiment_id}/runs"
    assert origins.links(store, read) == {
        "": f"{place}/{parent.info.run_id}", "swift/confirm/0/x": f"{place}/{known[0].info.run_id}"}  # fmt: skip


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


def test_looks_that_remember_see_the_same_as_one_that_does_not(store: Store, uri: str) -> None:
    """Trials that are asked, end, fail and are new between two looks; a look at nothing new logs nothing."""
    sweep_id = synthetic.searched(store, "looks-00000001", experiment("looks"))
    seen = track.Seen()
    track.sync(store, sweep_id, uri, status="RUNNING", seen=seen)
    asked = [row for row in store.trials(sweep_id=sweep_id).to_pylist() if row["state"] == "asked"]
    ends = [{"state": "ended", "value": 7.0}, {"state": "failed", "error": "no"}]
    fresh = {**asked[0], "number": 99, "trial_id": "fresh"}
    for change in ([{**asked[0], **ends[0], "at": None}], [{**asked[1], **ends[1], "at": None}], [],
                   [{**fresh, "at": None}], [{**fresh, **ends[0], "at": None}]):  # fmt: skip
        store.append("trials", change)
        track.sync(store, sweep_id, uri, status="RUNNING", seen=seen)
    kept = {run.info.run_id: (run.info.status, run.data.to_dictionary()) for run in runs(uri, "looks")}
    assert len(kept) == 1 + len(store.trials(sweep_id=sweep_id))
    states = {(run.data.tags.get("number"), run.data.tags.get("arm")): run.info.status for run in runs(uri, "looks")}
    assert [states[str(row["number"]), row["arm"]] for row in (*asked[:2], fresh)] == ["FINISHED", "FAILED", "FINISHED"]
    track.sync(store, sweep_id, uri, status="RUNNING")  # of everything
    assert {run.info.run_id: (run.info.status, run.data.to_dictionary()) for run in runs(uri, "looks")} == kept


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


def test_mlflow_is_imported_before_there_are_two_threads() -> None:
    """Its modules import each other in circles, and Ray Tune imports it in the driver's thread: whichever of two
    threads met the other half-way was thrown out, and the sweep with it in one start of 25."""
    code = """
import sys
from grokscale import track
assert "mlflow" not in sys.modules
mirror = track.Mirror(None, "a-00000000", "")
mirror._work = lambda: print("mlflow" in sys.modules)
mirror._thread = track.threading.Thread(target=mirror._work)
mirror.start()
mirror._thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


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


@pytest.mark.parametrize("variable", [None, "", "http://variable:5000"])
def test_where_a_sweep_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    """Where its experiment says, else where MLflow's own variable says, else beside the store."""
    if variable is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    store = Store(tmp_path)
    default = variable or f"sqlite:///{tmp_path}/mlflow.db"
    assert track.default_uri(store) == default
    full = {"task": {"name": "toy"}}
    for name, asked, wanted in (
        ("plain", None, default),
        ("off", "none", default),
        ("far", "http://there:5000", "http://there:5000"),
    ):
        about = experiment(name) | full | ({"tracking": asked} if asked else {})
        sweep_id = synthetic.searched(store, f"{name}-00000001", about)
        assert track.uri_of(store, sweep_id) == wanted
    with pytest.raises(Exception, match="no sweep"):
        track.uri_of(store, "nothing-00000000")


def test_the_variable_is_where_a_sweep_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, uri = Store(tmp_path / "runs"), f"sqlite:///{tmp_path}/elsewhere.db"
    sweep_id = synthetic.searched(store, "far-00000001", experiment("far"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts that it is told no place for
    result = CliRunner().invoke(app, ["track", "sync", "--store", store.root])
    assert result.exit_code == 0 and f"{sweep_id}: in step" in result.output, result.output
    assert {run.data.tags["kind"] for run in runs(uri, "far")} == {"sweep", "trial"}
    assert not list((tmp_path / "runs").glob("ml*")), "the place beside the store is another MLflow's"
    assert list((tmp_path / "mlruns").rglob("*.png"))


def test_a_password_in_the_variable_is_refused_before_anything_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted@there:5000")
    store = Store(tmp_path)
    sweep_id = synthetic.searched(store, "secret-00000001", experiment("secret"))
    before = sorted(tmp_path.rglob("*"))
    for refused in (lambda: track.uri_of(store, sweep_id), lambda: run_sweep(resolve(), store)):
        with pytest.raises(InputError, match="MLFLOW_TRACKING_URI: holds a password") as caught:
            refused()
        assert "planted" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_kept_weights_are_artifacts_in_a_folder_once(store: Store, uri: str) -> None:
    sweep_id = synthetic.confirmed(store, "kept-00000001", experiment=experiment("kept"))
    (row,) = [r for r in store.trials(sweep_id=sweep_id, phase="confirm").to_pylist() if r["arm"] == "swift"]
    assert store.local is not None
    folder = store.local / "weights" / row["trial_id"]
    folder.mkdir(parents=True)
    (folder / "1-100.pt").write_bytes(b"first")
    track.sync(store, sweep_id, uri)
    (folder / "2-200.pt").write_bytes(b"second")
    track.sync(store, sweep_id, uri)
    kept = [run for run in runs(uri, "kept") if "weights" in run.data.tags]
    assert [(run.data.tags["arm"], run.data.tags["phase"]) for run in kept] == [("swift", "confirm")]
    logged = client(uri).list_artifacts(kept[0].info.run_id, "weights")
    assert sorted(one.path for one in logged) == ["weights/1-100.pt", "weights/2-200.pt"]
