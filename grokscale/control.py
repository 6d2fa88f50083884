"""What holds a sweep in hand: one driver at a time, stopping in order, and a log of its own."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from grokscale.errors import GrokscaleError, StoreError

NOW = "now"  # what a note says where state is not to be saved, and the note that the driver finds
STOPPED = "stopped by hand; `grokscale resume` tries it again"
MIRROR = "mlflow"  # name of the thread that keeps MLflow in step with a sweep
LOOKS = 20  # times that a lock is tried before it counts as another driver's


class SweepInterrupted(GrokscaleError):
    """The sweep was stopped in order: everything that was done is saved, the same command goes on from there.

    reason: "interrupted", "terminated", or "limit" where one of [limits] was reached.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.exit_code = 0 if reason == "limit" else 130


class Stop:
    """Says when to stop: Ctrl-C or SIGTERM, or one of [limits].

    A second signal ends the process at once, and so does the first where a note in `notes` says that it is to be now.
    """

    def __init__(self, hours: float | None, notes: Path | None = None) -> None:
        self.reason: str | None = None
        self._notes = notes
        self._hours, self._said = hours, ""
        self._deadline = None if hours is None else time.monotonic() + 3600 * hours
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: object) -> None:
        if self.reason in ("interrupted", "terminated") or (self._notes is not None and (self._notes / NOW).exists()):
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # a live table hides the cursor
            os._exit(128 + number)
        self.reason = "interrupted" if number == signal.SIGINT else "terminated"

    def __call__(self) -> bool:
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reached(f"limits.hours = {self._hours:g}")
        return self.reason is not None

    def reached(self, limit: str) -> None:
        """It is time, because of a limit: "limits.trials = 3"."""
        if self.reason is None:
            self.reason, self._said = "limit", f"{limit} reached"

    def check(self) -> None:
        """Raise SweepInterrupted where it is time to."""
        if self():
            said = self._said or self.reason
            raise SweepInterrupted(str(self.reason), f"{said}; everything so far is saved, the same command goes on")


@dataclass(frozen=True)
class Holder:
    """The process that runs a sweep."""

    pid: int
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def here(self) -> bool:
        """Can it be sent a signal from this machine?"""
        return self.host == socket.gethostname()


def holder(path: Path) -> Holder | None:
    """Who holds the lock of a sweep; None where nobody does."""
    if not path.exists():
        return None
    with _opened(path, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found = re.fullmatch(r"process (\d+) on (.*)", file.read().strip())
            return Holder(int(found[1]), found[2]) if found else Holder(0, "an unknown machine")
    return None


@contextmanager
def locked(path: Path, sweep_id: str) -> Iterator[None]:
    """One driver per sweep: an flock, which the system lets go of when the driver ends, however it ends."""
    with _opened(path, "a+") as file:
        for left in reversed(range(LOOKS)):  # more than once: somebody may only be looking whether it is held
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
                if left:
                    continue
                file.seek(0)
                raise GrokscaleError(
                    f"sweep {sweep_id} is being run by {file.read().strip() or 'another process'}; wait for it, or stop"
                    f" it with `grokscale stop {sweep_id}` (lock: {path})"
                ) from None
        with _written(path):
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Say what keeps a file from being written as the store does."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot write to the store: {error.strerror}; make room, then resume") from error


def _opened(path: Path, mode: str) -> TextIO:
    try:
        return path.open(mode, errors="replace")  # pyright: ignore[reportReturnType]
    except OSError as error:
        raise GrokscaleError(f"{path}: is no lock that can be used: {error.strerror}; move it away") from error


def ask_stop(folder: Path, trial_id: str, *, now: bool) -> None:
    """Ask the worker of a trial, wherever it is, to stop: a note in the sweep's folder, which it looks for.

    trial_id: NOW is for the driver, which looks when a signal comes.
    """
    notes = notes_in(folder)
    with _written(notes / trial_id):
        notes.mkdir(exist_ok=True)
        (notes / trial_id).write_text(NOW if now else "")


def notes_in(folder: Path) -> Path:
    """Where the notes of a sweep lie for what is to stop."""
    return folder / "stop"


def forget_stops(folder: Path) -> None:
    """A new start tries what was stopped again."""
    shutil.rmtree(notes_in(folder), ignore_errors=True)


def note_progress(folder: Path, progress: Mapping[str, Any]) -> None:
    """Leave in a sweep's folder how far it is, for whoever watches from elsewhere. What cannot be written is let be:
    it decides nothing, and a store that is full or gone is noticed by what does."""
    with contextlib.suppress(OSError):
        (folder / ".progress").write_text(json.dumps(progress))
        (folder / ".progress").replace(folder / "progress.json")


def noted_progress(folder: Path) -> dict[str, Any] | None:
    """How far the driver of a sweep last said that it is; None where nothing can be read of it."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / "progress.json").read_bytes())
        return found if isinstance(found, dict) else None
    return None


def mark_ended(folder: Path, experiment_json: str) -> None:
    """Say in a sweep's folder that this experiment has come to its end."""
    with _written(folder / "ended"):
        (folder / "ended").write_text(_digest(experiment_json))


def has_ended(folder: Path, experiment_json: str) -> bool:
    """Has this experiment, and not only a shorter one of the same sweep, come to its end?"""
    try:
        return (folder / "ended").read_bytes() == _digest(experiment_json).encode()
    except OSError:  # there is none, or something else by its name: the same command finds out what there is to do
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """grokscale's messages and Tune's go into the sweep's log, not to the terminal."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    kept = []
    for name, level in (
        ("grokscale", logging.INFO),
        ("ray.tune", logging.WARNING),
        ("ray.tune.analysis", logging.ERROR),
        ("ray.tune.tune", logging.CRITICAL),  # names every try that failed, as if it had been the last
        ("mlflow", logging.WARNING),
        ("alembic", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        kept.append((logger, logger.level, logger.propagate))
        logger.setLevel(level)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level, propagate in kept:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        handler.close()
