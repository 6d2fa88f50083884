"""`python -m benchmarks.precision`: do replicas grok at the same steps whatever rounds their products, and compiled?

No figure here is a time, so the machine may be busy. A precision, or a compiled gradient, is another class of numerics:
grok steps are chaotic, and what must not change is their distribution. Every option has seeds of its own, so that the
log-rank test, which wants independent sides, may be taken at its word.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.steps import PARITY, REGISTRY, trial
from grokscale.parts import device_name
from grokscale.solo import run
from grokscale.spec import TrialSpec, seed_for
from grokscale.stats import SpeedUp, holm, unpaired_speedup
from grokscale.train import compiler

REFERENCE = "fp32"
TABLE = Path(__file__).with_name("PRECISION.md")
LEVEL = 0.05  # of the log-rank test, over all rows together (Holm)
LEAST = 40  # seeds a side: fewer show too little
CLOSE = 1.5  # S has to lie within this factor of 1 with its whole interval: a test that could not see is no pass
HEAD = ["question", "option", "seeds", "horizon", "median", "fp32's", "never", "S over fp32", "p", "p (Holm)", "passed"]


@dataclass(frozen=True)
class Question:
    """A trial whose replicas grok soon. horizon: steps."""

    name: str
    spec: TrialSpec
    horizon: int


@dataclass(frozen=True)
class Option:
    """A way to compute. precision: of the trial.  compiled: the gradient."""

    name: str
    precision: str
    compiled: bool = False


OPTIONS = (Option("bf16", "bf16"), Option("fp32, compiled", "fp32", True), Option("bf16, compiled", "bf16", True))


def questions() -> list[Question]:
    """What groks within a thousand steps or two: ColNorm at its default, SGD as the quickstart tuned it."""
    tuned = {**PARITY, "optimiser": {"lr": 0.043, "wd": 0.024}}
    return [
        Question("parity (60, 3), ColNorm", trial(PARITY, "egd-colnorm"), 20_000),
        Question("parity (60, 3), SGD, tuned", trial(tuned), 20_000),
    ]


def grok_steps(question: Question, option: Option, seeds: Sequence[int], lanes: int = 8) -> list[float]:
    """The grok step of every seed, infinite where it did not."""
    rows = run(
        replace(question.spec, precision=option.precision), seeds, horizon=question.horizon, lanes=lanes,
        registry=REGISTRY, compiled=option.compiled, say=lambda line: None)
    return [math.inf if row["grok_step"] is None else float(row["grok_step"]) for row in rows]


def compared(asked: Sequence[Question], options: Sequence[Option], seeds: int, lanes: int = 8) -> list[dict[str, Any]]:
    """A row of the table per question and option: {column: value}, p corrected over all of them."""
    rows: list[dict[str, Any]] = []
    for question in asked:
        blocks = _blocks(seeds)
        base = grok_steps(question, Option(REFERENCE, REFERENCE), next(blocks), lanes)
        for option in options:
            times = grok_steps(question, option, next(blocks), lanes)
            both = unpaired_speedup(base, times, question.horizon, rng=np.random.default_rng(0))
            rows.append({"question": question.name, "option": option.name, "seeds": seeds, "result": both,
                         "horizon": question.horizon})
            print(f"{question.name}, {option.name}: p = {_p(both):.3f}", file=sys.stderr, flush=True)
    for row, p in zip(rows, holm([_p(row["result"]) for row in rows]), strict=True):
        row["holm"] = float(p)
    return rows


def _blocks(count: int) -> Iterator[list[int]]:
    """Disjoint blocks of seeds."""
    start = 0
    while True:
        yield [seed_for("run", k) for k in range(start, start + count)]
        start += count


def _p(both: SpeedUp) -> float:
    """Of the log-rank test; 1 where nothing grokked on either side, which tells nothing apart."""
    return 1.0 if both.logrank_p is None else both.logrank_p


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [HEAD, ["---"] * len(HEAD)]
    for row in rows:
        both: SpeedUp = row["result"]
        close = both.lo >= 1 / CLOSE and both.hi <= CLOSE
        right = row["holm"] >= LEVEL and close and row["seeds"] >= LEAST
        lines.append([
            row["question"], row["option"], str(row["seeds"]), f"{row['horizon']:,}", _steps(both.median_arm),
            _steps(both.median_base), f"{both.censored_arm}, fp32 {both.censored_base}",
            f"{both.s:.2f} [{both.lo:.2f}, {both.hi:.2f}]", f"{_p(both):.3f}", f"{row['holm']:.3f}",
            "yes" if right else "no"])  # fmt: skip
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _steps(middle: float | None) -> str:
    return "never" if middle is None else f"{middle:,.0f}"


def passed(text: str) -> set[str]:
    """The options of a table that passed every question that they were asked."""
    cells = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in text.splitlines()]
    rows = [dict(zip(HEAD, row, strict=True)) for row in cells if len(row) == len(HEAD)]
    rows = [row for row in rows if row["passed"] in ("yes", "no")]
    return {row["option"] for row in rows} - {row["option"] for row in rows if row["passed"] == "no"}


def about(seeds: int) -> str:
    """What the table says, and where its replicas ran."""
    return (
        f"# Grok steps by precision\n\n{datetime.now(UTC):%Y-%m-%d}, {device_name('cpu')}, torch {torch.__version__}, "
        f"Python {platform.python_version()}; `python -m benchmarks.precision`, {seeds} seeds a side, none on two.\n\n"
        f"p: log-rank test against fp32, corrected over all rows by Holm; an option passes with p >= {LEVEL:g}, S's "
        f"interval within a factor {CLOSE:g} of 1, and {LEAST} seeds or more. Only options that passed may be a "
        "default (tests/test_benchmarks.py)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--seeds", type=int, default=44, help="a side; default 44, fewer than 40 never pass")
    parser.add_argument("--lanes", type=int, default=16, help="replicas side by side; default 16")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    asked = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if "OMP_NUM_THREADS" not in os.environ else 1)
    options = [option for option in OPTIONS if not option.compiled or compiler() is not None]
    text = table(compared(questions(), options, asked.seeds, asked.lanes))
    print(text)
    if asked.write:
        TABLE.write_text(f"{about(asked.seeds)}\n\n{text}\n")


if __name__ == "__main__":
    main()
