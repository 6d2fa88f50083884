"""The mirror at scale: four drivers at once, an MLflow server on PostgreSQL, and an outage in the middle.

The drivers are processes of their own with the sweep's own phases, ledger, mirror and answer; only the replicas are
drawn instead of trained. How long the outage lasts plays no part: the mirror has no limit on how long MLflow may be
away, it compares anew at every look; so it lasts as long as the drivers take to get ahead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grokscale import runs as words
from grokscale import track
from grokscale.control import Stop
from grokscale.desk import Ledger, Phases
from grokscale.spec import Resolved
from grokscale.store import Store
from grokscale.sweep import _Sweep, introduce
from tests import rows, synthetic
from tests.postgres import PATIENCE_S, Tracking, tracking
from tests.test_cli import ROOT, call, environment
from tests.test_search import resolved, work

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SWEEPS = [("left", 2000), ("right", 2000), ("same", 2000), ("same", 2500)]  # two of one name share a list of runs
EVERY = 10  # trials between two stops of a driver
TRIALS = 200


def sweep(name: str, horizon: int, uri: str) -> Resolved:
    """57 trials: 48 of three searches, 6 of the races, 3 of the confirmation."""
    return resolved(
        name=name, horizon=horizon, tracking=uri, search={"trials": 16, "seeds": 2}, race={"top": 2, "seeds": 2},
        confirm={"seeds": 3})  # fmt: skip


def drive(root: str, name: str, horizon: str, uri: str) -> None:
    """A driver without workers. Prints how many trials it has done and waits for a line, time and again; then "done"
    and what kept MLflow behind."""
    one, store = sweep(name, int(horizon), uri), Store(root)
    with Stop(None) as stop:
        run = _Sweep(one, store, stop, lambda progress: None, uri)
        introduce(one, store)
        run.ledger = Ledger(store, one.sweep_id)
        run._mirror = track.Mirror(store, one.sweep_id, uri)
        run._mirror.start()
        phases, done = Phases(run._phases()), 0
        while not phases.through and (taken := phases.take()) is not None:
            if done and done % EVERY == 0:
                print(done, flush=True)
                sys.stdin.readline()
            for seed in taken[1]["job"]["seeds"]:
                store.append("curves", rows.curve(resolved_id(taken[1]["job"]["spec"]), seed))
            work(store, taken[1])
            phases.finished(taken[0])
            phases.settle()
            done += 1
        run._answer()
        print("done", run.close("FINISHED"), flush=True)


def resolved_id(spec: str) -> str:
    from grokscale.spec import TrialSpec

    return TrialSpec.from_json(spec).trial_id


class Driver:
    """A process that runs `drive`."""

    def __init__(self, root: Path, name: str, horizon: int, uri: str) -> None:
        self.id = sweep(name, horizon, uri).sweep_id
        code = "import sys; from tests.test_track_postgres import drive; drive(*sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(root), name, str(horizon), uri], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**environment(), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"},
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        assert said, f"{self.id} ended with {self.process.wait(PATIENCE_S)}"
        return said

    def on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def to(self, trials: int) -> None:
        """On, until so many trials are done."""
        while int(self.line()) < trials:
            self.on()

    def end(self) -> str:
        """On to the end; what kept MLflow behind."""
        while True:
            self.on()
            if (said := self.line()).startswith("done "):
                return said.removeprefix("done ")


@contextmanager
def drivers(root: Path, uri: str) -> Iterator[list[Driver]]:
    found: list[Driver] = []
    try:
        found += [Driver(root, name, horizon, uri) for name, horizon in SWEEPS]
        yield found
    finally:
        for one in found:
            with suppress(ProcessLookupError):
                one.process.kill()
            one.process.communicate()


@pytest.fixture(scope="module")
def server() -> Iterator[Tracking]:
    with tracking() as one:
        yield one


def client(uri: str) -> MlflowClient:
    for name, value in track.SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def of_sweep(mlflow: MlflowClient, sweep_id: str) -> list[Run]:
    every = [found.experiment_id for found in mlflow.search_experiments()]
    return list(mlflow.search_runs(every, f"tags.sweep_id = '{sweep_id}'", max_results=1000))


def until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_four_sweeps_and_an_outage(server: Tracking, tmp_path: Path) -> None:
    store, mlflow = Store(tmp_path), client(server.uri)
    with drivers(tmp_path, server.uri) as four:
        for one in four:
            one.to(EVERY)
        # Before the outage every sweep is there, with runs under way.
        until(lambda: all(len(of_sweep(mlflow, one.id)) > 2 for one in four))
        for one in four:
            one.on()
        server.crash()
        assert "127.0.0.1" in four[0].end() and "127.0.0.1" in four[2].end()  # these end meanwhile, and say so
        four[1].to(3 * EVERY)
        four[3].to(4 * EVERY)
        four[3].process.kill()
        four[3].process.wait(PATIENCE_S)
        server.start()
        assert four[1].end() == "None"
    dangling = [run for one in four for run in of_sweep(mlflow, one.id) if run.info.status == "RUNNING"]
    assert dangling, "the outage left nothing to mend"
    for one in four:
        said = call("track", "sync", one.id, "--store", str(tmp_path))
        assert f"{one.id}: in step" in said.output
    total = 0
    for one in four:
        trials = store.trials(sweep_id=one.id).to_pylist()
        found = of_sweep(mlflow, one.id)
        total += len(trials)
        kinds = Counter(run.data.tags["kind"] for run in found)
        assert kinds == {"sweep": 1, "trial": len(trials)}, one.id
        assert "RUNNING" not in {run.info.status for run in found}
        runs = {run.data.tags["request"]: run for run in found if run.data.tags["kind"] == "trial"}
        assert set(runs) == {track.request(row) for row in trials}
        replicas = {(row["trial_id"], row["seed"]): row for row in store.replicas().to_pylist()}
        for row in trials:
            run = runs[track.request(row)]
            assert run.info.status == {"ended": "FINISHED", "asked": "KILLED"}[row["state"]]
            if row["state"] == "ended":
                mine = [replicas[row["trial_id"], seed] for seed in row["seeds"]]
                wanted = {track._name(name): value for name, value in words.metrics(row, mine).items()}
                assert {name: run.data.metrics[name] for name in wanted} == pytest.approx(wanted)
                assert run.data.params == {track._name(k): v for k, v in words.params(row).items()}
                assert run.data.tags[track.DONE] == track._fingerprint(row)
        for run in [run for run in runs.values() if run.info.status == "FINISHED"][::5]:
            points = mlflow.get_metric_history(run.info.run_id, "test_accuracy")
            assert [point.step for point in points] == [0, 25, 50, 75]
        parent = next(run for run in found if run.data.tags["kind"] == "sweep")
        assert parent.info.status == ("KILLED" if one is four[3] else "FINISHED")
        if one is not four[3]:
            assert mlflow.list_artifacts(parent.info.run_id, "figures")
    assert total >= TRIALS


def test_a_run_that_is_there_twice_is_there_once(server: Tracking, tmp_path: Path) -> None:
    """The answer to `create_run` was lost, and MLflow's client asked again; or two synced at once."""
    store, mlflow = Store(tmp_path), client(server.uri)
    sweep_id = synthetic.confirmed(store, "twice-00000001", experiment=synthetic.EXPERIMENT | {"name": "twice"})
    track.sync(store, sweep_id, server.uri)
    first = {run.info.run_id: run.info.status for run in of_sweep(mlflow, sweep_id)}
    some = [run for run in of_sweep(mlflow, sweep_id) if run.data.tags["kind"] == "sweep" or "search" in str(run.data)]
    assert len(some) > 2
    for run in some:  # as they are before anything is logged: RUNNING, with the tags that name them
        tags = {k: v for k, v in run.data.tags.items() if k in ("sweep_id", "kind", "request", "arm", "phase")}
        mlflow.create_run(run.info.experiment_id, start_time=run.info.start_time, tags=tags)
    assert len(of_sweep(mlflow, sweep_id)) == len(first) + len(some)
    track.sync(store, sweep_id, server.uri)
    assert {run.info.run_id: run.info.status for run in of_sweep(mlflow, sweep_id)} == first


def test_ui_says_where_the_sweep_is_on_its_server(server: Tracking, tmp_path: Path) -> None:
    store = Store(tmp_path)
    about = synthetic.EXPERIMENT | {"name": "shown", "task": {"name": "toy"}, "tracking": server.uri}
    sweep_id = synthetic.confirmed(store, "shown-00000001", experiment=about)
    said = call("ui", "shown", "--store", str(tmp_path)).output.splitlines()[-1]
    (number,) = {run.info.experiment_id for run in of_sweep(client(server.uri), sweep_id)}
    assert said == f"{server.uri}/#/experiments/{number}/runs?viewStateShareKey=grokscale-{sweep_id}"
    (kept,) = [found for found in client(server.uri).search_experiments() if found.experiment_id == number]
    assert f"mlflow.sharedViewState.grokscale-{sweep_id}" in kept.tags
