"""`Store`: the tables of one root, appended to and read as if they were one file each."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs

from grokscale.errors import GrokscaleError, InputError, StoreError, suggest
from grokscale.store.files import Files
from grokscale.store.generations import nothing
from grokscale.store.reading import TRIES, Reader, Scan
from grokscale.store.relations import JOINED, join, matching, per_seed, select, to_rows
from grokscale.store.schemas import ATTEMPT, LARGE, RULES, SCHEMAS, Rows, to_table

if TYPE_CHECKING:
    from grokscale.store.check import Finding
    from grokscale.store.compact import Compacted

GRACE = 3600.0  # s that merged-away files stay: longer than any one reading, and than network file systems cache
NAMED = 6  # sweeps in a message about one that there is not
CHECK_GRACE = 24 * 3600.0  # s; a pack's curves are written before its replicas, and by a slow machine


class Store:
    """Append-only Parquet tables under one absolute root: a folder, or s3://, gs:// through pyarrow.fs.

    Safe to use from several threads, processes and machines at once, and cheap to read again: files never
    change, so only new ones are read. Opening a store creates nothing.
    """

    def __init__(self, root: str | Path, *, filesystem: pafs.FileSystem | None = None) -> None:
        self._files = Files(root, filesystem)
        self._filesystem = filesystem
        self._lock = threading.RLock()
        self._readers = {table: Reader(self._files, table, keep=table not in LARGE) for table in SCHEMAS}

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def _repr_html_(self) -> str:
        """In a notebook: the sweeps that there are, the latest first."""
        from grokscale.store.show import Shown

        rows = self._read("sweeps").sort_by([("at", "descending"), ("sweep_id", "ascending")])
        shown = rows.select(["sweep_id", "question", "baseline", "horizon", "at"])
        return Shown(shown, title=f"Store {self.root.rstrip('/').rpartition('/')[2]}: sweeps")._repr_html_()

    def __reduce__(self) -> tuple[Any, ...]:  # to another process goes the place, not what was read from it
        return _reopen, (self.root, self._filesystem)

    @property
    def root(self) -> str:
        """Where the store is: an absolute path, or a URI."""
        return self._files.root

    @property
    def local(self) -> Path | None:
        """The root as a path; None on an object store."""
        return self._files.local

    def folder(self, *parts: str) -> Path:
        """<root>/<parts> for what is no table (logs, locks, checkpoints), created; local stores only."""
        if self.local is None:
            raise GrokscaleError(
                f"{self.root}: an object store has no folder {'/'.join(parts)}, where locks, logs and checkpoints lie; "
                "run a sweep into a local folder or one that the nodes share, and copy its answers with "
                "`grokscale store publish`"
            )
        try:
            return self._files.made("/".join(parts))
        except OSError as error:
            path = self.local.joinpath(*parts)
            raise StoreError(f"{path}: cannot write to the store: {error.strerror}; name another place") from error

    def sweep_dir(self, sweep_id: str) -> Path:
        """<root>/sweeps/<sweep_id>/: the log, the lock and the report of a sweep, created."""
        return self.folder("sweeps", sweep_id)

    def append(self, table: str, rows: Rows) -> str | None:
        """Adds rows to a table as one new file, on the disk when this returns; its name, None for no rows.

        rows: dicts, a pa.Table, or a dict of columns in which a single value stands for a whole column.
        Nullable columns may be missing; `at` is now where it is.
        Raises GrokscaleError with all unknown columns, missing values and wrong types; nothing is written.
        """
        checked = to_table(_known_table(table), rows)
        return self._files.write(table, checked) if checked.num_rows else None

    def table(self, table: str, /, **filters: Any) -> pa.Table:
        """The rows of a table that count, in the order of their keys.

        filters: column=value, column=[values], column=None for null; sweep= takes a sweep's id, or its name
        for the latest of that name. For replicas, curves and measures sweep=, arm=, phase=, number= join the
        trials: these columns are added, and a replica that several trials share appears once for each.
        """
        _known_table(table)
        if "sweep" in filters:
            filters["sweep_id"] = self.find_sweep(filters.pop("sweep"))
        if table not in ("replicas", *LARGE) or not filters.keys() & set(JOINED):
            return select(table, self._read(table, filters), filters)
        of_trial = {name: filters.pop(name) for name in JOINED if name in filters}
        seeds = per_seed(select("trials", self._read("trials", of_trial), of_trial))
        if "trial_id" not in filters:
            filters["trial_id"] = set(seeds["trial_id"].to_pylist())
        return join(seeds, select(table, self._read(table, filters), filters))

    def rows(self, table: str, /, **filters: Any) -> list[dict[str, Any]]:
        """`table` as a list of dicts; quicker to the first row than `to_pylist`, which imports pandas."""
        return to_rows(self.table(table, **filters))

    def replicas(self, **filters: Any) -> pa.Table:
        """What happened to (trial_id, seed), one row each; see `table`."""
        return self.table("replicas", **filters)

    def curves(self, **filters: Any) -> pa.Table:
        """One row per replica and evaluation, of the attempt that counts; see `table`."""
        return self.table("curves", **filters)

    def measures(self, **filters: Any) -> pa.Table:
        """One row per replica, look and measure, of the attempt that counts; see `table`."""
        return self.table("measures", **filters)

    def trials(self, **filters: Any) -> pa.Table:
        """What sweeps asked, and what came of it; see `table`."""
        return self.table("trials", **filters)

    def speedups(self, **filters: Any) -> pa.Table:
        """The answers of finished sweeps; see `table`."""
        return self.table("speedups", **filters)

    def part(self, table: str, name: str) -> pa.Table | None:
        """The rows of the file that `append` called `name`; None where it has been merged with others, or is no part.

        Takes as long in a full store as in an empty one. Whether the rows count only `table` can say.
        """
        try:
            rows = self._files.part(_known_table(table), name)
        except FileNotFoundError:
            return None
        return rows if isinstance(rows, pa.Table) else None

    def answered(self, trial_ids: Iterable[str]) -> dict[tuple[str, int], dict[str, Any]]:
        """The replicas there are of these trials: (trial_id, seed) -> row."""
        rows = self.rows("replicas", trial_id=list(trial_ids))
        return {(row["trial_id"], row["seed"]): row for row in rows}

    def sweeps(self) -> list[str]:
        """The ids of all sweeps, the oldest first."""
        return self._sweeps()["sweep_id"].to_pylist()

    def find_sweep(self, name_or_id: str | None = None) -> str:
        """The id of a sweep, given its id or its name (the latest of that name); None: the latest of all.

        Raises InputError naming the nearest ones.
        """
        sweeps = self._sweeps().select(["sweep_id", "name"]).to_pylist()
        found = [row["sweep_id"] for row in sweeps if name_or_id in (None, row["sweep_id"], row["name"])]
        exact = [sweep_id for sweep_id in found if sweep_id == name_or_id]
        if found:
            return (exact or found)[-1]
        if not sweeps:
            raise InputError(f"{self.root}: no sweep in this store")
        names = [text for row in reversed(sweeps) for text in (row["name"], row["sweep_id"])]
        there = suggest(str(name_or_id), names, NAMED)
        raise InputError(f"{self.root}: no sweep '{name_or_id}'; {there}; `grokscale list` has all")

    def sql(self, query: str, *, memory: str = "1GB") -> pa.Table:
        """One read-only SQL query (DuckDB) over replicas, trials, curves, measures, speedups, sweeps, plans, timings,
        endpoints, importances.

        It sees these views and nothing else: no files, no network, no settings. memory: what it may use.
        Raises InputError for anything but one SELECT, and for what DuckDB refuses.
        """
        from grokscale.store.sql import run  # DuckDB is only loaded by who asks

        # Anything that could reach a large table says so; others are spared them.
        said = query.lower()
        computed = "query" in said or "serialized" in said  # functions that take the name of a view as a text
        spared = {name for name in LARGE if name not in said and not computed}
        for _ in range(TRIES):
            with self._lock:
                scans = {
                    name: Scan(rows=nothing(name)) if name in spared else self._readers[name].scan() for name in SCHEMAS
                }
            try:
                return run(query, self._files, scans, memory=memory)
            except (FileNotFoundError, InputError):
                if self._files.there(piece for scan in scans.values() for piece in scan.pieces):
                    raise
        raise GrokscaleError(f"{self.root}: files vanish while a query reads them; compact with a longer grace")

    def compact(self, tables: Iterable[str] = tuple(SCHEMAS), *, grace: float = GRACE) -> list[Compacted]:
        """Merges the parts of each table into larger, sorted files, while others append and read.

        grace: seconds for which merged-away files stay, for readers with an older listing.
        Says per table what was done; safe to kill and to run twice. Raises GrokscaleError.
        """
        from grokscale.store.compact import compact  # only who compacts loads it

        names = [_known_table(table) for table in tables]
        return [compact(self._files, table, grace=grace) for table in names]

    def check(self, *, repair: bool = False, grace: float = CHECK_GRACE) -> list[Finding]:
        """What is in the tables' folders and should not be, or should be and is not.

        repair: set it aside, in quarantine/ under the root; nothing is ever deleted.
        grace: seconds that a file may look unfinished, because its writer may still be at work.
        """
        from grokscale.store.check import check

        return check(self._files, repair=repair, grace=grace)

    def _sweeps(self) -> pa.Table:
        return self._read("sweeps").sort_by([("at", "ascending"), ("sweep_id", "ascending")])

    def _read(self, table: str, filters: Mapping[str, Any] | None = None) -> pa.Table:
        """The rows that count, at least those that the filters select.

        Replicas are read before the large tables: a worker writes these first, so every replica has its curve.
        """
        narrow = {name: value for name, value in (filters or {}).items() if name in RULES[table].keys}
        with self._lock:
            if table not in LARGE:
                return self._readers[table].rows(narrow)
            of_replica = {name: value for name, value in narrow.items() if name in ("trial_id", "seed")}
            replicas = select("replicas", self._readers["replicas"].rows(of_replica), of_replica)
            rows = self._readers[table].rows(of_replica)
        return matching(rows, replicas, ATTEMPT)


def _reopen(root: str, filesystem: pafs.FileSystem | None) -> Store:
    return Store(root, filesystem=filesystem)


def _known_table(name: str) -> str:
    if name not in SCHEMAS:
        raise GrokscaleError(f"no table '{name}'; {suggest(name, SCHEMAS)}")
    return name

