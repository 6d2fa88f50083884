"""Writers that live and die: what was acknowledged is there, and nothing half-written is seen."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from grokscale.store import Store
from tests.rows import curve, replica
from tests.stores import UNTIL_MERGED, compactor, files, generation, writer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def test_two_writers_and_a_reader_at_once(store: Store):
    """Every look sees whole files (warnings are errors), never fewer rows, and every row with its curve."""
    writers = [writer(store, name, 25) for name in ("left", "right")]
    seen = 0
    while any(process.poll() is None for process in writers):
        rows = store.replicas()
        curves = store.curves()
        assert rows.num_rows >= seen and curves.num_rows >= 4 * rows.num_rows
        seen = rows.num_rows
    for process in writers:
        process.communicate()
        assert process.returncode == 0
    assert store.replicas().select(["trial_id", "seed"]).to_pylist() == [
        {"trial_id": name, "seed": seed} for name in ("left", "right") for seed in range(25)
    ]
    assert store.curves().num_rows == 4 * 50 and len(files(store, "replicas")) == 50


def test_many_writers_while_a_compactor_deletes_at_once(store: Store):
    """8 x 40 appends and more: none lost, none doubled, and what a reader has seen once it sees again."""
    merging = compactor(store, grace=0)
    assert merging.stdout is not None and merging.stdout.readline() == "ready\n"
    writers = [*(writer(store, f"w{i}", 40) for i in range(7)), writer(store, "w7", 40, UNTIL_MERGED)]
    seen = 0
    try:
        while any(process.poll() is None for process in writers):
            rows = store.replicas()  # warnings are errors
            assert rows.num_rows >= seen
            assert store.curves(trial_id="w0").num_rows >= 4 * rows["trial_id"].to_pylist().count("w0")
            seen = rows.num_rows
            assert store.sql("SELECT count(*) AS n FROM replicas").to_pylist()[0]["n"] >= seen
            assert merging.poll() is None
    finally:
        for process in (*writers, merging):
            process.kill()
    merging.communicate()
    counts = [int(process.communicate()[0].splitlines()[-1]) + 1 for process in writers]
    assert counts[:7] == [40] * 7 and counts[7] >= 40
    assert generation(store) >= 2  # it did merge and delete while they wrote
    wanted = [{"trial_id": f"w{i}", "seed": seed} for i in range(8) for seed in range(counts[i])]
    for _ in range(2):
        for reader in (store, Store(store.root)):
            assert reader.replicas().select(["trial_id", "seed"]).to_pylist() == wanted
            assert reader.curves().num_rows == 4 * len(wanted)
            found = reader.sql("SELECT count(*) AS n, count(DISTINCT (trial_id, seed, step)) AS m FROM curves")
            assert found.to_pylist() == [{"n": 4 * len(wanted), "m": 4 * len(wanted)}]
        store.compact(grace=0)


def test_what_was_acknowledged_outlives_a_sigkill(store: Store):
    process = writer(store, "t", 10_000)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 15:
            break
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    acknowledged = 16 + len(rest.splitlines())
    rows = store.replicas()  # warnings are errors: nothing torn
    assert acknowledged <= rows.num_rows <= acknowledged + 1
    assert rows["seed"].to_pylist() == list(range(rows.num_rows))
    assert store.curves().num_rows == 4 * rows.num_rows


DIES_BEFORE_ITS_FILE_IS_SAFE = """
import os, signal, sys
from grokscale.store import Store
from tests.rows import curve
store = Store(sys.argv[1])
store.append("curves", curve(sys.argv[2], 0))
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
store.append("curves", curve(sys.argv[2], 1, points=int(sys.argv[3])))
"""


def test_a_sigkill_in_the_middle_of_an_append_leaves_nothing_to_read(store: Store):
    assert store.local is not None
    folder = store.local / "curves"
    process = writer(store, "t", 4_000, DIES_BEFORE_ITS_FILE_IS_SAFE)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    store.append("replicas", [replica("t", 1)])
    assert len(files(store, "curves")) == 1
    (left,) = folder.glob(".*.tmp")
    assert store.curves(seed=1).num_rows == 0
    store.append("curves", curve("t", 2))
    store.append("replicas", [replica("t", 2)])
    assert store.curves(seed=2).num_rows == 4 and left.exists()  # nothing is ever deleted


def test_many_files_are_read_in_one_go(store: Store):
    for seed in range(20):  # more than are read one after the other
        store.append("replicas", [replica("t", seed)])
    assert Store(store.root).replicas()["seed"].to_pylist() == list(range(20))
