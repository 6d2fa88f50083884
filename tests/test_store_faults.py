"""Disks and roots that fail: a clear error, nothing half-written to read, nothing lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from grokscale.errors import GrokscaleError, StoreError
from grokscale.spec import seed_for
from grokscale.store import Store, StoreWarning
from grokscale.worker import Work
from tests.rows import curve, replica
from tests.stores import files
from tests.test_sweep import resolve
from tests.test_worker import job


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, where mounting is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"FULL DISK AND READ-ONLY ROOT NOT TESTED: cannot mount: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def large(name: str, seed: int) -> dict:
    points = 20_000
    noise = np.random.default_rng(seed).random(points)  # does not compress
    return curve(name, seed, points=points, step=np.arange(points), train_loss=noise, test_loss=noise[::-1])


def test_a_full_disk_is_named_and_what_was_acknowledged_stays(disk: Path):
    store = Store(disk / "runs")
    written = 0
    with pytest.raises(GrokscaleError, match=r"curves.*cannot write to the store.*No space left"):
        for seed in range(100):
            store.append("replicas", [replica("t", seed)])
            store.append("curves", large("t", seed))
            written += 1
    assert 0 < written < 100
    assert not list((disk / "runs" / "curves").glob(".*.tmp"))  # the half of it has been taken away
    assert store.curves().num_rows == 20_000 * written  # warnings are errors: nothing torn
    before = {path: path.read_bytes() for path in files(store, "curves")}
    with pytest.raises(GrokscaleError, match=r"cannot write to the store.*No space left"):
        store.compact(["curves"])
    assert {path: path.read_bytes() for path in files(store, "curves")} == before
    assert Store(store.root).curves().num_rows == 20_000 * written
    next(iter(before)).unlink()  # somebody makes room
    assert store.append("replicas", [replica("u", 1)]) and store.replicas(trial_id="u").num_rows == 1


def test_a_read_only_root_is_read_and_named_by_who_would_write(disk: Path):
    store = Store(disk / "runs")
    store.append("replicas", [replica("t", 1)])
    store.append("curves", curve("t", 1))
    (disk / "runs" / "replicas" / "notes.txt").write_text("hello")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    reader = Store(disk / "runs")
    with pytest.warns(StoreWarning, match=r"notes\.txt"):
        assert reader.replicas()["seed"].to_pylist() == [1]
    assert reader.curves().num_rows == 4 and reader.sql("SELECT seed FROM replicas").num_rows == 1
    (found,) = reader.check()
    for act in (
        lambda: reader.append("replicas", [replica("t", 2)]),
        lambda: reader.compact(),
        lambda: reader.check(repair=True),
        lambda: reader.folder("checkpoints"),
    ):
        with pytest.raises(GrokscaleError, match=r"Read-only file system"):
            act()
    assert reader.check() == [found]


def test_a_worker_whose_store_may_only_be_read_fails_for_the_store(disk: Path):
    """Not for its trial, which the driver would try again and give up."""
    store, asked = Store(disk / "runs"), job(resolve(), [seed_for("run", 0)], 400)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StoreError, match=r"runs/claims: cannot write to the store: Read-only file system"):
        Work(store, asked)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    work = Work(store, asked)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StoreError, match=r"claims/\w+: cannot write to the store: Read-only file system"):
        list(work)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    list(Work(store, asked))
    assert store.replicas().num_rows == 1


def test_a_worker_whose_store_goes_away_fails_for_the_store(tmp_path: Path):
    store, asked = Store(tmp_path / "runs"), job(resolve(), [seed_for("run", 0)], 400)
    work = Work(store, asked)
    steps = iter(work)
    next(steps)
    (tmp_path / "runs").rename(tmp_path / "away")
    for late in (lambda: list(steps), lambda: Work(store, asked)):
        with pytest.raises(StoreError, match=r"is gone \(unmounted\?\)"):
            late()
    assert not (tmp_path / "runs").exists()
    (tmp_path / "away").rename(tmp_path / "runs")
    list(Work(store, asked))
    assert store.replicas().num_rows == 1


def test_a_scratch_folder_that_cannot_be_used_is_named(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Sorting takes room in TMPDIR; the store itself has enough."""
    store = Store(tmp_path / "runs")
    for seed in range(8):
        store.append("replicas", [replica("t", seed)])
        store.append("curves", large("t", seed))
    (disk / "ballast").write_bytes(bytes(3_900_000))
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    with pytest.raises(GrokscaleError, match=r"cannot sort there.*TMPDIR names another place"):
        store.compact(["curves"])
    monkeypatch.undo()
    assert store.curves().num_rows == 8 * 20_000
    assert store.compact(["curves"], grace=0)[0].parts == 8 and store.curves().num_rows == 8 * 20_000
