"""One sweep from end to end: search, race, confirm, timing, the answer; and how it stops and goes on again.

The store is the ledger: what it answers is not run, so the same command again resumes, and where nothing is
left to run, Ray is not even imported. Order of writes: a worker's part, the driver's row of `trials`, MLflow.
A start repairs in that order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from grokscale import answers, data, search
from grokscale.checkpoint import tidy
from grokscale.control import (
    STOPPED,
    Stop,
    SweepInterrupted,
    forget_stops,
    locked,
    logged,
    mark_ended,
    note_progress,
    notes_in,
)
from grokscale.desk import ArmProgress, Failure, Ledger, PhaseDesk, Phases, Progress
from grokscale.errors import GrokscaleError
from grokscale.parts import device_name, package_version
from grokscale.search import Plan, SearchPlan, Winner
from grokscale.spec import Resolved, canonical_json, seed_for
from grokscale.spec.settings import described
from grokscale.store import Store
from grokscale.track import Mirror, default_uri

if TYPE_CHECKING:
    from grokscale.tuner import Cluster

__all__ = ["ArmProgress", "Failure", "Progress", "SweepInterrupted", "SweepResult", "run_sweep"]

log = logging.getLogger(__name__)

TRACKING_S = 600.0  # seconds that MLflow may take to catch up at the end ...
TRACKING_STOPPED_S = 3.0  # ... and after Ctrl-C, which has to be through in 10


@dataclass(frozen=True)
class SweepResult:
    """What a run of a sweep did. trained: replicas trained now.  reused: trials that the store answered.
    failures: trials that were given up.  tau: the confirmation's horizon, None where nothing was confirmed.
    behind: what kept MLflow from following, None where it has everything."""

    sweep_id: str
    trained: int
    reused: int
    tau: int | None
    failures: tuple[Failure, ...] = ()
    behind: str | None = None


def run_sweep(
    resolved: Resolved,
    store: Store,
    *,
    tracking: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> SweepResult:
    """Run a sweep, or what is left of it, and store the answer.

    tracking: MLflow's URI; None is the experiment's, else what MLFLOW_TRACKING_URI names, else a database beside the
    store; "none" is no MLflow.
    on_progress: called in this thread, at most twice a second and at every change of phase.

    Raises SweepInterrupted after Ctrl-C, SIGTERM or at one of [limits]; GrokscaleError where another driver runs
    the same sweep, or its baseline has no trial that works.  A second Ctrl-C ends the process at once.
    """
    asked = tracking or resolved.experiment.tracking
    uri = None if asked == "none" else asked or default_uri(store)
    folder = store.sweep_dir(resolved.sweep_id)
    hours = resolved.experiment.limits.hours
    stopping = Stop(hours, notes_in(folder))
    with locked(folder / "lock", resolved.sweep_id), logged(folder / "log.txt"), stopping as stop:
        forget_stops(folder)
        sweep = _Sweep(resolved, store, stop, on_progress or (lambda progress: None), uri)
        status = "FAILED"
        try:
            result = sweep.run()
            if not result.failures:  # the same command tries those again
                mark_ended(folder, resolved.experiment.to_json())
            status = "FAILED" if result.failures else "FINISHED"
        except SweepInterrupted as stopped:
            status = "KILLED"
            log.warning("stopped: %s", stopped)
            raise
        except BaseException:  # whatever ends a driver that nobody watches
            log.exception("the sweep failed")
            raise
        finally:
            behind = sweep.close(status)
        return replace(result, behind=behind)


def introduce(resolved: Resolved, store: Store) -> None:
    """The sweep's own row: written once, and again where a longer sweep or other words are asked for."""
    x = resolved.experiment
    spaces = {arm.name: {knob: described(range_) for knob, range_ in arm.space.items()} for arm in resolved.arms}
    row = {
        "sweep_id": resolved.sweep_id, "name": x.name, "question": x.question, "baseline": x.baseline,
        "horizon": resolved.horizon, "experiment_json": x.to_json(), "spaces_json": canonical_json(spaces),
    }  # fmt: skip
    known = store.rows("sweeps", sweep_id=resolved.sweep_id)
    if not known or _asked(known[0]) != _asked(row):
        store.append("sweeps", [{**row, "version": package_version()}])


