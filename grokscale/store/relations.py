"""Selecting, de-duplicating and joining the store's tables.

Nothing here turns a Python value into an Arrow one, or an Arrow one into numpy, pyarrow's usual way: where
pandas is installed it is imported for that, and reading results would take a second longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from grokscale.errors import GrokscaleError, suggest
from grokscale.store.schemas import RANKS, RULES

JOINED = ("sweep_id", "arm", "phase", "number")  # what replicas and curves get from trials

_pc: Any = pyarrow.compute  # its functions are made at import, no type checker sees them
_Ints = NDArray[np.int64]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def take(table: pa.Table, rows: _Ints) -> pa.Table:
    """The rows of these numbers, in this order."""
    return table.take(_ints(rows))


def select(name: str, table: pa.Table, filters: Mapping[str, Any]) -> pa.Table:
    """The rows where every column has the value asked for, or one of several values; None asks for null.

    Raises GrokscaleError for an unknown column and for a value that the column cannot have.
    """
    for column, value in filters.items():
        if column not in table.column_names:
            allowed = suggest(column, table.column_names)
            raise GrokscaleError(f"{name}: no column '{column}' to filter by; {allowed}")
        kind = table.schema.field(column).type
        several = isinstance(value, Iterable) and not isinstance(value, str)
        wanted = set(value) if several else {value}
        for one in wanted:
            if not _fits(one, kind):
                raise GrokscaleError(f"{name}.{column}: {one!r} is not {kind}")
        codes, values = _encode(table[column])
        hit = np.array([v in wanted for v in values], dtype=bool)
        table = take(table, np.flatnonzero(hit[codes]))
    return table


def _fits(value: Any, kind: pa.DataType) -> bool:
    if value is None:
        return True
    if pa.types.is_boolean(kind):
        return isinstance(value, bool | np.bool_)
    if pa.types.is_integer(kind):
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    if pa.types.is_floating(kind):
        return isinstance(value, int | float | np.integer | np.floating)
    return pa.types.is_timestamp(kind) or (pa.types.is_string(kind) and isinstance(value, str))


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as dicts; what `Table.to_pylist` gives, without pandas."""
    columns = []
    for name in table.column_names:
        values = table[name]
        if pa.types.is_timestamp(values.type):
            since = values.cast(pa.int64()).to_pylist()
            columns.append([None if us is None else _EPOCH + timedelta(microseconds=us) for us in since])
        else:
            columns.append(values.to_pylist())
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def distinct(name: str, table: pa.Table) -> pa.Table:
    """One row per key of table `name`, the one that counts, in the order of the keys."""
    if not table.num_rows:
        return table
    rule = RULES[name]
    best, ways = [], []
    for column in rule.best:
        values = table[column.lstrip("-")]
        best.append(_ranks(values, RANKS[column]) if column in RANKS else values)
        ways.append("descending" if column.startswith("-") else "ascending")
    keys = [_sortable(table[key]) for key in rule.keys]
    rows = _order([*keys, *best], ["ascending"] * len(keys) + ways)
    sorting = pa.Table.from_arrays(keys, names=list(rule.keys))
    same, _ = _codes(sorting, sorting.slice(0, 0), rule.keys)
    new = np.ones(table.num_rows, dtype=bool)
    new[1:] = same[rows][1:] != same[rows][:-1]
    return take(table, rows[new])


def overlay(name: str, base: pa.Table, rows: pa.Table) -> pa.Table:
    """`distinct` of both, where each of the two is distinct and in order already."""
    if not rows.num_rows or not base.num_rows:
        return base if not rows.num_rows else rows
    key = RULES[name].keys[0]
    hit = _pc.is_in(base[key], value_set=unique(rows, key))
    contested = distinct(name, pa.concat_tables([base.filter(hit), rows]).combine_chunks())
    rest = base.filter(_pc.invert(hit))
    if not rest.num_rows:
        return contested
    both = pa.concat_tables([rest, contested]).combine_chunks()
    keys = [_sortable(both[key]) for key in RULES[name].keys]
    return take(both, _order(keys, ["ascending"] * len(keys)))


