"""Merging more rows than fit into memory: sorted runs in files, cut at leading keys, one range after another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from grokscale.errors import GrokscaleError
from grokscale.store.files import Files
from grokscale.store.generations import Manifest, Piece, nothing, piece_rows, row_groups
from grokscale.store.relations import distinct
from grokscale.store.schemas import RULES, conform

CHUNK = 128 << 20  # bytes in memory of one piece; merging takes a few times as much
_MARKS = 64  # per run: how finely ranges can be cut
_pc: Any = pyarrow.compute  # its functions are made at import, no type checker sees them

Range = tuple[str | None, str | None]  # leading keys after .. up to and with; None: no end


def merge(
    files: Files,
    table: str,
    manifest: Manifest,
    batches: Iterable[pa.Table],
    write: Callable[[pa.Table], Piece],
) -> list[Piece]:
    """The pieces of the next generation, disjoint and in order: those of this one and the rows of `batches`.

    batches: tables that are `distinct`, of about CHUNK bytes each.  write: makes a piece of rows.
    A large piece into whose range no row falls is kept as it is.
    """
    with tempfile.TemporaryDirectory(prefix="grokscale-") as scratch:
        runs = list(_spill(batches, table, Path(scratch)))
        if not runs and manifest.disjoint:
            return list(manifest.pieces)
        large = [piece for piece in manifest.pieces if manifest.disjoint and piece.nbytes >= CHUNK // 4]
        small = [piece for piece in manifest.pieces if piece not in large]
        marks = [mark for run in runs for mark in run.marks]
        marks += [(key, piece.nbytes // 2) for piece in small for key in (piece.low, piece.high)]
        pieces = []
        for after, upto in _ranges(marks, large):
            rows = [run.rows(after, upto) for run in runs]
            there = [piece for piece in manifest.pieces if _overlap(piece.low, piece.high, after, upto)]
            fresh = any(part.num_rows for part in rows)
            if not fresh and there and all(piece in large and _within(piece, after, upto) for piece in there):
                pieces += there
                continue
            rows += [_cut(_of_piece(files, table, piece.name, after, upto), table, after, upto) for piece in there]
            merged = distinct(table, pa.concat_tables([nothing(table), *rows]).combine_chunks())
            if merged.num_rows:
                pieces.append(write(merged))
        return pieces


class _Run:
    """One sorted table in a file of its own, and the weight in bytes of its rows up to some of its keys."""

    def __init__(self, rows: pa.Table, table: str, path: Path) -> None:
        self._table, self._path = table, path
        key = RULES[table].keys[0]
        try:
            pq.write_table(rows, path, row_group_size=max(1024, rows.num_rows // _MARKS), compression="lz4")
        except OSError as error:
            raise GrokscaleError(f"{path}: cannot sort there: {error}; TMPDIR names another place") from error
        count = min(_MARKS, rows.num_rows)
        at = [rows.num_rows * (i + 1) // count - 1 for i in range(count)]
        self.marks = [(rows[key][i].as_py(), rows.nbytes // count) for i in at]

    def rows(self, after: str | None, upto: str | None) -> pa.Table:
        found = row_groups(
            str(self._path), RULES[self._table].keys[0], lambda low, high: _overlap(low, high, after, upto)
        )
        return _cut(found, self._table, after, upto)


def _spill(batches: Iterable[pa.Table], table: str, scratch: Path) -> Iterator[_Run]:
    for i, rows in enumerate(batches):
        if rows.num_rows:
            yield _Run(rows, table, scratch / f"{i}.parquet")


def _ranges(marks: list[tuple[str, int]], large: list[Piece]) -> list[Range]:
    """Ranges that together hold every key, with about CHUNK bytes of `marks` each, ending where a large piece ends."""
    ends = {piece.high for piece in large}
    cuts: list[str] = []
    weight = 0
    for key, nbytes in sorted([*marks, *((end, 0) for end in ends)]):
        weight += nbytes
        if (key in ends or weight >= CHUNK) and (not cuts or key > cuts[-1]):
            cuts.append(key)
            weight = 0
    return list(pairwise([None, *cuts, None]))


def _overlap(low: str, high: str, after: str | None, upto: str | None) -> bool:
    return (after is None or high > after) and (upto is None or low <= upto)


def _within(piece: Piece, after: str | None, upto: str | None) -> bool:
    return (after is None or piece.low > after) and (upto is None or piece.high <= upto)


def _of_piece(files: Files, table: str, name: str, after: str | None, upto: str | None) -> pa.Table:
    found = piece_rows(files, table, name, lambda low, high: _overlap(low, high, after, upto))
    return conform(table, found)


def _cut(rows: pa.Table, table: str, after: str | None, upto: str | None) -> pa.Table:
    key = RULES[table].keys[0]
    if after is not None:
        rows = rows.filter(_pc.greater(rows[key], after))
    if upto is not None:
        rows = rows.filter(_pc.less_equal(rows[key], upto))
    return rows
