"""Real Ray nodes for tests, with ports, a token and a temporary folder of their own; each can be killed alone.

A node's processes carry a mark in their environment, and only what carries it is ever sent a signal. With network
namespaces (root) every node is a host with a network of its own; without, they share one, each at an address of its
own on loopback.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

MARK = "GROKSCALE_TEST_HOST"
START_S = 150
GONE_S = 30.0
HEALTH = {  # a dead node is noticed within seconds
    "RAY_health_check_initial_delay_ms": "2000", "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000", "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "60",
}  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def marked(mark: str) -> list[int]:
    """Processes whose environment carries the mark; zombies have none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def kill_marked(mark: str) -> None:
    """SIGKILL to everything that carries the mark, until nothing does."""
    end = time.monotonic() + GONE_S
    while pids := marked(mark):
        assert time.monotonic() < end, f"{mark}: processes {pids} do not die"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(OSError):
                os.waitid(os.P_PID, pid, os.WEXITED)  # ours only; others are reaped by whoever adopted them


class Network:
    """A bridge, and hosts on it as network namespaces. OSError where this may not be done here."""

    def __init__(self, hosts: int) -> None:
        self.name = f"gt{secrets.token_hex(3)}"
        self.net = f"10.{100 + secrets.randbelow(100)}.{secrets.randbelow(255)}"
        self.hosts = hosts
        if os.geteuid() or shutil.which("ip") is None:
            raise OSError("network namespaces need root and iproute2")
        try:
            self._ip("link", "add", self.name, "type", "bridge")
            self._ip("addr", "add", f"{self.net}.254/24", "dev", self.name)
            self._ip("link", "set", self.name, "up")
            for n in range(1, hosts + 1):
                space = self.space(n)
                self._ip("netns", "add", space)
                self._ip("link", "add", f"{space}v", "type", "veth", "peer", "name", "eth0", "netns", space)
                self._ip("link", "set", f"{space}v", "master", self.name, "up")
                self._ip("-n", space, "link", "set", "lo", "up")
                self._ip("-n", space, "addr", "add", f"{self.address(n)}/24", "dev", "eth0")
                self._ip("-n", space, "link", "set", "eth0", "up")
                self._ip("-n", space, "route", "add", "default", "via", f"{self.net}.254")
        except OSError:
            self.close()
            raise

    def space(self, n: int) -> str:
        return f"{self.name}{n}"

    def address(self, n: int) -> str:
        return f"{self.net}.{n}"

    @contextlib.contextmanager
    def cut(self, n: int) -> Iterator[None]:
        """Host n has no link to the others."""
        self._ip("link", "set", f"{self.space(n)}v", "down")
        try:
            yield
        finally:
            self._ip("link", "set", f"{self.space(n)}v", "up")

    def close(self) -> None:
        for n in range(1, self.hosts + 1):
            with contextlib.suppress(OSError):
                self._ip("netns", "del", self.space(n))
        with contextlib.suppress(OSError):
            self._ip("link", "del", self.name)

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class RayHosts:
    """A Ray cluster: node 1 is its head and holds the job server, nodes join and die."""

    def __init__(self, network: Network | None = None, cpus: int = 2) -> None:
        self.network, self.cpus = network, cpus
        self.own: dict[str, str] = {}  # variables that only the nodes have
        self.growth: Path | None = None  # of a head with an autoscaler: its configuration
        self.folder = Path(tempfile.mkdtemp(prefix="gh-", dir="/tmp"))  # short: sockets' paths have a limit
        self.id = secrets.token_hex(4)
        token = self.folder / "token"
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.gcs, self.dashboard = (6379, 8265) if network else free_ports(2)
        self.nodes: set[int] = set()

    @property
    def address(self) -> str:
        """Of the job server."""
        return f"http://{self._host(1)}:{self.dashboard}"

    def admit(self, patch: pytest.MonkeyPatch) -> None:
        """Give the processes that this one starts the cluster's token in place of any other."""
        patch.delenv("RAY_AUTH_TOKEN", raising=False)
        for name, value in self.token.items():
            patch.setenv(name, value)

    def client(self) -> JobSubmissionClient:
        """For this process, whose Ray has read its settings long ago."""
        from ray.job_submission import JobSubmissionClient

        token = Path(self.token["RAY_AUTH_TOKEN_PATH"]).read_text()
        return JobSubmissionClient(self.address, headers={"Authorization": f"Bearer {token}"})

    def mark(self, n: int) -> str:
        return f"{self.id}-{n}"

    def environment(self, n: int) -> dict[str, str]:
        """What a node has: nothing of the package under test, which has to travel."""
        bare = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHONPATH", "PYTHONWARNINGS"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {
            **bare, **self.own, **self.token, **HEALTH, MARK: self.mark(n), "PATH": path,
            "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def start(self, n: int) -> None:
        """Start node n; node 1 first."""
        common = [
            f"--node-ip-address={self._host(n)}", f"--num-cpus={self.cpus}", "--object-store-memory=80000000",
            "--disable-usage-stats",
        ]  # fmt: skip
        if n == 1:
            # Else a head that comes back finds the others' processes, which share our process table, and itself there.
            (self.folder / "r1/ray_current_cluster").unlink(missing_ok=True)
            words = [
                "--head", f"--port={self.gcs}", f"--dashboard-host={self._host(1)}",
                f"--dashboard-port={self.dashboard}", "--include-dashboard=true",
                *([f"--autoscaling-config={self.growth}"] if self.growth else []),
            ]  # fmt: skip
        else:
            words = [f"--address={self._host(1)}:{self.gcs}"]
        if self.network is None:
            words += [f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
        (self.folder / f"r{n}").mkdir(exist_ok=True)
        words += [f"--temp-dir={self.folder / f'r{n}'}"]
        self.nodes.add(n)
        said = self.folder / f"start{n}.txt"
        with said.open("w") as file:  # no pipe: the daemons would hold it open
            done = subprocess.run(
                [*self.inside(n), sys.executable, "-m", "ray.scripts.scripts", "start", *words, *common],
                env=self.environment(n), stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=START_S,
                cwd=self.folder, check=False,
            )  # fmt: skip
        assert done.returncode == 0, said.read_text()

    def inside(self, n: int) -> list[str]:
        """Words before a command that is to run on host n."""
        return ["ip", "netns", "exec", self.network.space(n)] if self.network else []

    def kill(self, n: int) -> None:
        """A host that loses power."""
        kill_marked(self.mark(n))
        self.nodes.discard(n)

    def workers(self, n: int) -> list[int]:
        """Processes of node n that train."""
        return self._called(n, b"Trainable")  # Ray calls them ray::SweepTrainable, or by what wraps it

    def raylets(self, n: int) -> list[int]:
        """Ray's own process of node n, while there is one."""
        return self._called(n, b"/raylet/raylet\0")

    def drivers(self, n: int) -> list[int]:
        """Sweeps' drivers on node n."""
        return self._called(n, b"grokscale.cli\0sweep")

    def zombies(self) -> list[int]:
        """Processes that have ended and that their parent, one of ours, has not asked about."""
        found = []
        ours = {pid for n in self.nodes for pid in marked(self.mark(n))}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = path.read_text().rpartition(")")[2].split()[:2]
                if state == "Z" and int(parent) in ours:
                    found.append(int(path.parent.name))
        return found

    def _called(self, n: int, words: bytes) -> list[int]:
        found = []
        for pid in marked(self.mark(n)):
            with contextlib.suppress(OSError):
                if words in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def keep_logs(self, to: Path) -> None:
        """Copy what Ray said to where someone may look into a failure; `close` removes it."""
        for logs in self.folder.glob("r*/session_2*/logs"):
            shutil.copytree(logs, to / logs.relative_to(self.folder), symlinks=True)

    def close(self) -> None:
        for n in sorted(self.nodes, reverse=True):
            self.kill(n)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _host(self, n: int) -> str:
        return self.network.address(n) if self.network else f"127.0.0.{n}"


@contextlib.contextmanager
def ray_hosts(nodes: int, network: Network | None = None, cpus: int = 2) -> Iterator[RayHosts]:
    """So many nodes, gone at the end whatever happens."""
    hosts = RayHosts(network, cpus)
    try:
        for n in range(1, nodes + 1):
            hosts.start(n)
        yield hosts
    finally:
        hosts.close()
