"""What a sweep would do and cost, before it does anything: `grokscale sweep FILE --dry-run`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from grokscale import memory, search, stats
from grokscale.entries import Registry
from grokscale.report.words import grid, number
from grokscale.spec import Resolved, TrialSpec, seed_for
from grokscale.train import packs, train

TASTE_S = 1.0  # a few real steps: about this long for each size of pack


@dataclass(frozen=True)
class Phase:
    """What one phase may come to. horizon: of a replica.  packs: replicas in each of a trial's packs."""

    name: str
    trials: int
    seeds: int
    horizon: int
    packs: tuple[int, ...]

    @property
    def replicas(self) -> int:
        return self.trials * self.seeds

    @property
    def steps(self) -> int:
        """Optimiser steps of all replicas."""
        return self.replicas * self.horizon


def phases(resolved: Resolved) -> list[Phase]:
    """The phases at their largest: no trial capped, every replica to its horizon.

    A confirmed replica that groks is watched to twice its grok step, hence 2 x horizon; its own
    horizon is set after the race and may be longer.
    """
    x = resolved.experiment
    sizes = [search.size(arm, x.search.trials) for arm in resolved.arms]
    raced = sum(min(size, x.race.top) for size in sizes)
    asked = [
        ("search", sum(sizes), x.search.seeds, resolved.horizon),
        ("race", raced if x.search.trials else 0, x.race.seeds, resolved.horizon),
        ("confirm", len(resolved.arms), x.confirm.seeds, 2 * resolved.horizon),
    ]
    return [
        Phase(name, trials, seeds, horizon, tuple(map(len, packs(range(seeds), x.resources.lanes or seeds))))
        for name, trials, seeds, horizon in asked if trials and seeds
    ]  # fmt: skip


def taste(spec: TrialSpec, seeds: Sequence[int], horizon: int, registry: Registry) -> float:
    """Seconds per step of a pack, its evaluations included, from a few real steps."""
    began, first = 0.0, 0
    evaluations = train(spec, seeds, horizon=horizon, registry=registry)
    step = now = 0.0
    for evaluation in evaluations:
        step, now = evaluation.step, time.perf_counter()
        if not began:
            began, first = now, evaluation.step  # what came before was also setting up
        elif now - began >= TASTE_S:
            break
    evaluations.close()
    return (now - began) / (step - first) if step > first else math.nan


def dry_run(resolved: Resolved, registry: Registry) -> str:
    """The plan as text: trials, replicas, steps, device-hours, the S that the confirmation can show, memory.

    Raises InputError where a method would remember more than is allowed.
    """
    x = resolved.experiment
    remembered = memory.largest(resolved, registry)
    memory.refuse(resolved, remembered)
    torch.set_num_threads(x.resources.cpus)
    spec = resolved.trial(x.baseline)
    plan = phases(resolved)
    sizes = sorted({size for phase in plan for size in phase.packs})
    cost = {n: taste(spec, [seed_for("run", k) for k in range(n)], resolved.horizon, registry) for n in sizes}
    hours = {p.name: p.trials * p.horizon * sum(cost[n] for n in p.packs) / 3600 for p in plan}
    rows = [
        [p.name, str(p.trials), str(p.seeds), str(p.replicas), number(p.steps), f"{hours[p.name]:.2g}"]
        for p in plan
    ]
    rows.append(
        [
            "in all",
            str(sum(p.trials for p in plan)),
            "",
            str(sum(p.replicas for p in plan)),
            number(sum(p.steps for p in plan)),
            f"{sum(hours.values()):.2g}",
        ]
    )
    device = "device" if x.resources.gpus else f"{x.resources.cpus}-CPU"
    lines = [
        f"{resolved.sweep_id}: {len(resolved.arms)} arms, baseline {x.baseline}, "
        f"horizon {number(resolved.horizon)} steps",
        "",
        grid(["phase", "trials", "seeds", "replicas", "steps at most", f"{device}-hours"], rows, "<>>>>>"),
        "",
        "At most: no trial capped, nothing taken from the store, confirmed replicas watched to twice",
        "the horizon. Hours at the speed of the baseline's packs in this process:",
        ", ".join(f"{n} replicas {1e3 * cost[n]:.2g} ms a step" for n in sizes) + ".",
    ]
    if x.confirm.seeds:
        s = stats.detectable(x.confirm.seeds)
        shown = f"S = {s:.2f} or more" if math.isfinite(s) else "no S at all: an interval takes two seeds"
        lines.append(f"{x.confirm.seeds} confirmation seeds show {shown} with 80 % power.")
    else:
        lines.append("confirm.seeds = 0: everything stays exploratory.")
    lines += memory.shown(remembered)
    return "\n".join([*lines, "Nothing was written."]) + "\n"
