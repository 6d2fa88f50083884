"""The store: what is appended is what is read, whoever else writes, dies or meddles meanwhile."""

from __future__ import annotations

import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscale.errors import GrokscaleError, InputError
from grokscale.store import SCHEMAS, Store, StoreWarning
from tests.rows import curve, grokked, plan, replica, sweep, timing, trial

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
VALUES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(max_size=8),
    pa.bool_(): st.booleans(),
    pa.list_(pa.float64()): st.lists(st.floats(allow_nan=False), max_size=3),
    pa.list_(pa.int64()): st.lists(st.integers(0, 2**31 - 1), max_size=3),
    pa.timestamp("us", tz="UTC"): st.integers(0, 10**15).map(lambda us: EPOCH + timedelta(microseconds=us)),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def files(store: Store, table: str) -> list[Path]:
    assert store.local is not None
    return sorted((store.local / table).glob("[0-9]*.parquet"))


# ------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("table", SCHEMAS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_row_of_any_values_comes_back(
    tmp_path_factory: pytest.TempPathFactory, table: str, data: st.DataObject
):
    """Nulls where allowed; as dicts, columns and an Arrow table; seen by who wrote and by a new Store."""
    store = Store(tmp_path_factory.mktemp("runs"))
    row = {
        field.name: data.draw(
            st.none() | VALUES[field.type] if field.nullable else VALUES[field.type], field.name
        )
        for field in SCHEMAS[table]
    }
    forms = [
        [row],
        {name: [value] for name, value in row.items()},
        pa.Table.from_pylist([row], SCHEMAS[table]),
    ]
    for form in forms:
        store.append(table, form)
    if table in ("curves", "measures"):  # those of a replica that is not there count for nothing
        assert store.table(table).num_rows == 0
        store.append("replicas", [replica(row["trial_id"], row["seed"], attempt=row["attempt"])])
    for reader in (store, Store(store.root)):
        assert reader.table(table).to_pylist() == reader.rows(table) == [row]
        assert reader.table(table).schema.equals(SCHEMAS[table])


def test_columns_with_single_values_numpy_and_nan(store: Store):
    store.append("replicas", [replica("t", np.int64(7), final_acc=np.float32(0.5))])
    store.append("curves", curve("t", 7, points=3))
    got = store.curves(trial_id="t")
    assert got["step"].to_pylist() == [0, 25, 50] and got["active"].to_pylist() == [True] * 3
    assert all(math.isnan(v) for v in got["val_acc"].to_pylist())  # NaN is a value, not a null
    assert store.replicas()["final_acc"].to_pylist() == [0.5]


def test_at_is_now_unless_given(store: Store):
    before = datetime.now(UTC)
    store.append("sweeps", [sweep("a-1"), sweep("b-1")])
    store.append("sweeps", [sweep("c-1", at=EPOCH)])
    at = dict(
        zip(
            store.table("sweeps")["sweep_id"].to_pylist(),
            store.table("sweeps")["at"].to_pylist(),
            strict=True,
        )
    )
    assert before - timedelta(milliseconds=1) <= at["a-1"] <= datetime.now(UTC) and at["c-1"] == EPOCH


def test_no_rows_write_no_file_and_reading_creates_nothing(tmp_path: Path):
    store = Store(tmp_path / "runs")
    assert store.append("replicas", []) is None
    assert store.replicas().num_rows == 0 and store.sweeps() == [] and store.answered(["x"]) == {}
    assert not (tmp_path / "runs").exists()


