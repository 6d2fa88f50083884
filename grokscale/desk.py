"""The desk of a phase: sets a plan against what the store knows, hands out what is missing, files what came
back.

The store is the ledger. A request that stored replicas answer is never run again, whatever sweep made them;
what the driver adds are the rows of `trials`, written when a job is handed out and when it is through.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from grokscale import search
from grokscale.checkpoint import claimed
from grokscale.errors import GrokscaleError
from grokscale.outcomes import answers
from grokscale.search import Job, Plan
from grokscale.spec import canonical_json
from grokscale.store import Store
from grokscale.store.relations import to_rows

log = logging.getLogger(__name__)

TICK_S = 0.5  # progress is told at most this often
ERROR_CHARS = 8000
MANY = 8  # trials that failed, after which a sweep stops where nearly all that came back did ...
NEARLY = 0.9  # ... such a share of them
Key = tuple[str, str, int]  # phase, arm, number
_NEEDED = ("trial_id", "seed", "grok_step", "val_grok_step", "diverged_step", "observed_to", "measured")


@dataclass(frozen=True)
class ArmProgress:
    """One arm in one phase. best: steps, the geometric mean over seeds of the best trial so far; None before
    one grokked. grokked, replicas: of the trials done and under way."""

    arm: str
    total: int
    done: int = 0
    running: int = 0
    best: float | None = None
    grokked: int = 0
    replicas: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a sweep is, for a live table. elapsed, eta: seconds, of the sweep so far and of the phase to
    come. trained: replicas trained by this run.  reused: trials answered by the store.  failed: trials given
    up."""

    sweep_id: str
    phase: str
    status: str
    arms: tuple[ArmProgress, ...] = ()
    elapsed: float = 0.0
    eta: float | None = None
    trained: int = 0
    reused: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Failure:
    """A trial that was given up after its retries; the next start of the sweep tries it again."""

    phase: str
    arm: str
    number: int
    trial_id: str
    error: str


class Ledger:
    """What the store knows of replicas, and of the trials of one sweep; read once and then as it grows."""

    def __init__(self, store: Store, sweep_id: str) -> None:
        self.store, self.sweep_id = store, sweep_id
        rows = store.replicas().select(list(_NEEDED)).to_pylist()
        self._replicas = {(row["trial_id"], row["seed"]): row for row in rows}
        trials = store.trials(sweep_id=sweep_id).to_pylist()
        self._trials = {(row["arm"], row["phase"], row["number"], tuple(row["seeds"])): row for row in trials}
        self._unwritten: list[dict[str, Any]] = []

    def refresh(self, trial_id: str, parts: Sequence[str] = ()) -> None:
        """Take in what workers have added of a trial.

        parts: the files that hold it, where they are known: else the store is looked through, and that takes longer the
        more there is.
        """
        tables = [self.store.part("replicas", name) for name in parts]
        rows = [row for table in tables if table is not None for row in to_rows(table.select(list(_NEEDED)))]
        fresh = {(row["trial_id"], row["seed"]): row for row in rows}
        if not fresh or fresh.keys() & self._replicas.keys():  # of two rows of a replica the store says which counts
            fresh = self.store.answered([trial_id])
        self._replicas |= fresh

    def missing(self, job: Job, metrics: Sequence[str] = ()) -> list[int]:
        """The seeds of a job that no stored replica answers, its measures included."""
        rows = ((seed, self._replicas.get((job.trial_id, seed))) for seed in job.seeds)
        return [seed for seed, row in rows if row is None or not answers(row, job.cap, job.until, metrics)]

    def rows(self, trial_id: str, seeds: Sequence[int]) -> list[Mapping[str, Any]]:
        """The replicas there are of a trial, in the order of `seeds`."""
        found = (self._replicas.get((trial_id, seed)) for seed in seeds)
        return [row for row in found if row is not None]

    def file(self, job: Job, state: str, *, value: float | None = None, error: str | None = None) -> None:
        """Note the state of a trial, unless that is what the store says; `flush` writes."""
        key = (job.arm, job.phase, job.number, job.seeds)
        row = {
            "sweep_id": self.sweep_id, "arm": job.arm, "phase": job.phase, "number": job.number,
            "trial_id": job.trial_id, "seeds": list(job.seeds), "params_json": canonical_json(job.params),
            "cap": job.cap, "value": value, "state": state, "error": error[:ERROR_CHARS] if error else None,
        }  # fmt: skip
        if any(self._trials.get(key, {}).get(name, ...) != row[name] for name in ("trial_id", "cap", "value", "state")):
            self._trials[key] = row
            self._unwritten.append(row)

    def flush(self) -> None:
        """Write the rows of `trials` that are noted."""
        if self._unwritten:
            self.store.append("trials", self._unwritten)
            self._unwritten = []


