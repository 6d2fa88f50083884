"""A sweep without a terminal: submitted, listed, watched, stopped and resumed, here or on a Ray cluster.

What is known of a sweep is in its store; this module adds only where its driver runs. Here that is a process of its
own session, named by the sweep's lock. On a cluster it is a Ray job whose submission id is the sweep's id and the
number of the try, so that a second submit of a running sweep finds the first. A driver may die at any moment: the
store is the ledger, and the same submit, or `resume`, goes on from it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokscale.control import NOW, ask_stop, has_ended, holder, noted_progress
from grokscale.errors import GrokscaleError, InputError, suggest
from grokscale.spec import Resolved, parse

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from grokscale.desk import Progress
    from grokscale.entries import Registry
    from grokscale.store import Store

POLL_S = 0.2
WATCH_S = 0.5  # between two looks at how far a sweep is
START_S = 60.0  # within which a detached driver has to hold its sweep's lock
STOP_S = 30.0  # that a driver on a cluster has to stop in order
KILL_S = 10.0  # after which a process that was not asked has to be gone
LOG = "driver.log"
LIVE = ("PENDING", "RUNNING")  # a job's states before it ends
SAID = 20  # last lines of a job that failed


@dataclass(frozen=True)
class Arm:
    """One arm of one phase. asked, ended, failed: trials.  replicas, grokked: of its ended trials' seeds.
    best: steps, the lowest objective."""

    arm: str
    phase: str
    asked: int
    ended: int
    failed: int
    replicas: int
    grokked: int
    best: float | None


@dataclass(frozen=True)
class Status:
    """Where a sweep stands.

    state: running, done, or stopped (resume goes on).  where: of its driver, "" without one.
    phase: the last that anything was asked in.
    """

    sweep_id: str
    name: str
    question: str
    state: str
    phase: str
    where: str
    arms: tuple[Arm, ...]


# --------------------------------------------------------------------------------------------- what there is


def status(store: Store, sweep: str | None, client: JobSubmissionClient | None = None) -> Status:
    """Where a sweep stands, from the store, its lock, and the cluster's jobs where there is a client.

    Raises InputError for a sweep that the store does not know.
    """
    sweep_id = store.find_sweep(sweep)
    head = store.rows("sweeps", sweep_id=sweep_id)[0]
    trials = store.rows("trials", sweep_id=sweep_id)
    known = store.answered({row["trial_id"] for row in trials})
    arms = []
    for phase in ("search", "race", "confirm"):
        for arm in dict.fromkeys(row["arm"] for row in trials if row["phase"] == phase):
            arms.append(_arm(arm, phase, [r for r in trials if (r["phase"], r["arm"]) == (phase, arm)], known))
    where = driver(store, sweep_id, client)
    ended = has_ended(store.sweep_dir(sweep_id), head["experiment_json"])
    state = "running" if where else "done" if ended else "stopped"
    phase = arms[-1].phase if arms else ""
    return Status(sweep_id, head["name"], head["question"], state, phase, where, tuple(arms))


def listing(
    store: Store, client_of: Callable[[str], JobSubmissionClient | None] = lambda sweep_id: None
) -> list[Status]:
    """Every sweep of the store, the latest first. client_of: of the cluster that a sweep may run on."""
    return [status(store, sweep_id, client_of(sweep_id)) for sweep_id in reversed(store.sweeps())]


def watch(store: Store, sweep_id: str, client: JobSubmissionClient | None = None) -> Iterator[Progress]:
    """How far a sweep is, as its driver says it, again and again while one runs."""
    while driver(store, sweep_id, client):
        if (now := progress(store, sweep_id)) is not None:
            yield now
        time.sleep(WATCH_S)


def progress(store: Store, sweep_id: str) -> Progress | None:
    """What the driver of a sweep last said of how far it is; None where there is nothing, or nothing to make out."""
    from grokscale.desk import ArmProgress, Progress

    said = noted_progress(store.sweep_dir(sweep_id)) or {}
    try:
        return Progress(**{**said, "arms": tuple(ArmProgress(**arm) for arm in said["arms"])})
    except (KeyError, TypeError):
        return None


def address_of(store: Store, sweep_id: str) -> str | None:
    """The cluster that the file of a sweep names, in [cluster] address."""
    from grokscale.answers import asked_for

    with contextlib.suppress(GrokscaleError, KeyError, TypeError):  # what broke it is said by what has to read it
        return asked_for(store.rows("sweeps", sweep_id=sweep_id)[0])["cluster"]["address"]
    return None


def is_here(store: Store, sweep_id: str) -> bool:
    """Does the driver of a sweep run on this machine?"""
    held = holder(store.sweep_dir(sweep_id) / "lock")
    return held is not None and held.here


def driver(store: Store, sweep_id: str, client: JobSubmissionClient | None = None) -> str:
    """Where the driver of a sweep runs, in words; "" where none does."""
    held = holder(store.sweep_dir(sweep_id) / "lock")
    if held is not None:
        return str(held)
    _, job, state = _job(client, sweep_id)
    return f"job {job} ({state})" if state in LIVE else ""


def answered(store: Store, resolved: Resolved) -> bool:
    """Has exactly this experiment come to its end in the store?"""
    return has_ended(store.sweep_dir(resolved.sweep_id), resolved.experiment.to_json())


def _arm(arm: str, phase: str, rows: Sequence[Mapping[str, Any]], known: Mapping[Any, Mapping[str, Any]]) -> Arm:
    states = [row["state"] for row in rows]
    seeds = [known[key] for row in rows for seed in row["seeds"] if (key := (row["trial_id"], seed)) in known]
    values = [row["value"] for row in rows if row["value"] is not None]
    return Arm(
        arm, phase, len(rows), states.count("ended"), states.count("failed"), len(seeds),
        sum(row["grok_step"] is not None for row in seeds), math.exp(min(values)) if values else None,
    )  # fmt: skip


# --------------------------------------------------------------------------------------- starting and stopping


def detach(store: Store, sweep_id: str, command: Sequence[str]) -> str:
    """Start a driver in a session of its own and wait until it holds the sweep's lock; where it runs.

    command: the words after `grokscale`.  Its output goes to <store>/sweeps/<sweep_id>/driver.log.
    Returns at once where a driver runs already. Raises GrokscaleError with its last words where it ends instead.
    """
    if where := driver(store, sweep_id):
        return where
    folder = store.sweep_dir(sweep_id)
    with (folder / LOG).open("ab") as log:
        began = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "grokscale.cli", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    for _ in _every(POLL_S, START_S):
        if where := driver(store, sweep_id):
            return where
        if process.poll() is not None:
            if process.returncode == 0:
                return ""
            said = (folder / LOG).read_bytes()[began:].decode(errors="replace").strip()
            raise GrokscaleError(f"the driver of {sweep_id} ended with code {process.returncode}:\n{said}")
    raise GrokscaleError(f"the driver of {sweep_id} (process {process.pid}) does not begin; see {folder / LOG}")


def stop(store: Store, sweep_id: str, client: JobSubmissionClient | None = None, *, now: bool = False) -> str:
    """Stop the driver of a sweep: in order, keeping trials under way, or `now`; what was stopped.

    A job is asked through the cluster, which kills it after STOP_S; `now`, it ends as soon as it is asked.

    Raises GrokscaleError where none runs, or where it runs on a machine that cannot be reached from here.
    """
    held = holder(store.sweep_dir(sweep_id) / "lock")
    _, job, state = _job(client, sweep_id)
    if client is not None and state in LIVE:
        if now:
            ask_stop(store.sweep_dir(sweep_id), NOW, now=True)
        client.stop_job(job)
        return f"job {job}"
    if held is None:
        raise GrokscaleError(f"no driver runs {sweep_id}; `grokscale resume {sweep_id}` starts one")
    if not held.here:
        raise GrokscaleError(f"{sweep_id} is run by {held}: stop it there, or name the cluster with --address")
    with contextlib.suppress(ProcessLookupError):  # it ended just now
        os.kill(held.pid, signal.SIGKILL if now else signal.SIGINT)
    return str(held)


def stop_trial(store: Store, sweep_id: str, trial: str, client: JobSubmissionClient | None = None, *,
               now: bool = False) -> str:
    """Stop one trial of a sweep that runs, keeping its state unless `now`; which one. The sweep goes on without it.

    trial: the beginning of its id.  Raises InputError where no trial under way, or more than one, begins so.
    """
    if not driver(store, sweep_id, client):
        raise GrokscaleError(f"no driver runs {sweep_id}: there is no trial to stop")
    under_way = {row["trial_id"]: row for row in _asked(store, sweep_id)}
    found = [trial_id for trial_id in under_way if trial_id.startswith(trial)]
    if len(found) != 1:
        said = "no trial under way begins" if not found else f"{len(found)} trials under way begin"
        raise InputError(f"{sweep_id}/{trial}: {said} so; {suggest(trial, under_way)}")
    ask_stop(store.sweep_dir(sweep_id), found[0], now=now)
    if all(any(row["trial_id"] == found[0] for row in _asked(store, sweep_id)) for _ in _every(POLL_S, STOP_S)):
        raise GrokscaleError(f"{sweep_id}/{found[0]}: was told to stop and has not within {STOP_S:.0f} s; it will when "
                             "its worker looks next")
    row = under_way[found[0]]
    return f"{row['phase']} {row['arm']} {row['number']}, trial {found[0]}"


def _asked(store: Store, sweep_id: str) -> list[dict[str, Any]]:
    return [row for row in store.rows("trials", sweep_id=sweep_id) if row["state"] == "asked"]


def wait_stopped(store: Store, sweep_id: str, client: JobSubmissionClient | None = None) -> bool:
    """Has the driver let go of the sweep, and the cluster of its job, within the time that both have?"""
    return any(not driver(store, sweep_id, client) for _ in _every(POLL_S, STOP_S + KILL_S))


def again(
    store: Store, sweep_id: str, registry: Callable[[Sequence[str]], Registry], overrides: Sequence[str] = ()
) -> Resolved:
    """The experiment of a stored sweep, with what may change changed.

    Raises InputError for an override that would make it another sweep, naming it.
    """
    from grokscale.answers import asked_for

    row = store.rows("sweeps", sweep_id=sweep_id)[0]
    tables = asked_for(row)
    resolved = _resolved(tables, (), sweep_id, registry)
    if resolved.sweep_id != sweep_id:
        raise InputError(
            f"{sweep_id}: this version of grokscale would give other numbers (methods, tasks or the engine have changed"
            f" since): sweep the file of {row['name']} anew, as {resolved.sweep_id}"
        )
    changed = [one for one in overrides if _resolved(tables, (one,), sweep_id, registry).sweep_id != sweep_id]
    if changed:
        raise InputError([
            f"--set {one}: would make it another sweep: what is searched, its ranges, the task, the horizon and the"
            " schedule are what results are compared by; may change: search.trials, race, confirm, limits, resources"
            for one in changed
        ])  # fmt: skip
    return _resolved(tables, overrides, sweep_id, registry)


def _resolved(
    tables: Mapping[str, Any], overrides: Sequence[str], source: str, registry: Callable[[Sequence[str]], Registry]
) -> Resolved:
    experiment = parse(tables, overrides, source)
    return experiment.resolve(registry(experiment.plugin))


def follow(store: Store, sweep_id: str, *, still: Callable[[], bool]) -> Iterator[str]:
    """The lines of a sweep's log, and further ones while `still()` says that there may be some."""
    path = store.sweep_dir(sweep_id) / "log.txt"
    position = 0
    while True:
        last = not still()
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                text = file.read()
            whole = text if last else text[: text.rfind(b"\n") + 1]
            position += len(whole)
            yield from whole.decode(errors="replace").splitlines()
        if last:
            return
        time.sleep(POLL_S)


