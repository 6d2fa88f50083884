"""The schema of the store: only ever added to, read when older, refused when newer, explained column by column."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from grokscale.cli import app
from grokscale.errors import GrokscaleError
from grokscale.store import SCHEMA_VERSION, SCHEMAS, Store
from grokscale.store.meanings import MEANINGS, TABLES, reference
from tests.rows import curve, replica
from tests.stores import files

# The tables of version 1: what stores hold that were written before columns were added. Never changed.
FIRST = {
    "replicas": """
        trial_id:str seed:int attempt:str outcome:str
        fit_step:int? grok_step:int? val_grok_step:int? first_step:int? val_first_step:int? delay:int?
        comprehended:bool? stable_step:int? dips:int? dip_min:float? final_acc:float? final_val_acc:float?
        diverged_step:int? observed_to:int steps:int active_steps:int?
        batch:int oracle_per_step:float labels:int params:int threshold:float monitor:str
        task:str model:str method:str params_json:str spec_json:str
        device:str precision:str torch:str threads:int lanes:int compiled:bool numerics:str
        git_sha:str? version:str host:str wall_s:float at:time""",
    "trials": """
        sweep_id:str arm:str phase:str number:int trial_id:str seeds:ints params_json:str cap:int
        value:float? state:str error:str? at:time""",
    "curves": """
        trial_id:str seed:int attempt:str step:int
        train_loss:float train_acc:float val_loss:float val_acc:float test_loss:float test_acc:float
        active:bool full:bool""",
    "sweeps": """
        sweep_id:str name:str question:str baseline:str horizon:int experiment_json:str version:str at:time""",
    "plans": "sweep_id:str block:int tau:int winners_json:str seeds:ints key:str at:time",
    "timings": "trial_id:str device:str threads:int seconds_on:float seconds_off:float torch:str host:str at:time",
    "speedups": """
        sweep_id:str block:int arm:str baseline:str clock:str phase:str
        s:float lo:float hi:float n:int p:float corr:float?
        censored_base:int censored_arm:int bound:str horizon:int
        s_half:float? rmst_ratio:float? rmst_lo:float? rmst_hi:float? median_base:float? median_arm:float?
        success_base:float success_arm:float p_sooner:float logrank_p:float? version:str at:time""",
}
TYPES = {
    "int": (pa.int64(), 7), "ints": (pa.list_(pa.int64()), [1, 2]), "float": (pa.float64(), 0.5),
    "str": (pa.string(), "x"), "bool": (pa.bool_(), True),
    "time": (pa.timestamp("us", tz="UTC"), datetime(2026, 1, 1, tzinfo=UTC)),
}  # fmt: skip


def first(table: str) -> pa.Table:
    """One row in the shape that version 1 gave it."""
    fields, values = [], []
    for column in FIRST[table].split():
        name, kind = column.split(":")
        fields.append(pa.field(name, TYPES[kind.rstrip("?")][0], nullable=kind.endswith("?")))
        values.append(pa.array([TYPES[kind.rstrip("?")][1]], fields[-1].type))
    metadata = {"grokscale.table": table, "grokscale.schema": "1"}
    return pa.Table.from_arrays(values, schema=pa.schema(fields, metadata=metadata))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.mark.parametrize("table", FIRST)
def test_a_store_of_version_1_is_read_compacted_and_asked(store: Store, table: str):
    """Every column comes back as it was; those added since are null, beside rows of today, in Python and SQL."""
    for name in {table, "replicas"}:
        folder = Path(store.root) / name
        folder.mkdir(parents=True)
        pq.write_table(first(name), folder / f"{10**18}-{'0' * 32}.parquet")
    (old,) = first(table).to_pylist()
    added = {name: None for name in SCHEMAS[table].names if name not in old}
    for _ in range(2):
        assert store.rows(table) == [old | added]
        assert store.sql(f"SELECT * FROM {table}").to_pylist() == [old | added]
        store.append("timings", [{**first("timings").to_pylist()[0], "trial_id": "other"}])
        store.compact(grace=0)
        if table == "timings":
            assert store.rows(table, trial_id="x") == [old | added]
            return


def test_columns_are_only_ever_added(store: Store):
    for table in FIRST:
        now = SCHEMAS[table]
        for field in first(table).schema:
            assert now.field(field.name).equals(field), f"{table}.{field.name}"
        for name in set(now.names) - set(first(table).column_names):
            assert now.field(name).nullable, f"{table}.{name}: rows of version 1 have no value for it"


def test_a_newer_store_is_refused_with_what_to_do(store: Store):
    """A reader that left its columns out would answer wrongly; a compaction would lose them for good."""
    store.append("replicas", [replica("t", 1)])
    store.append("curves", curve("t", 1))
    store.compact(["curves"], grace=0)
    path = files(store, "replicas")[0]
    table = pq.read_table(path)
    newer = {"grokscale.table": "replicas", "grokscale.schema": str(SCHEMA_VERSION + 1)}
    pq.write_table(table.append_column("later", table["host"]).replace_schema_metadata(newer), path)
    before = path.read_bytes()
    message = rf"{path.name}: written by a newer grokscale \(tables of version {SCHEMA_VERSION + 1}.*update grokscale"
    for refused in (
        lambda: store.replicas(),
        lambda: store.sql("SELECT 1"),
        lambda: store.compact(),
        lambda: store.curves(),
    ):
        with pytest.raises(GrokscaleError, match=message):
            refused()
    assert path.read_bytes() == before
    store.append("timings", [first("timings").to_pylist()[0]])  # appending goes on


def test_a_newer_generation_is_refused(store: Store):
    store.append("replicas", [replica("t", 1)])
    store.compact(grace=0)
    (piece,) = (Path(store.root) / "replicas" / "generations").glob("*.parquet")
    newer = {"grokscale.table": "replicas", "grokscale.schema": str(SCHEMA_VERSION + 1)}
    pq.write_table(pq.read_table(piece).replace_schema_metadata(newer), piece)
    with pytest.raises(GrokscaleError, match="written by a newer grokscale"):
        Store(store.root).replicas()
    manifest = piece.parent / "00000001.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(GrokscaleError, match="not a manifest of format 1"):
        Store(store.root).replicas()


def test_every_column_has_a_meaning_and_every_meaning_a_column():
    assert TABLES.keys() == MEANINGS.keys() == SCHEMAS.keys()
    for table, schema in SCHEMAS.items():
        assert MEANINGS[table].keys() == set(schema.names), table
        assert all(text and "\n" not in text and len(text) < 110 for text in MEANINGS[table].values())


def test_the_reference_lists_them_with_types_and_keys():
    lines = reference("replicas").splitlines()
    assert lines[0].startswith("replicas: ") and len(lines) == 1 + len(SCHEMAS["replicas"])
    assert any(line.split()[:3] == ["*", "trial_id", "text"] for line in lines)
    assert any(line.split()[:2] == ["grok_step", "int?"] for line in lines)
    assert any(line.split()[:3] == ["*", "seeds", "ints"] for line in reference("trials").splitlines())
    result = CliRunner().invoke(app, ["store", "columns"])
    assert result.exit_code == 0 and result.output == reference()
    wrong = CliRunner().invoke(app, ["store", "columns", "replica"])
    assert wrong.exit_code == 2 and "did you mean 'replicas'?" in wrong.output
