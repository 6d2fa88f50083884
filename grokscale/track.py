"""MLflow as a mirror of the store, for people to browse: a parent run per sweep, a child run per trial.

Everything is read from the store and compared with what MLflow has, so it may be done at any time and any
number of times: nothing is doubled, what is missing is added, no run stays RUNNING once nobody runs it.
MLflow may be down; a sweep goes on and the next `sync` catches up.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscale import report, runs
from grokscale.answers import asked_for
from grokscale.control import MIRROR
from grokscale.errors import GrokscaleError, refuse_password
from grokscale.report import origins
from grokscale.spec import canonical_json
from grokscale.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

SETTINGS = {  # read when MLflow is imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
VARIABLE = "MLFLOW_TRACKING_URI"  # MLflow's own
CURVES = ("train_acc", "val_acc", "test_acc")
BATCH = 1000  # metrics in one call, MLflow's limit
NOTE = 2000  # characters of an error
PAUSE_S = 5.0  # between two looks at the store, at least ...
SHARE = 5.0  # ... and this many times what a look takes: it shares the CPUs with the training
PARENT = "mlflow.parentRunId"
DONE = "grokscale.logged"  # a run's tag once all that belongs to it has been logged


class TrackingError(GrokscaleError):
    """MLflow did not do what was asked; the store is complete without it."""


def variable_uri() -> str | None:
    """What MLFLOW_TRACKING_URI names; InputError where that holds a password."""
    uri = os.environ.get(VARIABLE) or None
    if uri is not None:
        refuse_password(VARIABLE, uri)
    return uri


def database_uri(store: Store) -> str | None:
    """A database beside the store; None for a store on an object store, which cannot hold one."""
    return None if store.local is None else f"sqlite:///{store.local / 'mlflow.db'}"


def default_uri(store: Store) -> str | None:
    """Where a sweep is tracked whose experiment does not say: as MLFLOW_TRACKING_URI says, else beside the store."""
    return variable_uri() or database_uri(store)


def uri_of(store: Store, sweep_id: str) -> str:
    """Where a sweep is tracked: as its experiment says, else by default.

    Raises TrackingError where it is tracked nowhere.
    """
    asked = asked_for(_head(store, sweep_id)).get("tracking")
    uri = default_uri(store) if asked in (None, "none") else asked
    if uri is None:
        raise TrackingError(
            f"{store.root}: no place for MLflow's database; give --uri http://... or sqlite:///..., or set {VARIABLE}"
        )
    return uri


@dataclass
class Seen:
    """What a driver remembers from look to look, so that a look costs what is new and not what is there.

    parent, children: the sweep's runs in MLflow, by request.  upto: time of the newest row of `trials` taken in.
    A look that failed leaves it in no state to be used again; the first look, and the last, are of everything.
    """

    parent: Run | None = None
    children: dict[str, Run] = field(default_factory=dict)
    upto: np.datetime64 | None = None


def sync(store: Store, sweep_id: str, uri: str, *, status: str | None = None, seen: Seen | None = None) -> None:
    """Bring MLflow up to what the store says of a sweep.

    status: FINISHED, FAILED or KILLED, of the parent; RUNNING while a driver is at work; None = as the store
    has it.  seen: of the looks before, by the one driver that is at work; only news are looked at while it is RUNNING.
    Raises TrackingError where MLflow cannot be reached or refuses.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        _Sync(store, sweep_id, uri).run(status, Seen() if seen is None else seen)
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:  # requests' errors are OSErrors
        first = str(error).strip().partition("\n")[0]
        raise TrackingError(f"MLflow at {uri}: {first or type(error).__name__}") from error


