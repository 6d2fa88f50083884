"""SQL over the store: the views, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from grokscale.errors import InputError
from grokscale.store import SCHEMAS, Store
from tests.rows import curve, grokked, replica, trial
from tests.stores import files


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


# What is more than a SELECT, and what it is said to be.
STATEMENTS = {
    "DROP VIEW replicas": "DROP",
    "CREATE TABLE x AS SELECT 1": "CREATE",
    "CREATE OR REPLACE VIEW replicas AS SELECT 1": "CREATE",
    "CREATE MACRO f() AS 1": "CREATE",
    "CREATE SECRET (TYPE s3)": "CREATE",
    "SELECT 1; SELECT 2": "SELECT, SELECT",
    "SELECT 1; COPY replicas TO 'stolen.csv'": "SELECT, COPY",
    "": "nothing",
    "-- nothing": "nothing",
    "COPY replicas TO 'stolen.csv'": "COPY",
    "COPY (SELECT 1) TO 'stolen.csv'": "COPY",
    "COPY replicas FROM '/etc/passwd'": "COPY",
    "EXPORT DATABASE 'stolen'": "EXPORT",
    "IMPORT DATABASE 'stolen'": "PRAGMA",
    "ATTACH ':memory:' AS m": "ATTACH",
    "ATTACH '{root}/x.db'": "ATTACH",
    "DETACH memory": "DETACH",
    "USE memory": "SET",
    "SET threads=8": "SET",
    "SET lock_configuration=false": "SET",
    "SET enable_external_access=true": "SET",
    "RESET memory_limit": "SET",
    "PRAGMA database_list": "PRAGMA",
    "PRAGMA threads=8": "SET",
    "PRAGMA enable_profiling": "PRAGMA",
    "CALL enable_logging()": "CALL",
    "INSTALL httpfs": "LOAD",
    "INSTALL httpfs FROM 'http://127.0.0.1:1'": "LOAD",
    "LOAD 'x'": "LOAD",
    "LOAD json": "LOAD",
    "EXPLAIN ANALYZE SELECT 1": "EXPLAIN",
    "PREPARE p AS SELECT 1": "PREPARE",
    "VACUUM": "VACUUM",
    "INSERT INTO replicas SELECT * FROM replicas": "INSERT",
    "DELETE FROM replicas": "DELETE",
    "UPDATE replicas SET seed = 1": "UPDATE",
}

# One SELECT, of something that is not a view.
OUTSIDE = [
    "read_csv('/etc/passwd')",
    "read_csv(['/etc/passwd'])",
    "read_json('/etc/passwd')",
    "read_text('/etc/passwd')",
    "read_blob('/etc/passwd')",
    "sniff_csv('/etc/passwd')",
    "read_duckdb('{root}/x.db')",
    "glob('/etc/*')",
    "'{root}/x.csv'",
    "parquet_scan('http://127.0.0.1:1/x.parquet')",
    "read_parquet('{root}/replicas/*.parquet')",
    "read_parquet('{root}/replicas/generations/*.parquet')",
    "parquet_metadata('{root}/replicas/{part}')",
    "duckdb_secrets()",
    "duckdb_extensions()",
    "json_execute_serialized_sql(json_serialize_sql('SELECT * FROM glob($$/etc/*$$)'))",
    "query('SELECT * FROM glob($$/etc/*$$)')",
]

# No such thing, or nothing that a query may do.
ABSENT = [
    "SELEC 1",
    "SELECT getenv('HOME')",
    "SELECT * FROM '/etc/passwd'",
    'SELECT * FROM "/etc/passwd"',
    "SELECT * FROM store",
    "SELECT * FROM rows",
    "SELECT * FROM query_table('store')",
    "SELECT * FROM query('DROP VIEW replicas')",
    "SELECT * FROM query('EXPORT DATABASE x')",
    "SELECT * FROM enable_logging()",
    "SELECT * FROM enable_profiling(save_location='{root}/stolen.json')",
    "SELECT * FROM arrow_scan(1, 1, 1)",
    "SELECT * FROM python_arrow_scan()",
    "SELECT * FROM sqlite_scan('{root}/x.db', 'x')",
    "SELECT * FROM create_external_resource('x')",
    "WITH x AS (INSERT INTO replicas SELECT * FROM replicas RETURNING *) SELECT * FROM x",
]


def refused(store: Store, query: str, folder: Path) -> str:
    """What it says; nothing has changed, and the next query is answered as if it had not been."""
    store.append("replicas", [replica("t", 1)])
    store.compact(["replicas"])
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as caught:
        store.sql(query.replace("{root}", store.root).replace("{part}", files(store, "replicas")[0].name))
    assert sorted(folder.rglob("*")) == before
    assert store.sql("SELECT seed FROM replicas").to_pylist() == [{"seed": 1}]
    assert str(caught.value).startswith("sql: ")
    return str(caught.value)


@pytest.mark.parametrize("query", STATEMENTS)
def test_one_select_and_nothing_else(store: Store, query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert f"one SELECT is allowed, got {STATEMENTS[query]}" in refused(store, query, tmp_path)


@pytest.mark.parametrize("place", OUTSIDE)
def test_nothing_outside_the_views(store: Store, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    said = refused(store, f"SELECT * FROM {place}", tmp_path)
    assert "disabled by configuration" in said and "allowed is one SELECT over the views; no files, no network" in said


@pytest.mark.parametrize("query", ABSENT)
def test_nothing_that_is_not_there(store: Store, query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    refused(store, query, tmp_path)


@pytest.mark.parametrize("compacted", [False, True])
def test_a_view_is_whole_however_it_is_named(store: Store, compacted: bool):
    """Large tables are read only for who names them, and a name can be put together out of sight."""
    store.append("curves", curve("t", 2))
    store.append("replicas", [replica("t", 2)])
    if compacted:
        store.compact(grace=0)
    for place in (
        "curves",
        "CURVES",
        "query('SELECT * FROM cur' || 'ves')",
        "query_table('cur' || 'ves')",
        "json_execute_serialized_sql(json_serialize_sql('SELECT * FROM cur' || 'ves'))",
    ):
        assert store.sql(f"SELECT count(*) AS n FROM {place}").to_pylist() == [{"n": 4}], place


def test_sql_is_told_when_it_needs_too_much(store: Store):
    with pytest.raises(InputError, match="memory"):
        store.sql("SELECT list(i) FROM range(100000000) t(i)", memory="50MB")