def test_all_problems_of_a_row_are_named_and_nothing_is_written(store: Store):
    bad = replica("t", 3.5, outcom="grokked", batch="x")  # type: ignore[arg-type]
    del bad["host"]
    bad["lanes"] = None
    with pytest.raises(GrokscaleError) as caught:
        store.append("replicas", [bad])
    message = str(caught.value)
    for part in (
        "replicas.outcom: no such column",
        "did you mean 'outcome'?",
        "replicas.host: is missing",
        "replicas.lanes: has a null",
        "replicas.seed: must be int64",
        "3.5",
        "replicas.batch",
    ):
        assert part in message
    with pytest.raises(GrokscaleError, match="did you mean 'replicas'"):
        store.append("replica", [replica()])
    with pytest.raises(GrokscaleError, match=r"curves\.step: 4 values, other columns have 5"):
        store.append("curves", curve("t", 1, points=5, step=np.arange(4)))
    assert not Path(store.root).exists()


def test_each_append_is_one_new_file_and_old_ones_keep_their_bytes(store: Store):
    first = store.append("replicas", [replica("t", 0), replica("t", 1)])
    before = files(store, "replicas")[0].read_bytes()
    second = store.append("replicas", [replica("t", 0)])
    assert [path.name for path in files(store, "replicas")] == [first, second]
    assert files(store, "replicas")[0].read_bytes() == before


# ---------------------------------------------------------------------------------- which row counts


def test_replicas_settled_first_then_longest_then_latest(store: Store):
    store.append(
        "replicas",
        [
            replica("a", 0, observed_to=9000, attempt="longer", at=EPOCH + timedelta(days=9)),
            grokked("a", 0, 4000, attempt="grokked", observed_to=4400, at=EPOCH),
            replica("b", 0, observed_to=9000, attempt="short", at=EPOCH + timedelta(days=9)),
            replica("b", 0, observed_to=20_000, attempt="long", at=EPOCH),
            replica("c", 0, attempt="early", at=EPOCH),
            replica("c", 0, attempt="late", at=EPOCH + timedelta(seconds=1)),
            replica("d", 0, outcome="diverged", diverged_step=70, observed_to=70, attempt="diverged"),
            replica("d", 0, attempt="other"),
            grokked("e", 0, 4000, attempt="decided", observed_to=4400),
            grokked("e", 0, 4000, attempt="stable", observed_to=8000),
        ],
    )
    kept = dict(
        zip(store.replicas()["trial_id"].to_pylist(), store.replicas()["attempt"].to_pylist(), strict=True)
    )
    assert kept == {"a": "grokked", "b": "long", "c": "late", "d": "diverged", "e": "stable"}


def test_trials_ended_before_failed_before_asked(store: Store):
    store.append("sweeps", [sweep()])
    store.append("trials", [trial("plain", 0, "t", [1, 2], state="ended", value=7.5, at=EPOCH)])
    store.append("trials", [trial("plain", 0, "t", [1, 2], state="asked", value=None)])
    store.append("trials", [trial("plain", 0, "t", [1, 2], state="failed", error="lost node", value=None)])
    store.append("trials", [trial("plain", 1, "u", [1, 2], state="asked", value=None)])
    store.append("trials", [trial("plain", 0, "t", [3, 4], phase="race", state="asked", value=None)])
    rows = store.trials(sweep="q").to_pylist()
    assert [(r["phase"], r["number"], r["state"], r["value"]) for r in rows] == [
        ("race", 0, "asked", None),
        ("search", 0, "ended", 7.5),
        ("search", 1, "asked", None),
    ]


def test_a_plan_and_a_sweep_are_never_changed_but_a_timing_and_an_answer_are(store: Store):
    later = EPOCH + timedelta(hours=1)
    answer = {
        "sweep_id": "q-00000001",
        "block": 0,
        "arm": "swift",
        "baseline": "plain",
        "clock": "steps",
        "phase": "confirm",
        "lo": 1.0,
        "hi": 3.0,
        "n": 8,
        "p": 0.01,
        "censored_base": 0,
        "censored_arm": 0,
        "bound": "=",
        "horizon": 9,
        "success_base": 1.0,
        "success_arm": 1.0,
        "p_sooner": 0.9,
        "version": "0",
    }
    for at, tau, text, seconds in ((later, 2, "second", 2.0), (EPOCH, 1, "first", 1.0)):
        store.append("plans", [plan({"plain": "t"}, [1], tau=tau, at=at)])
        store.append("sweeps", [sweep(question=text, at=at)])
        store.append("timings", [timing("t", seconds, seconds, at=at)])
        store.append("speedups", [{**answer, "s": seconds, "at": at}])
    assert store.table("plans")["tau"].to_pylist() == [1]
    assert store.table("sweeps")["question"].to_pylist() == ["first"]
    assert store.table("timings")["seconds_on"].to_pylist() == [2.0]
    assert store.speedups()["s"].to_pylist() == [2.0]


