"""SQL over the store: the views, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from grokscale.errors import InputError
from grokscale.store import SCHEMAS, Store
from tests.rows import curve, grokked, replica, trial


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")

# ------------------------------------------------------------------------------------------------- SQL


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


