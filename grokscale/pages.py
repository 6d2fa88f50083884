"""MLflow's own web pages over a tracking database: its server as a child process, on this machine only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from grokscale.errors import GrokscaleError

SERVER_S = 90.0  # for the server to answer
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes fewer
}


def serve(uri: str, place: str = "", *, port: int, say: Callable[[str], None]) -> None:
    """Show what is tracked at `uri`, a database, on 127.0.0.1 until Ctrl-C.

    place: path of the page to begin with.  Raises GrokscaleError where the server does not come up.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        command,
        env={**os.environ, **SETTINGS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _until_healthy(server, port)
        say(f"http://127.0.0.1:{port}{place} (Ctrl-C ends it)")
        server.wait()
    except KeyboardInterrupt:
        say("ended")
    finally:
        _end(server)


def _until_healthy(server: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + SERVER_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            pass
        try:
            server.wait(0.3)
        except subprocess.TimeoutExpired:
            continue
        raise GrokscaleError(f"MLflow's server ended at once; is port {port} taken? try --port {port + 1}")
    raise GrokscaleError(f"MLflow's server did not answer on port {port} within {SERVER_S:g} s")


def _end(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if server.poll() is not None:
            return
        os.killpg(server.pid, number)
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            continue
