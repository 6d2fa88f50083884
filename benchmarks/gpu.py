"""`make bench-gpu`: the rows that want a GPU, and its table with device and date in RESULTS-GPU.md.

The rows take a device, so that their code also runs, at tiny sizes, where there is none.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.loop import Loop
from benchmarks.measure import Row, alternate, matmul_rate, ms, table
from benchmarks.steps import DECODER, REGISTRY, pack, stepper, stepping, trial
from grokscale.parts import device_name, git_sha
from grokscale.spec import TrialSpec
from grokscale.train import Lanes, Program

PRECISIONS = ("fp32", "tf32", "bf16")
REPLICAS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
FASTER, SHARE = 50.0, 0.6


def against_loop(
    device: str, *, tables: Mapping[str, Any] = DECODER, p: int = 97, lanes: int = 64, seconds: float = 20.0
) -> list[Row]:
    """The decoder under Grokfast-EMA, by precision: against the authors' loop, and against what the device can do."""
    specs = {name: replace(trial(tables, "grokfast-ema"), precision=name) for name in PRECISIONS}
    # One after the other: float32 products are tf32 or not for the whole process, as the last program asked.
    found = {name: alternate({"pack": stepper(spec, lanes, device), "loop": Loop(p, device).steps},
                             seconds=seconds / len(specs), rounds=5) for name, spec in specs.items()}  # fmt: skip
    flops, ceiling, each = lanes * pack(specs["fp32"], 2).flops_per_step, best_rate(device), launch(device)
    rows = []
    for name, spec in specs.items():
        ours, theirs = found[name]["pack"] / lanes, found[name]["loop"]
        launches = launched(spec, lanes, device)
        arithmetic, launching = flops / ceiling, launches * each
        floor = max(arithmetic, launching)
        rows += [
            Row(f"decoder, {lanes} replicas, {name}: steps/s against the authors' loop", f">= {FASTER:g}x",
                f"{theirs / ours:.1f}x", theirs / ours >= FASTER, f"{ms(ours)} a replica-step", f"{ms(theirs)} a step"),
            Row(f"decoder, {lanes} replicas, {name}: share of what the device can do", f">= {100 * SHARE:.0f} %",
                f"{100 * floor / found[name]['pack']:.0f} %", floor / found[name]["pack"] >= SHARE,
                f"{ms(found[name]['pack'])} a step", floor=ms(floor),
                note=f"{ms(arithmetic)} at {ceiling / 1e12:.3g} TFLOP/s, {launches} launches {ms(launching)}"),
        ]  # fmt: skip
    return rows


def by_replicas(
    device: str, *, tables: Mapping[str, Any] = DECODER, p: int = 97, sizes: Sequence[int] = REPLICAS,
    seconds: float = 40.0,
) -> list[Row]:
    """Replica-steps a second over the authors' loop, for packs of R replicas."""
    spec, text, each = trial(tables, "grokfast-ema"), [], []
    for size in sizes:
        took = alternate({"pack": stepper(spec, size, device) if size > 1 else lone(spec, device),
                          "loop": Loop(p, device).steps}, seconds=seconds / len(sizes), rounds=3)  # fmt: skip
        each.append(took["pack"] / size)
        text.append(f"{size}: {took['loop'] * size / took['pack']:.1f}x")
    falling = all(after <= 1.1 * before for before, after in itertools.pairwise(each))
    return [Row("decoder, fp32: speed-up over the authors' loop by replicas", "cost flat or falling", ", ".join(text),
                falling, ", ".join(ms(one) for one in each))]  # fmt: skip


ROWS: dict[str, Callable[[str], list[Row]]] = {"loop": against_loop, "replicas": by_replicas}


def lone(spec: TrialSpec, device: str) -> Callable[[int], None]:
    """A replica alone, which runs as two equal lanes."""
    return stepping(Lanes(Program(spec, REGISTRY, device), [0], [0, 0]))


def best_rate(device: str) -> float:
    """FLOP/s of the better of tf32 and bf16 matrix products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        size = 8192 if torch.device(device).type == "cuda" else 256
        return max(matmul_rate(dtype, device, size) for dtype in (torch.float32, torch.bfloat16))
    finally:
        torch.set_float32_matmul_precision(before)


def launch(device: str) -> float:
    """Seconds of a launch with next to nothing to do."""
    one = torch.zeros(1, device=device)

    def add(n: int) -> None:
        for _ in range(n):
            one.add_(1)

    return alternate({"add": add}, seconds=0.5, rounds=5)["add"]


class Launches(TorchDispatchMode):
    """Counts the operations that are not mere views while inside; one CUDA graph is one, whatever it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        aliases = [one.alias_info for one in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        self.count += not view and func is not torch.ops.aten._unsafe_view.default
        return func(*args, **(kwargs or {}))


def launched(spec: TrialSpec, lanes: int, device: str) -> int:
    """Operations that the CPU launches in a step of a pack."""
    mine = pack(spec, lanes, device)
    with torch.no_grad():
        for step in (1, 2):  # the first of all sets things up
            mine.step(step)
        with Launches() as counted:
            mine.step(3)
    return counted.count


def about(device: str) -> str:
    """Where and when this was measured."""
    return (
        f"# What was measured on a GPU\n\n{datetime.now(UTC):%Y-%m-%d}, {device_name(device)}, "
        f"{torch.cuda.device_count()} of them, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"Python {platform.python_version()}, commit {(git_sha() or 'unknown')[:12]}. Ratios are of figures taken in "
        "turns in one run."
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"which; default all: {', '.join(ROWS)}")
    parser.add_argument("--write", metavar="FILE", type=Path, help="also write the table there")
    asked = parser.parse_args(words)
    if unknown := [name for name in asked.rows if name not in ROWS]:
        parser.error(f"unknown rows {', '.join(unknown)}; allowed: {', '.join(ROWS)}")
    if not torch.cuda.is_available():
        print("bench-gpu: torch sees no GPU here; nothing was measured, nothing written", file=sys.stderr)
        raise SystemExit(2)
    text = table([row for name in asked.rows or ROWS for row in ROWS[name]("cuda")])
    print(text)
    if asked.write:
        asked.write.write_text(f"{about('cuda')}\n\n{text}\n")


if __name__ == "__main__":
    main()
