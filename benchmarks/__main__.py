"""`python -m benchmarks [ROW ...]`: measures, prints a table in Markdown; --write keeps it in RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import scaling, steps, sweeps
from benchmarks.measure import Row, table
from grokscale.parts import device_name, git_sha

ROWS: dict[str, Callable[[], list[Row]]] = {
    "decoder": steps.decoder,
    "two-layer": steps.two_layer,
    "filters": steps.filters,
    "amplifier": steps.amplifier,
    "looking": steps.looking,
    "packs": steps.packs,
    "tune": sweeps.against_tune,
    "trivial": sweeps.trivial,
    "starting": sweeps.starting,
    "proposing": scaling.proposing,
    "filing": scaling.filing,
    "mirroring": scaling.mirroring,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"which; default all: {', '.join(ROWS)}")
    parser.add_argument("--write", metavar="FILE", type=Path, help="also write the table there")
    asked = parser.parse_args()
    if unknown := [name for name in asked.rows if name not in ROWS]:
        parser.error(f"unknown rows {', '.join(unknown)}; allowed: {', '.join(ROWS)}")
    torch.set_num_threads(1)
    found: list[Row] = []
    for name in asked.rows or ROWS:
        began = time.monotonic()
        try:
            found += ROWS[name]()
        except SystemExit as error:  # of a process that was measured: the other rows are worth having
            found.append(Row(name, "", "failed", False, note=str(error).partition("\n")[0]))
            print(error, file=sys.stderr)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if asked.write:
            asked.write.write_text(f"{about()}\n\n{table(found)}\n")
    print(table(found))


def about() -> str:
    """Where and when this was measured."""
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    return (
        f"# What was measured\n\n{datetime.now(UTC):%Y-%m-%d}, {device_name('cpu')}, {cores} cores, one thread each, "
        f"torch {torch.__version__}, Python {platform.python_version()}, commit {(git_sha() or 'unknown')[:12]}, "
        f"load at the end {load:.1f}. Ratios are of figures taken in turns in one run."
    )


if __name__ == "__main__":
    main()
