"""Stores on object stores, over HTTP."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from grokscale.errors import GrokscaleError
from grokscale.store import Store
from tests.rows import curve, replica


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")

# --------------------------------------------------------------------------------------- object stores


def test_a_file_system_of_ones_own(tmp_path: Path):
    """The way to an object store, with a local folder in its place: whole objects, no temporary names."""
    (tmp_path / "bucket" / "replicas").mkdir(parents=True)
    store = Store("bucket", filesystem=pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()))
    name = store.append("replicas", [replica("t", 1)])
    assert store.local is None and os.listdir(tmp_path / "bucket" / "replicas") == [name]
    assert pickle.loads(pickle.dumps(store)).replicas()["seed"].to_pylist() == [1]


def test_s3(monkeypatch: pytest.MonkeyPatch):
    """Against a server that speaks S3, where there is one."""
    pytest.importorskip("moto.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "y"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        where = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        pafs.FileSystem.from_uri(f"s3://bucket?{where}")[0].create_dir("bucket")
        store = Store(f"s3://bucket/deep/runs?{where}")
        assert store.replicas().num_rows == 0
        for seed in range(12):
            store.append("replicas", [replica("t", seed)])
            store.append("curves", curve("t", seed))
        again = pickle.loads(pickle.dumps(store))
        assert again.replicas()["seed"].to_pylist() == list(range(12)) and again.curves(seed=3).num_rows == 4
        assert store.sql("SELECT count(*) AS n FROM curves").to_pylist() == [{"n": 48}]
    finally:
        server.kill()
        server.wait()
    with pytest.raises(GrokscaleError, match="cannot list the store"):
        store.replicas()