@dataclass
class _Sweep:
    resolved: Resolved
    store: Store
    stop: Stop
    tell: Callable[[Progress], None]
    uri: str | None
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.experiment, self.sweep_id = self.resolved.experiment, self.resolved.sweep_id
        self._folder = self.store.sweep_dir(self.sweep_id)
        self.began = self._charged = time.monotonic()
        self._spent = 0.0  # device-hours of this run
        self._cluster: Cluster | None = None
        self._mirror: Mirror | None = None
        self._last: Progress | None = None
        self._plan: dict[str, Any] | None = None  # of the confirmation
        self._work: Phases | None = None

    # ---------------------------------------------------------------------------------------- the phases

    def run(self) -> SweepResult:
        log.info("sweep %s, grokscale %s, process %d", self.sweep_id, package_version(), os.getpid())
        self.say("reading the store")
        introduce(self.resolved, self.store)
        if self.uri is not None:
            self._mirror = Mirror(self.store, self.sweep_id, self.uri)
        self.ledger = Ledger(self.store, self.sweep_id)
        trials = self.experiment.limits.trials
        reached = partial(self.stop.reached, f"limits.trials = {trials}")
        self._work = phases = Phases(self._phases(), trials, reached)
        try:
            phases.settle()
            if not phases.through:
                cluster = self._started()
                cluster.run(phases, self.stop)
        finally:
            self.ledger.flush()
        if not phases.through:
            self.stop.check()
            raise GrokscaleError(f"Ray Tune ended with trials left; see {self.store.sweep_dir(self.sweep_id)}/log.txt")
        if self._plan is not None:
            self._time()
            self._answer()
        tidy(self.store)
        tau = self._plan["tau"] if self._plan else None
        return SweepResult(self.sweep_id, phases.trained, phases.reused, tau, tuple(self.failures))

    def _phases(self) -> Iterator[PhaseDesk]:
        """Search, race, confirm; each is made when the one before is through.

        Once a plan of the confirmation stands, the search is over: it is not asked again what it would find. What was
        stopped by hand is made up for, and the plan stays as it is.
        """
        x, horizon = self.experiment, self.resolved.horizon
        known = sorted(self.store.table("plans", sweep_id=self.sweep_id).to_pylist(), key=lambda row: row["block"])
        same: list[dict[str, Any]] = [row for row in known if row["key"] == self._plan_key()]
        if not same or not x.confirm.seeds or self.store.rows("trials", sweep_id=self.sweep_id, error=STOPPED):
            winners, tau = search.defaults(self.resolved), horizon
            if x.search.trials:
                searching = SearchPlan(self.resolved)
                yield self._desk(searching, horizon)
                self._weigh(searching)
                racing = search.race_plan(self.resolved, searching.ended)
                yield self._desk(racing, horizon)
                winners = search.winners(self.resolved, searching.ended, racing)
                tau = self._tau(winners)
            if not x.confirm.seeds:
                return
            same = same or [self._planned(known, winners, tau)]
        self._plan = same[-1]
        seeds, tau = self._plan["seeds"], self._plan["tau"]
        yield self._desk(search.confirm_plan(self.resolved, self._winners(), seeds, tau), tau)

    def _desk(self, plan: Plan, horizon: int) -> PhaseDesk:
        resources = self.experiment.resources
        worker = {
            "root": self.store.root, "lanes": resources.lanes, "threads": resources.cpus,
            "device": "cuda" if resources.gpus else "cpu", "devices": resources.devices, "gpus": resources.gpus,
            "data": str(data.folder()), "stops": str(notes_in(self.store.sweep_dir(self.sweep_id))),
            "metrics": self.experiment.metrics.during(plan.phase), "compile": resources.compile,
            "keep": self.experiment.keep if plan.phase == "confirm" else None,
        }  # fmt: skip
        log.info("phase %s: %s", plan.phase, dict(plan.sizes))
        return PhaseDesk(plan, self.ledger, horizon, worker, self._heard, self._filed, self.failures)

    def _planned(self, known: list[dict[str, Any]], winners: dict[str, Winner], tau: int) -> dict[str, Any]:
        """The plan: what is confirmed, on which seeds, to which horizon; written before the first of them
        runs.

        A search or a confirmation of another size is a new plan, on the next block of seeds: n is fixed
        beforehand.
        """
        used, count = sum(len(row["seeds"]) for row in known), self.experiment.confirm.seeds
        if self.experiment.aa:
            count *= len(winners)
        seeds = [seed_for("confirm", used + k) for k in range(count)]
        if self.experiment.aa:
            winners = search.apart(self.resolved, winners, seeds)
        row = {
            "sweep_id": self.sweep_id, "block": len(known), "tau": tau, "key": self._plan_key(),
            "seeds": seeds, "practice": search.practice(self.resolved, winners),
            "winners_json": canonical_json({arm: vars(winner) for arm, winner in winners.items()}),
        }  # fmt: skip
        self.store.append("plans", [row])
        log.info(
            "plan %d: horizon %d, %d seeds, winners %s",
            row["block"],
            tau,
            len(row["seeds"]),
            row["winners_json"],
        )
        return row

    def _weigh(self, searching: SearchPlan) -> None:
        """Store what each knob of an arm mattered in its search, unless the store has it as it is."""
        rows = []
        for arm in self.resolved.arms:
            ended = searching.ended[arm.name]
            trials = sum(trial.value is not None for trial in ended)
            about = {"sweep_id": self.sweep_id, "arm": arm.name, "trials": trials}
            rows += [{**about, "knob": k, "share": v} for k, v in search.importances(arm.space, ended).items()]
        stored = self.store.rows("importances", sweep_id=self.sweep_id)
        known = [{name: row[name] for name in ("sweep_id", "arm", "trials", "knob", "share")} for row in stored]
        self.store.append("importances", [row | {"version": package_version()} for row in rows if row not in known])

    def _winners(self) -> dict[str, Winner]:
        assert self._plan is not None
        return {arm: Winner(**winner) for arm, winner in json.loads(self._plan["winners_json"]).items()}

    def _plan_key(self) -> str:
        x = self.experiment
        asked: dict[str, Any] = {
            "search": x.search.model_dump(),
            "race": x.race.model_dump(),
            "confirm": x.confirm.model_dump(exclude={"until"}),
        }
        if not x.search.trials:
            asked["search"] = asked["race"] = {}
        if x.practice:
            asked["practice"] = {"arms": x.practice}
        return hashlib.sha256(canonical_json(asked).encode()).hexdigest()[:12]

    def _tau(self, winners: dict[str, Winner]) -> int:
        baseline = winners.get(self.experiment.baseline)
        if baseline is None:
            raise GrokscaleError(
                f"every trial of the baseline {self.experiment.baseline} failed, there is nothing to compare with:\n"
                + "\n".join(f"{f.phase} {f.arm} {f.number}: {_last_line(f.error)}" for f in self.failures)
            )
        seeds = search.search_seeds(self.resolved, self.experiment.baseline)
        rows = self.ledger.rows(baseline.trial_id, seeds)
        return search.tau_confirm(search.times(rows, self.resolved.horizon), self.resolved.horizon)

    def _time(self) -> None:
        """Seconds per step of every winner, alone on this device: in turns, unless they were before.

        A ratio of times that were taken on different days compares the days.
        """
        self.stop.check()
        winners, resources = self._winners(), self.experiment.resources
        device = "cuda" if resources.gpus else "cpu"
        ids = {arm: winner.trial_id for arm, winner in winners.items()}
        known = self.store.rows("timings", trial_id=list(ids.values()), threads=resources.cpus)
        here = None if "RAY_ADDRESS" in os.environ or resources.gpus else device_name(device)
        rounds = answers.rounds([row for row in known if here in (None, row["device"])])
        if any(set(ids.values()) <= one.keys() for one in rounds):
            return
        cluster = self._started()
        # MLflow would take part of what is to be timed.
        with self._mirror.paused() if self._mirror is not None else nullcontext():
            self.say("timing the winners")
            specs = {trial_id: self.resolved.trial(arm, winners[arm].params) for arm, trial_id in ids.items()}
            try:
                rows = cluster.timings([s.canonical() for s in specs.values()], resources.cpus, device, self.stop)
            except GrokscaleError as error:  # the answer in steps stands without it
                log.error("the winners are not timed: %s", error)
            else:
                self.store.append("timings", rows)
            self.stop.check()

    def _answer(self) -> None:
        """Store the speed-ups, unless the store has them as they are."""
        self.say("comparing")
        try:
            rows = answers.compute(self.store, self.sweep_id)
        except GrokscaleError as error:
            if not self.failures:
                raise
            log.error("no answer, as trials failed: %s", error)
            return
        kept = {_comparison(row): row for row in self.store.speedups(sweep_id=self.sweep_id).to_pylist()}
        news = [row for row in rows if not _same(row, kept.get(_comparison(row)))]
        self.store.append("speedups", news)
        self._endpoints()
        self._filed()

    def _endpoints(self) -> None:
        """Store what other metrics say; what keeps that from being said does not keep the answer."""
        try:
            rows = answers.compute_endpoints(self.store, self.sweep_id)
        except GrokscaleError as error:
            log.error("no endpoints: %s", error)
            return
        about = ("block", "endpoint", "arm", "baseline")
        kept = {tuple(row[name] for name in about): row for row in self.store.rows("endpoints", sweep_id=self.sweep_id)}
        news = [row for row in rows if not _same(row, kept.get(tuple(row[name] for name in about)))]
        self.store.append("endpoints", [{**row, "version": package_version()} for row in news])

    # ---------------------------------------------------------------------------------------- around them

    def _started(self) -> Cluster:
        if self._cluster is None:
            self.say("starting Ray")
            from grokscale.tuner import Cluster

            self._cluster = Cluster(self.experiment.resources.cpus, self.experiment.resources.gpus)
            self._cluster.start()
            if self._mirror is not None:
                self._mirror.start()
            self.stop.check()
        return self._cluster

    def _filed(self) -> None:
        if self._mirror is not None:
            self._mirror.poke()

    def _heard(self, progress: Progress) -> None:
        self._charge(sum(arm.running for arm in progress.arms))
        heard = replace(
            progress,
            sweep_id=self.sweep_id,
            status=progress.status or f"{progress.phase}: running",
            elapsed=time.monotonic() - self.began,
            trained=self._work.trained if self._work else 0,
            reused=self._work.reused if self._work else 0,
        )
        self._tell(heard)

    def _charge(self, running: int) -> None:
        """Add what trials under way have used since the last time."""
        now, resources, limit = time.monotonic(), self.experiment.resources, self.experiment.limits.device_hours
        self._spent += running * (resources.gpus or resources.cpus) * (now - self._charged) / 3600
        self._charged = now
        if limit is not None and self._spent >= limit:
            self.stop.reached(f"limits.device_hours = {limit:g}")

    def say(self, status: str) -> None:
        """A line of status for whoever watches."""
        log.info(status)
        last = self._last or Progress(self.sweep_id, "", "")
        self._tell(replace(last, status=status, elapsed=time.monotonic() - self.began))

    def _tell(self, progress: Progress) -> None:
        self._last = progress
        note_progress(self._folder, asdict(progress))
        self.tell(progress)

    def close(self, status: str) -> str | None:
        """Ray goes, MLflow catches up; what kept it from that."""
        if self._cluster is not None:
            self._cluster.close()
        if self._mirror is not None:
            self.say("updating MLflow")
            self._mirror.close(status, TRACKING_STOPPED_S if status == "KILLED" else TRACKING_S)
            return self._mirror.problem
        return None


def _asked(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a sweep's row asks for, without where and with what it is run; None where it is beyond reading."""
    means = ("store", "tracking", "limits", "resources", "cluster")
    try:
        return {key: value for key, value in answers.asked_for(row).items() if key not in means}
    except GrokscaleError:
        return None


def _comparison(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("block", "arm", "baseline", "clock", "phase"))


def _same(row: dict[str, Any], kept: dict[str, Any] | None) -> bool:
    return kept is not None and all(
        kept.get(name) == value for name, value in row.items() if name not in ("at", "version")
    )


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "no reason given"
