"""What is in the tables' folders and should not be, or should be and is not; set aside on request. Weights too.

Nothing is ever deleted: --repair moves files into quarantine/<table>/ under the root. Where a generation has lost
a piece or its manifest, a new manifest takes in all pieces that can be read, and every part that is still there
counts again; what is there twice is dropped on reading, so that much is always safe.
"""

from __future__ import annotations

import hashlib
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from grokscale.errors import GrokscaleError
from grokscale.store import generations, kept
from grokscale.store.files import PART, Files, NewerSchema, StoreWarning
from grokscale.store.generations import LEASE, MANIFEST, PIECE, Manifest, Piece, folder, latest
from grokscale.store.reading import Reader
from grokscale.store.relations import matching
from grokscale.store.schemas import ATTEMPT, LARGE, RULES, SCHEMAS

QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Finding:
    """One file that is not as it should be.

    path: from the root.  kind: torn, foreign, newer, duplicate, orphan, leftover or missing.  what: the reason.
    action: what a repair does.  done: whether it has been done.
    """

    path: str
    kind: str
    what: str
    action: str = "move to quarantine/"
    done: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}: {self.what}; {'done' if self.done else 'would'}: {self.action}"


def check(files: Files, *, repair: bool, grace: float) -> list[Finding]:
    """The findings of all tables; with `repair` the files are set aside. Raises GrokscaleError."""
    before = time.time() - grace
    replicas = _replicas(files)
    attempts = None if replicas is None else lambda rows: matching(rows, replicas, ATTEMPT).num_rows
    findings: list[Finding] = []
    for table in SCHEMAS:
        found = [*_in_parts(files, table, before, attempts), *_in_generations(files, table, before)]
        if repair:
            anew = any(_ANEW in finding.action for finding in found)
            last = _last(files, table)
            found = [_aside(files, finding) for finding in found]
            if anew:
                _anew(files, table, last)
                found = [replace(finding, done=finding.done or _ANEW in finding.action) for finding in found]
        findings += found
    weights = [Finding(*found) for found in _in_weights(files, before, replicas)]
    return findings + [_aside(files, finding) if repair else finding for finding in weights]


def _in_weights(files: Files, before: float, replicas: pa.Table | None) -> Iterator[tuple[str, str, str]]:
    """Findings among kept weights, which only a folder has."""
    if files.local is not None:
        columns = None if replicas is None else [replicas[name].to_pylist() for name in ("trial_id", "seed")]
        yield from kept.findings(files.local, before, None if columns is None else set(zip(*columns, strict=True)))


_ANEW = "make a new manifest of what is there"


def _in_parts(files: Files, table: str, before: float, attempts: Callable[[pa.Table], int] | None) -> Iterator[Finding]:
    """Findings among the files of the table's own folder."""
    seen: dict[str, str] = {}
    retired = _retired(files, table)
    for name, (_, mtime) in sorted(files.list(table, hidden=True).items()):
        path = f"{table}/{name}"
        if name.startswith("."):
            if mtime / 1e9 < before:
                yield Finding(path, "leftover", "an append that was cut off, or a file of another program")
            continue
        if name in retired:
            continue
        try:
            rows = files.part(table, name)
            digest = hashlib.sha256(files.load(path)).hexdigest()
        except NewerSchema as error:
            yield Finding(path, "newer", str(error), "leave it: update grokscale")
            continue
        except FileNotFoundError:
            continue
        if isinstance(rows, str):
            yield Finding(path, "torn" if rows.startswith("torn") else "foreign", rows)
        elif digest in seen:
            yield Finding(path, "duplicate", f"the same bytes as {seen[digest]}")
        elif table in LARGE and attempts is not None and _age(name) < before and not attempts(rows):
            yield Finding(path, "orphan", f"{table} of attempts that no replica counts")
        if not isinstance(rows, str):
            seen.setdefault(digest, name)