def test_curves_of_the_attempt_that_counts(store: Store):
    store.append("curves", curve("t", 1, "cut off", points=9))
    store.append("curves", curve("t", 1, "first", points=4))
    store.append("curves", curve("t", 1, "first", points=4))  # written twice: a worker that was thought lost
    store.append("curves", curve("t", 2, "no row yet", points=3))
    store.append("replicas", [replica("t", 1)])
    assert store.curves().select(["seed", "attempt", "step"]).to_pylist() == [
        {"seed": 1, "attempt": "first", "step": step} for step in (0, 25, 50, 75)
    ]


def test_measures_of_the_attempt_that_counts(store: Store):
    def seen(attempt: str, *steps: int) -> dict[str, Any]:
        names = ["norm", "power"] * len(steps)
        return {
            "trial_id": "t", "seed": 1, "attempt": attempt, "step": [step for step in steps for _ in range(2)],
            "measure": names, "value": [1.5, None] * len(steps), "vector": [None, [0.5, math.nan]] * len(steps),
        }  # fmt: skip

    store.append("measures", seen("cut off", 0, 10, 20))
    store.append("measures", seen("first", 10, 0))
    store.append("replicas", [replica("t", 1, measured="norms,gradient-power")])
    rows = store.measures().to_pylist()
    assert [(row["step"], row["measure"], row["value"]) for row in rows] == [
        (0, "norm", 1.5), (0, "power", None), (10, "norm", 1.5), (10, "power", None)]
    assert rows[1]["vector"][0] == 0.5 and math.isnan(rows[1]["vector"][1])
    store.append("trials", [trial("plain", 0, "t", [1])])
    assert store.measures(arm="plain", measure="norm")["number"].to_pylist() == [0, 0]
    query = "SELECT step, vector[1] AS first FROM measures WHERE measure = 'power' ORDER BY step"
    assert store.sql(query).to_pylist() == [{"step": 0, "first": 0.5}, {"step": 10, "first": 0.5}]


# --------------------------------------------------------------------------------- filters and joins


def test_filters(store: Store):
    store.append(
        "replicas", [grokked("t", 1, 900), replica("t", 2), replica("u", 3, task="other", fit_step=None)]
    )
    assert store.replicas(trial_id="t", seed=[2, 3])["seed"].to_pylist() == [2]
    assert store.replicas(seed=range(3))["seed"].to_pylist() == [1, 2]
    assert store.replicas(trial_id=[])["seed"].to_pylist() == []
    assert store.replicas(fit_step=None)["seed"].to_pylist() == [3]
    assert store.replicas(task="toy", grok_step=900)["seed"].to_pylist() == [1]
    with pytest.raises(GrokscaleError, match=r"no column 'sed' to filter by; did you mean 'seed'\?"):
        store.replicas(sed=1)
    with pytest.raises(GrokscaleError, match=r"replicas\.seed: 'one' is not int64"):
        store.replicas(seed="one")


