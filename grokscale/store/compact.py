"""Compaction: the parts of a table become a few large sorted pieces, while others append and read.

Order: lease, read, write pieces, manifest (created only if absent), and only then, after the grace, deletion.
Killed before the manifest it leaves files that nobody reads, killed after it files that nobody needs; both
go with a later compaction, and never because of its own view of things: what may go says the manifest that counts.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from grokscale.errors import GrokscaleError
from grokscale.store.files import PART, Files, encode
from grokscale.store.generations import LEASE, MANIFEST, PIECE, Manifest, Piece, folder, latest
from grokscale.store.merging import CHUNK, merge
from grokscale.store.relations import distinct
from grokscale.store.schemas import RULES, SCHEMAS

LEASE_S = 1800.0  # a compaction that takes longer is only in danger of being done twice
_STALE = 1000  # names of files long deleted that a manifest may drag along
_GROUP = 4 << 20  # bytes in memory of a row group: what reading one trial costs at least


@dataclass(frozen=True)
class Compacted:
    """What a compaction did to one table.

    parts: merged.  rows: in the generation now.  deleted: files whose grace was over.  kept: part -> why it was
    left as it is.  note: why nothing was merged, if so.
    """

    table: str
    generation: int
    parts: int = 0
    rows: int = 0
    deleted: int = 0
    kept: tuple[tuple[str, str], ...] = ()
    note: str = ""

    def __str__(self) -> str:
        said = self.note or (f"{self.parts} files merged" if self.parts else "nothing to merge")
        lines = [f"{self.table}: {said}; generation {self.generation} has {self.rows:,} rows; {self.deleted} deleted"]
        return "\n".join([*lines, *(f"  {name} stays as it is: {reason}" for name, reason in self.kept)])


def compact(files: Files, table: str, *, grace: float) -> Compacted:
    """Merges the parts there are into a new generation, and deletes what has been merged away for `grace` s."""
    present = files.list(table)
    manifest = latest(files, table)
    here = {f"generations/{name}" for name in files.list(folder(table))} | present.keys()
    parts = sorted(name for name in present if PART.fullmatch(name) and name not in manifest.retired)
    stale = [name for name in manifest.retired if name not in here]
    done = Compacted(table, manifest.number, rows=_rows(manifest))
    if parts or len(stale) > _STALE:
        number = manifest.number + 1
        lease, holder = _lease(files, table, number)
        if lease is None:
            return replace(done, note=f"another compaction is under way: {holder}")
        try:
            done = _merge(files, table, manifest, parts, set(stale))
        except FileNotFoundError as error:
            if latest(files, table).number == manifest.number:
                raise GrokscaleError(
                    f"{files.root}/{table}: a file that a generation needs is missing ({error}); "
                    "`grokscale store check` says what can be done"
                ) from error
            done = replace(done, note="another compaction was quicker")
        finally:
            files.delete(lease)
    return replace(done, deleted=_delete(files, table, grace))


def _merge(files: Files, table: str, manifest: Manifest, parts: list[str], stale: set[str]) -> Compacted:
    merged: list[str] = []
    kept: list[tuple[str, str]] = []
    number = manifest.number + 1
    written: list[Piece] = []

    def write(rows: pa.Table) -> Piece:
        written.append(write_piece(files, table, number, rows))
        return written[-1]

    pieces = merge(files, table, manifest, _batches(files, table, parts, merged, kept), write)
    done = Compacted(table, manifest.number, rows=_rows(manifest), kept=tuple(kept))
    if not merged and not stale:
        return done
    now = time.time()
    replaced = {piece.name for piece in manifest.pieces} - {piece.name for piece in pieces}
    retired = {name: since for name, since in manifest.retired.items() if name not in stale}
    retired |= dict.fromkeys([*merged, *(f"generations/{name}" for name in sorted(replaced))], now)
    new = Manifest(number, now, tuple(pieces), retired)
    path, data = f"{folder(table)}/{new.name}", new.to_json()
    if not files.create(path, data) and (there := _load(files, path)) != data:  # equal: a retried request
        if there is not None:  # the number is another's, so none will ever name these
            for piece in written:
                files.delete(f"{folder(table)}/{piece.name}")
        return replace(done, note="another compaction was quicker")
    return replace(done, generation=number, parts=len(merged), rows=_rows(new))


def _batches(
    files: Files, table: str, names: Sequence[str], merged: list[str], kept: list[tuple[str, str]]
) -> Iterator[pa.Table]:
    """The rows of the parts, about CHUNK bytes at a time, each key once; the parts' names end up in the lists."""
    held: list[pa.Table] = []
    for i in range(0, len(names), 64):
        for name, result in files.parts(table, list(names[i : i + 64]), whole=True).items():
            if isinstance(result, str):
                kept.append((name, result))
            else:
                merged.append(name)
                held.append(result)
        if sum(rows.nbytes for rows in held) >= CHUNK:
            yield distinct(table, pa.concat_tables(held).combine_chunks())
            held = []
    if held:
        yield distinct(table, pa.concat_tables(held).combine_chunks())