def _in_generations(files: Files, table: str, before: float) -> Iterator[Finding]:
    """Findings among manifests, pieces and leases."""
    place = folder(table)
    there = files.list(place, hidden=True)
    try:
        manifest = latest(files, table)
    except GrokscaleError as error:
        manifest = Manifest(_last(files, table))
        yield Finding(f"{place}/{manifest.name}", "torn", str(error), f"move to quarantine/ and {_ANEW}")
        named = {name for name in there if PIECE.fullmatch(name)}
    else:
        named = {piece.name for piece in manifest.pieces}
    retired = {name.removeprefix("generations/") for name in manifest.retired}
    for name in sorted(named - there.keys()):
        yield Finding(f"{place}/{name}", "missing", f"{manifest.name} lists it", _ANEW)
    for name, (_, mtime) in sorted(there.items()):
        path = f"{place}/{name}"
        piece, other = PIECE.fullmatch(name), MANIFEST.fullmatch(name) or LEASE.fullmatch(name)
        if name in named:
            reason = _unreadable(files, table, name)
            if reason:
                yield Finding(path, "torn", reason, f"move to quarantine/ and {_ANEW}")
        elif piece and name not in retired and (int(piece[1]) <= manifest.number or mtime / 1e9 < before):
            yield Finding(path, "leftover", "written for a generation that never came to be")
        elif (name.startswith(".") or LEASE.fullmatch(name)) and mtime / 1e9 < before:
            yield Finding(path, "leftover", "of a compaction that was cut off")
        elif not piece and not other and not name.startswith("."):
            yield Finding(path, "foreign", "not a name that the store gives")


def _unreadable(files: Files, table: str, name: str) -> str | None:
    try:
        generations.piece_rows(files, table, name)
    except NewerSchema:
        return None
    except GrokscaleError as error:
        return str(error)
    except FileNotFoundError:
        return None
    return None


def _retired(files: Files, table: str) -> set[str]:
    try:
        return set(latest(files, table).retired)
    except GrokscaleError:
        return set()  # the manifest is a finding of its own


def _replicas(files: Files) -> pa.Table | None:
    """The attempts that count; None where the replicas cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StoreWarning)  # what is wrong with them are findings
            return Reader(files, "replicas", keep=True).rows({}).select(ATTEMPT)
    except GrokscaleError:
        return None


def _age(name: str) -> float:
    match = PART.fullmatch(name)
    return int(match[1]) / 1e9 if match else 0.0


def _aside(files: Files, finding: Finding) -> Finding:
    """Moves the file, under a name that is free; a finding without a file to move is left as it is."""
    if not finding.action.startswith("move"):
        return finding
    place, _, name = finding.path.rpartition("/")
    place = f"{QUARANTINE}/{place.removesuffix('/generations')}"
    to = f"{place}/{name.lstrip('.')}"
    if name.lstrip(".") in files.list(place):
        to += f".{uuid.uuid4().hex[:8]}"
    files.move(finding.path, to)
    return replace(finding, done=True)


def _last(files: Files, table: str) -> int:
    numbers = [int(match[1]) for name in files.list(folder(table)) if (match := MANIFEST.fullmatch(name))]
    return max(numbers, default=0)


def _anew(files: Files, table: str, last: int) -> None:
    """Manifest `last` + 1: all pieces of earlier numbers that are there; every part counts again."""
    place = folder(table)
    pieces = []
    for name in files.list(place):
        match = PIECE.fullmatch(name)
        if match and int(match[1]) <= last:  # one of a greater number belongs to a compaction that is under way
            rows = generations.piece_rows(files, table, name)
            key = rows[RULES[table].keys[0]]
            pieces.append(Piece(name, rows.num_rows, rows.nbytes, key[0].as_py(), key[rows.num_rows - 1].as_py()))
    pieces.sort(key=lambda piece: (piece.low, piece.high, piece.name))
    new = Manifest(last + 1, time.time(), tuple(pieces), {})
    if not files.create(f"{place}/{new.name}", new.to_json()):
        raise GrokscaleError(f"{files.root}/{place}: a compaction is under way; repair again when it is done")
