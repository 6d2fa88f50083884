"""What one more trial costs after 10 to 10,000 others: proposing it, filing its outcome, mirroring it in MLflow."""

from __future__ import annotations

import logging
import sqlite3
import statistics
import tempfile
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution

from benchmarks.measure import Row, ms
from benchmarks.sweeps import EXPERIMENT
from grokscale import registry, search, track
from grokscale.desk import Ledger
from grokscale.search import Ended, Job
from grokscale.spec import Resolved, canonical_json, parse
from grokscale.store import Store
from grokscale.store.files import encode
from grokscale.store.schemas import to_table
from grokscale.sweep import introduce
from tests.rows import curve, grokked

SIZES = (10, 100, 1000, 10_000)
PROPOSALS = {1000: 0.05, 10_000: 0.5}  # trials of history -> seconds
FLAT = 2.0  # times what a trial costs after the least history: more is not flat
REPEATS = 5


def resolved() -> Resolved:
    """A sweep with an arm of two knobs, and one of four."""
    tables = tomllib.loads(EXPERIMENT.format(trials=1, seeds=1, horizon=20_000))
    return parse({**tables, "arm": [{"name": "none"}, {"name": "grokfast-ema"}]}).resolve(registry.load())


def jobs(one: Resolved, arm: str) -> Iterator[Job]:
    """Search trials of an arm without end, drawn at random from its space."""
    made, rng, number = one.arm(arm), np.random.default_rng(0), 0
    seeds = tuple(search.search_seeds(one, arm)[:1])
    while True:
        ranges = {knob: range_ for knob, range_ in made.space.items() if isinstance(range_, FloatDistribution)}
        params = {**made.defaults, **{knob: rng.uniform(r.low, r.high) for knob, r in ranges.items()}}
        yield Job("search", arm, number, params, one.trial(arm, params), seeds, one.horizon)
        number += 1


# ------------------------------------------------------------------------------------------------ search


def proposing(sizes: Mapping[int, float] = PROPOSALS) -> list[Row]:
    """The next trial of an arm, by what the search knows: a fresh study is told everything each time."""
    one, rng, rows = resolved(), np.random.default_rng(0), []
    for arm in (one.arm("none"), one.arm("grokfast-ema")):
        some = jobs(one, arm.name)
        past = [Ended(job.number, dict(job.params), rng.normal(8, 0.4)) for job in _next(some, max(sizes))]
        for size, most in sizes.items():
            known = past[:size]
            took = statistics.median(
                seconds(lambda known=known, arm=arm: search.propose(arm, known, len(known), count=1, seed=1))
                for _ in range(REPEATS))
            rows.append(Row(f"proposing a trial of {len(arm.space)} knobs after {size:,} trials", f"<= {ms(most)}",
                            ms(took), took <= most))  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------------------ store


def filing(sizes: Sequence[int] = SIZES) -> list[Row]:
    """The outcome of a trial: the files of a worker's part, and what the driver reads and writes then.

    The history lies in the store as a sweep leaves it, a file a trial, and nothing has been compacted.
    """
    one = resolved()
    some, there = jobs(one, "none"), 0
    worker, driver = [], []
    with tempfile.TemporaryDirectory() as root:
        store = Store(root)
        ledger = Ledger(store, one.sweep_id)

        def part() -> tuple[Job, str]:
            job = next(some)
            store.append("curves", curve(job.trial_id, job.seeds[0], points=80))
            return job, store.append("replicas", [outcome(job)]) or ""

        def told(job: Job, name: str) -> None:
            ledger.refresh(job.trial_id, [name])
            ledger.file(job, "ended", value=8.0)
            ledger.flush()

        for size in sizes:
            for job in _next(some, size - there):
                written(Path(root), "replicas", outcome(job))
                written(Path(root), "trials", row(one, job))
            told(*part())
            there = size + 1 + REPEATS
            parts: list[tuple[Job, str]] = []
            worker.append(statistics.median(seconds(lambda kept=parts: kept.append(part())) for _ in range(REPEATS)))
            driver.append(statistics.median(seconds(lambda done=done: told(*done)) for done in parts))
    return [
        flat("a trial's outcome in the store, the worker's files, by trials there", sizes, worker),
        flat("a trial's outcome in the store, the driver's part, by trials there", sizes, driver),
    ]


