"""Downloads data files: checked, resumed where a connection was cut, in place only when they are whole."""

from __future__ import annotations

import fcntl
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from grokscale import data
from grokscale.data import DataFile, Dataset
from grokscale.errors import GrokscaleError, InputError

ATTEMPTS = 5  # connections for one file; each goes on where the one before was cut
TIMEOUT_S = 60.0
BLOCK = 1 << 20
CUT = (OSError, http.client.HTTPException)  # urllib's own errors are OSErrors


def fetch(dataset: Dataset, base: str | None = None, say: Callable[[str], None] = lambda line: None) -> None:
    """Bring every file of a dataset into `data.folder()`; those that are there and right are left alone.

    base: URL under which <dataset>/<file> are found; None: the dataset's own public folder.  say: told a line a file.
    Bytes go into FILE.part, which a later attempt (of this call or the next) continues by HTTP Range; it becomes
    FILE, by rename, once size and sha256 are right, and is removed where the sha256 is wrong.

    Raises InputError for a base that is no http(s) URL or none at all, GrokscaleError for what did not arrive whole.
    """
    root = _root(dataset, base)
    for finding in data.examine(dataset):
        if not finding.problem:
            say(f"{finding.path}: is there")
            continue
        url = root + urllib.parse.quote(finding.file.name)
        _bring(url, finding.file, finding.path)
        say(f"{finding.path}: {finding.path.stat().st_size:,} bytes from {url}")


def _root(dataset: Dataset, base: str | None) -> str:
    root = f"{base.rstrip('/')}/{dataset.name}/" if base else dataset.url
    if not root:
        raise InputError(
            f"{dataset.name}: no public place holds these files ({dataset.source}); name one with --from URL or "
            f"GROKSCALE_DATA_URL, a folder that holds {dataset.name}/{dataset.files[0].name}"
        )
    if urllib.parse.urlsplit(root).scheme not in ("http", "https"):
        raise InputError(f"--from: must be an http:// or https:// URL, got {base!r}")
    return root.rstrip("/") + "/"


def _bring(url: str, file: DataFile, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GrokscaleError(f"{part}: another fetch is writing it; wait for that one") from None
            resumed = out.tell() > 0
            found = _download(url, out, part)
            if found != file.sha256 and resumed:  # what an earlier attempt left was of something else
                out.truncate(0)
                found = _download(url, out, part)
            if found != file.sha256:
                size = part.stat().st_size
                part.unlink()
                want = file.sha256 + (f" ({file.size:,} bytes)" if file.size is not None else "")
                raise GrokscaleError(
                    f"{url}: has the wrong content: expected sha256 {want}, found {found} ({size:,} bytes); it was "
                    f"not kept, {path} is as it was; fetch from another place with --from URL"
                )
            part.replace(path)  # under the lock: nobody writes on into what is in place
    except OSError as error:
        raise GrokscaleError(f"{error.filename or path}: cannot be written: {error.strerror}") from error


def _download(url: str, out: IO[bytes], part: Path) -> str:
    """Append what is missing of `url` to `out`, in ATTEMPTS connections at most; the sha256 of the whole."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _connect(url, out)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == ATTEMPTS:
                raise GrokscaleError(f"{url}: {error.code} {error.reason}") from None
        except CUT as error:
            if attempt == ATTEMPTS:
                raise GrokscaleError(
                    f"{url}: {getattr(error, 'reason', error)} ({ATTEMPTS} connections; {out.seek(0, os.SEEK_END):,} "
                    f"bytes are kept, the same command goes on from there)"
                ) from None
    out.flush()
    os.fsync(out.fileno())
    return data.sha256(part)


def _connect(url: str, out: IO[bytes]) -> None:
    """One connection: ask for the bytes from the end of `out` on, append what comes. Raises where it is cut."""
    have = out.seek(0, os.SEEK_END)
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416 or not have:
                raise
            if _total(error.headers.get("Content-Range")) == have:
                return  # nothing is missing
        out.truncate(0)  # more than there is: of something else
        return _connect(url, out)
    with reply:
        if reply.status == 206 and _start(reply.headers.get("Content-Range")) != have:
            raise http.client.HTTPException(f"asked for the bytes from {have} on, got others")
        if reply.status != 206:  # a server without ranges sends everything
            out.truncate(0)
        length, got = reply.headers.get("Content-Length"), 0
        while block := reply.read(BLOCK):
            got += len(block)
            try:
                out.write(block)
            except OSError as error:  # the disk's, not the connection's
                raise GrokscaleError(f"{out.name}: cannot be written: {error.strerror}") from error
        if length is not None and got < int(length):  # read(n) ends silently where the connection did
            raise http.client.HTTPException(f"cut off after {got:,} of {int(length):,} bytes")


def _start(content_range: str | None) -> int:
    """First byte of "bytes 100-199/200"; -1 where that says nothing."""
    found = re.match(r"bytes (\d+)-", content_range or "")
    return int(found[1]) if found else -1


def _total(content_range: str | None) -> int | None:
    """Size in "bytes */200"; None where that says nothing."""
    found = re.match(r"bytes \*/(\d+)$", content_range or "")
    return int(found[1]) if found else None
