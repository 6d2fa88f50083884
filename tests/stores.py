"""Stores in tests: where their files are, and processes that write to them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from grokscale.store import Store

ROOT = Path(__file__).parent.parent
WRITER = """
import sys
from grokscale.store import Store
from tests.rows import curve, replica
store, name, count = Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for seed in range(count):
    store.append("curves", curve(name, seed))
    store.append("replicas", [replica(name, seed)])
    print(seed, flush=True)
"""


def files(store: Store, table: str) -> list[Path]:
    """The parts of a table, the oldest first."""
    assert store.local is not None
    return sorted((store.local / table).glob("[0-9]*.parquet"))


def generation(store: Store) -> int:
    """How often the replicas have been merged."""
    assert store.local is not None
    return max((int(path.stem) for path in (store.local / "replicas/generations").glob("*.json")), default=0)


def writer(store: Store, name: str, count: int, code: str = WRITER) -> subprocess.Popen[str]:
    """A process that appends `count` replicas of trial `name` with their curves, and prints each."""
    return subprocess.Popen(
        [sys.executable, "-c", code, store.root, name, str(count)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


UNTIL_MERGED = """
import itertools, sys
from grokscale.store import Store
from tests.rows import curve, replica
from tests.stores import generation
store, name, count = Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for seed in itertools.count():
    if seed >= count and generation(store) >= 2:
        break
    store.append("curves", curve(name, seed))
    store.append("replicas", [replica(name, seed)])
    print(seed, flush=True)
"""
"""A writer that goes on until what it writes beside has merged twice, however the machine shares its cores out."""

COMPACTOR = """
import sys
from grokscale.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
while True:
    for done in store.compact(["replicas", "curves"], grace=float(sys.argv[2])):
        assert not done.kept, done
    print(done.generation, flush=True)
"""


def compactor(store: Store, grace: float) -> subprocess.Popen[str]:
    """A process that compacts without a pause until it is ended; a line per round."""
    words = [sys.executable, "-c", COMPACTOR, store.root, str(grace)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