def outcome(job: Job) -> dict[str, Any]:
    """A replica that grokked, for a trial of one seed."""
    return grokked(job.trial_id, job.seeds[0], 2000, spec_json=job.spec.canonical())


def row(one: Resolved, job: Job) -> dict[str, Any]:
    """The row of `trials` of a trial that ended."""
    return {
        "sweep_id": one.sweep_id, "arm": job.arm, "phase": job.phase, "number": job.number, "trial_id": job.trial_id,
        "seeds": list(job.seeds), "params_json": canonical_json(job.params), "cap": job.cap, "value": 8.0,
        "state": "ended", "at": datetime.now(UTC),
    }  # fmt: skip


def written(root: Path, table: str, one: dict[str, Any]) -> None:
    """A row as a file of its own, as `Store.append` leaves it but for the wait for the disk."""
    name = f"{time.time_ns():019d}-{uuid.uuid4().hex}.parquet"
    (root / table).mkdir(exist_ok=True)
    (root / table / name).write_bytes(encode(table, to_table(table, [one]), compression="none", use_dictionary=False))


# ------------------------------------------------------------------------------------------------ MLflow


def mirroring(sizes: Sequence[int] = SIZES) -> list[Row]:
    """One more trial of a running sweep in MLflow: the look at the store, and what is logged.

    The history in MLflow is made by copying the rows of a trial that was logged.
    """
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    one = resolved()
    some, there, took = jobs(one, "none"), 0, []
    with tempfile.TemporaryDirectory() as root:
        store = Store(root)
        introduce(one, store)
        uri = track.database_uri(store)
        assert uri is not None
        seen = track.Seen()

        def look() -> None:
            track.sync(store, one.sweep_id, uri, status="RUNNING", seen=seen)

        def ended() -> dict[str, Any]:
            job = next(some)
            store.append("curves", curve(job.trial_id, job.seeds[0], points=80))
            store.append("replicas", [outcome(job)])
            store.append("trials", [told := row(one, job)])
            return told

        template = ended()
        look()
        for size in sizes:
            more = [row(one, job) for job in _next(some, size - there)]
            store.append("trials", more)
            copied(uri, template, more)
            seen = track.Seen()
            ended()
            look()  # takes in the history
            there = size + 1 + REPEATS
            found = []
            for _ in range(REPEATS):
                ended()
                found.append(seconds(look))
            took.append(statistics.median(found))
    return [flat("a trial's outcome in MLflow, by trials there", sizes, took)]


def copied(uri: str, template: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Runs for rows of `trials`, as the one that was logged for `template`."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as base, base:
        [run] = base.execute("SELECT run_uuid FROM tags WHERE key = 'request' AND value = ?",
                             (track.request(template),)).fetchone()  # fmt: skip
        columns = [name for _, name, *_ in base.execute("PRAGMA table_info(runs)") if name != "run_uuid"]
        names = ", ".join(columns)
        for one in rows:
            own = uuid.uuid4().hex
            base.execute(f"INSERT INTO runs (run_uuid, {names}) SELECT ?, {names} FROM runs WHERE run_uuid = ?",
                         (own, run))  # fmt: skip
            for table, rest in (("tags", "key, value"), ("params", "key, value"),
                                ("latest_metrics", "key, value, timestamp, step, is_nan")):  # fmt: skip
                base.execute(f"INSERT INTO {table} (run_uuid, {rest}) SELECT ?, {rest} FROM {table} WHERE run_uuid = ?",
                             (own, run))  # fmt: skip
            changed = {"request": track.request(one), "trial_id": one["trial_id"], "number": str(one["number"])}
            base.executemany("UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?",
                             [(value, own, key) for key, value in changed.items()])  # fmt: skip


# ------------------------------------------------------------------------------------------------ measuring


def flat(what: str, sizes: Sequence[int], took: Sequence[float]) -> Row:
    """A row of costs by size."""
    text = ", ".join(f"{size:,}: {ms(second)}" for size, second in zip(sizes, took, strict=True))
    return Row(what, f"flat: <= {FLAT:g}x", text, max(took) <= FLAT * took[0], note=f"{max(took) / took[0]:.1f}x")


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _next(some: Iterator[Job], count: int) -> list[Job]:
    return [next(some) for _ in range(count)]
