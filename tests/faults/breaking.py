"""What breaks: each fault finds what it breaks, breaks it, and sees to it that the cluster is whole again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from grokscale import service
from grokscale.control import holder
from grokscale.errors import GrokscaleError
from grokscale.pages import SETTINGS
from grokscale.spec import Resolved
from grokscale.store import Store
from tests.hosts import RayHosts

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PATIENCE_S = 300.0  # only a failure takes as long
CUT_S, STOPPED_S, AWAY_S = 30.0, 20.0, 60.0  # how long a partition, a stopped process or store, a lost server last
DISK = "32m"  # of the store, where it is to be filled


def until(ready: Callable[[], object], what: str, seconds: float = PATIENCE_S, every: float = 0.1) -> None:
    """Until something is so; AssertionError with `what` where it never is."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(every)


class Disk:
    """A small file system in memory, which can be filled, and be away.

    folder: where it is mounted, in a mount whose changes hosts in namespaces of their own see too.
    """

    def __init__(self) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="gs-disk-", dir="/tmp"))
        self._kept, self.folder = self._place / "kept", self._place / "store"
        self._mount("--bind", str(self._place), str(self._place))
        self._mount("--make-shared", str(self._place))
        self._kept.mkdir()
        self.folder.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self._kept))
        self._mount("--bind", str(self._kept), str(self.folder))

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte is left."""
        ballast = self.folder / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                for size in (1 << 20, 4096):
                    with contextlib.suppress(OSError):
                        while file.write(bytes(size)) == size:
                            pass
            with contextlib.suppress(OSError):
                (self.folder / "probe").write_bytes(b"x")
                raise AssertionError("the disk is not full")
            yield
        finally:
            ballast.unlink(missing_ok=True)
            (self.folder / "probe").unlink(missing_ok=True)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """It is not mounted: an empty folder is in its place. What is open stays open."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True, capture_output=True)
        try:
            yield
        finally:
            self._mount("--bind", str(self._kept), str(self.folder))

    def clear(self) -> None:
        """Remove what lies on it."""
        for path in self.folder.iterdir():
            shutil.rmtree(path)

    def close(self) -> None:
        for path in (self.folder, self._kept, self._place):
            subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)
        shutil.rmtree(self._place, ignore_errors=True)

    @staticmethod
    def _mount(*words: str) -> None:
        subprocess.run(["mount", *words], check=True, capture_output=True)


class Server:
    """MLflow with a database of its own, where the hosts reach it."""

    def __init__(self, host: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gs-mlflow-", dir="/tmp"))
        self.host, self.uri = host, f"http://{host}:5000"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "said.txt").open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", "5000", "--workers", "1",
                 "--backend-store-uri", f"sqlite:///{self.folder / 'ml.db'}",
                 "--artifacts-destination", str(self.folder / "artifacts")],
                env={**os.environ, **SETTINGS, "PYTHONWARNINGS": ""}, stdout=said, stderr=said,
                start_new_session=True)  # fmt: skip
        until(self._healthy, "MLflow's server answers")

    def crash(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(PATIENCE_S)
            self._process = None

    def close(self) -> None:
        self.crash()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _healthy(self) -> bool:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.uri}/health"):
            return True
        return False


@dataclass
class Site:
    """A sweep on a cluster. beside: sweeps that were submitted into the same store meanwhile."""

    hosts: RayHosts
    client: JobSubmissionClient
    resolved: Resolved
    store: Store
    disk: Disk | None = None
    server: Server | None = None
    other: Resolved | None = None
    beside: list[Resolved] = field(default_factory=list)

    @property
    def sweep_id(self) -> str:
        return self.resolved.sweep_id

    @property
    def driver(self) -> int:
        """The process that holds the sweep; 0 without one."""
        held = holder(self.store.sweep_dir(self.sweep_id) / "lock")
        return held.pid if held is not None else 0

    @property
    def trains(self) -> list[tuple[int, int]]:
        """(node, process) of all that train, those of the last node first."""
        return [(n, pid) for n in sorted(self.hosts.nodes, reverse=True) for pid in self.hosts.workers(n)]

    def running(self) -> bool:
        return bool(service.driver(self.store, self.sweep_id, self.client))


Fault = Callable[[Site], bool]


def send(pid: int, number: signal.Signals) -> bool:
    """A signal, to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


# ------------------------------------------------------------------------------------------- killed


def kill_driver(site: Site) -> bool:
    """SIGKILL to the driver, wherever it is in its work."""
    return bool(pid := site.driver) and send(pid, signal.SIGKILL)


def kill_worker(site: Site) -> bool:
    """SIGKILL to one process that trains."""
    return any(send(pid, signal.SIGKILL) for _, pid in site.trains[:1])


def replace_node(site: Site) -> bool:
    """A host loses power with all that runs on it; another one, with another address, joins."""
    node = max(site.hosts.nodes - {1})
    if not site.hosts.workers(node):
        return False
    _join(site.hosts, node)
    return True


def kill_raylet(site: Site) -> bool:
    """SIGKILL to the other host's raylet alone: its workers end by themselves; then another host joins."""
    hosts, node = site.hosts, max(site.hosts.nodes - {1})
    trained = bool(hosts.workers(node))
    if trained:
        for pid in hosts.raylets(node):
            send(pid, signal.SIGKILL)
        until(lambda: not hosts.workers(node), "workers without a raylet end", 60.0)
        _join(hosts, node)
    return trained


