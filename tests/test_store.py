"""The store: what is appended is what is read, and which of several rows about one thing counts."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscale.errors import GrokscaleError, InputError
from grokscale.store import SCHEMAS, Store
from tests.rows import curve, grokked, plan, replica, sweep, timing, trial
from tests.stores import files

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

# ------------------------------------------------------------------------------------------ round trip


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


# ------------------------------------------------------------------------------------ which row counts


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


def test_a_plan_is_never_changed_but_a_sweep_and_an_answer_are(store: Store):
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
    assert store.table("sweeps")["question"].to_pylist() == ["second"]  # as it was extended last
    assert store.table("timings")["seconds_on"].to_pylist() == [1.0, 2.0]  # each is half of a ratio
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
    store.append("sweeps", [sweep(f"more-{i:04}", name=f"more{i}") for i in range(40)])
    with pytest.raises(InputError, match=r"allowed: quick, [^,]+(, [^,]+){4} and 79 more; `grokscale list` has all$"):
        store.find_sweep("quik")


