"""Compaction: whoever reads, writes, compacts or dies meanwhile, what counted before counts after, once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from grokscale.errors import GrokscaleError
from grokscale.store import SCHEMAS, Store, StoreWarning, compact, generations, merging, reading
from grokscale.store.files import Files
from grokscale.store.generations import Manifest
from grokscale.store.schemas import RULES
from tests.rows import curve, grokked, plan, replica, sweep, timing, trial
from tests.stores import files

COUNTS = "SELECT trial_id, count(*) AS n, sum(step) AS s FROM curves JOIN replicas USING (trial_id, seed) GROUP BY ALL"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def fill(store: Store, rng: np.random.Generator, count: int, trials: int = 6) -> None:
    """Appends `count` packs of a few seeds, some of them again and better, and a bit of everything else."""
    for _ in range(count):
        name = f"t{rng.integers(trials)}"
        seed, attempt = int(rng.integers(5)), f"try{rng.integers(3)}"
        store.append("curves", curve(name, seed, attempt, points=3))
        store.append("replicas", [replica(name, seed, attempt=attempt, observed_to=int(rng.integers(1, 9)))])
    store.append("trials", [trial("plain", 0, "t1", [1, 2]), trial("swift", 0, "t2", [1], state="asked")])
    store.append("sweeps", [sweep()])
    store.append("plans", [plan({"plain": "t1"}, [1])])
    store.append("timings", [timing("t1", 1.0, 2.0)])


def seen(store: Store) -> dict[str, str]:
    """Everything that counts, as text (NaN is no obstacle then), through Python and through SQL."""
    rows = {table: repr(store.rows(table)) for table in SCHEMAS}
    return rows | {"sql": repr(sorted(map(str, store.sql(COUNTS).to_pylist())))}


def pieces(store: Store, table: str) -> list[Path]:
    assert store.local is not None
    return [
        store.local / table / "generations" / piece.name
        for piece in generations.latest(Files(store.root), table).pieces
    ]


# ------------------------------------------------------------------------------------- what is read


def test_what_counts_stays_and_files_go_after_the_grace(store: Store):
    rng = np.random.default_rng(1)
    early = Store(store.root)
    for round_ in range(3):
        fill(store, rng, 12)
        before = seen(store)
        assert seen(early) == before
        parts = files(store, "curves")
        done = {result.table: result for result in store.compact()}
        assert done["curves"].generation == round_ + 1 and done["curves"].parts == 12 and not done["curves"].deleted
        assert done["speedups"].generation == 0 and "nothing to merge" in str(done["speedups"])
        assert files(store, "curves") == parts
        assert seen(store) == seen(early) == seen(Store(store.root)) == before
        store.compact(grace=0)
        assert files(store, "curves") == []
        assert seen(store) == seen(early) == seen(Store(store.root)) == before
        folder = pieces(store, "curves")[0].parent
        assert {path.name for path in folder.iterdir()} == {
            f"{round_ + 1:08d}.json", *(path.name for path in pieces(store, "curves"))
        }  # fmt: skip


def test_parts_over_a_generation(store: Store):
    """A later and better row wins over a compacted one, a worse one does not, in Python and in SQL."""
    store.append("replicas", [replica("t", 1), grokked("t", 2, 700), replica("u", 1)])
    store.append("trials", [trial("plain", 0, "t", [1, 2], state="asked"), trial("plain", 1, "t", [1, 2])])
    store.compact(grace=0)
    store.append("replicas", [grokked("t", 1, 900, attempt="b"), replica("t", 2, attempt="worse"), replica("s", 1)])
    store.append("trials", [trial("plain", 0, "t", [1, 2], value=1.5)])
    wanted = [("s", 1, None, "first"), ("t", 1, 900, "b"), ("t", 2, 700, "first"), ("u", 1, None, "first")]
    query = "SELECT trial_id, seed, grok_step, attempt FROM replicas ORDER BY ALL"
    for _ in range(2):
        columns = store.replicas().select(["trial_id", "seed", "grok_step", "attempt"]).to_pylist()
        assert [tuple(row.values()) for row in columns] == wanted
        assert [tuple(row.values()) for row in store.sql(query).to_pylist()] == wanted
        assert [row["value"] for row in store.rows("trials")] == [1.5, 8.0]
        assert store.answered(["t"])["t", 1]["attempt"] == "b"
        store.compact(grace=0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which a few hundred rows are much."""
    monkeypatch.setattr(merging, "CHUNK", 30_000)
    monkeypatch.setattr(compact, "CHUNK", 30_000)
    monkeypatch.setattr(compact, "_GROUP", 4_000)
    monkeypatch.setattr(reading, "_KEPT", 0)


def many(store: Store, rng: np.random.Generator, count: int) -> None:
    for _ in range(count):
        name = f"{rng.integers(16**4):04x}"
        store.append("curves", curve(name, 1, points=40))
        store.append("replicas", [replica(name, 1)])


