"""Stores on object stores: over HTTP against a server that speaks S3, and a folder in the place of one."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pyarrow.fs as pafs
import pytest
from typer.testing import CliRunner

from grokscale.cli import app
from grokscale.errors import GrokscaleError
from grokscale.store import Store, StoreWarning, compact
from grokscale.store.files import Files
from tests.rows import curve, replica

pytest.importorskip("moto.server", reason="moto[server] plays the object store")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """What goes behind the ? of a root."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "x"),
            ("AWS_SECRET_ACCESS_KEY", "y"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):
            patch.setenv(name, value)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            patch.delenv(name, raising=False)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait(f"http://127.0.0.1:{port}/moto-api/", process)
            yield f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        finally:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (URLError, ConnectionError):
            continue
    pytest.fail("the server ended before it answered")


@pytest.fixture
def store(server: str, request: pytest.FixtureRequest) -> Store:
    """A store in a bucket of the test's own, two folders deep."""
    bucket = f"b{abs(hash(request.node.name)):x}"
    pafs.FileSystem.from_uri(f"s3://{bucket}?{server}")[0].create_dir(bucket)
    return Store(f"s3://{bucket}/deep/runs?{server}")


def put(store: Store, path: str, data: bytes) -> None:
    Files(store.root).put(path, data)


def test_appended_read_and_asked(store: Store):
    assert store.replicas().num_rows == 0
    for seed in range(12):
        store.append("replicas", [replica("t", seed)])
        store.append("curves", curve("t", seed))
    again = pickle.loads(pickle.dumps(store))
    assert again.replicas()["seed"].to_pylist() == list(range(12)) and again.curves(seed=3).num_rows == 4
    assert store.sql("SELECT count(*) AS n FROM curves").to_pylist() == [{"n": 48}]


def test_compacted_while_it_is_read(store: Store):
    early = Store(store.root)
    for round_ in range(2):
        for seed in range(5):
            store.append("replicas", [replica("t", 10 * round_ + seed)])
            store.append("curves", curve("t", 10 * round_ + seed))
        before = repr((store.rows("replicas"), store.rows("curves")))
        assert early.replicas().num_rows == 5 * (round_ + 1)
        done = {one.table: one for one in store.compact()}
        assert done["curves"].parts == 5 and done["curves"].generation == round_ + 1
        assert len(Files(store.root).list("curves")) == 5
        store.compact(grace=0)
        assert Files(store.root).list("curves") == {}
        for reader in (early, store, Store(store.root)):
            assert repr((reader.rows("replicas"), reader.rows("curves"))) == before
    query = "SELECT count(*) AS n, max(step) AS last FROM curves WHERE trial_id = 't' AND seed = 3"
    assert store.sql(query).to_pylist() == [{"n": 4, "last": 75}]
    assert store.curves(trial_id="t", seed=14).num_rows == 4 and store.check() == []


def test_created_only_if_absent(store: Store):
    """Eight writers of one name: one is told that it was first, and its bytes are there."""
    files, won = Files(store.root), []
    barrier = threading.Barrier(8)

    def write(i: int) -> None:
        mine = Files(store.root)
        barrier.wait()
        if mine.create("replicas/generations/00000001.json", f"writer {i}".encode()):
            won.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and files.load("replicas/generations/00000001.json") == f"writer {won[0]}".encode()


def test_two_compactors_at_once(store: Store):
    for seed in range(6):
        store.append("replicas", [replica("t", seed)])
    outcomes: list[compact.Compacted] = []
    barrier = threading.Barrier(2)

    def run() -> None:
        files = Files(store.root)
        barrier.wait()
        outcomes.append(compact.compact(files, "replicas", grace=0))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.parts for one in outcomes) == [0, 6]
    assert Store(store.root).replicas()["seed"].to_pylist() == list(range(6))


def test_checked_and_repaired(store: Store):
    for seed in range(3):
        store.append("replicas", [replica("t", seed)])
    files = Files(store.root)
    torn = sorted(files.list("replicas"))[1]
    put(store, f"replicas/{torn}", files.load(f"replicas/{torn}")[:400])
    put(store, "replicas/notes.txt", b"hello")
    with pytest.warns(StoreWarning, match=r"notes\.txt"):
        assert store.replicas()["seed"].to_pylist() == [0, 2]
    assert {finding.kind for finding in store.check()} == {"torn", "foreign"}
    assert all(finding.done for finding in store.check(repair=True)) and store.check() == []
    assert files.list("quarantine/replicas").keys() == {torn, "notes.txt"}
    assert Store(store.root).replicas()["seed"].to_pylist() == [0, 2]
    store.compact()
    (piece,) = [name for name in files.list("replicas/generations") if name.endswith(".parquet")]
    files.delete(f"replicas/generations/{piece}")
    (found,) = store.check(repair=True)
    assert found.kind == "missing" and found.done
    assert Store(store.root).replicas()["seed"].to_pylist() == [0, 2]


def test_the_command_line_takes_the_uri(store: Store):
    store.append("replicas", [replica("t", 1)])
    for words in (["store", "compact"], ["store", "check"], ["sql", "SELECT trial_id FROM replicas"]):
        result = CliRunner().invoke(app, [*words, "--store", store.root])
        assert result.exit_code == 0, result.output


def test_a_server_that_is_gone_is_an_error_not_an_empty_store(server: str):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = Store(f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1")
    with pytest.raises(GrokscaleError, match="cannot list the store"):  # after the client's own retries
        store.replicas()


def test_a_file_system_of_ones_own(tmp_path: Path):
    """The way to an object store, with a local folder in its place: whole objects, no temporary names."""
    (tmp_path / "bucket" / "replicas").mkdir(parents=True)
    store = Store("bucket", filesystem=pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()))
    name = store.append("replicas", [replica("t", 1)])
    assert store.local is None and os.listdir(tmp_path / "bucket" / "replicas") == [name]
    assert pickle.loads(pickle.dumps(store)).replicas()["seed"].to_pylist() == [1]
    with pytest.raises(GrokscaleError, match="create a file only if it is absent; allowed: a folder, s3://"):
        store.compact(["replicas"])
    assert store.replicas()["seed"].to_pylist() == [1]
