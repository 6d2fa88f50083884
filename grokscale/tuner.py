"""Ray and Ray Tune around a desk: starting and stopping them, the searcher, what Tune tells us back.

Tune runs whatever the desk hands out and remembers nothing that matters: the store is the ledger, so every
start gets a fresh Tuner and none is ever restored.
"""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

SETTINGS = {  # read when Ray is imported and by the processes that it starts
    "RAY_AIR_NEW_OUTPUT": "0",  # verbose=0 still prints a table with the new output
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops in order
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # the searcher asks for no more than there is room; one would start alone
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
if not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys():
    # A Ray of our own listens on every interface of this machine: what we start, and nobody else, has its token.
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    if "ray" in sys.modules:  # imported before us, it has read another mode
        importlib.import_module("ray._raylet").Config.initialize("")

import ray  # noqa: E402
from ray import cloudpickle, tune  # noqa: E402
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError  # noqa: E402
from ray.tune.error import TuneError  # noqa: E402
from ray.tune.execution import class_cache  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from grokscale import data  # noqa: E402
from grokscale.errors import GrokscaleError, StoreError, TrialStopped  # noqa: E402
from grokscale.train import lanes_for  # noqa: E402
from grokscale.worker import SweepTrainable, time_trials  # noqa: E402

log = logging.getLogger(__name__)

FAILURES = 3  # of a trial by itself, after which it is given up
DEATHS = 20  # of its process: nodes go and come, but a trial that kills every process that it gets has to end too
ROOM_S = 1.0  # between two looks whether more room is wanted
SOCKET_PATH = 107  # longest path of a socket (AF_UNIX)
OBJECT_STORE = 80_000_000  # bytes; next to nothing goes through it


class Desk(Protocol):
    """Hands out jobs and takes in what became of them. A job is a key and a config for the worker."""

    name: str

    def take(self) -> tuple[Any, Mapping[str, Any]] | None:
        """The next job and what its worker is told; None where nothing can run now."""
        ...

    def finished(self, key: Any, parts: Sequence[str] = ()) -> None:
        """parts: the store's files that its worker wrote."""
        ...

    def failed(self, key: Any, error: str, *, stopped: bool = False) -> None:
        """stopped: by hand, which says nothing about the others."""
        ...

    def report(self, key: Any, finished: int, grokked: int) -> None: ...
    def tick(self) -> None: ...

    @property
    def through(self) -> bool:
        """Nothing is left to hand out, now or later."""
        ...

    @property
    def wanted(self) -> int:
        """Jobs that are under way, or could be if there were room."""
        ...


class Inert:
    """Tune copies and pickles what it is given, for a restore that never comes: these stay where they are."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Inert:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return object, ()


@dataclass(frozen=True)
class _Out:
    """A job that Tune has. failures: of its own.  deaths: of the processes that it ran in."""

    key: Any
    config: Mapping[str, Any]
    failures: int = 0
    deaths: int = 0


class _Searcher(Inert, Searcher):
    """Gives Tune the desk's jobs.

    Tune gives up every trial that fails, at its first failure: whether its job is tried again is decided here, as
    Tune cannot tell a trial that fails from one whose node went, and forgets its attempts where a dead process is
    reported twice.
    """

    def __init__(self, desk: Desk, stop: Callable[[], bool], slots: Callable[[], int]) -> None:
        super().__init__()
        self.desk, self._stop, self.slots = desk, stop, slots
        self.out: dict[str, _Out] = {}  # by Tune's trial id
        self.again: list[_Out] = []
        # (job, error or parts), handed over outside Tune's catch-all
        self.returned: list[tuple[Any, str | TrialStopped | Sequence[str]]] = []
        self.problem: GrokscaleError | None = None  # what ends the sweep

    def stop(self) -> bool:
        """Is it time to?"""
        return self.problem is not None or self._stop()

    def suggest(self, trial_id: str) -> Any:
        self.settle()
        if len(self.out) >= self.slots():  # asked every time: nodes come and go
            return None
        if self.again and not self.stop():
            self.out[trial_id] = self.again.pop(0)
        elif (taken := self._taken()) is not None:
            self.out[trial_id] = _Out(*taken)
        else:
            # With nothing under way Tune asks here only, not its stopper.
            return Searcher.FINISHED if self.desk.through or self.stop() else None
        return dict(self.out[trial_id].config)

    def _taken(self) -> tuple[Any, Mapping[str, Any]] | None:
        if not self.stop():
            try:
                return self.desk.take()
            except GrokscaleError as problem:  # Tune would say only that something went wrong
                self.problem = problem
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not error:
            self.returned.append((self.out.pop(trial_id).key, (result or {}).get("parts", ())))

    def failed(self, trial_id: str, error: BaseException | None, text: str) -> None:
        """Take back a trial that Tune gave up: to be tried again, to be given up, or as the end of the sweep."""
        out = self.out.pop(trial_id)
        own = isinstance(error, RayTaskError)
        if isinstance(error, RayTaskError) and isinstance(error.cause, StoreError):
            told = str(error.cause)
            mend = "" if "then resume" in told else "; what is stored is safe: make room, then resume"
            self.problem = StoreError(told + mend)
            return
        if isinstance(error, RayTaskError) and isinstance(error.cause, TrialStopped):
            self.returned.append((out.key, error.cause))
            return
        if isinstance(error, OutOfMemoryError):  # Ray ended the process before the machine ran out
            out = replace(out, config=_halved(out.config))
        out = replace(out, failures=out.failures + own, deaths=out.deaths + (not own))
        if out.failures >= FAILURES or out.deaths >= DEATHS:
            self.returned.append((out.key, text))
            return
        many = f"failed, {out.failures} of {FAILURES}" if own else f"lost its process, {out.deaths} of {DEATHS}"
        log.warning("%s %s; it is tried again: %s", " ".join(map(str, out.key)), many, text)
        self.again.append(out)

    def settle(self) -> None:
        """Hand over what came back. Tune swallows what is raised while it ends a trial, so it is not done
        there.
        """
        while self.returned and self.problem is None:
            key, said = self.returned.pop(0)
            try:
                if isinstance(said, TrialStopped):
                    self.desk.failed(key, str(said), stopped=True)
                elif isinstance(said, str):
                    self.desk.failed(key, said)
                else:
                    self.desk.finished(key, said)
            except GrokscaleError as problem:
                self.problem = problem

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its store")


class _Room(Inert):
    """Tasks that do nothing and wait for room: so an autoscaler hears of trials for which there is none.

    They go with their driver, however it ends; what `ray.autoscaler.sdk` requests would stand, and be paid for.
    resources: of one trial, as Ray's options.
    """

    def __init__(self, resources: Mapping[str, Any]) -> None:
        self._task = ray.remote(_nothing).options(max_retries=0, **resources)
        self._waiting: list[Any] = []
        self._next = 0.0

    def look(self, wanted: Callable[[], int]) -> None:
        """Let as many wait as trials have no room; asked at most every ROOM_S, for the cluster has to be asked too."""
        if (now := time.monotonic()) < self._next:
            return
        self._next, trials = now + ROOM_S, wanted()
        if self._waiting:
            _, self._waiting = ray.wait(self._waiting, num_returns=len(self._waiting), timeout=0)
        while len(self._waiting) > trials:
            ray.cancel(self._waiting.pop())
        self._waiting += [self._task.remote() for _ in range(trials - len(self._waiting))]

    def close(self) -> None:
        for task in self._waiting:
            ray.cancel(task)


def _nothing() -> None:
    pass


class _Callback(Inert, tune.Callback):
    def __init__(self, searcher: _Searcher, room: _Room | None) -> None:
        self.searcher, self.desk, self.room = searcher, searcher.desk, room

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if (out := self.searcher.out.get(trial.trial_id)) is not None:
            self.desk.report(out.key, result["finished"], result["grokked"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id in self.searcher.out:
            self.searcher.failed(trial.trial_id, _cause_of(trial), _error_of(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.searcher.settle()
        self.desk.tick()
        if self.room is not None:
            self.room.look(self._without_room)

    def _without_room(self) -> int:
        return 0 if self.searcher.stop() else max(0, self.desk.wanted - self.searcher.slots())


def _halved(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A job's config with packs of half as many lanes; two are the fewest there are."""
    lanes = int(config["lanes"]) or lanes_for(len(config["job"]["seeds"]))
    return {**config, "lanes": max(2, lanes // 2)}


def _error_of(trial: Any) -> str:
    """The text of a Tune trial's last failure, without Ray's colours."""
    if not trial.error_file or not Path(trial.error_file).exists():
        return "no reason given"
    last = Path(trial.error_file).read_text().rpartition("Failure #")[2].partition("\n")[2]
    return re.sub(r"\x1b\[[0-9;]*m", "", last).strip()


def _cause_of(trial: Any) -> BaseException | None:
    """A Tune trial's last failure as it was raised; None for what Tune keeps the text of only."""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    error = cloudpickle.loads(Path(path).read_bytes())  # written by this process, a moment ago
    return error.as_instanceof_cause() if isinstance(error, RayTaskError) else error


class _Stopper(Inert, tune.Stopper):
    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.stop()


class Cluster:
    """Ray, started when first needed: on this machine, or the one that RAY_ADDRESS names.

    cpus, gpus: of one trial.  A Ray that this process has already started is used and left running.
    """

    def __init__(self, cpus: int, gpus: float) -> None:
        self.cpus, self.gpus = cpus, gpus
        self._folder: _Folder | None = None
        self._connected = False
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if "RAY_ADDRESS" not in os.environ and not ray.is_initialized() and cpus > cores:
            raise GrokscaleError(f"resources.cpus = {cpus} asked for, this machine has {cores}; allowed: 1 to {cores}")
        self._cores = cores

    def start(self) -> None:
        """Start Ray, or connect to it; nothing where that has been done."""
        if self._folder is None:
            self._folder = _Folder()
        if ray.is_initialized():
            return
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        self._connected = True  # or half, if it is ended meanwhile
        try:
            with _sigterm_stays():
                if "RAY_ADDRESS" in os.environ:
                    ray.init(**quiet)
                else:
                    own = {"num_cpus": self._cores, "object_store_memory": OBJECT_STORE}
                    ray.init(**own, _temp_dir=str(self._folder.path), **quiet)
        except (RayError, OSError, RuntimeError, ValueError, ConnectionError) as error:
            raise GrokscaleError(f"Ray did not start: {error}{self._hint()}") from error
        except Exception as error:
            if type(error) is Exception:  # of no class of its own: its processes were not up in time, on a busy machine
                raise GrokscaleError(f"Ray did not start: {error}") from error
            raise

    @staticmethod
    def _hint() -> str:
        """What an address that is not answered may lack: Ray takes no token by itself for an explicit one."""
        if os.environ.get("RAY_ADDRESS", "auto") == "auto" or os.environ.get("RAY_AUTH_MODE") == "token":
            return ""
        return (
            "; if RAY_ADDRESS names a cluster that asks for a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH "
            "where the token is not in ~/.ray/auth_token"
        )

    @property
    def slots(self) -> int:
        """Trials that fit at once, on the nodes that there are now."""
        have = ray.cluster_resources()
        fits = [have.get("CPU", 1) / self.cpus] + ([have.get("GPU", 0) / self.gpus] if self.gpus else [])
        return max(1, int(min(fits)))

    def run(self, desk: Desk, stop: Callable[[], bool]) -> None:
        """Run the desk's jobs until it is through or told to stop; trials under way are kept then."""
        self.start()
        assert self._folder is not None
        searcher = _Searcher(desk, stop, lambda: self.slots)
        resources = {"cpu": self.cpus, **({"gpu": self.gpus} if self.gpus else {})}
        # A Ray of our own never grows.
        room = _Room({"num_cpus": self.cpus, "num_gpus": self.gpus}) if "RAY_ADDRESS" in os.environ else None
        tuner = tune.Tuner(
            tune.with_resources(SweepTrainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=desk.name,
                storage_path=str(self._folder.path / "tune"),
                stop=_Stopper(searcher.stop),
                callbacks=[_Callback(searcher, room)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # we keep our own
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
        try:
            with _keys_stay():
                tuner.fit()
        except (TuneError, RayError) as error:
            raise searcher.problem or GrokscaleError(f"Ray Tune gave up: {error}") from error
        finally:
            if room is not None:
                room.close()
        searcher.settle()
        if searcher.problem is not None:
            raise searcher.problem

    def timings(
        self, specs: Sequence[str], threads: int, device: str, stop: Callable[[], bool]
    ) -> list[dict[str, Any]]:
        """Rows of `timings` for trials, given as JSON, with nothing beside them; [] where it was told to stop."""
        self.start()
        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=FAILURES)(time_trials)
        ready = remote.remote(list(specs), threads, device, str(data.folder()))
        while not stop():
            done, _ = ray.wait([ready], timeout=0.3)
            if done:
                try:
                    return ray.get(ready)
                except RayError as error:
                    raise GrokscaleError(f"timing failed: {error}") from error
        ray.cancel(ready, force=True)
        return []

    def close(self) -> None:
        """Stop the Ray that is ours and remove what it left."""
        if self._connected:
            ray.shutdown()
        if self._folder is not None:
            self._folder.remove()
        self._folder, self._connected = None, False


@contextmanager
def _sigterm_stays() -> Iterator[None]:
    """`ray.init` takes SIGTERM for itself and ends the process at once, with whatever it is at; who had it gets it
    back, and what came meanwhile. Other threads than the main one are left alone by Ray and by us.
    """
    kept = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or kept is None:
        yield
        return
    came = False
    try:
        yield
    except SystemExit as end:
        came = end.code == signal.SIGTERM
        if not came:
            raise
    finally:
        signal.signal(signal.SIGTERM, kept)
        if came:
            signal.raise_signal(signal.SIGTERM)


@contextmanager
def _keys_stay() -> Iterator[None]:
    """Tune would hand the driver's AWS keys on in a runtime environment, which Ray writes to its logs.

    Workers do without: they have their node's own, and on this machine those of this process.
    """
    keys = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(keys)
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE.update(keys)


class _Folder:
    """A temporary folder for what Ray and Tune write and nobody reads; short, as sockets' paths have a limit.

    Its lock says that its process lives: what a killed driver left is removed by the next.
    """

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir())
        deepest = "gs-12345678/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1"
        base = base if len(str(base / deepest)) <= SOCKET_PATH else Path("/tmp")
        for left in base.glob("gs-*/lock"):
            try:
                with left.open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left.parent, ignore_errors=True)
            except OSError:  # in use, another user's, or gone by now
                continue
        self.path = Path(tempfile.mkdtemp(prefix="gs-", dir=base))
        self._lock = (self.path / ".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / ".lock").rename(self.path / "lock")  # nobody sees it before it is held

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _trial_name(trial: Any) -> str:
    job = trial.config.get("job", {})
    return str(job.get("name", trial.trial_id))
