"""Kept weights beside the tables: what `store check` finds among them, what `store publish` takes along."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import grokscale
from grokscale.cli import app
from grokscale.errors import GrokscaleError
from grokscale.store import Store
from grokscale.store.kept import copy
from grokscale.train import Kept
from grokscale.weights import write_weights
from grokscale.worker import Work
from tests.rows import sweep
from tests.rows import trial as asked
from tests.trials import GROKS, trial

OLD = time.time() - 3 * 86_400


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two replicas of one trial with their last weights, in a sweep."""
    spec, store = trial(GROKS), Store(tmp_path_factory.mktemp("runs") / "runs")
    job = {"spec": spec.canonical(), "seeds": [1, 2], "horizon": 50, "until": "stable"}
    list(Work(store, {"job": job, "lanes": 2, "device": "cpu", "keep": "final"}))
    store.append("trials", [asked("swift", 0, spec.trial_id, [1, 2], phase="confirm")])
    store.append("sweeps", [sweep()])
    return store


def aged(path: Path) -> Path:
    """The file as if written three days ago."""
    os.utime(path, (OLD, OLD))
    return path


def everything(root: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in root.rglob("*") if path.is_file())


def test_weights_of_replicas_that_count_are_as_they_should_be(trained: Store):
    for path in trained.folder("weights").rglob("*.pt"):
        aged(path)
    assert trained.check() == trained.check(grace=0) == []


def test_each_kind_among_weights_is_named_and_set_aside(trained: Store, tmp_path: Path):
    spec, store = trial(GROKS), Store(tmp_path)
    store.append("replicas", trained.replicas())
    assert copy(trained.local, store.local, [spec.trial_id]) == 2
    folder = tmp_path / "weights" / spec.trial_id
    torn, whole = sorted(folder.iterdir())
    torn.write_bytes(torn.read_bytes()[:500])
    lost = aged(write_weights(store, spec, Kept(7, 50, {"w": torch.ones(3)}, None)))
    write_weights(store, spec, Kept(8, 50, {"w": torch.ones(3)}, None))  # its replica's row may be on the way
    for trial_id in ("other", "busy"):
        other = tmp_path / "weights" / trial_id / lost.name
        other.parent.mkdir()
        other.write_bytes(lost.read_bytes())
        aged(other)
    (store.folder("checkpoints") / "busy-1.pt").write_text("a trial that is still training")
    (folder / "notes.txt").write_text("mine")
    cut = folder / ".3-50.pt.99.tmp"
    cut.write_text("half")
    aged(cut)
    where = f"weights/{spec.trial_id}"
    assert {finding.path: finding.kind for finding in store.check()} == {
        f"{where}/{torn.name}": "torn", f"{where}/{lost.name}": "orphan", f"weights/other/{lost.name}": "orphan",
        f"{where}/notes.txt": "foreign", f"{where}/{cut.name}": "leftover",
    }  # fmt: skip
    before = everything(tmp_path)
    assert all(finding.done for finding in store.check(repair=True))
    assert everything(tmp_path) == before  # nothing is deleted
    assert (tmp_path / "quarantine" / "weights" / "other" / lost.name).is_file()
    assert (tmp_path / "quarantine" / where / lost.name).is_file() and whole.is_file()
    assert store.check() == []


def test_weights_are_published_on_request_once_and_whole(trained: Store, tmp_path: Path):
    words = ["store", "publish", str(tmp_path / "plain"), "--store", trained.root]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert not (tmp_path / "plain" / "weights").exists()
    row = trained.replicas().to_pylist()[0]
    with pytest.raises(GrokscaleError, match=r"not kept \(at no step\)"):
        grokscale.load_model(Store(tmp_path / "plain"), row["trial_id"], row["seed"])
    words = ["store", "publish", str(tmp_path / "full"), "--weights", "--store", trained.root]
    assert "weights: 2 files" in CliRunner().invoke(app, words).stdout.splitlines()
    assert "weights: 0 files" in CliRunner().invoke(app, words).stdout.splitlines()
    full = Store(tmp_path / "full")
    assert grokscale.load_model(full, row["trial_id"], row["seed"]).accuracy("test") == row["final_acc"]
    assert full.check(grace=0) == []
    with pytest.raises(GrokscaleError, match="both stores must be folders"):
        copy(trained.local, None, [row["trial_id"]])
