"""Reading one table: the parts that came since the last compaction, over the generation that it left."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from grokscale.errors import GrokscaleError
from grokscale.store import generations
from grokscale.store.files import Files, Stat, StoreWarning
from grokscale.store.generations import Manifest, nothing
from grokscale.store.relations import distinct, overlay, select, unique
from grokscale.store.schemas import RULES

TRIES = 20  # a listing goes stale only when what was merged away is deleted at the same time
_KEPT = 32 << 20  # bytes; a generation larger than this is read anew each time, only where it is needed


_T = TypeVar("_T")


@dataclass
class Scan:
    """A table as SQL reads it: the pieces without the rows of leading key `but`, and `rows` in their place."""

    pieces: list[str] = field(default_factory=list)
    but: pa.Array | None = None
    rows: pa.Table | None = None


class Reader:
    """The rows of one table that count. Files never change, so none is read twice where its rows are kept.

    keep: whether to keep the rows of parts; curves are too many, so they are read anew each time.
    Not safe to use from two threads at once.
    """

    def __init__(self, files: Files, table: str, *, keep: bool) -> None:
        self._files, self._table, self._keep = files, table, keep
        self._key = RULES[table].keys[0]
        self._manifest = Manifest()
        self._skipped: dict[str, Stat] = {}  # gets another chance should its size or date change
        self._forget()

    def rows(self, narrow: Mapping[str, Any]) -> pa.Table:
        """The rows that count, in the order of their keys, at least those that `narrow` selects.

        narrow: column -> value or values, as for `select`, of columns of the key.
        """
        wanted = _strings(narrow.get(self._key))
        loose, base = self._retried(lambda: (self._look(narrow), self._base(wanted, narrow)))
        if not self._manifest.pieces:
            return loose
        return overlay(self._table, base, loose) if self._manifest.disjoint else self._distinct([base, loose])

    def scan(self) -> Scan:
        """The same rows for SQL, with what needs no second look left in the files."""
        return self._retried(self._scan)

    def _scan(self) -> Scan:
        loose = self._look({})
        manifest = self._manifest
        if not manifest.pieces:
            return Scan(rows=loose)
        if not manifest.disjoint:
            return Scan(rows=self._distinct([self._base(None, {}), loose]))
        paths = [f"{generations.folder(self._table)}/{piece.name}" for piece in manifest.pieces]
        if not loose.num_rows:
            return Scan(paths)
        but = unique(loose, self._key)
        ids = set(but.to_pylist())
        base = select(self._table, self._base(ids, {}), {self._key: ids})
        return Scan(paths, but, self._distinct([base, loose]))

    def _retried(self, look: Callable[[], _T]) -> _T:
        """What `look` returns, tried again where files vanish under it because the store is being compacted."""
        lost = None
        for _ in range(TRIES):
            try:
                return look()
            except FileNotFoundError as error:
                self._forget()
                lost = error
        raise GrokscaleError(
            f"{self._files.root}/{self._table}: files vanish while they are read ({lost}); what deletes them? "
            "`grokscale store check` says what is missing"
        )

    def _forget(self) -> None:
        self._read: set[str] = set()
        self._raw: list[pa.Table] = []
        self._loose: pa.Table | None = None
        self._whole: tuple[int, pa.Table] | None = None
        self._manifest = Manifest()

    def _look(self, narrow: Mapping[str, Any]) -> pa.Table:
        """The parts' rows that count, with the ones that came since the last look; parts before manifests."""
        found = self._files.list(self._table)
        self._manifest = generations.latest(self._files, self._table, self._manifest)
        found = {name: stat for name, stat in found.items() if name not in self._manifest.retired}
        if not self._keep or not self._read <= found.keys():
            self._read, self._raw, self._loose = set(), [], None
        new = sorted(n for n in found if n not in self._read and self._skipped.get(n) != found[n])
        results = self._files.parts(self._table, new)
        reasons = {name: result for name, result in results.items() if isinstance(result, str)}
        self._skipped.update({name: found[name] for name in reasons})
        if reasons:
            listed = "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
            warnings.warn(f"{self._files.root}/{self._table}: skipped {listed}", StoreWarning, stacklevel=7)
        tables = [result for result in results.values() if isinstance(result, pa.Table)]
        if not self._keep:
            return self._distinct([select(self._table, table, narrow) for table in tables])
        self._read |= results.keys() - reasons.keys()
        if tables or self._loose is None:
            rows = pa.concat_tables([nothing(self._table), *self._raw, *tables]).combine_chunks()
            self._raw, self._loose = [rows], distinct(self._table, rows)
        return self._loose

    def _base(self, wanted: set[str] | None, narrow: Mapping[str, Any]) -> pa.Table:
        """The generation's rows of these leading keys that `narrow` selects, or more."""
        manifest = self._manifest
        if self._whole is not None and self._whole[0] == manifest.number:
            return self._whole[1]
        if wanted is not None and sum(piece.nbytes for piece in manifest.pieces) > _KEPT:
            ordered = sorted(wanted)

            def overlaps(low: str, high: str) -> bool:
                at = bisect_left(ordered, low)
                return at < len(ordered) and ordered[at] <= high

            return select(self._table, generations.read(self._files, self._table, manifest, overlaps), narrow)
        rows = generations.read(self._files, self._table, manifest)
        if sum(piece.nbytes for piece in manifest.pieces) <= _KEPT:
            self._whole = (manifest.number, rows)
        return rows

    def _distinct(self, tables: Iterable[pa.Table]) -> pa.Table:
        return distinct(self._table, pa.concat_tables([nothing(self._table), *tables]).combine_chunks())


def _strings(values: Any) -> set[str] | None:
    """The values of a filter if all are strings; None where there are others, or no filter."""
    if values is None or isinstance(values, str):
        return None if values is None else {values}
    found = set(values) if isinstance(values, Iterable) else {values}
    return found if all(isinstance(value, str) for value in found) else None