def test_more_than_fits_into_memory_at_once(store: Store, small: None):
    """Pieces of bounded size, disjoint, sorted; one into whose range nothing falls is kept as it is."""
    rng = np.random.default_rng(2)
    for _ in range(3):
        many(store, rng, 60)
        before = seen(store)
        store.compact(grace=0)
        assert seen(store) == seen(Store(store.root)) == before
        manifest = generations.latest(Files(store.root), "curves")
        assert len(manifest.pieces) > 5 and manifest.disjoint
        assert max(piece.nbytes for piece in manifest.pieces) < 3 * 30_000
    keys = [key for path in pieces(store, "curves") for key in pq.read_table(path, columns=["trial_id"])["trial_id"]]
    assert keys == sorted(keys, key=lambda key: key.as_py())
    whole = set(pieces(store, "curves"))
    store.append("curves", curve("zzzz", 1))
    store.compact(grace=0)
    assert len(whole & set(pieces(store, "curves"))) >= len(whole) // 2


def test_one_trial_reads_only_where_it_may_be(store: Store, small: None):
    """Every other piece is ruined, and every row group of its own but the one that it is in."""
    many(store, np.random.default_rng(3), 120)
    store.compact(["curves"], grace=0)
    paths = pieces(store, "curves")
    assert len(paths) > 5
    home = paths[2]
    metadata = pq.ParquetFile(home).metadata
    assert metadata.num_row_groups > 2
    column = metadata.schema.names.index("trial_id")
    last = metadata.row_group(metadata.num_row_groups - 1)
    name = last.column(column).statistics.max
    wanted = repr(store.curves(trial_id=name).to_pylist())
    for path in paths:
        if path != home:
            path.write_bytes(b"ruined")
    data = bytearray(home.read_bytes())
    before = metadata.row_group(0)
    data[4 : 4 + before.column(0).total_compressed_size] = bytes(before.column(0).total_compressed_size)
    home.write_bytes(data)
    reader = Store(store.root)
    assert repr(reader.curves(trial_id=name).to_pylist()) == wanted and wanted.count(name) >= 40
    assert reader.curves(trial_id="nowhere").num_rows == 0
    with pytest.raises(GrokscaleError, match=r"cannot read what was compacted.*grokscale store check"):
        reader.curves()


def test_statistics_are_there_for_the_columns_of_the_key(store: Store):
    for name in ("b", "a"):
        store.append("curves", curve(name, 2))
    store.compact(["curves"], grace=0)
    [path] = pieces(store, "curves")
    file = pq.ParquetFile(path)
    for column in RULES["curves"].keys:
        statistics = file.metadata.row_group(0).column(file.schema_arrow.get_field_index(column)).statistics
        assert statistics is not None and statistics.has_min_max, column


def test_what_cannot_be_merged_whole_stays_as_it_is(store: Store):
    store.append("replicas", [replica("t", 1)])
    store.append("replicas", [replica("t", 2)])
    torn, later = files(store, "replicas")
    torn.write_bytes(torn.read_bytes()[:900])
    rows = pq.read_table(later)
    metadata = rows.schema.metadata
    pq.write_table(rows.append_column("later", rows["host"]).replace_schema_metadata(metadata), later)
    store.append("replicas", [replica("t", 3)])
    (done,) = store.compact(["replicas"], grace=0)
    assert done.parts == 1 and dict(done.kept).keys() == {torn.name, later.name}
    assert "columns that this version does not know: later" in str(done) and torn.name in str(done)
    assert files(store, "replicas") == [torn, later]
    with pytest.warns(StoreWarning, match="torn or damaged"):
        assert store.replicas()["seed"].to_pylist() == [2, 3]


def test_tables_are_named(store: Store):
    with pytest.raises(GrokscaleError, match="did you mean 'curves'"):
        store.compact(["curve"])


# -------------------------------------------------------------------------------- at the same time


class Meeting(Files):
    """Files that let something happen just after, or just before, an operation of theirs."""

    def __init__(self, root: str, on: str, act: Callable[[], object], *, pattern: str = "") -> None:
        super().__init__(root)
        self._on, self._act, self._pattern, self.met = on, act, pattern, 0

    def _meet(self, on: str, path: str) -> None:
        if on == self._on and self._pattern in path and not self.met:
            self.met += 1
            self._act()

    def list(self, folder: str, *, hidden: bool = False):
        found = super().list(folder, hidden=hidden)
        self._meet("listed", folder)
        return found

    def create(self, path: str, data: bytes) -> bool:
        self._meet("create", path)
        return super().create(path, data)


@pytest.mark.parametrize("folder", ["replicas", "replicas/generations"])
def test_a_reader_whose_listing_is_old_reads_on(store: Store, folder: str):
    """The store is compacted, and what was merged away deleted at once, between its looks."""
    for seed in range(9):
        store.append("replicas", [replica("t", seed)])
    store.compact(grace=0)
    store.append("replicas", [replica("t", 9)])
    meeting = Meeting(store.root, "listed", lambda: store.compact(["replicas"], grace=0), pattern=folder)
    reader = reading.Reader(meeting, "replicas", keep=True)
    assert reader.rows({})["seed"].to_pylist() == list(range(10)) and meeting.met
    assert not files(store, "replicas")
    assert reader.rows({})["seed"].to_pylist() == list(range(10))


