"""Results in files that other programs read, and on a machine that only reads them."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from grokscale.cli import app
from grokscale.store import Store
from grokscale.store.export import export
from tests import synthetic
from tests.stores import ROOT

AT = datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC)
ROWS = pa.table(
    {
        "text": ['a "quoted", line\nbroken', None],
        "number": pa.array([7, None], pa.int64()),
        "value": [0.1, math.nan],
        "seeds": pa.array([[1, 2], []], pa.list_(pa.int64())),
        "vector": pa.array([[0.5, math.inf], None], pa.list_(pa.float64())),
        "at": pa.array([AT, None], pa.timestamp("us", tz="UTC")),
        "sure": [True, False],
    }
)


def test_csv_json_and_parquet_of_every_kind_of_value():
    first, second = csv.DictReader(io.StringIO(export(ROWS, "csv").decode()))
    assert first == {
        "text": 'a "quoted", line\nbroken', "number": "7", "value": "0.1", "seeds": "[1, 2]",
        "vector": "[0.5, Infinity]", "at": "2026-01-02 03:04:05.000600+00:00", "sure": "True",
    }  # fmt: skip
    assert second["number"] == second["text"] == second["vector"] == "" and second["value"] == "nan"

    def strict(name: str) -> float:
        raise ValueError(f"{name} is no JSON")

    rows = json.loads(export(ROWS, "json"), parse_constant=strict)
    assert rows[0]["seeds"] == [1, 2] and rows[0]["vector"] == [0.5, None] and rows[0]["number"] == 7
    assert datetime.fromisoformat(rows[0]["at"]) == AT and rows[1]["value"] is None and rows[1]["sure"] is False
    back = pq.read_table(io.BytesIO(export(ROWS, "parquet")))
    assert back.schema.equals(ROWS.schema) and repr(back.to_pylist()) == repr(ROWS.to_pylist())
    with pytest.raises(ValueError, match="form must be one of csv, json, parquet, got 'xml'"):
        export(ROWS, "xml")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("full") / "runs")
    synthetic.confirmed(store)
    store.compact()
    return store


def decoded(data: bytes, form: str) -> list[dict]:
    if form == "parquet":
        return pq.read_table(io.BytesIO(data)).to_pylist()
    return json.loads(data) if form == "json" else list(csv.DictReader(io.StringIO(data.decode())))


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
@pytest.mark.parametrize(
    "words",
    [
        ["sql", "SELECT trial_id, seed, grok_step FROM replicas ORDER BY ALL"],
        *(["results", "--rows", rows] for rows in ("speedups", "replicas", "trials", "curves")),
    ],
    ids=" ".join,
)
def test_each_verb_in_each_format_to_stdout_and_to_a_file(full: Store, form: str, words: list[str], tmp_path: Path):
    said = CliRunner().invoke(app, [*words, "--format", form, "--store", full.root])
    assert said.exit_code == 0, said.output
    path = tmp_path / "deep" / f"rows.{form}"
    silent = CliRunner().invoke(app, [*words, "--format", form, "--store", full.root, "-o", str(path)])
    assert silent.exit_code == 0 and silent.stdout == "" and path.read_bytes() == said.stdout_bytes
    if words[0] == "sql":
        wanted = full.sql(words[1]).num_rows
    else:
        wanted = full.table(words[2], sweep=full.find_sweep()).num_rows
    assert len(decoded(path.read_bytes(), form)) == wanted > 0


def test_tables_to_a_file(full: Store, tmp_path: Path):
    for words in (["results"], ["sql", "SELECT 1 AS one"]):
        said = CliRunner().invoke(app, [*words, "--store", full.root])
        silent = CliRunner().invoke(app, [*words, "--store", full.root, "-o", str(tmp_path / "table.txt")])
        assert said.exit_code == silent.exit_code == 0 and silent.stdout == ""
        assert (tmp_path / "table.txt").read_text() == said.stdout != ""


# ------------------------------------------------------------------------------------- only reading

# With what these bring along. typer is for the command line, the rest for Python.
NEEDED = ("pyarrow", "duckdb", "scipy", "pydantic", "typer")
READER = """
import importlib.util, sys
for name in ("torch", "ray", "mlflow", "optuna", "pandas", "matplotlib"):
    assert importlib.util.find_spec(name) is None, name
import grokscale as gs
assert "site-packages" in gs.__file__, gs.__file__
store = gs.Store(sys.argv[1])
print(store.replicas().num_rows, store.curves(arm="plain").num_rows, store.trials(sweep="tiny").num_rows)
print(gs.speedups(store, sweep="tiny").num_rows, store.sql("SELECT count(*) AS n FROM curves").to_pylist()[0]["n"])
"""


def test_reading_needs_neither_torch_nor_ray_nor_mlflow(full: Store, tmp_path: Path):
    """In an environment that has none of them, from a wheel; pip's cache keeps this to seconds."""
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin/python"), "install", "-q"]
    pip += ["--disable-pip-version-check", "--no-compile", "-c", str(ROOT / "constraints.txt")]
    for words in ([*NEEDED], ["--no-deps", str(ROOT)]):
        installed = subprocess.run([*pip, *words], capture_output=True, text=True)
        if installed.returncode and "No matching distribution" in installed.stderr:
            pytest.skip(f"READING ALONE NOT TESTED: no package index: {installed.stderr.splitlines()[-1]}")
        assert installed.returncode == 0, installed.stderr
    python = [str(place / "bin/python"), "-I"]
    done = subprocess.run([*python, "-c", READER, full.root], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = [full.replicas().num_rows, full.curves(arm="plain").num_rows, full.trials(sweep="tiny").num_rows]
    assert list(map(int, done.stdout.split()[:3])) == counts and min(map(int, done.stdout.split())) > 0
    verbs = (["results"], ["sql", "SELECT count(*) FROM replicas"], ["store", "check"], ["store", "compact"])
    for words in verbs:
        said = subprocess.run(
            [*python, "-m", "grokscale.cli", *words, "--store", full.root], capture_output=True, text=True, cwd=tmp_path
        )
        assert said.returncode == 0, said.stderr
        if words == ["results"]:
            assert said.stdout == CliRunner().invoke(app, ["results", "--store", full.root]).stdout
