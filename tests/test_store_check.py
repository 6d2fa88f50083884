"""`store check`: every file that is not as it should be is named, a repair sets it aside, nothing is deleted."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from grokscale.cli import app
from grokscale.errors import GrokscaleError
from grokscale.store import Store
from grokscale.store.check import Finding
from tests.rows import curve, replica, timing
from tests.stores import files

DAY = 86_400
OLD = (time.time() - 3 * DAY, time.time() - 3 * DAY)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs")
    for seed in range(3):
        store.append("curves", curve("t", seed))
        store.append("replicas", [replica("t", seed)])
    return store


def kinds(found: list[Finding]) -> dict[str, str]:
    return {finding.path: finding.kind for finding in found}


def everything(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(store.root).rglob("*") if path.is_file()}


def old(path: Path) -> Path:
    """The part as if written three days ago."""
    renamed = path.with_name(f"{int(OLD[0] * 1e9):019d}-{path.name.partition('-')[2]}")
    return path.rename(renamed)


def test_nothing_is_wrong_with_a_store_that_is_used(store: Store):
    store.append("curves", curve("t", 9))  # its replica is on the way
    (Path(store.root) / "curves" / ".x.tmp").write_text("an append under way")
    assert store.check() == []
    store.compact()
    store.append("replicas", [replica("t", 3)])
    assert store.check() == []
    store.compact(grace=0)
    assert store.check() == [] and store.check(grace=0)[0].kind == "leftover"
    assert Store(Path(store.root) / "empty").check() == [] and not (Path(store.root) / "empty").exists()


def test_each_kind_is_named_and_set_aside_and_nothing_is_lost(store: Store):
    replicas, curves = files(store, "replicas"), files(store, "curves")
    folder = replicas[0].parent
    replicas[1].write_bytes(replicas[1].read_bytes()[:500])
    (folder / "notes.txt").write_text("hello")
    store.append("timings", [timing("t", 1.0, 1.0)])
    strange = folder / files(store, "timings")[0].name
    strange.write_bytes(files(store, "timings")[0].read_bytes())
    copy = curves[0].with_name(f"{time.time_ns()}-{'0' * 32}.parquet")
    copy.write_bytes(curves[0].read_bytes())
    store.append("curves", curve("nobody", 1))
    orphan = old(files(store, "curves")[-1])
    (folder / ".cut.parquet.tmp").write_text("half")
    os.utime(folder / ".cut.parquet.tmp", OLD)
    wanted = {
        f"replicas/{replicas[1].name}": "torn",
        "replicas/notes.txt": "foreign",
        f"replicas/{strange.name}": "foreign",
        f"curves/{copy.name}": "duplicate",
        f"curves/{orphan.name}": "orphan",
        "replicas/.cut.parquet.tmp": "leftover",
    }
    # The curves of the torn file's replica are too young to be orphans.
    before = everything(store)
    assert kinds(store.check()) == wanted and everything(store) == before
    done = store.check(repair=True)
    assert kinds(done) == wanted and all(finding.done for finding in done)
    assert sorted(everything(store).values()) == sorted(before.values())
    assert {path.name for path in (Path(store.root) / "quarantine" / "curves").iterdir()} == {copy.name, orphan.name}
    assert store.check() == []
    assert store.replicas()["seed"].to_pylist() == [0, 2] and store.curves().num_rows == 8  # warnings are errors
    (folder / "notes.txt").write_text("hello again")
    store.check(repair=True)
    assert len(list((Path(store.root) / "quarantine" / "replicas").glob("notes.txt*"))) == 2


def piece(store: Store, table: str) -> Path:
    (found,) = (Path(store.root) / table / "generations").glob("*.parquet")
    return found


@pytest.mark.parametrize("harm", ["piece torn", "piece gone", "manifest torn"])
def test_a_generation_that_was_harmed_within_the_grace_comes_back_whole(store: Store, harm: str):
    store.compact()
    store.append("replicas", [replica("t", 3)])
    victim = piece(store, "replicas")
    manifest = victim.parent / "00000001.json"
    if harm == "piece torn":
        victim.write_bytes(victim.read_bytes()[:-50])
    elif harm == "piece gone":
        victim.unlink()
    else:
        manifest.write_text("{")
    with pytest.raises(GrokscaleError, match="grokscale store check"):
        Store(store.root).replicas()
    (found,) = store.check()
    assert found.kind == ("missing" if harm == "piece gone" else "torn") and "make a new manifest" in found.action
    with pytest.raises(GrokscaleError):
        store.replicas()
    (done,) = store.check(repair=True)
    assert done.done and store.check() == []
    assert Store(store.root).replicas()["seed"].to_pylist() == store.replicas()["seed"].to_pylist() == [0, 1, 2, 3]
    assert store.sql("SELECT count(*) AS n FROM replicas").to_pylist() == [{"n": 4}]
    store.compact(grace=0)
    assert Store(store.root).replicas()["seed"].to_pylist() == [0, 1, 2, 3] and not files(store, "replicas")


def test_after_the_grace_the_rest_comes_back(store: Store):
    """What only the lost piece had is lost; what came later, or is in a piece that can be read, is not."""
    store.compact(grace=0)
    piece(store, "replicas").unlink()
    store.append("replicas", [replica("t", 7)])
    with pytest.raises(GrokscaleError, match=r"files vanish.*grokscale store check"):
        Store(store.root).replicas()
    store.check(repair=True)
    assert Store(store.root).replicas()["seed"].to_pylist() == [7]
    assert store.curves().num_rows == 0 and len(everything(store)) == 4


def test_pieces_of_a_dead_compactor_and_leases_are_leftovers(store: Store):
    store.compact()
    folder = piece(store, "curves").parent
    (folder / f"00000001-{'a' * 32}.parquet").write_bytes(piece(store, "curves").read_bytes())
    young = folder / f"00000002-{'b' * 32}.parquet"  # perhaps of one that is at work
    young.write_bytes(b"whatever")
    (folder / "00000002.0.lease").write_text("{}")
    assert kinds(store.check()) == {f"curves/generations/00000001-{'a' * 32}.parquet": "leftover"}
    os.utime(young, OLD)
    os.utime(folder / "00000002.0.lease", OLD)
    (folder / "todo.md").write_text("hi")
    assert sorted(kinds(store.check(repair=True)).values()) == ["foreign", "leftover", "leftover", "leftover"]
    assert store.check() == [] and store.curves().num_rows == 12


def test_a_newer_file_is_left_alone(store: Store):
    path = files(store, "replicas")[0]
    rows = pq.read_table(path)
    pq.write_table(
        rows.replace_schema_metadata({"grokscale.table": "replicas", "grokscale.schema": "999"}), path
    )
    (found,) = store.check(repair=True)
    assert found.kind == "newer" and not found.done and "update grokscale" in str(found) and path.exists()


def test_the_verbs(store: Store):
    def call(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["store", *words, "--store", store.root])
        assert result.exit_code == code, result.output
        return result.output

    assert "all is well" in call("check")
    assert "replicas: 3 files merged; generation 1 has 3 rows; 3 deleted" in call("compact", "--grace", "0")
    (Path(store.root) / "replicas" / "notes.txt").write_text("hello")
    said = call("check", code=1)
    assert "replicas/notes.txt: foreign: not a name that the store gives; would: move to quarantine/" in said
    assert "1 to look at; --repair" in said
    assert "done: move to quarantine/" in call("check", "--repair")
    assert "all is well" in call("check")
    assert json.loads((Path(store.root) / "replicas/generations/00000001.json").read_text())["number"] == 1
