"""One SELECT over the tables, locked down: nothing of the machine can be reached through it."""

from __future__ import annotations

from collections.abc import Mapping

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from grokscale.errors import GrokscaleError, InputError
from grokscale.store.files import Files
from grokscale.store.reading import Scan
from grokscale.store.schemas import ATTEMPT, LARGE, RULES, SCHEMAS

_REFUSED = "allowed is one SELECT over the views; no files, no network, no settings, no extensions"


def run(query: str, files: Files, scans: Mapping[str, Scan], *, memory: str) -> pa.Table:
    """The result of one SELECT over views of these names.

    What has been compacted stays in its files and is read column by column and row group by row group: pyarrow
    opens them, so that DuckDB itself need not reach any. The settings alone are not enough (they allow DROP
    VIEW, ATTACH ':memory:', ...), hence also the gate on the statement's type and a connection for this query alone.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    with duckdb.connect(":memory:", config=config) as connection:
        try:
            statements = connection.extract_statements(query)
        except duckdb.Error as error:
            raise InputError(f"sql: {error}") from error
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
            raise InputError(f"sql: one SELECT is allowed, got {kinds}")
        connection.execute("SET python_enable_replacements=false")
        try:
            relations = {name: _relation(connection, files, name, scan) for name, scan in scans.items()}
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise GrokscaleError(
                f"{files.root}: cannot read what was compacted: {str(error).splitlines()[0]}; `grokscale store check` "
                "says what can be done"
            ) from error
        for name, relation in relations.items():
            if name in LARGE:  # of the attempt that counts
                replicas = relations["replicas"].project(", ".join(ATTEMPT)).set_alias("r")
                same = " AND ".join(f"c.{column} = r.{column}" for column in ATTEMPT)
                relation = relation.set_alias("c").join(replicas, same, how="semi")
            relation.create_view(name)
        for setting in (
            "TimeZone='UTC'",
            f"memory_limit='{memory}'",
            "threads=2",
            "temp_directory=''",
            "allow_community_extensions=false",
            "enable_external_access=false",
            "lock_configuration=true",
        ):  # the lock last
            connection.execute(f"SET {setting}")
        try:
            return connection.sql(query).to_arrow_table()
        except duckdb.PermissionException as error:
            raise InputError(f"sql: {error}; {_REFUSED}") from error
        except duckdb.Error as error:
            raise InputError(f"sql: {error}") from error


def _relation(
    connection: duckdb.DuckDBPyConnection, files: Files, name: str, scan: Scan
) -> duckdb.DuckDBPyRelation:
    """The pieces but for the rows that `scan.rows` has in their place, and these."""
    rows = None if scan.rows is None else connection.from_arrow(scan.rows)
    if not scan.pieces:
        assert rows is not None
        return rows
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    form = ds.ParquetFileFormat(default_fragment_scan_options=options)
    paths = [files.full(piece) for piece in scan.pieces]
    pieces = connection.from_arrow(ds.dataset(paths, schema=SCHEMAS[name], filesystem=files.fs, format=form))
    if rows is None or scan.but is None:
        return pieces
    key = RULES[name].keys[0]
    but = connection.from_arrow(pa.Table.from_arrays([scan.but], names=[key]))
    return pieces.join(but, key, how="anti").union(rows)
