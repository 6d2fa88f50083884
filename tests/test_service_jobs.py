"""The same verbs on a Ray cluster: a real head on loopback, with a token, and real jobs."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from grokscale.store import Store
from tests.hosts import RayHosts, ray_hosts
from tests.planted import leaks, rows, secrets_of, texts, tracked
from tests.test_cli import environment
from tests.test_service import caught, let_go, resolved, until, verb, watched, write
from tests.test_sweep import replicas_of, trained_twice

pytest.importorskip("ray.dashboard.optional_deps", reason="Ray Jobs need ray[default]")
PLUGIN = """
import pathlib, grokscale
with pathlib.Path({seen!r}).open("a") as file:
    file.write(grokscale.__file__ + chr(10))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[RayHosts]:
    """One node, which has secrets, and an MLflow that whoever submits does not know."""
    with ray_hosts(0) as one:
        one.own.update(secrets_of("node"), MLFLOW_TRACKING_URI=mlflow(one))
        one.start(1)
        yield one


def mlflow(hosts: RayHosts) -> str:
    return f"sqlite:///{hosts.folder}/mlflow.db"


@pytest.fixture
def client_environment(hosts: RayHosts) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        hosts.admit(patch)
        mine = {"GROKSCALE_ADDRESS": hosts.address, "MLFLOW_TRACKING_URI": f"sqlite:///{hosts.folder}/mine.db"}
        for name, value in {**secrets_of("submitter"), **mine}.items():
            patch.setenv(name, value)
        yield


def test_a_sweep_as_a_job(
    hosts: RayHosts, client_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitted twice, stopped, resumed; what travels, and what does not."""
    (tmp_path / "travelling.py").write_text(PLUGIN.format(seen=str(tmp_path / "seen")))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("GROKSCALE_ADDRESS")  # the file names the cluster, for every verb
    changes: dict[str, Any] = {
        "plugin": "travelling", "cluster": {"address": hosts.address},
        "tracking": None,  # where the nodes have their MLflow
    }  # fmt: skip
    file, sweep_id = write(tmp_path, **changes), resolved(**changes).sweep_id
    (tmp_path / "seen").unlink()
    store = Store(tmp_path / "runs")

    assert verb(tmp_path, "submit", str(file), "--detach") == f"{sweep_id}: job {sweep_id}-1\n"
    pid = caught(store, sweep_id, ": ended, objective")  # else it would be through before a verb has begun
    again = verb(tmp_path, "submit", str(file), "--detach")
    assert again.startswith(f"{sweep_id}: ") and again.endswith(", which ran already\n")
    with watched(tmp_path, "logs", "tiny", "-f") as lines:
        until(lines, ": ended, objective")
    assert f"{sweep_id}: running, " in verb(tmp_path, "status")
    assert f"{sweep_id}: stopped (job {sweep_id}-1); " in let_go(pid, tmp_path, "stop")
    assert f"{sweep_id}: stopped; " in verb(tmp_path, "status")
    before = replicas_of(store)
    assert before and not store.table("speedups").num_rows
    jobs = [path.read_text(errors="replace") for path in hosts.folder.rglob("job-driver-*.log")]
    assert len(jobs) == 1 and "everything so far is saved" in jobs[0]

    handed = (store.sweep_dir(sweep_id) / "log.txt").read_text().count(": trial ")
    assert verb(tmp_path, "resume", "tiny", "--detach") == f"{sweep_id}: job {sweep_id}-2\n"
    pid = caught(store, sweep_id, ": trial ", handed)
    assert f"{sweep_id}: stopped (job {sweep_id}-2); " in let_go(pid, tmp_path, "stop", "--now")
    jobs = [path.read_text(errors="replace") for path in hosts.folder.rglob(f"job-driver-{sweep_id}-2.log")]
    assert len(jobs) == 1 and "saved" not in jobs[0]

    said = verb(tmp_path, "resume", "tiny")
    assert f"{sweep_id}: job {sweep_id}-3\n" in said and "Speed-up over plain" in said
    assert f"{sweep_id}: done\n" in verb(tmp_path, "status")
    assert before.items() <= replicas_of(store).items() and trained_twice(store) == []
    assert not list((tmp_path / "runs/checkpoints").iterdir())

    seen = set((tmp_path / "seen").read_text().split())
    travelled = [path for path in seen if str(hosts.folder) in path]
    assert travelled and all("runtime_resources" in path for path in travelled), seen

    info = str(hosts.client().get_job_info(f"{sweep_id}-3"))
    assert sweep_id in info
    assert not (hosts.folder / "mine.db").exists() and not (tmp_path / "runs/mlflow.db").exists()
    files = texts(tmp_path / "runs", hosts.folder)
    token = files.pop(hosts.token["RAY_AUTH_TOKEN_PATH"])
    names = {Path(name).name for name in files}
    assert len(files) > 20 and {"mlflow.db", "log.txt", "report.html", "raylet.out"} <= names
    planted = [token, *secrets_of("node").values(), *secrets_of("submitter").values()]
    said = {"the job": info, "resume": said}
    assert leaks(planted, files, rows(store), tracked(mlflow(hosts), "tiny"), said) == []


def test_a_cluster_that_comes_up_is_waited_for(hosts: RayHosts, client_environment: None) -> None:
    """Nobody listens at first; once that has been said, somebody does who passes everything on to the head."""
    head = urlsplit(hosts.address)

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((head.hostname, head.port)) as there:
                for one, other in ((self.request, there), (there, self.request)):
                    threading.Thread(target=pass_on, args=(one, other), daemon=True).start()
                closed.wait()

    def pass_on(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)

    closed = threading.Event()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay, bind_and_activate=False) as relay:
        relay.daemon_threads = True
        relay.server_bind()  # its port is taken; without listening it refuses
        code = "import sys; from grokscale import service\n"
        code += "client = service.connect(sys.argv[1], seconds=60, say=lambda text: print(text, flush=True))\n"
        code += "print(client.list_jobs().__class__.__name__)"
        address = f"http://127.0.0.1:{relay.server_address[1]}"
        with subprocess.Popen([sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(f"waiting for a Ray cluster at {address}")
            relay.server_activate()
            threading.Thread(target=relay.serve_forever, daemon=True).start()
            assert process.stdout.readlines() == ["list\n"]
            closed.set()
            relay.shutdown()


def test_a_job_that_fails_says_why(
    client_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plugin cannot be imported where the job runs."""
    (tmp_path / "homesick.py").write_text("assert 'runtime_resources' not in __file__, 'planted'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = verb(tmp_path, "submit", str(write(tmp_path, plugin="homesick")), code=1)
    assert "is stopped; grokscale resume" in said and "planted" in said.partition("goes on")[2]


def test_without_the_token_a_cluster_refuses(hosts: RayHosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*hosts.token, "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    said = verb(tmp_path, "submit", str(write(tmp_path)), "--address", hosts.address, code=1)
    assert "refuses" in said and "RAY_AUTH_TOKEN_PATH" in said and "Traceback" not in said
    token = Path(hosts.token["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert os.environ.keys() >= {"PATH"} and token.read_text() not in str(environment())