# ------------------------------------------------------------------------------------------------- on a cluster


def connect(address: str, *, seconds: float, say: Callable[[str], None]) -> JobSubmissionClient:
    """A client of the cluster's job server, waiting for it so long. address: http://HOST:8265.

    Raises GrokscaleError where it does not answer, or refuses us.
    """
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--address {address}: must be the job server's, such as http://127.0.0.1:8265")
    try:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise GrokscaleError(f"Ray Jobs are missing ({error}): pip install 'grokscale[cluster]'") from error
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they tell of every upload
    problem, told = "", False
    for _ in _every(1.0, seconds):
        try:
            return JobSubmissionClient(address)
        except AuthenticationError as error:
            raise GrokscaleError(
                f"{address} refuses: {_first_line(error)}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the"
                " cluster's token file"
            ) from None
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            problem = _first_line(error)
        if not told:
            say(f"waiting for a Ray cluster at {address} (at most {seconds:.0f} s)")
            told = True
    raise GrokscaleError(
        f"no Ray cluster answers at {address}: {problem}; start one (cluster/), or name it with --address, "
        "GROKSCALE_ADDRESS or [cluster] address"
    )


def submit(resolved: Resolved, store: Store, client: JobSubmissionClient) -> tuple[str, bool]:
    """Run a sweep as a job of the cluster; (where it runs, was it submitted now?).

    The package, the experiment and its plugins travel with the job; data and secrets do not. The store has to be one
    that every node can reach. A sweep that waits or runs, as a job or otherwise, is left as it is.
    """
    sweep_id = resolved.sweep_id
    if where := driver(store, sweep_id, client):
        return where, False
    from grokscale.sweep import introduce

    introduce(resolved, store)  # so that it can be asked for while it waits
    words = ["python", "-m", "grokscale.cli", "sweep", "sweep.json", "--store", store.root]
    stopping = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": f"{STOP_S:.0f}"}
    # Ray keeps an ended job's name for as long as its supervisor's process lives, so every try has its own.
    job = f"{sweep_id}-{_job(client, sweep_id)[0] + 1}"
    with tempfile.TemporaryDirectory() as folder:
        _pack(resolved, Path(folder))
        try:
            client.submit_job(
                entrypoint=shlex.join(words), submission_id=job,
                runtime_env={"working_dir": folder, "env_vars": stopping},
                metadata={"name": resolved.experiment.name, "question": resolved.experiment.question[:200]},
            )  # fmt: skip
        except (OSError, RuntimeError) as error:
            if where := driver(store, sweep_id, client):  # another submit was quicker
                return where, False
            text = f"the cluster does not take the job of {sweep_id}: {_first_line(error)}"
            raise GrokscaleError(text) from error
    return f"job {job}", True


