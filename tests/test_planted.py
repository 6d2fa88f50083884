"""A sweep in the background whose environment is full of secrets: none is in what it leaves."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from grokscale.store import Store
from tests.planted import leaks, rows, secrets_of, texts, tracked
from tests.test_service import leave_no_driver, verb, write
from tests.test_track import NOBODY


def test_nothing_of_the_environment_of_a_local_sweep_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what it would reach MLflow or an object store with, nor the token that it gave its Ray."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    planted = {**secrets_of("driver"), "MLFLOW_TRACKING_TOKEN": "planted-bearer-5d1c"}
    planted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    settings = {"RAY_AUTH_MODE": "token", "MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_URI": uri}
    for name, value in {**planted, **settings, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    try:
        said = verb(tmp_path, "submit", str(write(tmp_path, tracking=None)))
    finally:
        leave_no_driver(tmp_path)
    refused = verb(tmp_path, "track", "sync", "--uri", NOBODY, code=1)
    assert "ended, objective" in said and f"MLflow at {NOBODY}" in refused
    files = texts(tmp_path)
    assert {"driver.log", "log.txt", "mlflow.db", "report.html"} <= {Path(name).name for name in files}
    places = [files, rows(Store(tmp_path / "runs")), tracked(uri, "tiny"), {"submit": said, "sync": refused}]
    assert leaks(planted.values(), *places) == []
    assert leaks(["Does a sweep without a terminal lose anything?"], *places), "nothing would be found"
