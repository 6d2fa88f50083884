"""Measuring: contenders in turns, so that what the machine does meanwhile meets them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """A line of the table.

    what: the question.  target: as text.  measured: the figure that the target is about.  met: None where there is
    no target.  ours, theirs: the absolute figures behind a ratio.  floor: what arithmetic or launches alone would take.
    """

    what: str
    target: str
    measured: str
    met: bool | None
    ours: str = ""
    theirs: str = ""
    floor: str = ""
    note: str = ""


HEAD = ["what", "target", "measured", "", "ours", "theirs", "floor", "note"]

def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    mark = {True: "met", False: "**missed**", None: ""}
    lines = [HEAD, ["---"] * len(HEAD)]
    lines += [[r.what, r.target, r.measured, mark[r.met], r.ours, r.theirs, r.floor, r.note] for r in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


Work = Callable[[int], None]
"""Does n units of work."""


def alternate(contenders: Mapping[str, Work], *, seconds: float = 2.0, rounds: int = 7) -> dict[str, float]:
    """Seconds per unit of work of each contender: the median over `rounds` turns of about `seconds` each.

    contenders: by name. One turn to warm up; its time sets how many units a turn has.
    """
    units = {}
    for name, work in contenders.items():
        work(1)
        start = time.perf_counter()
        work(1)
        units[name] = max(1, round(seconds / rounds / max(1e-9, time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            wait()
            start = time.perf_counter()
            work(units[name])
            wait()
            times[name].append((time.perf_counter() - start) / units[name])
    return {name: statistics.median(found) for name, found in times.items()}


def wait() -> None:
    """Until the GPU has done what it was told, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_rate(dtype: torch.dtype = torch.float32, device: str = "cpu", n: int = 1536) -> float:
    """FLOP/s of a square matrix product: the ceiling that floors are worked out with."""
    a = torch.ones(n, n, dtype=dtype, device=device)

    def multiply(k: int) -> None:
        for _ in range(k):
            torch.mm(a, a)

    return 2 * n**3 / alternate({"product": multiply}, seconds=1.0, rounds=5)["product"]


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
