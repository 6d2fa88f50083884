"""A real MLflow server on a real PostgreSQL, for tests: ports and a folder of its own, may be killed and come back.

PostgreSQL is Debian's, and refuses to run as root: then it runs as its own user. Passwords are not asked (`trust`),
which is for a throw-away database on loopback only.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from grokscale.pages import SETTINGS
from tests.hosts import free_ports

PATIENCE_S = 180.0  # only a failure takes as long
AS_POSTGRES = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--inh-caps=-all", "--"]


def programs() -> Path:
    """The folder of PostgreSQL's programs. Without one the test is skipped, and fails in CI."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        said = "NOT TESTED ON POSTGRESQL: it is not installed; apt-get install postgresql"
        pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)
    return found[-1].parent


class Tracking:
    """PostgreSQL and MLflow's server in front of it."""

    def __init__(self, bin: Path, folder: Path) -> None:
        self.bin, self.folder = bin, folder
        self.port, web = free_ports(2)
        self.uri = f"http://127.0.0.1:{web}"
        self._as = [] if os.geteuid() else AS_POSTGRES
        self._database: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        if self._as:
            shutil.chown(folder, "postgres", "postgres")
        self._postgres("initdb", "-D", "db", "-U", "t", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync")

    def start(self) -> None:
        """Start both, the first time or again, and wait until they answer."""
        options = ["-c", "listen_addresses=127.0.0.1", "-k", str(self.folder)]
        with (self.folder / "postgres.txt").open("ab") as said:
            words = [*self._as, str(self.bin / "postgres"), "-D", "db", "-p", str(self.port), *options]
            self._database = subprocess.Popen(
                words, cwd=self.folder, stdout=said, stderr=said, start_new_session=True)
        self._until(self._accepts, self._database)
        if not (self.folder / "made").exists():
            self._postgres("createdb", *self._where(), "-U", "t", "ml")
            (self.folder / "made").touch()
        backend = f"postgresql+psycopg2://t@127.0.0.1:{self.port}/ml"
        with (self.folder / "mlflow.txt").open("ab") as said:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--artifacts-destination",
                 str(self.folder / "artifacts"), "--host", "127.0.0.1", "--port", self.uri.rpartition(":")[2],
                 "--workers", "1"],
                env={**os.environ, **SETTINGS, "PYTHONWARNINGS": ""}, stdout=said, stderr=said,
                start_new_session=True)  # fmt: skip
        self._until(self._healthy, self._server)

    def crash(self) -> None:
        """Both are gone at once: MLflow by SIGKILL, PostgreSQL as after a crash, with its log to recover from."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait(PATIENCE_S)
        if self._database is not None:
            self._database.send_signal(signal.SIGQUIT)
            self._database.wait(PATIENCE_S)
        self._server = self._database = None

    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port)]

    def _postgres(self, program: str, *words: str) -> None:
        command = [*self._as, str(self.bin / program), *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def _accepts(self) -> bool:
        return subprocess.run([self.bin / "pg_isready", "-q", *self._where()], check=False).returncode == 0

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _until(self, ready: object, process: subprocess.Popen[bytes]) -> None:
        assert callable(ready)
        end = time.monotonic() + PATIENCE_S
        while not ready():
            assert time.monotonic() < end, f"{process.args} is not ready"
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError("\n".join(path.read_text() for path in self.folder.glob("*.txt")))


@contextmanager
def tracking() -> Iterator[Tracking]:
    """Both running; gone at the end whatever happens."""
    pytest.importorskip("psycopg2", reason="psycopg2 is missing: pip install -e '.[dev]'")
    bin = programs()
    folder = Path(tempfile.mkdtemp(prefix="gs-pg-", dir="/tmp"))
    one = None
    try:
        one = Tracking(bin, folder)
        one.start()
        yield one
    finally:
        if one is not None:
            one.crash()
        shutil.rmtree(folder, ignore_errors=True)
