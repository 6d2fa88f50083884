"""Generations: what compaction has merged, and which files readers leave out because of it.

<table>/generations/<number>.json is a manifest: the pieces (files of rows, sorted, each key once) that hold
everything merged so far, and the files that these replace. It is created only if absent, so of two
compactions of one generation one counts; the highest number is the one that counts, and it is never deleted.
A reader lists the parts first and the manifests after that: a part that vanished before the first look is in
every manifest of the second, and one that vanishes later is missed when it is opened, and the reader looks again.
Pieces are called <number>-<uuid>.parquet after the generation that they were written for, so any other than
those of a manifest is known to be of no use once that number is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from grokscale.errors import GrokscaleError
from grokscale.store.files import Files
from grokscale.store.schemas import RULES, SCHEMAS, conform

MANIFEST = re.compile(r"(\d{8})\.json")
PIECE = re.compile(r"(\d{8})-[0-9a-f]{32}\.parquet")
LEASE = re.compile(r"(\d{8})\.(\d+)\.lease")
_FORMAT = 1
_TRIES = 5  # a listing goes stale only when the store is compacted meanwhile


def folder(table: str) -> str:
    """Where the generations of a table are, under the root."""
    return f"{table}/generations"


@dataclass(frozen=True)
class Piece:
    """A file of a generation: `rows` rows, `nbytes` bytes in memory, leading keys from low to high."""

    name: str
    rows: int
    nbytes: int
    low: str
    high: str


@dataclass(frozen=True)
class Manifest:
    """What a generation holds. Number 0: nothing has been compacted yet.

    retired: file, as a path from the table's folder -> when it was merged into a piece (unix seconds).
    """

    number: int = 0
    at: float = 0.0
    pieces: tuple[Piece, ...] = ()
    retired: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.number:08d}.json"

    @property
    def disjoint(self) -> bool:
        """Whether no key is in two pieces; else (after a repair) readers drop the repeats."""
        return all(a.high < b.low for a, b in zip(self.pieces, self.pieces[1:], strict=False))

    def to_json(self) -> bytes:
        return (json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Raises ValueError where this is no manifest that this version can read."""
        loaded = json.loads(data)
        if not isinstance(loaded, dict) or loaded.get("format") != _FORMAT:
            raise ValueError(f"not a manifest of format {_FORMAT}")
        try:
            pieces = tuple(Piece(**piece) for piece in loaded["pieces"])
            return cls(int(loaded["number"]), float(loaded["at"]), pieces, dict(loaded["retired"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a manifest: {error}") from error


def latest(files: Files, table: str, known: Manifest | None = None) -> Manifest:
    """The manifest that counts.  known: one read earlier, returned if it still is.

    Raises GrokscaleError where it is damaged.
    """
    place = folder(table)
    for _ in range(_TRIES):
        numbers = [int(match[1]) for name in files.list(place) if (match := MANIFEST.fullmatch(name))]
        if not numbers:
            return Manifest()
        wanted = Manifest(max(numbers))
        if known is not None and known.number == wanted.number:
            return known
        try:
            return Manifest.from_json(files.load(f"{place}/{wanted.name}"))
        except FileNotFoundError:
            continue  # a newer one took its place since the listing
        except ValueError as error:
            raise GrokscaleError(
                f"{files.root}/{place}/{wanted.name}: damaged: {error}; "
                "`grokscale store check --repair` makes a new one"
            ) from error
    raise GrokscaleError(f"{files.root}/{place}: manifests vanish while they are read; what deletes them?")


def read(files: Files, table: str, manifest: Manifest, overlaps: Callable[[str, str], bool] | None = None) -> pa.Table:
    """The rows of the pieces' row groups whose leading keys, from low to high, may hold what is wanted.

    overlaps: (low, high) -> whether to read; None reads all. Raises FileNotFoundError, GrokscaleError.
    """
    found = [
        piece_rows(files, table, piece.name, overlaps)
        for piece in manifest.pieces
        if overlaps is None or overlaps(piece.low, piece.high)
    ]
    return pa.concat_tables([conform(table, rows) for rows in found]) if found else nothing(table)


def piece_rows(files: Files, table: str, name: str, overlaps: Callable[[str, str], bool] | None = None) -> pa.Table:
    """The row groups of one piece that `overlaps` wants. Raises FileNotFoundError, GrokscaleError."""
    path = f"{folder(table)}/{name}"
    try:
        with files.fs.open_input_file(files.full(path)) as source:
            return row_groups(source, RULES[table].keys[0], overlaps, lambda schema: files.check_version(path, schema))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise GrokscaleError(
            f"{files.root}/{path}: cannot read what was compacted: {str(error).splitlines()[0]}; "
            "`grokscale store check` says what can be done"
        ) from error


def row_groups(
    source: pa.NativeFile | str,
    key: str,
    overlaps: Callable[[str, str], bool] | None,
    check: Callable[[pa.Schema], None] = lambda schema: None,
) -> pa.Table:
    """The row groups of a file whose statistics of column `key` say that they may hold what is wanted."""
    file = pq.ParquetFile(source, page_checksum_verification=True)
    check(file.schema_arrow)
    groups = range(file.num_row_groups)
    if overlaps is not None:
        column = file.schema_arrow.get_field_index(key)
        groups = [i for i in groups if _may(file.metadata.row_group(i).column(column).statistics, overlaps)]
    return file.read_row_groups(list(groups))


def _may(statistics: pq.Statistics | None, overlaps: Callable[[str, str], bool]) -> bool:
    if statistics is None or not statistics.has_min_max:
        return True
    return overlaps(statistics.min, statistics.max)


def nothing(table: str) -> pa.Table:
    """No rows of a table."""
    return pa.Table.from_batches([], SCHEMAS[table])  # `empty_table` would import pandas, see relations.py
