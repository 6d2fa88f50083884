"""One SELECT over tables in memory, locked down: nothing of the machine can be reached through it."""

from __future__ import annotations

from collections.abc import Mapping

import duckdb
import pyarrow as pa

from grokscale.errors import InputError


def run(query: str, tables: Mapping[str, pa.Table], *, memory: str) -> pa.Table:
    """The result of one SELECT over `tables`.

    The settings alone are not enough (they allow DROP VIEW, ATTACH ':memory:', ...), hence also the gate on
    the statement's type and a connection for this query alone.
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
        for name, table in tables.items():
            connection.register(name, table)
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
        except duckdb.Error as error:
            raise InputError(f"sql: {error}") from error