def write_piece(files: Files, table: str, number: int, rows: pa.Table) -> Piece:
    """Adds rows, sorted and each key once, as a file of generation `number`."""
    key = rows[RULES[table].keys[0]]
    name = f"{number:08d}-{uuid.uuid4().hex}.parquet"
    group = max(64, rows.num_rows * _GROUP // max(1, rows.nbytes))
    texts = [field.name for field in SCHEMAS[table] if pa.types.is_string(field.type)]
    data = encode(table, rows, compression="zstd", use_dictionary=texts, row_group_size=group)
    files.put(f"{folder(table)}/{name}", data)
    return Piece(name, rows.num_rows, rows.nbytes, key[0].as_py(), key[rows.num_rows - 1].as_py())


def _delete(files: Files, table: str, grace: float) -> int:
    """Deletes what the manifest that counts says was merged away, and what no manifest can name any more."""
    manifest = latest(files, table)
    place = folder(table)
    there = files.list(place)
    here = {f"generations/{name}" for name in there} | files.list(table).keys()
    now = time.time()
    old = [f"{table}/{name}" for name, since in manifest.retired.items() if name in here and since + grace <= now]
    if manifest.at + grace <= now:
        named = {piece.name for piece in manifest.pieces} | {
            name.removeprefix("generations/") for name in manifest.retired
        }
        for name in there:
            match = PIECE.fullmatch(name) or MANIFEST.fullmatch(name) or LEASE.fullmatch(name)
            last = manifest.number - (1 if MANIFEST.fullmatch(name) else 0)
            if match and int(match[1]) <= last and name not in named:
                old.append(f"{place}/{name}")
    for path in old:
        files.delete(path)
    return len(old)


def _lease(files: Files, table: str, number: int) -> tuple[str | None, str]:
    """The path of our lease on making generation `number`; or None, and who has one.

    Leases of a generation are numbered; the next may be taken when all before it are over.
    """
    place = folder(table)
    me, host = f"{socket.gethostname()}:{os.getpid()}", socket.gethostname()
    names = [name for name in files.list(place) if (match := LEASE.fullmatch(name)) and int(match[1]) == number]
    for name in names:
        try:
            lease = json.loads(files.load(f"{place}/{name}"))
            holder, until = str(lease["holder"]), float(lease["until"])
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError):
            continue  # damaged: nobody's
        if until > time.time() and not _dead(holder, host):
            return None, f"{holder}, for at most {until - time.time():.0f} s more"
    taken = [int(match[2]) for name in names if (match := LEASE.fullmatch(name))]
    path = f"{place}/{number:08d}.{max(taken, default=-1) + 1}.lease"
    said = json.dumps({"holder": me, "until": time.time() + LEASE_S}).encode()
    return (path, me) if files.create(path, said) else (None, "it took the lease just now")


def _dead(holder: str, host: str) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    where, _, pid = holder.rpartition(":")
    if where != host or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _load(files: Files, path: str) -> bytes | None:
    try:
        return files.load(path)
    except FileNotFoundError:
        return None


def _rows(manifest: Manifest) -> int:
    return sum(piece.rows for piece in manifest.pieces)
