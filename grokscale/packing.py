"""How many replicas fit side by side into a device's memory, measured: what `resources.lanes = "auto"` means."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from grokscale.memory import machine
from grokscale.spec import TrialSpec
from grokscale.train import lanes_for, train

MARGIN = 0.8  # of what is free: allocators waste some, and the interpreter and kernels want some
LOOKS = 2  # evaluations of a small pack that are measured, the steps between them included
CGROUP = Path("/sys/fs/cgroup")


def fitting(
    spec: TrialSpec, seeds: Sequence[int], *, horizon: int, device: str = "cpu", devices: int = 1, share: float = 1.0,
    **options: Any,
) -> int:
    """Lanes of the largest pack of these replicas that fits: memory grows by the same with every lane.

    device: the first of `devices` that deal the replicas out among them.  share: of a device's memory, that this
    trial may have.  options: of `train`.
    """
    wanted = lanes_for(len(seeds))
    if wanted <= 2 * devices:
        return wanted
    two, four = (peak(spec, seeds[:n], horizon=horizon, device=device, **options) for n in (2, 4))
    lane = max((four - two) / 2, 1.0)
    fixed, room = max(two - 2 * lane, 0.0), MARGIN * free(device, share)
    lanes = lanes_for(2 * devices)
    while lanes < wanted and fixed + 2 * lanes / devices * lane <= room:
        lanes *= 2
    return lanes


def peak(spec: TrialSpec, seeds: Sequence[int], *, horizon: int, device: str = "cpu", **options: Any) -> float:
    """Bytes that a pack has at most, as torch's allocator counts them."""
    run = train(spec, seeds, horizon=horizon, device=device, **options)
    with contextlib.closing(run):
        if torch.device(device).type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            _look(run)
            return float(torch.cuda.max_memory_allocated(device) - before)
        profile: Any = torch.autograd.profiler.profile(profile_memory=True)  # its events have no types
        with profile:
            _look(run)
    held = most = 0
    events = (event for event in profile.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return float(most)


def _look(run: Any) -> None:
    for _ in range(LOOKS):
        if next(run, None) is None:
            return


def free(device: str = "cpu", share: float = 1.0) -> float:
    """Bytes that a trial may take: its share of the memory, and no more than nobody has."""
    if torch.device(device).type == "cuda":
        left, total = torch.cuda.mem_get_info(device)
        return min(float(left), share * total)
    total, left = machine() or 0.0, _meminfo().get("MemAvailable", machine() or 0.0)
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        limit = float((CGROUP / "memory.max").read_text())
        total, left = min(total, limit), min(left, limit - float((CGROUP / "memory.current").read_text()))
    return min(left, share * total)


def share_of(threads: int, gpus: float) -> float:
    """What one trial may have of a device's memory, of which Ray starts as many as fit."""
    if gpus:
        return min(1.0, gpus)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(1.0, threads / cores)


def _meminfo() -> Mapping[str, float]:
    """Linux's figures by name, in bytes; none elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {name: 1024 * float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