class _Sync:
    """One look at the store and at MLflow."""

    def __init__(self, store: Store, sweep_id: str, uri: str) -> None:
        from mlflow import MlflowClient

        self.store, self.sweep_id, self.uri = store, sweep_id, uri
        self.head = _head(store, sweep_id)
        self.client: MlflowClient = MlflowClient(tracking_uri=uri)

    def run(self, status: str | None, seen: Seen) -> None:
        table = self.store.trials(sweep_id=self.sweep_id)
        at, more = table["at"].to_numpy(), seen.parent is not None and status == "RUNNING"
        trials = (table.take(np.flatnonzero(at > seen.upto)) if more and seen.upto is not None else table).to_pylist()
        status = status or _status_of(trials)
        experiment = self._experiment()
        if not more:
            seen.children = self._known(experiment)
            seen.parent = seen.children.pop("", None)
        parent = seen.parent = seen.parent or self._create(experiment, self.sweep_id, {"kind": "sweep"}, None)
        seen.upto = at.max() if len(at) else None
        self._state(parent, "RUNNING" if status == "RUNNING" and not more else None)
        wanted = {request(row): row for row in trials}
        children = {key: run for key in wanted if (run := seen.children.get(key))} if more else seen.children
        for run in children.values():  # its parent may be one that was there twice
            if run.data.tags.get(PARENT) != parent.info.run_id:
                self.client.set_tag(run.info.run_id, PARENT, parent.info.run_id)
        for key, row in wanted.items():
            if key not in children:
                children[key] = self._create(experiment, runs.name({**row, "state": "asked"}), {
                    "kind": "trial", "arm": row["arm"], "phase": row["phase"], "number": str(row["number"]),
                    "trial_id": row["trial_id"], "request": key, PARENT: parent.info.run_id,
                }, row["at"])  # fmt: skip
                seen.children[key] = children[key]
        news = [
            (children[key], row) for key, row in wanted.items()
            if row["state"] in ("ended", "failed") and children[key].data.tags.get(DONE) != _fingerprint(row)
        ]  # fmt: skip
        self._log(news)
        for key, run in children.items():
            row = wanted.get(key)
            self._state(run, _state_of(row, status), None if row is None else row["at"])
        if status != "RUNNING":
            self._figures({key: (children[key], row) for key, row in wanted.items()})
            self._conclude(parent, trials)
            self._state(parent, status)
            self._link(parent, {origins.key_of(row): children[key] for key, row in wanted.items()})

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.head["name"]
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        beside = self.store.local is not None and self.uri == database_uri(self.store)
        place = (Path(self.store.root) / "mlartifacts").as_uri() if beside else None
        try:
            return self.client.create_experiment(name, artifact_location=place)
        except MlflowException:  # another sweep of this name was sooner
            if (found := self.client.get_experiment_by_name(name)) is None:
                raise
            return found.experiment_id

    def _known(self, experiment: str) -> dict[str, Run]:
        """The sweep's runs by the request that they stand for, "" the parent.

        An answer that was lost on its way, or two that sync at once, leave a run twice: the one that more was logged
        to stays, the other is deleted.
        """
        found: dict[str, list[Run]] = {}
        for run in self._runs(experiment):
            if (kind := run.data.tags.get("kind")) in ("sweep", "trial"):
                found.setdefault(run.data.tags["request"] if kind == "trial" else "", []).append(run)
        for one in found.values():
            one.sort(key=lambda run: (-len(run.data.metrics), -len(run.data.tags), run.info.run_id))
            for run in one[1:]:
                log.warning("run %s of MLflow was there twice, one is deleted", run.info.run_id)
                self.client.delete_run(run.info.run_id)
        return {key: one[0] for key, one in found.items()}

    def _runs(self, experiment: str) -> Iterator[Run]:
        token = None
        while True:
            page = self.client.search_runs(
                [experiment], f"tags.sweep_id = '{self.sweep_id}'", max_results=1000,
                order_by=["attributes.start_time ASC"], page_token=token)  # fmt: skip
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, experiment: str, name: str, tags: dict[str, str], at: Any) -> Run:
        tags = {"sweep_id": self.sweep_id, **tags}
        return self.client.create_run(experiment, start_time=_millis(at), tags=tags, run_name=name)

    def _state(self, run: Run, state: str | None, at: Any = None) -> None:
        if state is None or run.info.status == state:
            return
        if state == "RUNNING":
            self.client.update_run(run.info.run_id, status=state)
        else:
            self.client.set_terminated(run.info.run_id, state, end_time=_millis(at))

    def _log(self, news: Sequence[tuple[Run, Mapping[str, Any]]]) -> None:
        """Parameters, summary and mean curves of trials that have ended."""
        from mlflow.entities import Metric, Param, RunTag

        if not news:
            return
        ids = sorted({row["trial_id"] for _, row in news})
        replicas = {(r["trial_id"], r["seed"]): r for r in self.store.replicas(trial_id=ids).to_pylist()}
        curves = _Curves(self.store, ids)
        for run, row in news:
            at = _millis(row["at"]) or 0
            mine = [r for seed in row["seeds"] if (r := replicas.get((row["trial_id"], seed))) is not None]
            metrics = [Metric(_name(name), value, at, 0) for name, value in runs.metrics(row, mine).items()]
            for name, steps, values in curves.mean(row["trial_id"], row["seeds"]):
                metrics += [Metric(name, float(v), at, int(s)) for s, v in zip(steps, values, strict=True)]
            known = run.data.params  # those of an earlier time stay as they are: MLflow changes none
            params = [Param(k, value) for key, value in runs.params(row).items() if (k := _name(key)) not in known]
            tags = runs.tags(row, mine) | ({"mlflow.note.content": row["error"][:NOTE]} if row["error"] else {})
            self._batches(run.info.run_id, metrics)
            if run.info.run_name != (name := runs.name(row, mine)):
                self.client.update_run(run.info.run_id, name=name)
            # The tag goes last: a cut before it has the whole trial logged again, and equal metrics are one
            # in MLflow.
            self.client.log_batch(run.info.run_id, params=params, tags=[RunTag(*tag) for tag in tags.items()])
            self.client.set_tag(run.info.run_id, DONE, _fingerprint(row))

    def _batches(self, run_id: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def _figures(self, trials: Mapping[str, tuple[Run, Mapping[str, Any]]]) -> None:
        """Curves of what was confirmed, and of the best trial of every arm's search."""
        ended = [(run, row) for run, row in trials.values() if row["state"] == "ended"]
        best: dict[str, tuple[Run, Mapping[str, Any]]] = {}
        for run, row in ended:
            if row["phase"] == "search" and (row["arm"] not in best or _rank(row) < _rank(best[row["arm"]][1])):
                best[row["arm"]] = (run, row)
        for run, row in [*(pair for pair in ended if pair[1]["phase"] == "confirm"), *best.values()]:
            self._weights(run, row["trial_id"])
            if run.data.tags.get("figures") != row["trial_id"]:
                figure = report.curve_figure(self.store, row["trial_id"], f"{row['arm']}, trial {row['trial_id']}")
                self.client.log_figure(run.info.run_id, figure, "figures/curves.png")
                self.client.set_tag(run.info.run_id, "figures", row["trial_id"])

    def _weights(self, run: Run, trial_id: str) -> None:
        """What `keep` left of a trial's replicas, under weights/; a file is logged once."""
        if self.store.local is None:
            return
        found = sorted((self.store.local / "weights" / trial_id).glob("*.pt"))
        said = ",".join(path.stem for path in found)
        digest = hashlib.sha256(said.encode()).hexdigest()[:12]
        if not found or run.data.tags.get("weights") == digest:
            return
        there = {artifact.path for artifact in self.client.list_artifacts(run.info.run_id, "weights")}
        for path in found:
            if f"weights/{path.name}" not in there:
                self.client.log_artifact(run.info.run_id, str(path), "weights")
        self.client.set_tag(run.info.run_id, "weights", digest)

    def _conclude(self, parent: Run, trials: Sequence[Mapping[str, Any]]) -> None:
        """The question, the answer and the figures that show it, on the parent run."""
        from mlflow.entities import Metric, RunTag

        view = report.collect(self.store, self.sweep_id)
        note, run_id = runs.note(view), parent.info.run_id
        if parent.data.tags.get("mlflow.note.content") == note:
            return
        at = max((_millis(row["at"]) or 0 for row in view.speedups), default=0)
        block = view.plan["block"] if view.plan is not None else 0
        self._batches(run_id, [Metric(_name(key), s, at, block) for key, s in runs.answers(view).items()])
        if view.speedups:
            for name, figure in (("survival", report.survival_figure), ("speedups", report.speedup_figure)):
                self.client.log_figure(run_id, figure(self.store, self.sweep_id), f"figures/{name}.png")
        self.client.log_text(run_id, report.html(self.store, self.sweep_id), "report/report.html")
        self.client.log_text(run_id, report.results_text(self.store, self.sweep_id), "report/results.txt")
        self.client.update_run(run_id, name=runs.headline(view))
        experiment = parent.info.experiment_id
        self.client.set_experiment_tag(experiment, "mlflow.note.content", runs.markdown(self.head["question"]))
        shared = f"mlflow.sharedViewState.{runs.view(self.sweep_id)}"
        self.client.set_experiment_tag(experiment, shared, runs.view_state(trials))
        tags = {**runs.summary(view), "mlflow.note.content": note}  # the note is what says that all is there
        self.client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])

    def _link(self, parent: Run, trials: Mapping[str, Run]) -> None:
        """Leaves the addresses of the runs beside the sweep's log, for the report; a database has none."""
        if self.store.local is None or not self.uri.startswith(("http://", "https://")):
            return
        place = f"{self.uri.rstrip('/')}/#/experiments/{parent.info.experiment_id}/runs"
        found = {key: f"{place}/{run.info.run_id}" for key, run in {"": parent, **trials}.items()}
        path = self.store.sweep_dir(self.sweep_id) / origins.LINKS
        new = path.with_suffix(".tmp")
        new.write_text(json.dumps(found, indent=0))
        new.replace(path)


