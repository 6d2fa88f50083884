"""The files of the store: written whole or not at all, read without trusting them.

A part is called <unix ns>-<uuid>.parquet and never changes. Locally it is written under a temporary name in
the same folder, synced and renamed; on an object store it is one PUT. So a reader sees a whole file or
none, and two writers never meet. Files vanish only when the store is compacted.

What is mounted may be away for a while. A local root that was there and is not, or is another folder, is an error, to
who reads as to who writes: it must not look like an empty store, and none may be begun in its place.
"""

from __future__ import annotations

import io
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from grokscale.errors import GrokscaleError, StoreError
from grokscale.store import objects
from grokscale.store.schemas import SCHEMA_VERSION, SCHEMAS, conform

PART = re.compile(r"(\d{19,20})-[0-9a-f]{32}\.parquet")
_READERS = 8
GONE = "the store at {} is gone (unmounted?); what was stored is safe: mount it again, then resume"
_LARGE = 500  # rows; below, compression saves nothing and makes reading three times as slow
Stat = tuple[int, int]  # size, mtime in ns


class StoreWarning(UserWarning):
    """A reader of the store skipped a file: torn, foreign, or of another table. Nothing is ever deleted."""


class NewerSchema(GrokscaleError):
    """A file was written by a grokscale whose tables have columns that this one does not know."""


