"""The files of the store: written whole or not at all, read without trusting them.

A file is called <unix ns>-<uuid>.parquet and never changes. Locally it is written under a temporary name in
the same folder, synced and renamed; on an object store it is one PUT. So a reader sees a whole file or
none, and two writers never meet. Files vanish only when the store is compacted.
"""

from __future__ import annotations

import io
import os
import re
import time
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from grokscale.errors import GrokscaleError
from grokscale.store.schemas import SCHEMA_VERSION, SCHEMAS, conform

_NAME = re.compile(r"\d{19,20}-[0-9a-f]{32}\.parquet")
_TRIES = 5  # a listing goes stale only when the store is compacted meanwhile
_READERS = 8
_LARGE = 500  # rows; below, compression saves nothing and makes reading three times as slow


class StoreWarning(UserWarning):
    """A reader of the store skipped a file: torn, foreign, or of another table. Nothing is ever deleted."""


@dataclass
class Listing:
    """What a reader knows of one table's folder: files never change, so none is read twice.

    skipped: name -> (size, mtime) of a file that was skipped; it gets another chance should these change.
    """

    read: set[str] = field(default_factory=set)
    skipped: dict[str, tuple[int, int]] = field(default_factory=dict)


class Files:
    """The files under one root, local or on an object store.

    root: a path (made absolute at once) or a URI such as s3://bucket/folder, file:///folder.
    filesystem: the pyarrow file system that `root` is a path of, where a URI cannot say all that is needed.
    """

    def __init__(self, root: str | Path, filesystem: pafs.FileSystem | None = None) -> None:
        self.local: Path | None = None
        self.root = str(root).rstrip("/")
        if filesystem is not None:
            self.fs, self._path = filesystem, self.root
            return
        self.fs, self._path = pafs.LocalFileSystem(), self.root
        if "://" in self.root:
            try:
                self.fs, self._path = pafs.FileSystem.from_uri(self.root)
            except (pa.ArrowException, OSError) as error:
                raise GrokscaleError(
                    f"{root}: not a place for a store: {error}; "
                    "allowed: a folder, s3://bucket/folder, gs://bucket/folder"
                ) from error
        if isinstance(self.fs, pafs.LocalFileSystem):
            self.local = Path(self._path).expanduser().resolve()
            self.root = self._path = str(self.local)

    def write(self, table: str, rows: pa.Table) -> str:
        """Adds one file with these rows to the table's folder; on the disk when this returns. Its name."""
        metadata = {"grokscale.table": table, "grokscale.schema": str(SCHEMA_VERSION)}
        rows = rows.replace_schema_metadata(metadata)
        buffer = io.BytesIO()
        large = rows.num_rows > _LARGE
        pq.write_table(
            rows, buffer, compression="zstd" if large else "none", use_dictionary=large, write_page_checksum=True
        )
        name = f"{time.time_ns():019d}-{uuid.uuid4().hex}.parquet"
        try:
            if self.local is not None:
                _publish(self.local / table, name, buffer.getbuffer())
            else:
                with self.fs.open_output_stream(f"{self._path}/{table}/{name}") as stream:
                    stream.write(buffer.getbuffer())
        except OSError as error:
            raise GrokscaleError(f"{self.root}/{table}: cannot write to the store: {error}") from error
        return name

    def read(self, table: str, known: Listing) -> tuple[list[pa.Table], bool]:
        """The tables in the files that `known` has not read yet, oldest first, and whether to forget others.

        Forget: a file that was read has vanished, so the store was compacted, and `known` starts afresh.
        """
        keep, afresh = known.read, False
        for _ in range(_TRIES):
            found = self._list(table)
            if not keep <= found.keys():
                keep, afresh = set(), True
            new = sorted(n for n in found if n not in keep and known.skipped.get(n) != found[n])
            try:
                results = self._read_all(table, new)
            except FileNotFoundError:
                keep, afresh = set(), True
                continue
            reasons = {n: result for n, result in results.items() if isinstance(result, str)}
            known.skipped.update({n: found[n] for n in reasons})
            known.read = keep | (results.keys() - reasons.keys())
            if reasons:
                listed = "; ".join(f"{n} ({reason})" for n, reason in reasons.items())
                warnings.warn(f"{self.root}/{table}: skipped {listed}", StoreWarning, stacklevel=4)
            return [result for result in results.values() if isinstance(result, pa.Table)], afresh
        raise GrokscaleError(f"{self.root}/{table}: files vanish while they are read; what deletes them?")

    def _list(self, table: str) -> dict[str, tuple[int, int]]:
        selector = pafs.FileSelector(f"{self._path}/{table}", allow_not_found=True)
        try:
            infos = self.fs.get_file_info(selector)
        except OSError as error:
            raise GrokscaleError(f"{self.root}/{table}: cannot list the store: {error}") from error
        # Folders hold logs (sweeps/<sweep_id>/); .<name>.tmp is an append under way, or one that was killed.
        return {
            info.base_name: (info.size or 0, info.mtime_ns or 0)
            for info in infos
            if info.type == pafs.FileType.File and not info.base_name.startswith(".")
        }

    def _read_all(self, table: str, names: list[str]) -> dict[str, pa.Table | str]:
        if len(names) < _READERS:
            return {name: self._read_one(table, name) for name in names}
        with ThreadPoolExecutor(_READERS) as pool:
            return dict(zip(names, pool.map(lambda name: self._read_one(table, name), names), strict=True))

    def _read_one(self, table: str, name: str) -> pa.Table | str:
        """The file's rows, or why it cannot be one of ours.

        Not getting its bytes at all is an error: a network that is down must not look like an empty store.
        """
        if not _NAME.fullmatch(name):
            return "not a name that the store gives"
        try:
            with self.fs.open_input_stream(f"{self._path}/{table}/{name}") as stream:
                data = stream.read()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise GrokscaleError(f"{self.root}/{table}/{name}: cannot read: {error}") from error
        try:
            rows = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
        except (pa.ArrowException, OSError, ValueError) as error:
            return f"torn or damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        owner = (rows.schema.metadata or {}).get(b"grokscale.table", b"").decode(errors="replace")
        if owner != table:
            return f"a file of table '{owner}'" if owner in SCHEMAS else "not written by grokscale"
        try:
            return conform(table, rows)
        except ValueError as error:
            return str(error)


def _publish(folder: Path, name: str, data: memoryview) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync(folder.parent)
    temporary = folder / f".{name}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