def unique(rows: pa.Table, key: str) -> pa.Array:
    """The different values of a column."""
    return _pc.unique(rows[key])


def _order(columns: list[Any], ways: list[str]) -> _Ints:
    names = [f"c{i}" for i in range(len(columns))]
    table = pa.Table.from_arrays(columns, names=names)
    order = _pc.sort_indices(table, sort_keys=list(zip(names, ways, strict=True)))
    return np.from_dlpack(order).astype(np.int64)


def _sortable(column: pa.ChunkedArray) -> Any:
    """The column, or for a column of lists numbers in the order of the lists."""
    if not pa.types.is_list(column.type):
        return column
    lists = [tuple(value) for value in column.to_pylist()]
    place = {value: i for i, value in enumerate(sorted(set(lists)))}
    return _ints(np.array([place[value] for value in lists], dtype=np.int64))


def _ranks(column: pa.ChunkedArray, ranks: Mapping[str, int]) -> pa.Array:
    codes, values = _encode(column)
    return _ints(np.array([ranks.get(value, len(ranks)) for value in values], dtype=np.int64)[codes])


def matching(rows: pa.Table, others: pa.Table, columns: Iterable[str]) -> pa.Table:
    """The rows whose values in these columns are those of a row of `others`."""
    mine, theirs = _codes(rows, others, columns)
    return take(rows, np.flatnonzero(np.isin(mine, theirs)))


def per_seed(trials: pa.Table) -> pa.Table:
    """The trials, one row per seed and without repeats: columns of JOINED, trial_id, seed."""
    seeds = trials["seeds"].combine_chunks()
    rows = trials.select([*JOINED, "trial_id"]).take(_pc.list_parent_indices(seeds))
    rows = rows.append_column("seed", _pc.list_flatten(seeds))
    rows = take(rows, np.unique(_codes(rows, rows.slice(0, 0), rows.column_names)[0], return_index=True)[1])
    return rows.sort_by([(name, "ascending") for name in rows.column_names])


def join(seeds: pa.Table, rows: pa.Table) -> pa.Table:
    """`rows` with the columns JOINED of the trials they belong to; those of a trial in the order they have.

    seeds: what `per_seed` gives.  A row that belongs to several trials appears once for each.
    """
    mine, wanted = _codes(rows, seeds, ("trial_id", "seed"))
    order = np.argsort(mine, kind="stable")
    first = np.searchsorted(mine[order], wanted, "left")
    last = np.searchsorted(mine[order], wanted, "right")
    picks = [order[a:b] for a, b in zip(first, last, strict=True)]
    joined = take(rows, np.concatenate([np.zeros(0, dtype=np.int64), *picks]))
    of = take(seeds, np.repeat(np.arange(len(wanted)), last - first))
    for name in JOINED:
        joined = joined.append_column(name, of[name])
    return joined


def _codes(a: pa.Table, b: pa.Table, columns: Iterable[str]) -> tuple[_Ints, _Ints]:
    """A number per row of a and of b; two rows have the same one if they agree in these columns."""
    total = np.zeros(a.num_rows + b.num_rows, dtype=np.int64)
    for name in columns:
        codes, values = _encode(pa.chunked_array([*a[name].chunks, *b[name].chunks], a[name].type))
        total = np.unique(total * max(1, len(values)) + codes, return_inverse=True)[1].astype(np.int64)
    return total[: a.num_rows], total[a.num_rows :]


def _encode(column: pa.ChunkedArray) -> tuple[_Ints, list[Any]]:
    """(index into values per row, the different values, None among them)."""
    if not len(column):
        return np.zeros(0, dtype=np.int64), []
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return np.from_dlpack(encoded.indices).astype(np.int64), encoded.dictionary.to_pylist()


def _ints(values: _Ints) -> pa.Array:
    data = np.ascontiguousarray(values, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(data), [None, pa.py_buffer(data)])