def test_replicas_and_curves_of_an_arm_are_joined_through_the_trials(store: Store):
    store.append("sweeps", [sweep()])
    store.append(
        "trials",
        [
            trial("plain", 0, "t", [1, 2]),
            trial("plain", 0, "t", [1, 2], state="asked"),
            trial("plain", 4, "t", [8, 9], phase="confirm"),
            trial("swift", 0, "u", [1]),
            trial("twin", 0, "t", [2]),
            trial("plain", 0, "v", [1], sweep_id="r-1"),
        ],
    )
    store.append("replicas", [replica(name, seed) for name in "tuv" for seed in (1, 2, 8)])
    for seed in (1, 2, 8):
        store.append("curves", curve("t", seed, points=2))

    def of(table: pa.Table) -> list[tuple]:
        return [
            tuple(row.values())
            for row in table.select(["arm", "phase", "number", "trial_id", "seed"]).to_pylist()
        ]

    assert of(store.replicas(sweep="q", arm="plain")) == [
        ("plain", "confirm", 4, "t", 8),
        ("plain", "search", 0, "t", 1),
        ("plain", "search", 0, "t", 2),
    ]
    assert of(store.replicas(sweep="q", phase="search", seed=2)) == [
        ("plain", "search", 0, "t", 2),
        ("twin", "search", 0, "t", 2),
    ]
    assert of(store.curves(sweep="q", arm="plain", phase="confirm")) == [("plain", "confirm", 4, "t", 8)] * 2
    assert store.curves(arm="plain", phase="confirm")["step"].to_pylist() == [0, 25]
    assert of(store.replicas(arm="swift")) == [("swift", "search", 0, "u", 1)]
    assert store.replicas(arm="nobody").num_rows == 0 and store.curves(arm="nobody").num_rows == 0
    assert "arm" not in store.replicas().column_names


def test_answered_by_trial_and_seed(store: Store):
    store.append("replicas", [replica("t", 1), replica("u", 1), grokked("t", 2, 700)])
    found = store.answered(["t", "x"])
    assert set(found) == {("t", 1), ("t", 2)} and found["t", 2]["grok_step"] == 700
    assert found["t", 2] == store.replicas(trial_id="t", seed=2).to_pylist()[0]


def test_a_sweep_by_id_by_name_and_by_default(store: Store):
    with pytest.raises(InputError, match="no sweep in this store"):
        store.find_sweep()
    for i, name in enumerate(("quick-aaaa", "quick-bbbb", "other-cccc")):
        store.append("sweeps", [sweep(name, at=EPOCH + timedelta(days=i))])
    assert store.sweeps() == ["quick-aaaa", "quick-bbbb", "other-cccc"]
    assert store.find_sweep("quick") == "quick-bbbb" and store.find_sweep("quick-aaaa") == "quick-aaaa"
    assert store.find_sweep() == "other-cccc"
    with pytest.raises(InputError, match=r"no sweep 'quik'; did you mean 'quick'\?"):
        store.find_sweep("quik")


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


# --------------------------------------------------------------------------- reading again, elsewhere


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
        [sys.executable, "-c", code, store.root], capture_output=True, text=True, check=True, cwd=HERE
    )
    assert done.stdout.strip() == "set()"


# ------------------------------------------------------------------------------ writers that live and die

WRITER = """
import sys
from grokscale.store import Store
from tests.rows import curve, replica
store, name, count = Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for seed in range(count):
    store.append("curves", curve(name, seed))
    store.append("replicas", [replica(name, seed)])
    print(seed, flush=True)
"""
HERE = Path(__file__).parent.parent


def writer(store: Store, name: str, count: int, code: str = WRITER) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, store.root, name, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE,
    )


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


LARGE = """
import sys
import numpy as np
from grokscale.store import Store
from tests.rows import curve
points = int(sys.argv[3])
step = np.random.default_rng(0).integers(0, 2**60, points)
Store(sys.argv[1]).append("curves", curve(sys.argv[2], 1, points=points, step=step))
"""


