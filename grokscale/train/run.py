"""Training and timing a trial."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch

from grokscale import registry as registry_
from grokscale.entries import Registry
from grokscale.outcomes import UNTIL
from grokscale.spec import TrialSpec
from grokscale.train.lanes import Lanes
from grokscale.train.pack import Evaluation, Pack
from grokscale.train.program import Program

BLOCK = 40  # steps that a trial takes in its turn when trials are timed: a multiple of the usual periods
TURNS, TURNS_MIN = 50, 5
SPEND_S = 3.0  # on a trial, where that is more than TURNS_MIN turns


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
    crossing is decided, "stable" watches one that grokked until 2 x grok_step, "horizon" so too, and all to the
    horizon.  state: a snapshot to go on from, of these seeds or more and with the same metrics: split run == whole
    run, bit for bit.  metrics: names of measures (`grokscale metrics`), which change no number.  at_least: a replica
    is watched to this step even if it is decided sooner.  compiled: compile the gradient where there is a compiler:
    another class of numerics, worth half a minute for runs that take many.  keep: "final" gives the weights of a
    replica at the evaluation that ends it (`Evaluation.kept`), "log-spaced" at the first evaluation after every power
    of two besides.
    """
    if until not in UNTIL:
        raise ValueError(f"until must be one of {', '.join(UNTIL)}, got {until!r}")
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


def timings(
    specs: Sequence[TrialSpec], *, device: str = "cpu", registry: Registry | None = None
) -> list[tuple[float, float]]:
    """Solo seconds per step of one replica of each trial: (with the method, with the method off), evaluation left out.

    The trials take turns, BLOCK steps each, for TURNS rounds or what SPEND_S allows; of every trial the median counts.
    What they are compared by are ratios: a machine that is slower for a while is so for all of them.
    Off is the same trial with method "none"; the two differ only for a method that has a switch, else both are on.
    As in a long run: what is written down after a while (`replay`) is from the start.
    """
    pairs = []
    for spec in specs:
        entries = registry or registry_.load(spec.plugins)
        on = Program(spec, entries, device, patience=0)
        off = on.transform.active and Program(spec, entries, device, methods=[{"name": "none"}], patience=0)
        pairs.append((_Watch(on), _Watch(off) if off else None))
    watches = [watch for pair in pairs for watch in pair if watch is not None]
    for watch in watches:
        watch.block()  # to get warm
    spent = sum(watch.block() for watch in watches)
    for _ in range(min(TURNS, max(TURNS_MIN, int(SPEND_S * len(watches) / spent))) - 1):
        for watch in watches:
            watch.block()
    return [(on.seconds, off.seconds if off else on.seconds) for on, off in pairs]


class _Watch:
    """A single lane, and how long its blocks of steps took."""

    def __init__(self, program: Program) -> None:
        self.lanes, self.step = Lanes(program, [0], [0]), 0
        self.blocks: list[float] = []

    def block(self) -> float:
        """Take BLOCK steps; seconds of all of them."""
        device = self.lanes.program.device
        with torch.no_grad():
            _wait(device)
            began = time.perf_counter()
            for _ in range(BLOCK):
                self.step += 1
                self.lanes.step(self.step)
            _wait(device)
        self.blocks.append(time.perf_counter() - began)
        return self.blocks[-1]

    @property
    def seconds(self) -> float:
        """Per step, the median over blocks but for the first."""
        return float(np.median(self.blocks[1:])) / BLOCK


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
