"""A pack while it trains: the file that it goes on from, and the claim that one process at a time trains a trial."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO, cast

import torch

from grokscale.errors import StoreError
from grokscale.outcomes import answers
from grokscale.spec import TrialSpec, canonical_json
from grokscale.store import Store
from grokscale.train import Evaluation

log = logging.getLogger(__name__)

CHECKPOINT_S = 10.0  # between two checkpoints of a pack, at least ...
SHARE = 0.01  # ... and at most this share of the time goes into writing them
ALIVE_S = 5.0  # a claim says that its process lives so often, at most
SILENT_S = 600.0  # a process that has not said so for so long is taken for lost, though the system says it lives
BLOCK = 1 << 20  # bytes, read at once
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError)
"""What is raised where a checkpoint is gone, torn, damaged, or of another version."""


class Checkpoint:
    """The file in which a pack is kept while it trains: <root>/checkpoints/<trial_id>-<hash of the
    request>.pt.
    """

    def __init__(
        self, store: Store, spec: TrialSpec, seeds: Sequence[int], horizon: int, until: str, metrics: Sequence[str] = ()
    ) -> None:
        asked = [list(seeds), horizon, until, *([list(metrics)] if metrics else [])]
        self._asked = {"seeds": list(seeds), "horizon": horizon, "until": until, "metrics": list(metrics)}
        request = hashlib.sha256(canonical_json(asked).encode()).hexdigest()[:12]
        self.path: Path = store.folder("checkpoints") / f"{spec.trial_id}-{request}.pt"
        self._next = time.monotonic() + CHECKPOINT_S

    @property
    def due(self) -> bool:
        """Is it time to write again? The dearer the last one was, the later."""
        return time.monotonic() >= self._next

    def write(self, evaluation: Evaluation, wall_s: float) -> None:
        """Replace the file by a snapshot; a cut leaves the old one."""
        began = time.monotonic()
        self.save(evaluation.snapshot(), wall_s)
        now = time.monotonic()
        self._next = now + max(CHECKPOINT_S, (now - began) / SHARE)

    def save(self, state: dict[str, Any], wall_s: float) -> None:
        """`write`, of a snapshot that has been taken: of these replicas or more.

        Where it cannot be written the old one stays: what there is room for later is not lost.
        """
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                summed = _Summed(file)
                torch.save({"pack": state, "wall_s": wall_s, "asked": self._asked}, cast(IO[bytes], summed))
                file.write(summed.digest)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where the disk is full
            log.warning("%s cannot be written, the one before stays: %s", self.path, error)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def read(self) -> tuple[dict[str, Any] | None, float]:
        """(snapshot, seconds spent on it); (None, 0) where there is none that can be read."""
        try:
            kept = _load(self.path)
            return kept["pack"], kept["wall_s"]
        except FileNotFoundError:
            return None, 0.0
        except UNREADABLE as error:
            log.warning("%s cannot be read, starting afresh: %s", self.path, error)
            return None, 0.0

    def remove(self) -> None:
        """Where that cannot be, `tidy` does it one day."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


class _Summed:
    """A file for `torch.save` that sums up what is written: torch reads tensors without a look at its own sums."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sum = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._sum.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> bytes:
        return self._sum.digest()


def _load(path: Path) -> dict[str, Any]:
    """What `Checkpoint.save` wrote, all of it and nothing else. Raises one of UNREADABLE."""
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - hashlib.sha256().digest_size
        found = hashlib.sha256()
        while left > 0 and (block := file.read(min(left, BLOCK))):
            found.update(block)
            left -= len(block)
        if file.read() != found.digest():
            raise ValueError("its contents are not those that were written")
        file.seek(0)
        return torch.load(file, weights_only=True)  # it looks for a zip's end, and passes over the sum behind it


class Claim:
    """One process at a time trains a trial, of whatever sweep: an flock on <root>/claims/<trial_id>.

    A worker that is cut off from its cluster trains on, while another process is given its trial; two sweeps of one
    store may want the same one. The later process waits, and then finds in the store what the first has done. The
    system lets go of an flock when its process ends, however it ends.
    """

    def __init__(self, store: Store, trial_id: str) -> None:
        self.path: Path = store.folder("claims") / trial_id
        self._file: TextIO | None = None
        self._told = 0.0
        self._seen: tuple[int, float] | None = None  # the holder's last sign of life, and since when it is that

    def take(self) -> bool:
        """Take it, if nobody has it, or its holder has been silent for long."""
        try:
            file = self.path.open("a")
        except OSError as error:
            raise StoreError(f"{self.path}: cannot write to the store: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return self._silent()
        except OSError as error:  # a file system without locks: what is trained twice is dropped when read
            log.debug("%s: %s", self.path, error)
            file.close()
            return True
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                self._file = file
                return True
        file.close()  # its holder has just removed it
        return False

    @property
    def held(self) -> bool:
        """Is it this process's? Also False where the file system has no locks."""
        return self._file is not None

    def alive(self) -> None:
        """Say that this process is at work."""
        if self._file is not None and (now := time.monotonic()) - self._told >= ALIVE_S:
            self._told = now
            with contextlib.suppress(OSError):
                os.utime(self._file.fileno())

    def release(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # the store is gone or full: what keeps the pack from going on says so
                self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _silent(self) -> bool:
        try:
            sign = self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        now = time.monotonic()  # two hosts' clocks need not agree
        if self._seen is None or self._seen[0] != sign:
            self._seen = sign, now
        if now - self._seen[1] < SILENT_S:
            return False
        log.warning("%s: its holder has been silent for %.0f s and is taken for lost", self.path, SILENT_S)
        return True


def claimed(store: Store) -> set[str]:
    """The trials that some process trains, or trained when it was killed."""
    return {path.name for path in store.folder("claims").iterdir()}


def tidy(store: Store) -> None:
    """Remove what processes leave that are killed just after they have stored an answer, which nobody asks for again:
    their claims, the checkpoints that the store answers, and those that they were writing.

    What is under way is left alone, whatever sweep it belongs to: its trial is claimed.
    """
    left = sorted(store.folder("checkpoints").iterdir())
    trials = {path.name.lstrip(".").partition("-")[0] for path in left} | claimed(store)
    for trial_id in sorted(trials):
        claim = Claim(store, trial_id)
        if not claim.take() or not claim.held:
            continue
        try:
            mine = [path for path in left if path.name.lstrip(".").startswith(f"{trial_id}-")]
            for path in mine:
                if path.suffix == ".tmp" or _answered(store, trial_id, path):
                    path.unlink(missing_ok=True)
        finally:
            claim.release()


def _answered(store: Store, trial_id: str, path: Path) -> bool:
    """Has the store what the pack of a checkpoint was to find?"""
    try:
        asked = _load(path)["asked"]
    except UNREADABLE:
        return False  # gone, torn, or of an earlier version: whoever wants it will say so
    known = store.answered([trial_id])
    rows = [known.get((trial_id, seed)) for seed in asked["seeds"]]
    return all(row and answers(row, asked["horizon"], asked["until"], asked["metrics"]) for row in rows)
