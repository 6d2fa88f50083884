"""`grokscale doctor`: does everything that a sweep needs, once and for real, in a temporary folder."""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from grokscale.errors import GrokscaleError

if TYPE_CHECKING:
    from grokscale.spec import Resolved
    from grokscale.store import Store

NEEDED = ("torch", "ray", "optuna", "mlflow", "pyarrow", "duckdb", "pydantic", "scipy", "matplotlib")
HORIZON = 60  # steps that the tiny replica trains


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ok: None where it is only said, not judged."""

    what: str
    ok: bool | None
    detail: str


def examine() -> Iterator[Finding]:
    """Every finding as soon as it is known."""
    yield Finding(
        "Python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()}, {platform.system()} {platform.machine()}",
    )
    missing = False
    for name in NEEDED:
        try:
            yield Finding(name, True, version(name))
        except PackageNotFoundError:
            missing = True
            yield Finding(name, False, f"not installed: pip install {name}")
    if missing:
        return
    yield from _machine()
    with tempfile.TemporaryDirectory(prefix="grokscale-doctor-") as folder:
        place = Path(folder)
        yield _try("train and store", lambda: _train(place))
        yield _try("search", _search)
        yield _try("Ray", _ray)
        yield _try("MLflow", lambda: _mlflow(place))


def _machine() -> Iterator[Finding]:
    import torch

    from grokscale.parts import device_name
    from grokscale.train import compiler

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "CPU",
        None,
        f"{cores} cores, {torch.get_num_threads()} threads by default, {device_name('cpu')}",
    )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("GPU", None, ", ".join(gpus) or "none visible to torch")
    yield Finding("C++ compiler", None, compiler() or "none: resources.compile has no effect")
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    yield Finding("temporary folder", free > 0.5, f"{tempfile.gettempdir()}, {free:.1f} GiB free")


def _try(what: str, check: Callable[[], str]) -> Finding:
    began = time.monotonic()
    try:
        detail = check()
    except (GrokscaleError, OSError, RuntimeError, ValueError, ImportError, AssertionError) as error:
        return Finding(what, False, f"{type(error).__name__}: {error}")
    return Finding(what, True, f"{detail} ({time.monotonic() - began:.1f} s)")


def _tiny() -> Resolved:
    """The first task of the registry as it is, trained plainly and by the method that follows."""
    from grokscale import registry, spec

    entries = registry.load()
    plain, other = list(entries.methods)[:2]
    table = {
        "name": "doctor", "baseline": plain, "horizon": HORIZON, "task": {"name": next(iter(entries.tasks))},
        "arm": [{"name": plain}, {"name": other}], "search": {"trials": 2, "seeds": 2, "parallel": 2},
        "confirm": {"seeds": 2}, "tracking": None,
    }  # fmt: skip
    return spec.resolve(spec.parse({k: v for k, v in table.items() if v is not None}), entries)


def _train(place: Path) -> str:
    from grokscale import solo
    from grokscale.spec import seed_for
    from grokscale.store import Store

    resolved = _tiny()
    store = Store(place / "store")
    trial = resolved.trial(resolved.arms[0].name)
    rows = solo.run(trial, [seed_for("run", k) for k in range(2)], horizon=HORIZON, store=store)
    again: Store = Store(place / "store")
    count = again.sql("SELECT count(*) AS n FROM replicas JOIN curves USING (trial_id, seed)").to_pylist()[0][
        "n"
    ]
    if again.replicas().num_rows != len(rows) or not count:
        raise GrokscaleError(f"{len(rows)} replicas were written, {again.replicas().num_rows} read")
    return f"{len(rows)} replicas of {HORIZON} steps trained, written, read back with SQL"


def _search() -> str:
    from grokscale import search

    resolved = _tiny()
    arm = resolved.arms[-1]
    ended = [search.Ended(i, point, math.log(HORIZON), False) for i, point in enumerate(arm.points)]
    asked = search.propose(arm, ended, 1, count=2, seed=1)
    if asked != search.propose(arm, ended, 1, count=2, seed=1):
        raise GrokscaleError("the same question got two proposals")
    return "two trials proposed, twice the same"


def _ray() -> str:
    from grokscale.tuner import Cluster

    resolved = _tiny()
    cluster = Cluster(1, 0)
    try:
        cluster.start()
        slots = cluster.slots
        rows = cluster.timings([resolved.trial(resolved.arms[0].name).canonical()], 1, "cpu", lambda: False)
    finally:
        cluster.close()
    return f"started, {slots} trials at once, a worker took {1e3 * rows[0]['seconds_on']:.2g} ms a step, stopped"


def _mlflow(place: Path) -> str:
    from grokscale import track
    from grokscale.spec import canonical_json, seed_for
    from grokscale.store import Store

    resolved, store = _tiny(), Store(place / "store")
    x, arm = resolved.experiment, resolved.arms[0].name
    sweep_id = resolved.sweep_id
    store.append("sweeps", [{
        "sweep_id": sweep_id, "name": x.name, "question": x.question, "baseline": x.baseline,
        "horizon": HORIZON, "experiment_json": x.to_json(), "version": "0",
    }])  # fmt: skip
    store.append("trials", [{
        "sweep_id": sweep_id, "arm": arm, "phase": "search", "number": 0,
        "trial_id": resolved.trial(arm).trial_id,
        "seeds": [seed_for("run", k) for k in range(2)], "params_json": canonical_json({}), "cap": HORIZON,
        "value": math.log(HORIZON), "state": "ended",
    }])  # fmt: skip
    for _ in range(2):  # the second time it is read and compared
        track.sync(store, sweep_id, f"sqlite:///{place / 'mlflow.db'}")
    return "a sweep and a trial with its curves written to a fresh database, read back and compared"
