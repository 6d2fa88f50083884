"""The store's files: what does not belong there is skipped by name, and nothing is read twice."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscale.errors import GrokscaleError, StoreError
from grokscale.store import Store, StoreWarning
from grokscale.store.files import Files
from tests.rows import curve, grokked, replica, sweep, timing, trial
from tests.stores import ROOT, files


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")

# -------------------------------------------------------------------------- what does not belong there


@settings(max_examples=30, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True), flip=st.booleans())
def test_a_torn_or_damaged_file_is_skipped_by_name_and_kept(
    tmp_path_factory: pytest.TempPathFactory, cut: float, flip: bool
):
    """Cut anywhere, or one bit turned anywhere: skipped or harmless, never wrong rows, never an exception."""
    store = Store(tmp_path_factory.mktemp("runs"))
    store.append("replicas", [replica("t", 1)])
    store.append("replicas", [replica("t", 2, wall_s=2.5)])
    whole = store.replicas().to_pylist()
    victim = files(store, "replicas")[1]
    data = bytearray(victim.read_bytes())
    at = int(cut * len(data))
    damaged = (
        bytes(data[:at]) if not flip else bytes(data[:at]) + bytes([data[at] ^ 16]) + bytes(data[at + 1 :])
    )
    victim.write_bytes(damaged)
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reader = Store(store.root)
        rows = reader.replicas().to_pylist()
        again = reader.replicas().to_pylist()
    messages = [str(w.message) for w in caught if w.category is StoreWarning]
    assert rows == again and len(messages) <= 1  # said once
    if messages:
        assert victim.name in messages[0] and rows == whole[:1]
    else:
        assert flip and rows == whole
    assert victim.read_bytes() == damaged


def test_foreign_files_are_skipped_with_one_warning_that_names_them(store: Store):
    store.append("replicas", [replica("t", 1)])
    store.append("timings", [timing("t", 1.0, 1.0)])
    folder = files(store, "replicas")[0].parent
    (folder / "notes.txt").write_text("hello")
    (folder / "export.parquet").write_bytes(files(store, "replicas")[0].read_bytes())
    strange = f"{time.time_ns()}-{'0' * 32}.parquet"
    pq.write_table(pa.table({"a": [1]}), folder / strange)
    (folder / files(store, "timings")[0].name).write_bytes(files(store, "timings")[0].read_bytes())
    (folder / "backup").mkdir()
    with pytest.warns(StoreWarning) as caught:
        assert store.replicas()["seed"].to_pylist() == [1]
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "notes.txt (not a name" in message and "export.parquet (not a name" in message
    assert f"{strange} (not written by grokscale)" in message and "(a file of table 'timings')" in message
    assert "backup" not in message
    assert store.replicas()["seed"].to_pylist() == [1]  # warnings are errors: it is not said again
    assert (folder / "notes.txt").read_text() == "hello"


def test_files_of_an_earlier_and_a_later_version(store: Store):
    """Columns are only ever added: missing ones are null, unknown ones left out, other types foreign."""
    store.append("replicas", [replica("t", 1, git_sha="abc")])
    path = files(store, "replicas")[0]
    table = pq.read_table(path)

    def put(changed: pa.Table) -> None:
        pq.write_table(
            changed.replace_schema_metadata({"grokscale.table": "replicas"}),
            path.parent / f"{time.time_ns()}-{os.urandom(16).hex()}.parquet",
        )

    def as_seed(seed: int) -> pa.Table:
        return table.set_column(table.schema.get_field_index("seed"), "seed", pa.array([seed]))

    put(as_seed(2).drop_columns(["git_sha"]))
    put(as_seed(3).append_column("invented_later", pa.array(["x"])))
    assert store.replicas().select(["seed", "git_sha"]).to_pylist() == [
        {"seed": 1, "git_sha": "abc"},
        {"seed": 2, "git_sha": None},
        {"seed": 3, "git_sha": "abc"},
    ]
    put(as_seed(4).drop_columns(["host"]))
    put(table.set_column(table.schema.get_field_index("seed"), "seed", pa.array(["5"])))
    with pytest.warns(StoreWarning, match=r"column host is missing.*column seed is string"):
        assert store.replicas()["seed"].to_pylist() == [1, 2, 3]


def test_a_root_that_cannot_be_used_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GrokscaleError, match="cannot write to the store"):
        Store(tmp_path / "file").append("replicas", [replica()])
    with pytest.raises(GrokscaleError, match=r"not a place for a store.*allowed: a folder, s3://"):
        Store("ftp://somewhere/runs")
    with pytest.raises(GrokscaleError, match="object store has no folder"):
        Store("runs", filesystem=pafs.LocalFileSystem()).folder("checkpoints")


# ------------------------------------------------------------------------------- a root that goes away

GONE = r"the store at .*runs is gone \(unmounted\?\); what was stored is safe: mount it again, then resume"


def users(store: Store) -> list[Callable[[], object]]:
    """What somebody may do with a store: write, ask for a folder that was there and for a new one, read, merge."""
    return [
        lambda: store.append("replicas", [replica("t", 9)]), lambda: store.append("timings", [timing("t", 1.0, 1.0)]),
        lambda: store.folder("claims"), lambda: store.sweep_dir("q-1"), lambda: store.replicas(),
        lambda: store.sweeps(), lambda: store.sql("SELECT * FROM replicas"), lambda: store.compact(),
        lambda: store.check(repair=True),
    ]  # fmt: skip


@pytest.mark.parametrize("opened", ["before it was made", "since"])
@pytest.mark.parametrize("left", ["nothing", "an empty folder", "another store"])
def test_a_root_that_goes_away_is_no_empty_store(store: Store, tmp_path: Path, opened: str, left: str):
    root, away = tmp_path / "runs", tmp_path / "away"
    Store(root).append("replicas", [replica("t", 1)])
    if opened == "since":
        store = Store(root)
    assert store.folder("claims") and store.replicas().num_rows == 1
    root.rename(away)
    if left != "nothing":
        root.mkdir()
    if left == "another store":
        Store(root).append("replicas", [replica("other", 1)])
    before = sorted(tmp_path.rglob("*"))
    for use in users(store):
        with pytest.raises(StoreError, match=GONE):
            use()
    assert sorted(tmp_path.rglob("*")) == before
    if left != "nothing":
        shutil.rmtree(root)
    away.rename(root)
    assert store.replicas()["seed"].to_pylist() == [1]
    assert store.append("replicas", [replica("t", 2)]) and store.replicas()["seed"].to_pylist() == [1, 2]


def test_a_root_that_was_never_used_is_known_by_its_folder_too(store: Store, tmp_path: Path):
    (tmp_path / "runs").mkdir()
    opened = Store(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "away")
    with pytest.raises(StoreError, match=GONE):
        opened.append("replicas", [replica("t", 1)])
    assert store.replicas().num_rows == 0 and not (tmp_path / "runs").exists()  # who has not seen it reads nothing
    (tmp_path / "runs").mkdir()
    with pytest.raises(StoreError, match=GONE):
        opened.replicas()


def test_a_root_with_another_number_is_the_same_if_all_is_there(store: Store, tmp_path: Path):
    """As a share is that was mounted anew."""
    store.append("replicas", [replica("t", 1)])
    root = tmp_path / "runs"
    reader = Store(root)
    assert reader.replicas().num_rows == 1
    root.rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", root)
    assert reader.replicas().num_rows == 1
    store.append("replicas", [replica("t", 2)])
    assert Store(root).replicas()["seed"].to_pylist() == [1, 2]


def test_a_root_that_vanishes_within_a_write_is_not_made_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store.append("replicas", [replica("t", 1)])
    there = Files._there

    def and_gone(self: Files) -> bool:
        found = there(self)
        shutil.rmtree(tmp_path / "runs")
        return found

    monkeypatch.setattr(Files, "_there", and_gone)
    with pytest.raises(StoreError, match=r"cannot write to the store: .*No such file"):
        store.append("timings", [timing("t", 1.0, 1.0)])
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------------------- reading again, elsewhere


def test_a_file_is_read_once_and_rows_of_vanished_files_go(store: Store):
    reader = Store(store.root)
    for seed in range(3):
        store.append("replicas", [replica("t", seed)])
        assert reader.replicas()["seed"].to_pylist() == list(range(seed + 1))
    first, second, _ = files(store, "replicas")
    first.write_bytes(b"never looked at again")  # (nothing ever does this)
    assert reader.replicas()["seed"].to_pylist() == [0, 1, 2]
    first.write_bytes(second.read_bytes())
    second.unlink()  # as a compaction does, after writing its rows elsewhere
    assert reader.replicas()["seed"].to_pylist() == [1, 2]


def test_the_root_is_absolute_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    store = Store("runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.append("replicas", [replica("t", 1)])
    assert store.root == str(tmp_path / "runs") and (tmp_path / "runs" / "replicas").is_dir()
    assert store.sweep_dir("q-1") == tmp_path / "runs" / "sweeps" / "q-1"
    assert store.sweeps() == []  # the folder of a sweep is no file of the table


def test_to_another_process_goes_the_place_only(store: Store):
    store.append("replicas", [replica("t", 1)])
    assert store.replicas().num_rows == 1
    sent = pickle.dumps(store)
    assert len(sent) < 1000 and pickle.loads(sent).replicas().equals(store.replicas())


def test_reading_loads_none_of_the_large_libraries(store: Store):
    """`grokscale results` has two seconds, and pyarrow would spend one on importing pandas."""
    store.append("replicas", [grokked("t", 1, 700)])
    store.append("curves", curve("t", 1))
    store.append("sweeps", [sweep()])
    store.append("trials", [trial("plain", 0, "t", [1, 2])])
    code = """
import sys
from grokscale import answers, stats
from grokscale.store import SCHEMAS, Store
store = Store(sys.argv[1])
assert len(store.rows("replicas", sweep="q", arm=["plain"], seed=1)) == len(store.answered(["t"])) == 1
assert store.curves(arm="plain", phase="search").num_rows == 4
assert all(len(store.rows(table)) >= 0 for table in SCHEMAS)
print({"duckdb", "scipy.stats", "torch", "ray", "pandas", "mlflow", "optuna"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, store.root], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "set()"


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GrokscaleError, match=r"file/runs/sweeps/x: cannot write to the store"):
        Store(tmp_path / "file" / "runs").sweep_dir("x")
