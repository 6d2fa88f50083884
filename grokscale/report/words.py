"""Numbers and settings as people read them, and tables in fixed width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 80  # of prose; tables may take up to LIMIT
LIMIT = 100
NAME = 24  # of an arm's name in a table


def ratio(value: float, places: int = 1) -> str:
    """A factor to a place that means something: 0.0046, 1.03, 1.9, 12, 1,234."""
    if not math.isfinite(value):
        return "-"
    if 0 < value < 0.095:
        return f"{value:.{1 - math.floor(math.log10(value))}f}"
    if value >= 10:
        return f"{value:,.{places - 1}f}" if value < 100 else f"{value:,.0f}"
    return f"{value:.{places}f}" if abs(value - 1) >= 0.095 else f"{value:.2f}"


def number(value: float) -> str:
    """12,345"""
    return f"{value:,.0f}"


def bounded(text: str, bound: str | None, *, turned: bool = False) -> str:
    """ ">= 4.65" where censoring makes a number a bound, else the text as it is.

    bound: as in `stats.SpeedUp`, None like "=".  turned: the number falls as S rises.
    """
    if turned:
        bound = {">=": "<=", "<=": ">="}.get(bound or "=", bound)
    return f"{bound} {text}" if bound in (">=", "<=") else text


def factor(s: float, bound: str | None) -> str:
    """ "1.83", ">= 4.65": a speed-up, which censoring may have made a bound, or left without a meaning."""
    return "neither groks" if bound == "neither" else bounded(ratio(s, 2), bound)


def retained(row: Mapping[str, Any]) -> str:
    """How much of the logarithm of a published S is left, as a row of `answers.verdicts` has it: 84 %, >= 142 %."""
    share = f"{100 * row['retained']:.0f} %"
    return bounded(share, row["bound"], turned=row["s_claimed"] < 1)


def pvalue(p: float | None) -> str:
    """0.016, <0.001, or - where there is none."""
    if p is None or not math.isfinite(p):
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def plain(value: Any) -> str:
    """A setting as people write it: four digits are enough to read, the store keeps all."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def knobs(params: Mapping[str, Any]) -> str:
    """ "lr 0.04, wd 0.01, floor 0.01": shared settings first."""
    rank = {"lr": 0, "wd": 1}
    keys = sorted(params, key=lambda key: (rank.get(key, 2), key))
    return ", ".join(f"{key} {plain(params[key])}" for key in keys) or "-"


def named(table: Mapping[str, Any]) -> str:
    """ "parity (k 3, n 60)" of a table with a name and options."""
    rest = ", ".join(f"{k} {plain(v)}" for k, v in sorted(table.items()) if k != "name" and v is not None)
    return f"{table['name']} ({rest})" if rest else str(table["name"])


def listing(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def count(n: int, what: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def span(values: Sequence[int]) -> str:
    """ "4", or "4 to 6" where they differ."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def short(name: str, width: int = NAME) -> str:
    """A name that fits into a table: the middle gives way, since both ends tell names apart."""
    return name if len(name) <= width else f"{name[: width // 2 - 1]}…{name[-width // 2 :]}"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], align: str, limit: int = LIMIT) -> str:
    """A table in fixed width, columns two blanks apart, a rule under the header.

    align: "<" or ">" for each column.  limit: longest rule.
    """
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(f"{c:{a}{w}}" for c, a, w in zip(row, align, widths, strict=True)) for row in cells]
    rule = "-" * min(limit, sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:])])


def records(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The rows of a query as a table in fixed width, numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [any(isinstance(row[i], (int, float)) for row in rows) for i in range(len(names))]
    body = grid(names, cells, "".join("<>"[right] for right in numeric), limit=10_000)
    return f"{body}\n({count(len(rows), 'row')})\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