class Files:
    """The files under one root, local or on an object store. Paths are relative to the root, with slashes.

    root: a path (made absolute at once) or a URI such as s3://bucket/folder, file:///folder.
    filesystem: the pyarrow file system that `root` is a path of, where a URI cannot say all that is needed.
    """

    def __init__(self, root: str | Path, filesystem: pafs.FileSystem | None = None) -> None:
        self.local: Path | None = None
        self.root = str(root).rstrip("/")
        self._objects: Any = None
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
            self._met: set[str] = set()  # folders under the root that this process found there or made
            self._is: tuple[int, int] | None = None  # what the root is to the system
            self._there()

    def full(self, path: str) -> str:
        """The path as `fs` wants it."""
        return f"{self._path}/{path}"

    def made(self, folder: str) -> Path:
        """A folder of a local store, made where it is not there yet; the root with it only before it was first seen.

        Raises StoreError where the root is gone, OSError for what the system refuses.
        """
        assert self.local is not None
        if not self._there():
            self.local.mkdir(parents=True, exist_ok=True)
            _sync(self.local.parent)
            self._there()
        path = self.local
        for name in folder.split("/"):
            path /= name
            if not path.is_dir():
                path.mkdir(exist_ok=True)
                _sync(path.parent)
        self._met.add(folder)
        return path

    def _there(self) -> bool:
        """Whether the root of a local store is there; where it once was, StoreError if it is not.

        One with another number is the same if all is in it that was: it was mounted again, or its file system gives
        numbers anew, as FUSE does.
        """
        assert self.local is not None
        try:
            found = os.stat(self.local)
        except OSError as error:
            if self._is is None:
                return False
            raise StoreError(GONE.format(self.root)) from error
        now, met = (found.st_dev, found.st_ino), tuple(self._met)
        if self._is not in (None, now) and not (met and all((self.local / folder).is_dir() for folder in met)):
            raise StoreError(GONE.format(self.root))
        self._is = now
        return True

    # ---------------------------------------------------------------------------------------- changes

    def write(self, table: str, rows: pa.Table) -> str:
        """Adds one part with these rows to the table's folder; on the disk when this returns. Its name."""
        name = f"{time.time_ns():019d}-{uuid.uuid4().hex}.parquet"
        large = rows.num_rows > _LARGE
        self.put(f"{table}/{name}", encode(table, rows, compression="zstd" if large else "none", use_dictionary=large))
        return name

    def put(self, path: str, data: memoryview | bytes) -> None:
        """Writes a new file, whole or not at all; on the disk when this returns."""
        try:
            if self.local is not None:
                _publish(self._final(path), data, lambda temporary, final: temporary.rename(final))
            else:
                with self.fs.open_output_stream(self.full(path)) as stream:
                    stream.write(data)
        except OSError as error:
            raise StoreError(f"{self.root}/{path}: cannot write to the store: {error}") from error

    def create(self, path: str, data: bytes) -> bool:
        """Writes a file only if there is none of this name: of several writers exactly one gets True."""
        try:
            if self.local is not None:
                _publish(self._final(path), data, lambda temporary, final: os.link(temporary, final))
                return True
            if self._objects is None:
                self._objects = objects.open_bucket(self.root)
            return objects.create(self._objects, f"{self._path}/{path}".partition("/")[2], data)
        except FileExistsError:
            return False
        except OSError as error:
            raise StoreError(f"{self.root}/{path}: cannot write to the store: {error}") from error

    def delete(self, path: str) -> None:
        """Takes a file away; it may have gone already."""
        try:
            with suppress(FileNotFoundError):
                self.fs.delete_file(self.full(path))
        except OSError as error:
            raise GrokscaleError(f"{self.root}/{path}: cannot delete: {error}") from error

    def move(self, path: str, to: str) -> None:
        """Gives a file another place, and its folder where there is none; a copy first on object stores."""
        try:
            if self.local is not None:
                self._final(to)
            self.fs.move(self.full(path), self.full(to))
        except OSError as error:
            raise GrokscaleError(f"{self.root}/{path}: cannot move to {to}: {error}") from error

    def _final(self, path: str) -> Path:
        """Where a file of a local store goes, its folder made."""
        folder, _, name = path.rpartition("/")
        return self.made(folder) / name

    # ---------------------------------------------------------------------------------------- reading

    def list(self, folder: str, *, hidden: bool = False) -> dict[str, Stat]:
        """The files of a folder, not of those in it.  hidden: also names that begin with a dot."""
        selector = pafs.FileSelector(self.full(folder), allow_not_found=True)
        try:
            try:
                infos = self.fs.get_file_info(selector)
            except FileNotFoundError:  # the folder was made between two looks of pyarrow's own
                infos = self.fs.get_file_info(selector)
        except OSError as error:
            raise GrokscaleError(f"{self.root}/{folder}: cannot list the store: {error}") from error
        # After the look: what was listed before it may have been there no more.
        if self.local is not None and self._there() and infos:
            self._met.add(folder)
        # .<name>.tmp is an append under way, or one that was killed.
        return {
            info.base_name: (info.size or 0, info.mtime_ns or 0)
            for info in infos
            if info.type == pafs.FileType.File and (hidden or not info.base_name.startswith("."))
        }

    def there(self, paths: Iterable[str]) -> bool:
        """Whether all of these files are there."""
        found = self.fs.get_file_info([self.full(path) for path in paths])
        return all(info.type == pafs.FileType.File for info in found)

    def load(self, path: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError where it is gone."""
        try:
            with self.fs.open_input_stream(self.full(path)) as stream:
                return stream.read()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise GrokscaleError(f"{self.root}/{path}: cannot read: {error}") from error

    def parts(self, table: str, names: list[str], *, whole: bool = False) -> dict[str, pa.Table | str]:
        """What `part` says of each, several at a time."""
        if len(names) < _READERS:
            return {name: self.part(table, name, whole=whole) for name in names}
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(lambda name: self.part(table, name, whole=whole), names)
            return dict(zip(names, found, strict=True))

    def part(self, table: str, name: str, *, whole: bool = False) -> pa.Table | str:
        """The rows of one part, or why it cannot be one of ours.

        whole: a file with columns that this version does not know is not read either.
        Not getting its bytes at all is an error: a network that is down must not look like an empty store.
        Raises FileNotFoundError, GrokscaleError, NewerSchema.
        """
        if not PART.fullmatch(name):
            return "not a name that the store gives"
        data = self.load(f"{table}/{name}")
        try:
            rows = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
        except (pa.ArrowException, OSError, ValueError) as error:
            return f"torn or damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        owner = (rows.schema.metadata or {}).get(b"grokscale.table", b"").decode(errors="replace")
        if owner != table:
            return f"a file of table '{owner}'" if owner in SCHEMAS else "not written by grokscale"
        self.check_version(f"{table}/{name}", rows.schema)
        unknown = [column for column in rows.column_names if column not in SCHEMAS[table].names]
        if whole and unknown:
            return f"columns that this version does not know: {', '.join(unknown)}"
        try:
            return conform(table, rows)
        except ValueError as error:
            return str(error)

    def check_version(self, path: str, schema: pa.Schema) -> None:
        """Raises NewerSchema for a file with columns from the future: left out, they would be lost for good."""
        version = (schema.metadata or {}).get(b"grokscale.schema", b"0").decode(errors="replace")
        if version.isdecimal() and int(version) > SCHEMA_VERSION:
            raise NewerSchema(
                f"{self.root}/{path}: written by a newer grokscale (tables of version {version}, this one knows "
                f"up to {SCHEMA_VERSION}); update grokscale to use this store"
            )


def encode(table: str, rows: pa.Table, **options: Any) -> memoryview:
    """The rows as the bytes of a Parquet file that says which table and version it is of."""
    metadata = {"grokscale.table": table, "grokscale.schema": str(SCHEMA_VERSION)}
    buffer = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(metadata), buffer, write_page_checksum=True, **options)
    return buffer.getbuffer()


def _publish(final: Path, data: memoryview | bytes, place: Callable[[Path, Path], object]) -> None:
    folder = final.parent
    temporary = folder / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        place(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