@dataclass
class _Running:
    job: Job
    seeds: list[int]
    finished: int = 0
    grokked: int = 0


@dataclass
class PhaseDesk:
    """Hands out the jobs of a plan; `tuner.Desk` is what Tune's side asks of it.

    worker: what a worker is told besides the job (root, lanes, threads, device, data, metrics, compile).
    """

    plan: Plan
    ledger: Ledger
    horizon: int
    worker: Mapping[str, Any]
    notify: Callable[[Progress], None]
    on_filed: Callable[[], None] = lambda: None
    failures: list[Failure] = field(default_factory=list)
    trained: int = 0
    reused: int = 0

    def __post_init__(self) -> None:
        self._running: dict[Key, _Running] = {}
        self._arms = {arm: ArmProgress(arm, total) for arm, total in self.plan.sizes.items()}
        self._began, self._told, self._ran = time.monotonic(), -math.inf, 0
        self._metrics: tuple[str, ...] = tuple(self.worker.get("metrics", ()))

    @property
    def through(self) -> bool:
        return self.plan.done

    @property
    def wanted(self) -> int:
        return len(self.plan.jobs())

    def settle(self) -> None:
        """File every job that the store answers; what they decide may open further ones."""
        again = True
        while again:
            waiting = [job for job in self.plan.jobs() if job.key not in self._running]
            known = [job for job in waiting if not self.ledger.missing(job, self._metrics)]
            for job in known:
                self.reused += 1
                self._end(job)
            again = bool(known)
        self.ledger.flush()

    def take(self) -> tuple[Key, Mapping[str, Any]] | None:
        self.settle()
        busy = {running.job.trial_id for running in self._running.values()}  # asked twice, trained once
        elsewhere = claimed(self.ledger.store)  # in the end: a worker would wait for it while others can be trained
        for job in sorted(self.plan.jobs(), key=lambda job: job.trial_id in elsewhere):
            if job.key in self._running or job.trial_id in busy:
                continue
            seeds = self.ledger.missing(job, self._metrics)
            self._running[job.key] = _Running(job, seeds)
            self.ledger.file(job, "asked")
            self.ledger.flush()
            self.on_filed()
            log.info(
                "%s %s %d: trial %s, %d seeds to step %d, %s",
                *job.key,
                job.trial_id,
                len(seeds),
                job.cap,
                canonical_json(job.params),
            )
            request = {
                "name": f"{job.phase}-{job.arm}-{job.number}", "spec": job.spec.canonical(), "seeds": seeds,
                "horizon": job.cap, "until": job.until,
            }  # fmt: skip
            return job.key, {**self.worker, "job": request}
        return None

    def finished(self, key: Key, parts: Sequence[str] = ()) -> None:
        running = self._running.pop(key)
        job = running.job
        self.ledger.refresh(job.trial_id, parts)
        if parts and self.ledger.missing(job, self._metrics):  # an earlier attempt wrote some
            self.ledger.refresh(job.trial_id)
        if unanswered := self.ledger.missing(job, self._metrics):
            self._fail(job, f"the worker ended, but the store has no answer for the seeds {unanswered}")
            return
        self.trained += len(running.seeds)
        self._ran += 1
        self._end(job)
        self.ledger.flush()
        self.on_filed()

    def failed(self, key: Key, error: str) -> None:
        self._fail(self._running.pop(key).job, error)

    def report(self, key: Key, finished: int, grokked: int) -> None:
        if (running := self._running.get(key)) is not None:
            running.finished, running.grokked = finished, grokked

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._told >= TICK_S:
            self._told = now
            self.notify(self.progress())

    def progress(self) -> Progress:
        """How far this phase is."""
        arms = []
        for name, arm in self._arms.items():
            mine = [running for running in self._running.values() if running.job.arm == name]
            arms.append(replace(
                arm, running=len(mine), grokked=arm.grokked + sum(r.grokked for r in mine),
                replicas=arm.replicas + sum(len(r.seeds) for r in mine)))  # fmt: skip
        left = sum(arm.total - arm.done for arm in arms)
        eta = left * (time.monotonic() - self._began) / self._ran if self._ran else None
        return Progress("", self.plan.phase, "", tuple(arms), 0.0, eta, self.trained, self.reused, len(self.failures))

    def _end(self, job: Job) -> None:
        rows = self.ledger.rows(job.trial_id, job.seeds)
        value, capped = search.value_of(rows, job.cap, self.horizon)
        self.ledger.file(job, "ended", value=value)
        self.plan.tell(job, value, capped)
        grokked = sum(row["grok_step"] is not None and row["grok_step"] <= job.cap for row in rows)
        arm, steps = self._arms[job.arm], math.exp(value)
        best = steps if value < math.log(self.horizon) and (arm.best is None or steps < arm.best) else arm.best
        self._arms[job.arm] = replace(
            arm,
            done=arm.done + 1,
            best=best,
            grokked=arm.grokked + grokked,
            replicas=arm.replicas + len(rows),
        )
        said = f"objective {value:.4f}{' (capped)' if capped else ''}, {grokked} of {len(rows)} grokked"
        log.info("%s %s %d: ended, %s", *job.key, said)

    def _fail(self, job: Job, error: str) -> None:
        log.error("%s %s %d: given up: %s", *job.key, error)
        self.failures.append(Failure(job.phase, job.arm, job.number, job.trial_id, error))
        self.ledger.file(job, "failed", error=error)
        self.ledger.flush()
        self.on_filed()
        self.plan.tell(job, None, False)
        self._arms[job.arm] = replace(self._arms[job.arm], done=self._arms[job.arm].done + 1)