def last_words(client: JobSubmissionClient, sweep_id: str) -> str:
    """The end of what the job of a sweep said, where it ended badly; "" where it did not."""
    _, job, state = _job(client, sweep_id)
    if state != "FAILED":
        return ""
    message = (client.get_job_info(job).message or "").strip()
    return "\n".join(message.splitlines()[-SAID:])


def _pack(resolved: Resolved, folder: Path) -> None:
    """What the driver needs on the cluster: the experiment as JSON, this package, the plugins' modules."""
    import importlib.util

    (folder / "sweep.json").write_text(resolved.experiment.to_json())
    here = Path(__file__).parent
    shutil.copytree(here, folder / "grokscale", ignore=shutil.ignore_patterns("__pycache__"))
    for name in resolved.experiment.plugin:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise InputError(f"plugin {name}: has no source that could travel; {suggest(name, ())}")
        origin = Path(found.origin)
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, folder / origin.name)


def _job(client: JobSubmissionClient | None, sweep_id: str) -> tuple[int, str, str]:
    """The latest try of a sweep that the cluster knows: its number, its job, its state; (0, "", "") without one."""
    if client is None:
        return 0, "", ""
    try:
        jobs = client.list_jobs()
    except (OSError, RuntimeError) as error:
        raise GrokscaleError(f"the cluster does not say what {sweep_id} does: {_first_line(error)}") from error
    tries = [(0, "", "")]
    for job in jobs:
        of, _, number = (job.submission_id or "").rpartition("-")
        if of == sweep_id and number.isdigit():
            tries.append((int(number), str(job.submission_id), job.status.value))
    return max(tries)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _every(seconds: float, limit: float) -> Iterator[None]:
    """Now, and again so many seconds later, until the limit has passed."""
    end = time.monotonic() + limit
    while True:
        yield
        if time.monotonic() >= end:
            return
        time.sleep(seconds)


__all__ = [
    "Arm", "Status", "address_of", "again", "answered", "connect", "detach", "driver", "follow", "is_here",
    "last_words", "listing", "progress", "status", "stop", "stop_trial", "submit", "wait_stopped", "watch",
]  # fmt: skip