def test_a_sigkill_in_the_middle_of_an_append_leaves_nothing_to_read(store: Store):
    assert store.local is not None
    folder = store.local / "curves"
    process = writer(store, "t", 400_000, LARGE)
    while not (folder.is_dir() and any(name.endswith(".tmp") for name in os.listdir(folder))):
        assert process.poll() is None, "the writer ended before it could be caught"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store.append("replicas", [replica("t", 1)])
    left = os.listdir(folder)
    if files(store, "curves"):  # the kill came a moment late: then it is whole
        assert store.curves().num_rows == 400_000
    else:
        assert len(left) == 1 and left[0].endswith(".tmp")
        assert store.curves().num_rows == 0
    store.append("curves", curve("t", 2))
    store.append("replicas", [replica("t", 2)])
    assert store.curves(seed=2).num_rows == 4 and left[0] in os.listdir(folder)  # nothing is ever deleted


def test_many_files_are_read_in_one_go(store: Store):
    for seed in range(20):  # more than are read one after the other
        store.append("replicas", [replica("t", seed)])
    assert Store(store.root).replicas()["seed"].to_pylist() == list(range(20))


# ------------------------------------------------------------------------------------------------ SQL


def test_sql_over_what_counts(store: Store):
    store.append("replicas", [grokked("t", 1, 900), grokked("t", 1, 900, attempt="again"), replica("t", 2)])
    store.append("curves", curve("t", 2))
    store.append("trials", [trial("plain", 0, "t", [1, 2])])
    got = store.sql("SELECT outcome, count(*) AS n FROM replicas GROUP BY outcome ORDER BY outcome")
    assert got.to_pylist() == [{"outcome": "grokked", "n": 1}, {"outcome": "memorised", "n": 1}]
    joined = store.sql("""SELECT arm, max(step) AS last FROM trials JOIN curves USING (trial_id)
                          WHERE list_contains(seeds, seed) GROUP BY arm""")
    assert joined.to_pylist() == [{"arm": "plain", "last": 75}]
    assert {row["name"] for row in store.sql("SHOW TABLES").to_pylist()} == set(SCHEMAS)
    assert store.sql("SELECT count(*) AS n FROM query('SELECT * FROM cur' || 'ves')").to_pylist() == [
        {"n": 4}
    ]
    assert str(store.sql('SELECT "at" FROM replicas').schema.field("at").type) == "timestamp[us, tz=UTC]"


@pytest.mark.parametrize(
    "query",
    [
        "DROP VIEW replicas",
        "CREATE TABLE x AS SELECT 1",
        "SELECT 1; SELECT 2",
        "",
        "-- nothing",
        "SELEC 1",
        "COPY replicas TO 'stolen.csv'",
        "COPY (SELECT 1) TO 'stolen.csv'",
        "EXPORT DATABASE 'stolen'",
        "ATTACH ':memory:' AS m",
        "SET threads=8",
        "PRAGMA database_list",
        "INSTALL httpfs",
        "LOAD 'x'",
        "EXPLAIN ANALYZE SELECT 1",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM parquet_scan('http://127.0.0.1:1/x.parquet')",
        "SELECT * FROM store",
        "SELECT * FROM read_parquet('{root}/replicas/*.parquet')",
        "SELECT * FROM query_table('store')",
        "SELECT * FROM query('DROP VIEW replicas')",
        "INSERT INTO replicas SELECT * FROM replicas",
    ],
)
def test_sql_does_nothing_but_read_the_views(
    store: Store, query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    store.append("replicas", [replica("t", 1)])
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"^sql: "):
        store.sql(query.format(root=store.root))
    assert sorted(tmp_path.rglob("*")) == before
    assert store.sql("SELECT seed FROM replicas").to_pylist() == [{"seed": 1}]


def test_sql_is_told_when_it_needs_too_much(store: Store):
    with pytest.raises(InputError, match="memory"):
        store.sql("SELECT list(i) FROM range(100000000) t(i)", memory="50MB")


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


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GrokscaleError, match=r"file/runs/sweeps/x: cannot write to the store"):
        Store(tmp_path / "file" / "runs").sweep_dir("x")