class Phases:
    """The desks of a sweep's phases as one desk: when one is through, the next opens.

    One Tuner serves them all, because Tune's worker processes end with it, and each new one costs seconds.
    trials: handed out at most; `reached` is called when they are all back.
    """

    name = "sweep"

    def __init__(
        self, desks: Iterator[PhaseDesk], trials: int | None = None, reached: Callable[[], None] = lambda: None
    ) -> None:
        self._desks, self._limit, self._reached = desks, trials, reached
        self._taken = self._back = self._failed = 0
        self._desk: PhaseDesk | None = next(desks, None)
        self._before: list[PhaseDesk] = []

    def settle(self) -> None:
        """File what the store answers, phase after phase, up to the first that has something to run."""
        while self._desk is not None:
            self._desk.settle()
            if not self._desk.through:
                break
            self._desk.notify(self._desk.progress())
            self._before.append(self._desk)
            self._desk = next(self._desks, None)

    @property
    def through(self) -> bool:
        return self._desk is None

    @property
    def wanted(self) -> int:
        under_way = self._taken - self._back
        return under_way if self._desk is None or self._taken == self._limit else self._desk.wanted

    @property
    def trained(self) -> int:
        return sum(desk.trained for desk in self._all())

    @property
    def reused(self) -> int:
        return sum(desk.reused for desk in self._all())

    def take(self) -> tuple[Key, Mapping[str, Any]] | None:
        self.settle()
        if self._desk is None or self._taken == self._limit:
            return None
        taken = self._desk.take()
        self._taken += taken is not None
        return taken

    def finished(self, key: Key, parts: Sequence[str] = ()) -> None:
        self._open.finished(key, parts)
        self._came_back()

    def failed(self, key: Key, error: str, *, stopped: bool = False) -> None:
        """Raises GrokscaleError where nearly all fail: what is left would fail too."""
        self._open.failed(key, error)
        self._failed += not stopped
        self._came_back()
        if self._failed >= MANY and self._failed >= NEARLY * self._back:
            last = error.strip().rpartition("\n")[2] or "no reason given"
            raise GrokscaleError(f"{self._failed} of {self._back} trials failed, so the sweep stops early; the last "
                                 f"one said: {last}; mend that, then the same command goes on")

    def _came_back(self) -> None:
        self._back += 1
        if self._back == self._limit:
            self.settle()  # what the store answers besides costs nothing
            if not self.through:
                self._reached()

    def report(self, key: Key, finished: int, grokked: int) -> None:
        self._open.report(key, finished, grokked)

    def tick(self) -> None:
        if self._desk is not None:
            self._desk.tick()

    @property
    def _open(self) -> PhaseDesk:
        if self._desk is None:
            raise RuntimeError("a job came back after the last phase")
        return self._desk

    def _all(self) -> list[PhaseDesk]:
        return [*self._before, *([self._desk] if self._desk else [])]