def restart_head(site: Site) -> bool:
    """The head loses power, the driver and the cluster's memory with it, and comes back; the others find out."""
    hosts, node = site.hosts, max(site.hosts.nodes - {1})
    if not site.driver:  # it waits for its job to begin, and would for ever
        return False
    hosts.kill(1)
    hosts.start(1)
    until(lambda: _answers(site.client), "the new head's job server answers")
    _leave(hosts, node, limit=90.0)  # its head is another one now
    return True


# ------------------------------------------------------------------------- cut off, stopped


def cut_network(site: Site) -> bool:
    """The other host's cable is out for 30 s: it is taken for dead, trains on, and hears of it when it is back."""
    hosts, node = site.hosts, max(site.hosts.nodes - {1})
    assert hosts.network is not None
    trained = bool(hosts.workers(node))
    if not trained:
        return False
    with hosts.network.cut(node):
        time.sleep(CUT_S)
    _leave(hosts, node)
    return trained


def stop_worker(site: Site) -> bool:
    """One process that trains stands still."""
    return any(_stopped(pid) for _, pid in site.trains[:1])


def stop_driver(site: Site) -> bool:
    """The driver stands still, its workers do not."""
    return bool(pid := site.driver) and _stopped(pid)


def stop_raylet(site: Site) -> bool:
    """The other host's raylet stands still until it is taken for dead; its workers train on."""
    hosts, node = site.hosts, max(site.hosts.nodes - {1})
    trained = bool(hosts.workers(node)) and all(_stopped(pid) for pid in hosts.raylets(node))
    if trained:
        _leave(hosts, node)
    return trained


def _stopped(pid: int) -> bool:
    if not send(pid, signal.SIGSTOP):
        return False
    try:
        time.sleep(STOPPED_S)
    finally:
        send(pid, signal.SIGCONT)
    return True


def _leave(hosts: RayHosts, node: int, limit: float = 60.0) -> None:
    """A node that was taken for dead hears of it and ends; then another one joins. One that was not stays."""
    with contextlib.suppress(AssertionError):
        until(lambda: not hosts.raylets(node), "it hears of it", limit)
        _join(hosts, node)


def _join(hosts: RayHosts, node: int) -> None:
    hosts.kill(node)
    hosts.start(5 - node)  # 2 and 3 take turns


def _answers(client: JobSubmissionClient) -> bool:
    with contextlib.suppress(OSError, RuntimeError):
        client.list_jobs()
        return True
    return False


# --------------------------------------------------------------------- what is not ours, and others


def mlflow_away(site: Site) -> bool:
    """MLflow's server is killed, and is back a minute later."""
    assert site.server is not None
    site.server.crash()
    time.sleep(AWAY_S)
    site.server.start()
    return True


def fill_disk(site: Site) -> bool:
    """The store has no room until the driver has given up; then there is room again."""
    assert site.disk is not None
    if not site.driver:
        return False
    with site.disk.full():
        until(lambda: not site.running(), "the driver of a sweep whose store is full ends")
    return True


def unmount_store(site: Site) -> bool:
    """The store is unmounted under all that use it, and mounted again 20 s later."""
    assert site.disk is not None
    if not site.driver:
        return False
    with site.disk.away():
        time.sleep(STOPPED_S)
    return True


def race_submits(site: Site) -> bool:
    """The driver is killed, and once that is known two submit the sweep again at the same moment."""
    if not kill_driver(site):
        return False
    until(lambda: not site.running(), "the cluster knows that the driver is dead")
    ready, found = threading.Barrier(2), []

    def one() -> None:
        client = site.hosts.client()
        ready.wait()
        with contextlib.suppress(GrokscaleError):
            found.append(service.submit(site.resolved, site.store, client))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and sum(fresh for _, fresh in found) == 1, found
    return True


def sweep_beside(site: Site) -> bool:
    """Another sweep, which asks some of the same trials, begins in the same store."""
    assert site.other is not None
    if not site.beside:
        service.submit(site.other, site.store, site.client)
        site.beside.append(site.other)
    return True


KILLS: dict[str, Fault] = {
    "driver SIGKILL": kill_driver, "worker SIGKILL": kill_worker, "raylet SIGKILL": kill_raylet,
    "node killed, a new one joins": replace_node, "head killed and restarted": restart_head,
}  # fmt: skip
OTHERS: dict[str, Fault] = {
    "partition of 30 s between head and worker": cut_network, "worker SIGSTOP 20 s": stop_worker,
    "driver SIGSTOP 20 s": stop_driver, "raylet SIGSTOP 20 s": stop_raylet, "MLflow down for 60 s": mlflow_away,
    "disk full in the store": fill_disk, "store unmounted for 20 s": unmount_store,
    "driver SIGKILL, then two submits race": race_submits, "another sweep in the same store": sweep_beside,
}  # fmt: skip
FAULTS = KILLS | OTHERS