def test_of_two_compactions_of_a_generation_one_counts(store: Store):
    """The other has its pieces written and its manifest ready: it is told, and takes its pieces away."""
    fill(store, np.random.default_rng(4), 9)
    before = seen(store)

    def quicker() -> None:
        for lease in (Path(store.root) / "replicas" / "generations").glob("*.lease"):
            lease.unlink()  # as if it were over
        store.append("replicas", [replica("new", 1)])
        assert store.compact(["replicas"])[0].generation == 1

    meeting = Meeting(store.root, "create", quicker, pattern=".json")
    done = compact.compact(meeting, "replicas", grace=3600)
    assert done.note == "another compaction was quicker" and done.generation == 0 and meeting.met
    folder = Path(store.root) / "replicas" / "generations"
    assert {path.name for path in folder.glob("*.parquet")} == {path.name for path in pieces(store, "replicas")}
    assert {**seen(store), "replicas": ""} == {**before, "replicas": ""}
    assert repr(store.rows("replicas", trial_id=[f"t{i}" for i in range(9)])) == before["replicas"]


def test_a_request_that_was_sent_twice_is_not_taken_for_anothers(store: Store):
    """An object store may have done what it then failed to answer; the client asks again and is told 'there is'."""

    class Twice(Files):
        def create(self, path: str, data: bytes) -> bool:
            first = super().create(path, data)
            return super().create(path, data) if path.endswith(".json") else first

    store.append("replicas", [replica("t", 1)])
    assert compact.compact(Twice(store.root), "replicas", grace=0).generation == 1
    assert Store(store.root).replicas()["seed"].to_pylist() == [1] and not files(store, "replicas")


def test_a_lease_keeps_the_second_compactor_away_until_it_is_over(store: Store):
    store.append("replicas", [replica("t", 1)])
    folder = Path(store.root) / "replicas" / "generations"
    folder.mkdir()

    def lease(number: int, holder: str, until: float) -> None:
        (folder / f"00000001.{number}.lease").write_text(json.dumps({"holder": holder, "until": until}))

    lease(0, "elsewhere:1", 4e9)
    (done,) = store.compact(["replicas"])
    assert done.generation == 0 and "another compaction is under way: elsewhere:1" in str(done)
    lease(0, "elsewhere:1", 0.0)
    lease(1, f"{socket.gethostname()}:{os.getpid()}", 4e9)  # a living process of this machine
    assert "under way" in str(store.compact(["replicas"])[0])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lease(1, f"{socket.gethostname()}:{ended.pid}", 4e9)
    (folder / "00000001.2.lease").write_text("torn")
    assert store.compact(["replicas"], grace=0)[0].generation == 1
    assert not list(folder.glob("*.lease"))


# ------------------------------------------------------------------------------------- sudden death


class Killed(BaseException):
    """The process is no more."""


class Dying(Files):
    """Files of a process that is killed before its change number `left`; after that it changes nothing."""

    def __init__(self, root: str, left: int) -> None:
        super().__init__(root)
        self._left = left

    def _breathe(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Killed

    def put(self, path: str, data: memoryview | bytes) -> None:
        self._breathe()
        super().put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        self._breathe()
        return super().create(path, data)

    def delete(self, path: str) -> None:
        self._breathe()
        super().delete(path)


def test_killed_at_any_point_it_loses_and_doubles_nothing(store: Store, small: None):
    """With something compacted before, so that there are pieces to carry over, to merge and to delete."""
    rng = np.random.default_rng(5)
    many(store, rng, 12)
    store.compact(grace=0)
    deaths = 0
    for left in range(200):
        many(store, rng, 2)
        before = seen(store)
        try:
            compact.compact(Dying(store.root, left), "curves", grace=0)
        except Killed:
            deaths += 1
        else:
            break
        assert seen(store) == seen(Store(store.root)) == before
        for lease in (Path(store.root) / "curves" / "generations").glob("*.lease"):
            lease.write_text("")  # its time passes
    else:
        pytest.fail("it never came to its end")
    assert deaths > 5 and seen(Store(store.root)) == before
    store.compact(grace=0)
    there = {path.name for path in (Path(store.root) / "curves" / "generations").iterdir()}
    number = generations.latest(Files(store.root), "curves").name
    assert there == {number, *(path.name for path in pieces(store, "curves"))}  # nothing of the dead is left
    assert seen(store) == before


def test_a_slow_compactor_cannot_bring_back_an_old_number(store: Store):
    """Manifests that came and went leave their numbers free; what is created there counts for nothing."""
    for seed in range(4):
        store.append("replicas", [replica("t", seed)])
        store.compact(grace=0)
    assert Files(store.root).create("replicas/generations/00000002.json", Manifest(2).to_json())
    assert Store(store.root).replicas()["seed"].to_pylist() == list(range(4))
    store.append("replicas", [replica("t", 4)])
    store.compact(grace=0)
    assert [path.name for path in (Path(store.root) / "replicas/generations").glob("*.json")] == ["00000005.json"]
