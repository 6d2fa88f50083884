"""Data files: where they are looked for, whether they are the right ones, and their formats as arrays.

A folder of data has a folder per dataset: DIR/NAME/FILE. DIR is what `use` was told (`--data DIR`), else the
environment variable GROKSCALE_DATA, else `grokscale` in the user's cache folder. Every file is checked against its
sha256 before it is read. A dataset says which sums it was published with; a file SHA256SUMS beside the files (what
`sha256sum * > SHA256SUMS` writes) replaces them, for stand-ins in the same formats: trials on those carry "own" in
place of "published" in their `data`, so that nobody takes their results for the papers'.

Nothing here unpickles, and nothing uses the network: `fetch` does.
"""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import importlib.util
import os
import shlex
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grokscale.errors import InputError

VARIABLE = "GROKSCALE_DATA"
SUMS = "SHA256SUMS"

_chosen: Path | None = None  # by `use`


@dataclass(frozen=True)
class DataFile:
    """A file of a dataset. sha256: 64 hex digits.  size: bytes, None where only the sum is known."""

    name: str
    sha256: str
    size: int | None = None


@dataclass(frozen=True)
class Dataset:
    """Files that a task reads.

    name: of their folder, and what `grokscale data fetch` calls them.  files: as published.
    source: what they are, whose, and on which terms.  url: a public folder that holds them, "" where none is known.
    """

    name: str
    files: tuple[DataFile, ...]
    source: str
    url: str = ""


@dataclass(frozen=True)
class Finding:
    """A file as it was found: problem is "" where it is there and right."""

    file: DataFile
    path: Path
    problem: str


def use(folder: str | Path | None) -> None:
    """Look for data in `folder` from now on, in this process; None: as the environment says."""
    global _chosen
    _chosen = None if folder is None else Path(folder).expanduser().absolute()


def folder() -> Path:
    """Where data is looked for, absolute: what `use` was told, else GROKSCALE_DATA, else the user's cache folder."""
    if _chosen is not None:
        return _chosen
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache") / "grokscale"


def expected(dataset: Dataset) -> tuple[tuple[DataFile, ...], bool]:
    """(files with the sums that they must have, are those the published ones).

    Raises InputError for a SHA256SUMS that leaves out a file or cannot be read.
    """
    place = folder() / dataset.name / SUMS
    try:
        words = [line.split(maxsplit=1) for line in place.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        return dataset.files, True
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{place}: cannot be read: {error}") from None
    sums = {parts[1].strip().lstrip("*").removeprefix("./"): parts[0].lower() for parts in words if len(parts) == 2}
    missing = [file.name for file in dataset.files if len(sums.get(file.name, "")) != 64]
    if missing:
        raise InputError(
            f"{place}: has no sha256 of {', '.join(missing)}; write it again with `sha256sum * > {SUMS}` in "
            f"{place.parent}, or remove it to use the published files"
        )
    files = tuple(DataFile(f.name, sums[f.name], f.size if sums[f.name] == f.sha256 else None) for f in dataset.files)
    return files, files == dataset.files


def examine(dataset: Dataset) -> list[Finding]:
    """Every file of a dataset: there, and with the sum that it must have?"""
    place, (files, _) = folder() / dataset.name, expected(dataset)
    return [Finding(file, place / file.name, _problem(place / file.name, file)) for file in files]


def find(dataset: Dataset) -> dict[str, Path]:
    """The checked files of a dataset by name.

    Raises InputError with every file that is missing or corrupt: its path, the sum expected and the sum found, and
    the command that mends it.
    """
    findings = examine(dataset)
    problems = [f"{finding.path}: {finding.problem}" for finding in findings if finding.problem]
    if problems:
        raise InputError([*problems, _remedy(dataset)])
    return {finding.file.name: finding.path for finding in findings}


def fingerprint(dataset: Dataset) -> str:
    """What a trial keeps of the files that it reads: "published-" or "own-", and 16 digits of their sums' sha256.

    Raises InputError as `find` does.
    """
    find(dataset)
    files, published = expected(dataset)
    text = "".join(f"{file.name} {file.sha256}\n" for file in files)
    return f"{'published' if published else 'own'}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def sha256(path: Path) -> str:
    """The sha256 of a file, 64 hex digits; read once, then again only where the file has changed. Raises OSError."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def need(module: str, task: str) -> None:
    """Raise InputError where a library that a task reads its files with is not installed."""
    try:
        there = importlib.util.find_spec(module) is not None
    except ValueError:  # a module that has been blocked
        there = False
    if not there:
        raise InputError(
            f"task {task}: needs {module}, which is not installed; install it with: pip install 'grokscale[data]'"
        )


# ---------------------------------------------------------------------------------------------- formats


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes (MNIST's format) as an array of uint8. Raises InputError for another."""
    try:
        with gzip.open(path) as file:
            raw = file.read()
        zero, kind, rank = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"{path}: is no gzipped IDX file: {error}") from None
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if zero != 0 or kind != 8 or rank < 1 or values.size != int(np.prod(shape, dtype=np.int64)):
        raise InputError(
            f"{path}: is no IDX file of bytes: type {kind} (8 is allowed), shape {shape}, {values.size} bytes of data"
        )
    return values.reshape(shape)


def read_csv(path: Path, columns: Sequence[str], rows: int | None = None) -> list[tuple[str, ...]]:
    """Some columns of the first `rows` of a gzipped CSV file with a header. Raises InputError where one is missing."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if absent := [name for name in columns if name not in header]:
                raise InputError(f"{path}: has no column {', '.join(absent)}; it has: {', '.join(header)}")
            picked = [header.index(name) for name in columns]
            return [tuple(row[i] for i in picked) for row in _first(reader, rows)]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, IndexError) as error:
        raise InputError(f"{path}: is no gzipped CSV file: {error}") from None


# ---------------------------------------------------------------------------------------------- inside


def _first(rows: Iterable[list[str]], count: int | None) -> Iterable[list[str]]:
    for i, row in enumerate(rows):
        if i == count:
            return
        yield row


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problem(path: Path, file: DataFile) -> str:
    want = f"expected sha256 {file.sha256}" + (f" ({file.size:,} bytes)" if file.size is not None else "")
    try:
        size, found = path.stat().st_size, sha256(path)
    except FileNotFoundError:
        return f"is missing; {want}"
    except OSError as error:
        return f"cannot be read: {error.strerror}; {want}"
    return "" if found == file.sha256 else f"is corrupt; {want}, found {found} ({size:,} bytes)"


def _remedy(dataset: Dataset) -> str:
    where = folder()
    command = f"grokscale data fetch {dataset.name} --data {shlex.quote(str(where))}"
    more = "" if dataset.url else " --from URL"
    return (
        f"mend it with: {command}{more}; or name another folder with --data DIR or {VARIABLE}; files of your own "
        f"instead: `sha256sum * > {SUMS}` in {shlex.quote(str(where / dataset.name))}"
    )