class _Curves:
    """The curves of some trials, read from the store at once."""

    def __init__(self, store: Store, trial_ids: Sequence[str]) -> None:
        table = store.curves(trial_id=list(trial_ids))
        trial, seed = table["trial_id"].to_numpy(), table["seed"].to_numpy()
        steps = table["step"].to_numpy()
        values = {name: table[name].to_numpy() for name in CURVES}
        self._of: dict[tuple[str, int], tuple[np.ndarray, dict[str, np.ndarray]]] = {}
        for key in dict.fromkeys(zip(trial.tolist(), seed.tolist(), strict=True)):
            at = np.flatnonzero((trial == key[0]) & (seed == key[1]))
            at = at[np.argsort(steps[at], kind="stable")]
            self._of[key] = (steps[at], {name: column[at] for name, column in values.items()})

    def mean(self, trial_id: str, seeds: Sequence[int]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(name, steps, mean over seeds) per accuracy; a replica that has finished keeps its last value."""
        found = [self._of[trial_id, seed] for seed in seeds if (trial_id, seed) in self._of]
        if not found:
            return
        grid = np.unique(np.concatenate([steps for steps, _ in found]))
        for name in CURVES:
            rows = [
                columns[name][np.maximum(np.searchsorted(steps, grid, side="right") - 1, 0)] for steps, columns in found
            ]
            mean = np.mean(rows, axis=0)
            keep = np.isfinite(mean)
            yield f"{name}uracy", grid[keep], mean[keep]


class Mirror:
    """Keeps MLflow in step with a sweep that runs, in a thread of its own: nothing waits for it.

    start() is separate: MLflow takes seconds to import, which is best left until there is work to do.
    """

    def __init__(self, store: Store, sweep_id: str, uri: str) -> None:
        self.problem: str | None = None  # what MLflow said when it last failed
        self._seen = Seen()
        self._store = copy.copy(store)  # its own: no lock is shared
        self._sweep_id, self._uri = sweep_id, uri
        self._wake, self._end, self._busy = threading.Event(), threading.Event(), threading.Lock()
        self._status = "RUNNING"
        self._thread = threading.Thread(target=self._work, name=MIRROR, daemon=True)

    def start(self) -> None:
        """Begin; later calls do nothing."""
        if not self._thread.is_alive() and not self._end.is_set():
            # Its modules import each other in circles. Tune imports it in this thread: in another one at the same time,
            # one of the two may be thrown out (`_DeadlockError`).
            import mlflow  # noqa: F401

            self._thread.start()

    def poke(self) -> None:
        """The store has news."""
        self._wake.set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is done for MLflow meanwhile; what is under way is waited for."""
        with self._busy:
            yield

    def close(self, status: str, timeout: float) -> None:
        """Bring MLflow up to date one last time, and end. What takes longer is left to the next `sync`."""
        self._status = status
        self._end.set()
        self._wake.set()
        if not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name=MIRROR, daemon=True)
            self._thread.start()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._complain(f"MLflow at {self._uri} is behind: it took more than {timeout:g} s")

    def _work(self) -> None:
        while True:
            ending = self._end.is_set()
            self._wake.clear()
            began = time.monotonic()
            try:
                with self._busy:
                    status = self._status if ending else "RUNNING"
                    sync(self._store, self._sweep_id, self._uri, status=status, seen=self._seen)
                self.problem = None
            except GrokscaleError as error:
                self._seen = Seen()
                self._complain(str(error))
            if ending:
                return
            self._end.wait(max(PAUSE_S, SHARE * (time.monotonic() - began)))
            self._wake.wait()

    def _complain(self, text: str) -> None:
        if self.problem is None:
            log.warning("%s; the sweep goes on, `grokscale track sync` catches up", text)
        self.problem = text


