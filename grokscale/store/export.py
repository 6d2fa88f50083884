"""A table out of the store, in a format that other programs read."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("csv", "json", "parquet")


def export(table: pa.Table, form: str) -> bytes:
    """The table as CSV (null is empty, lists as JSON), JSON (a list of objects; no NaN there: null) or Parquet."""
    if form == "parquet":
        sink = io.BytesIO()
        pq.write_table(table, sink)
        return sink.getvalue()
    rows = table.to_pylist()
    if form == "json":
        return (json.dumps(_finite(rows), default=str, indent=1, allow_nan=False) + "\n").encode()
    if form != "csv":
        raise ValueError(f"form must be one of {', '.join(FORMATS)}, got {form!r}")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows([_cell(row[name]) for name in table.column_names] for row in rows)
    return out.getvalue().encode()


def typed(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pa.Table:
    """Rows as a table. columns: name -> string, int64, float64 or another of pyarrow's types."""
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in columns.items()])
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def _cell(value: Any) -> Any:
    return json.dumps(value, default=str) if isinstance(value, (list, dict)) else value


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
