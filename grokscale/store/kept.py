"""The weights that lie beside the tables: whole, of a replica that counts, copied on request. No torch here.

<root>/weights/<trial_id>/<seed>-<step>.pt, where the root is a folder; an object store has none.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from grokscale.errors import GrokscaleError

WEIGHTS = "weights"
NAME = re.compile(r"(\d+)-\d+\.pt")


def findings(root: Path, before: float, replicas: Collection[tuple[str, int]] | None) -> Iterator[tuple[str, str, str]]:
    """(path from the root, kind, reason) of every file under the weights' folder that is not as it should be.

    before: files written since may be unfinished, or wait for their replica's row (unix seconds).
    replicas: (trial_id, seed) of those that there are; None where they cannot be read.
    """
    folder = root / WEIGHTS
    training = {path.name.partition("-")[0] for path in (root / "checkpoints").glob("*.pt")}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if not path.is_file():
            continue
        where, old = path.relative_to(root), path.stat().st_mtime < before
        match = NAME.fullmatch(path.name)
        if path.name.startswith("."):
            if old:
                yield str(where), "leftover", "weights whose writing was cut off"
        elif match is None or len(where.parts) != 3:
            yield str(where), "foreign", "not a name that the store gives"
        elif reason := unreadable(path):
            yield str(where), "torn", reason
        elif replicas is None or not old or where.parts[1] in training:
            continue  # the replica's row is written when it has ended
        elif (where.parts[1], int(match[1])) not in replicas:
            yield str(where), "orphan", "weights of a replica that the store does not have"


def unreadable(path: Path) -> str | None:
    """Why a file cannot hold weights: they are an archive whose members carry checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return f"torn or damaged: {error}"
    return None if bad is None else f"damaged: {bad}"


def copy(source: Path | None, target: Path | None, trial_ids: Iterable[str]) -> int:
    """Copies the weights of these trials that the target has not; how many files.

    Raises GrokscaleError where either store is no folder, and for a disk that refuses.
    """
    if source is None or target is None:
        raise GrokscaleError("weights lie in folders: both stores must be folders to copy them")
    count = 0
    for trial_id in trial_ids:
        for path in sorted((source / WEIGHTS / trial_id).glob("*.pt")):
            to = target / WEIGHTS / trial_id / path.name
            if to.exists() or not NAME.fullmatch(path.name):
                continue
            temporary = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, temporary)
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                temporary.replace(to)
            except OSError as error:
                raise GrokscaleError(f"{to}: cannot write to the store: {error}") from error
            finally:
                temporary.unlink(missing_ok=True)
            count += 1
    return count
