"""Training and timing a trial."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch

from grokscale import registry as registry_
from grokscale.entries import Registry
from grokscale.spec import TrialSpec
from grokscale.train.lanes import Lanes
from grokscale.train.pack import Evaluation, Pack
from grokscale.train.program import Program


def train(
    spec: TrialSpec,
    seeds: Sequence[int],
    *,
    horizon: int,
    until: str = "decided",
    state: dict[str, Any] | None = None,
    device: str = "cpu",
    registry: Registry | None = None,
    metrics: Sequence[str] = (),
    at_least: int = 0,
    compiled: bool = False,
    keep: str | None = None,
) -> Generator[Evaluation]:
    """Train the replicas `seeds` of a trial; yield at every evaluation of the trial's schedule.

    horizon: steps after which a replica that has not grokked is given up.  until: "decided" stops a replica once its
    crossing is decided, "stable" watches one that grokked until 2 x grok_step.  state: a snapshot to go on from, of
    these seeds or more and with the same metrics: split run == whole run, bit for bit.  metrics: names of measures
    (`grokscale metrics`), which change no number.  at_least: a replica is watched to this step even if it is decided
    sooner.  compiled: compile the gradient where there is a compiler: another class of numerics, worth half a minute
    for runs that take many.  keep: "final" gives the weights of a replica at the evaluation that ends it
    (`Evaluation.kept`), "log-spaced" at the first evaluation after every power of two besides.
    """
    if until not in ("decided", "stable"):
        raise ValueError(f"until must be 'decided' or 'stable', got {until!r}")
    if keep not in (None, "final", "log-spaced"):
        raise ValueError(f"keep must be 'final', 'log-spaced' or None, got {keep!r}")
    program = Program(spec, registry or registry_.load(spec.plugins), device, metrics=metrics, compiled=compiled)
    with torch.no_grad():
        pack = Pack(program, seeds, horizon, until, state, at_least, keep)
    while not pack.done:
        with torch.no_grad():  # not around the yield: it would leak into whoever iterates
            evaluation = pack.run_to_next_evaluation()
        yield evaluation


def packs(seeds: Sequence[int], lanes: int) -> list[list[int]]:
    """Seeds in packs of at most `lanes`."""
    return [list(seeds[i : i + lanes]) for i in range(0, len(seeds), lanes)]


def timing(
    spec: TrialSpec, *, steps: int = 200, device: str = "cpu", registry: Registry | None = None
) -> tuple[float, float]:
    """Solo seconds per step of one replica alone: (with the method, with the method off), evaluation not counted.

    Off is the same trial with method "none"; the two differ only for a method that has a switch, else both are on.
    As in a long run: what is written down after a while (`replay`) is from the start.
    """
    registry = registry or registry_.load(spec.plugins)
    program = Program(spec, registry, device, patience=0)
    on = _seconds_per_step(program, steps)
    if program.transform.active is None:
        return on, on
    return on, _seconds_per_step(Program(spec, registry, device, methods=[{"name": "none"}], patience=0), steps)


def _seconds_per_step(program: Program, steps: int) -> float:
    """Seconds per step of a single lane, the median over blocks after a warm-up block."""
    lanes = Lanes(program, [0], [0])
    block = max(1, steps // 5)
    times = []
    with torch.no_grad():
        for i in range(6):
            _wait(program.device)
            start = time.perf_counter()
            for step in range(i * block + 1, (i + 1) * block + 1):
                lanes.step(step)
            _wait(program.device)
            times.append((time.perf_counter() - start) / block)
    return float(np.median(times[1:]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
