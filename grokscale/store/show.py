"""Tables as a notebook shows them; text everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Any

import pyarrow as pa

from grokscale.store.relations import to_rows

ROWS = 50


class Shown:
    """A table that a notebook shows as one. rows: how many at most."""

    def __init__(self, table: pa.Table, rows: int = ROWS, title: str = "") -> None:
        self.table, self.rows, self.title = table, rows, title

    def __repr__(self) -> str:
        header, body = self._cells()
        widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in [header, *body]]
        return "\n".join([*lines, *self._rest()])

    def _repr_html_(self) -> str:
        header, body = self._cells()
        head = "".join(f"<th>{escape(name)}</th>" for name in header)
        lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in body)
        title = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        rest = "".join(f"<p>{line}</p>" for line in self._rest())
        return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>{rest}"

    def _cells(self) -> tuple[Sequence[str], list[list[str]]]:
        body = [[cell(value) for value in row.values()] for row in to_rows(self.table.slice(0, self.rows))]
        return self.table.column_names, body

    def _rest(self) -> list[str]:
        more = self.table.num_rows - self.rows
        return [f"{more:,} more rows"] if more > 0 else []


def show(table: pa.Table, rows: int = ROWS) -> Shown:
    """A table, such as `speedups` and every query return, for a notebook's cell to end with.

    rows: how many are shown at most.
    """
    return Shown(table, rows)


def cell(value: Any) -> str:
    """A value in a table: four digits are enough to read."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    return str(value)