def serve(store: Store, sweep_id: str, *, port: int, say: Callable[[str], None]) -> None:
    """MLflow's pages for a sweep on 127.0.0.1, until Ctrl-C; where it is tracked on a server, their address there."""
    uri = uri_of(store, sweep_id)
    sync(store, sweep_id, uri)
    from mlflow import MlflowClient

    from grokscale.pages import serve as pages

    found = MlflowClient(tracking_uri=uri).get_experiment_by_name(_head(store, sweep_id)["name"])
    assert found is not None  # `sync` has just seen to it
    place = f"/#/experiments/{found.experiment_id}/runs?viewStateShareKey={runs.view(sweep_id)}"
    if uri.startswith(("http://", "https://")):
        say(f"{uri.rstrip('/')}{place}")
    else:
        pages(uri, place, port=port, say=say)


def _head(store: Store, sweep_id: str) -> dict[str, Any]:
    rows = store.table("sweeps", sweep_id=sweep_id).to_pylist()
    if not rows:
        raise GrokscaleError(f"{store.root}: no sweep {sweep_id} in this store")
    return rows[0]


def _status_of(trials: Sequence[Mapping[str, Any]]) -> str:
    states = {row["state"] for row in trials}
    return "KILLED" if "asked" in states else "FAILED" if "failed" in states else "FINISHED"


def _state_of(row: Mapping[str, Any] | None, status: str) -> str:
    """A child's state: a trial that is asked runs as long as the sweep does; one that no row asks for was
    dropped.
    """
    if row is None:
        return "KILLED"
    return {"ended": "FINISHED", "failed": "FAILED"}.get(row["state"], "RUNNING" if status == "RUNNING" else "KILLED")


def request(row: Mapping[str, Any]) -> str:
    """What names a row of `trials` for good."""
    named = [row["arm"], row["phase"], row["number"], row["trial_id"], row["seeds"]]
    return hashlib.sha256(canonical_json(named).encode()).hexdigest()[:12]


def _fingerprint(row: Mapping[str, Any]) -> str:
    return f"{row['state']} {row['cap']} {row['value']!r}"


def _rank(row: Mapping[str, Any]) -> tuple[float, int]:
    return math.inf if row["value"] is None else row["value"], row["number"]


def _name(text: str) -> str:
    """A name with nothing in it that MLflow refuses."""
    return re.sub(r"[^\w.\-/ ]", "_", text)


def _millis(at: Any) -> int | None:
    return None if at is None else int(at.timestamp() * 1000)
